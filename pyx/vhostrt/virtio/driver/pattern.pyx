"""What a load that verifies writes and checks, sector by sector."""
from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #define VH_PATTERN_STEP 0x9e3779b97f4a7c15u
    #define VH_PATTERN_MAGIC 0x7668727470657266u
    """
    uint64_t STEP "VH_PATTERN_STEP"
    uint64_t MAGIC "VH_PATTERN_MAGIC"


cdef inline uint64_t header_sum(uint64_t where, uint64_t which) noexcept nogil:
    return mix64(mix64(where ^ MAGIC) + which)


cdef void pattern_fill(uint64_t *words, const pattern_t *p) noexcept nogil:
    """Write one sector."""
    cdef uint64_t total
    cdef int i
    words[0] = p.offset
    words[1] = <uint64_t>p.generation << 32 | p.seed
    total = words[2] = header_sum(words[0], words[1])
    for i in range(3, PATTERN_WORDS):
        words[i] = (total + i * STEP) ^ (total >> (i & 31))


cdef inline bint body_is(const uint64_t *words, uint64_t total) noexcept nogil:
    cdef uint64_t different = 0
    cdef int i
    for i in range(3, PATTERN_WORDS):
        different |= words[i] ^ (total + i * STEP) ^ (total >> (i & 31))
    return different == 0


cdef uint32_t pattern_check(const uint64_t *words, const pattern_t *p,
                            pattern_fault_t *fault) noexcept nogil:
    """Return PATTERN_OK, or what is wrong with one sector and, in *fault, more about it."""
    cdef uint64_t where = words[0]
    cdef uint64_t which = words[1]
    cdef uint64_t total = words[2]
    cdef uint64_t wanted = <uint64_t>p.generation << 32 | p.seed
    cdef uint32_t kind = PATTERN_OK
    if where == 0 and which == 0 and total == 0:
        kind = PATTERN_ZERO
    elif total != header_sum(where, which) or not body_is(words, total):
        kind = PATTERN_DAMAGED
    elif where != p.offset:
        kind = PATTERN_ELSEWHERE
    elif not p.any_run and <uint32_t>which != p.seed:
        kind = PATTERN_RUN
    elif not p.any_run and which != wanted:
        kind = PATTERN_GENERATION
    if kind != PATTERN_OK:
        fault.offset = p.offset
        fault.kind = kind
        fault.wanted = p.generation
        fault.found = <uint32_t>(which >> 32)
        fault.belongs = where
    return kind
