"""vhostrt.env.memmap at the C level: maps of compiled code, and threads that read meanwhile."""
import os

from libc.errno cimport EPERM
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from vhostrt.base.atomics cimport fetch_add_u32, fetch_add_u64, fetch_sub_u32, load_relaxed_u32
from vhostrt.env.memmap cimport (map_create, map_free, map_t, map_translate, memmap_register,
                                 memmap_registered, memmap_unregister)
from vhostrt.env.pagetable cimport BIG_PAGE, PAGE, table_clear, table_next, table_run, table_set

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, const void *attr, void *(*fn)(void *), void *arg)
    int pthread_join(pthread_t thread, void **result)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    THREADS = 3

GIB = 1 << 30


cdef struct told_t:
    # What a notify has heard.
    uint64_t bytes              # registered, as it believes
    uint32_t calls
    uintptr_t refused           # it does not take what begins here; 0: it takes all
    map_t *map


cdef int listen(void *ctx, uintptr_t at, size_t size, bint added) noexcept nogil:
    cdef told_t *t = <told_t *>ctx
    if added and at == t.refused:
        return -EPERM
    t.bytes += size if added else -size
    t.calls += 1
    return table_set(&t.map.table, at, size, at) if added else table_clear(&t.map.table, at, size)


def test_a_map_of_compiled_code():
    cdef told_t t
    cdef uintptr_t at = 5 << 30
    memset(&t, 0, sizeof(t))
    assert memmap_register(at, 3 * PAGE) == 0
    assert map_create(&t.map, UINT64_MAX, True, listen, &t) == 0
    assert (t.bytes, t.calls) == (3 * PAGE, 1)
    assert map_translate(t.map, at + 5) == at + 5
    t.refused = at + 4 * PAGE
    assert memmap_register(at, 5 * PAGE) == 0
    assert (t.bytes, t.calls) == (5 * PAGE, 2)
    assert memmap_register(t.refused + PAGE, PAGE) == 0
    assert memmap_unregister(at + PAGE, 4 * PAGE) == 0
    assert memmap_register(t.refused, PAGE) == -EPERM
    assert not memmap_registered(t.refused, 1)
    assert memmap_registered(at + 100, 3 * PAGE - 100)
    assert not memmap_registered(at + 100, 3 * PAGE - 99)
    assert not memmap_registered(at, UINT64_MAX - at + 1)
    assert memmap_unregister(at, 3 * PAGE) == memmap_unregister(at + 5 * PAGE, PAGE) == 0
    assert (t.bytes, memmap_unregister(at, PAGE)) == (PAGE, 0)
    assert t.bytes == 0
    assert map_free(t.map) == 0
    assert map_free(NULL) == 0


def test_the_runs_that_have_a_value_are_found_in_order():
    cdef map_t *m
    cdef uintptr_t at = 0
    cdef size_t size = 0
    assert map_create(&m, UINT64_MAX, True, NULL, NULL) == 0
    assert table_next(&m.table, &at, &size) == UINT64_MAX and size == 0
    places = [(GIB - PAGE, 2 * PAGE, 7 << 30), (GIB + PAGE, BIG_PAGE, 100), (200 * GIB, PAGE, 0),
              ((1 << 48) - PAGE, PAGE, 9)]
    for where, length, value in places:
        assert table_set(&m.table, where, length, value) == 0
    found = []
    at = 0
    while True:
        value = table_next(&m.table, &at, &size)
        if value == UINT64_MAX:
            break
        found.append((at, size, value))
        at += size
    assert found == places
    at = GIB
    assert table_next(&m.table, &at, &size) == (7 << 30) + PAGE and (at, size) == (GIB, PAGE)
    assert map_free(m) == 0


# Stress: one thread changes the values of a few MiB back and forth, in whole entries and in pages;
# others read, and see for each page one of the values it ever has.

cdef struct reading_t:
    map_t *map
    uintptr_t base
    uint32_t turns
    uint32_t writing
    uint32_t wrong
    uint64_t reads


cdef uint64_t value_of(uint32_t turn) noexcept nogil:
    return <uint64_t>(turn % 4 + 1) << 40


cdef void *write(void *arg) noexcept nogil:
    cdef reading_t *r = <reading_t *>arg
    cdef uint32_t turn
    cdef uintptr_t page
    for turn in range(r.turns):
        page = r.base + turn * 7 % 1024 * PAGE
        if turn % 3 == 0:
            table_set(&r.map.table, r.base, 2 * BIG_PAGE, value_of(turn))
        elif turn % 3 == 1:
            table_set(&r.map.table, page, PAGE, value_of(turn) + (page - r.base))
        else:
            table_clear(&r.map.table, page, PAGE)
        if turn % 16 == 0:
            sched_yield()
    fetch_sub_u32(&r.writing, 1)
    return NULL


cdef void *look(void *arg) noexcept nogil:
    cdef reading_t *r = <reading_t *>arg
    cdef uint64_t value
    cdef uintptr_t offset = 1
    cdef uint64_t reads = 0
    cdef size_t size
    while load_relaxed_u32(&r.writing):
        offset = (offset * 1103515245 + 12345) % (2 * BIG_PAGE)
        value = map_translate(r.map, r.base + offset)
        if value != UINT64_MAX and (value - offset) & ~(7ULL << 40):
            fetch_add_u32(&r.wrong, 1)
        size = BIG_PAGE
        table_run(&r.map.table, r.base + offset, &size)
        if size == 0 or size > BIG_PAGE:
            fetch_add_u32(&r.wrong, 1)
        reads += 1
        if reads % 64 == 0:
            sched_yield()
    fetch_add_u64(&r.reads, reads)
    return NULL


def test_stress_values_are_read_while_they_change():
    cdef reading_t r
    cdef pthread_t threads[THREADS]
    cdef int i
    memset(&r, 0, sizeof(r))
    r.turns = 20_000 * int(os.environ.get("VHOSTRT_STRESS", "1"))
    r.base = (1 << 30) - BIG_PAGE               # over the limit of two tables
    r.writing = 1
    assert map_create(&r.map, UINT64_MAX, True, NULL, NULL) == 0
    with nogil:
        for i in range(THREADS):
            pthread_create(&threads[i], NULL, look if i else write, &r)
        for i in range(THREADS):
            pthread_join(threads[i], NULL)
    assert r.wrong == 0
    assert r.reads > 0
    assert map_free(r.map) == 0


# Stress: threads register and unregister overlapping memory; what the map has been told adds up.

cdef struct sharing_t:
    told_t told
    uint32_t turns
    uint32_t next_id
    uint32_t refused


cdef void *register_some(void *arg) noexcept nogil:
    cdef sharing_t *s = <sharing_t *>arg
    cdef uintptr_t at = (9ULL << 30) + fetch_add_u32(&s.next_id, 1) * 100 * PAGE
    cdef uint32_t turn
    cdef size_t size
    for turn in range(s.turns):
        size = (turn % 300 + 1) * <size_t>PAGE
        if memmap_register(at, size) < 0 or not memmap_registered(at, size):
            fetch_add_u32(&s.refused, 1)
        if memmap_unregister(at, size) < 0:
            fetch_add_u32(&s.refused, 1)
    return NULL


def test_stress_registrations_of_several_threads_add_up():
    cdef sharing_t s
    cdef pthread_t threads[THREADS]
    cdef int i
    memset(&s, 0, sizeof(s))
    s.turns = 2_000 * int(os.environ.get("VHOSTRT_STRESS", "1"))
    assert map_create(&s.told.map, UINT64_MAX, True, listen, &s.told) == 0
    with nogil:
        for i in range(THREADS):
            pthread_create(&threads[i], NULL, register_some, &s)
        for i in range(THREADS):
            pthread_join(threads[i], NULL)
    assert s.refused == 0
    assert s.told.bytes == 0 and s.told.calls > s.turns
    assert not memmap_registered(9 << 30, 1)
    assert map_free(s.told.map) == 0
