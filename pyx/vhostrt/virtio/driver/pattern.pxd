"""What a load that verifies writes: every sector says where it belongs and which write it is of.

A sector is 64 words: its byte offset on the disk; the generation (how often the place was written)
and the seed of the run; a checksum of these; and 61 words that follow from them.
Threads:  any; no state.
"""
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    PATTERN_SECTOR = 512
    PATTERN_WORDS = 64
    # What is wrong with a sector.
    PATTERN_OK = 0
    PATTERN_ZERO                # nothing but zeros where the header should be
    PATTERN_DAMAGED             # the header's checksum, or what follows it, is wrong
    PATTERN_ELSEWHERE           # whole, but of another place
    PATTERN_GENERATION          # whole, but of another write of this place
    PATTERN_RUN                 # whole, but of another run

cdef struct pattern_t:
    uint64_t offset             # bytes, where the sector lies
    uint32_t generation
    uint32_t seed
    bint any_run                # neither generation nor seed are known

cdef struct pattern_fault_t:
    uint64_t offset             # of the sector, bytes
    uint32_t kind               # PATTERN_ZERO ...
    uint32_t wanted             # generation
    uint32_t found              # generation, where the header is whole
    uint64_t belongs            # the offset that the header tells, where it is whole

cdef void pattern_fill(uint64_t *words, const pattern_t *p) noexcept nogil
cdef uint32_t pattern_check(const uint64_t *words, const pattern_t *p,
                            pattern_fault_t *fault) noexcept nogil


cdef inline uint64_t mix64(uint64_t x) noexcept nogil:
    """Spread a number over 64 bits (the finalizer of splitmix64)."""
    x = (x ^ (x >> 30)) * <uint64_t>0xbf58476d1ce4e5b9
    x = (x ^ (x >> 27)) * <uint64_t>0x94d049bb133111eb
    return x ^ (x >> 31)
