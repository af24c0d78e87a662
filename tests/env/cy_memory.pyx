"""vhostrt.env.memory at the C level: who is told of segments, and threads that take and give."""
import errno
import os

import pytest
from libc.errno cimport ENOSPC, EPERM
from libc.stdint cimport UINT64_MAX, int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from vhostrt.base.atomics cimport fetch_add_u32
from vhostrt.env.memory cimport (env_free, env_iova, env_owns, env_ready, env_realloc,
                                 env_unwatch_segments, env_watch_segments, env_zalloc)

from vhostrt.env import memory
from vhostrt.env.options import EnvOptions

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t *thread, const void *attr, void *(*fn)(void *) noexcept nogil,
                       void *arg)
    int pthread_join(pthread_t thread, void **result)

cdef enum:
    SEEN = 64
    THREADS = 4
    HELD = 32

MIB = 1 << 20


cdef struct watch_t:
    # What one watch was told, in order: addresses, sizes, negative when it goes.
    uint32_t count
    uint64_t at[SEEN]
    int64_t size[SEEN]
    int refuse_after            # segments that it takes; -1: all
    int answer


cdef int told(void *ctx, void *at, size_t size, bint added) noexcept nogil:
    cdef watch_t *w = <watch_t *>ctx
    if added and w.refuse_after == 0:
        return w.answer
    w.refuse_after -= 1 if added and w.refuse_after > 0 else 0
    if w.count < SEEN:
        w.at[w.count] = <uintptr_t>at
        w.size[w.count] = <int64_t>size if added else -<int64_t>size
        w.count += 1
    return 0


cdef void reset(watch_t *w, int refuse_after=-1) noexcept:
    memset(w, 0, sizeof(watch_t))
    w.refuse_after = refuse_after
    w.answer = -EPERM


cdef list seen(watch_t *w):
    return [(w.at[i], w.size[i]) for i in range(w.count)]


cdef list there():
    return [(s["address"], s["size"]) for s in memory.segments()]


def gone(segments):
    return [(at, -size) for at, size in segments]


@pytest.mark.usefixtures("heap")
def test_a_watch_is_told_of_what_is_there_and_of_what_comes_and_goes():
    cdef watch_t w
    reset(&w)
    first = memory.zalloc(MIB)
    assert env_watch_segments(told, &w) == 0
    assert seen(&w) == there() and w.count == 1
    before = there()
    second = memory.zalloc(8 * MIB)
    came = [s for s in there() if s not in before]
    assert len(came) == 1 and seen(&w) == before + came
    second.free()
    assert seen(&w) == before + came + gone(came)
    env_unwatch_segments(told, &w)
    third = memory.zalloc(16 * MIB)
    assert w.count == 3, "it is told although it does not watch any more"
    third.free()
    first.free()


@pytest.mark.usefixtures("clean")
def test_a_watch_may_be_there_first_and_sees_the_end():
    cdef watch_t w
    reset(&w)
    assert env_watch_segments(told, &w) == 0
    memory.init(EnvOptions(mem_size=4 * MIB, no_huge=True))
    segments = there()
    assert seen(&w) == segments and len(segments) == 1
    memory.fini()
    assert seen(&w) == segments + gone(segments)
    env_unwatch_segments(told, &w)


@pytest.mark.usefixtures("heap")
def test_a_watch_that_refuses_what_is_there_is_told_that_the_rest_goes():
    cdef watch_t w
    blocks = [memory.zalloc(size * MIB) for size in (1, 4, 16)]
    reset(&w, 2)
    assert env_watch_segments(told, &w) == -EPERM
    assert seen(&w) == there()[:2] + gone(there()[:2])
    blocks.append(memory.zalloc(64 * MIB))
    assert w.count == 4, "it watches although it has refused"
    del blocks


@pytest.mark.usefixtures("heap")
def test_a_segment_that_one_watch_refuses_is_not_had_and_the_others_forget_it():
    cdef watch_t good, bad
    reset(&good)
    reset(&bad, 0)
    assert env_watch_segments(told, &good) == 0
    assert env_watch_segments(told, &bad) == 0
    with pytest.raises(OSError) as refused:
        memory.zalloc(MIB)
    assert refused.value.errno == errno.ENOMEM
    assert memory.stats()["total"] == 0
    assert good.count == 2 and good.size[1] == -good.size[0] and bad.count == 0
    env_unwatch_segments(told, &bad)
    assert len(memory.zalloc(MIB)) == MIB
    env_unwatch_segments(told, &good)


@pytest.mark.usefixtures("clean")
def test_a_watch_may_refuse_the_start():
    cdef watch_t good, bad
    reset(&good)
    reset(&bad, 0)
    assert env_watch_segments(told, &good) == 0
    assert env_watch_segments(told, &bad) == 0
    with pytest.raises(OSError, match="refused by who watches them"):
        memory.init(EnvOptions(mem_size=4 * MIB, no_huge=True))
    assert not memory.ready() and good.count == 2 and good.size[1] == -good.size[0]
    env_unwatch_segments(told, &bad)
    env_unwatch_segments(told, &good)


@pytest.mark.usefixtures("heap")
def test_eight_can_watch():
    cdef watch_t w[9]
    cdef int i
    for i in range(8):
        reset(&w[i])
        assert env_watch_segments(told, &w[i]) == 0
    reset(&w[8])
    assert env_watch_segments(told, &w[8]) == -ENOSPC
    env_unwatch_segments(told, &w[3])
    assert env_watch_segments(told, &w[8]) == 0
    for i in range(9):
        env_unwatch_segments(told, &w[i])


@pytest.mark.usefixtures("heap")
def test_a_block_keeps_what_it_holds_when_its_size_changes():
    cdef char *block = <char *>env_zalloc(1000, 0, -1)
    cdef char *neighbour = <char *>env_zalloc(64, 0, -1)
    cdef char *moved
    memset(block, 7, 1000)
    moved = <char *>env_realloc(block, 5000, 256)
    assert moved is not NULL and moved != block, "it has a neighbour"
    assert moved[:5000] == b"\7" * 1000 + bytes(4000) and <uintptr_t>moved % 256 == 0
    assert env_realloc(moved, 10, 0) == moved and moved[:10] == b"\7" * 10
    assert env_realloc(moved, 1000, 0) == moved and moved[:1000] == b"\7" * 10 + bytes(990)
    assert env_realloc(NULL, 0, 0) is NULL
    block = <char *>env_realloc(NULL, 64, 0)
    assert block is not NULL and block[:64] == bytes(64)
    assert env_free(block) == env_free(moved) == env_free(neighbour) == env_free(NULL) == 0


@pytest.mark.usefixtures("clean")
def test_a_block_that_has_no_room_to_grow_is_as_it_was():
    cdef char *block
    memory.init(EnvOptions(mem_size=2 * MIB, no_huge=True))
    block = <char *>env_zalloc(1 << 20, 0, -1)
    memset(block, 9, 1 << 20)
    assert env_realloc(block, 4 << 20, 0) is NULL
    assert block[:1 << 20] == b"\t" * MIB and memory.stats()["blocks"] == 1
    assert env_free(block) == 0


@pytest.mark.usefixtures("clean")
def test_without_memory():
    cdef int local
    assert not env_ready() and env_zalloc(64, 0, -1) is NULL and env_free(&local) < 0
    assert not env_owns(&local) and env_iova(&local) == UINT64_MAX
    assert env_realloc(NULL, 64, 0) is NULL


@pytest.mark.usefixtures("clean")
def test_devices_that_see_addresses_of_the_process():
    cdef void *block
    memory.init(EnvOptions(iova_mode="va", no_huge=True))
    block = env_zalloc(3 << 20, 0, -1)
    assert env_iova(<char *>block + 12345) == <uintptr_t>block + 12345
    assert env_iova(&block) == UINT64_MAX, "an address that is not of the heap"
    assert env_free(block) == 0


cdef struct worker_t:
    uint32_t rounds
    uint32_t seed
    uint32_t *wrong


cdef uint32_t next_random(uint32_t *seed) noexcept nogil:
    seed[0] = seed[0] * 1664525 + 1013904223
    return seed[0] >> 8


cdef void *take_and_give(void *arg) noexcept nogil:
    """Take and give blocks in a row; each is full of its owner's number while it is held."""
    cdef worker_t *w = <worker_t *>arg
    cdef uint32_t *held[HELD]
    cdef uint32_t sizes[HELD]
    cdef uint32_t k, at
    memset(held, 0, sizeof(held))
    for _ in range(w.rounds):
        at = next_random(&w.seed) % HELD
        if held[at] is not NULL:
            for k in range(sizes[at]):
                fetch_add_u32(w.wrong, held[at][k] != sizes[at])
            fetch_add_u32(w.wrong, env_free(held[at]) != 0)
        sizes[at] = 1 + next_random(&w.seed) % 3000
        held[at] = <uint32_t *>env_zalloc(sizes[at] * sizeof(uint32_t), 0, -1)
        if held[at] is NULL:
            fetch_add_u32(w.wrong, 1)
            continue
        for k in range(sizes[at]):
            fetch_add_u32(w.wrong, held[at][k] != 0)
            held[at][k] = sizes[at]
    for at in range(<uint32_t>HELD):
        fetch_add_u32(w.wrong, env_free(held[at]) != 0)
    return NULL


@pytest.mark.usefixtures("heap")
def test_stress_threads_take_and_give():
    cdef pthread_t threads[THREADS]
    cdef worker_t workers[THREADS]
    cdef uint32_t wrong = 0
    cdef int i, done
    rounds = 500 * int(os.environ.get("VHOSTRT_STRESS", 1))
    for i in range(THREADS):
        workers[i].rounds = rounds
        workers[i].seed = i + 1
        workers[i].wrong = &wrong
        assert pthread_create(&threads[i], NULL, take_and_give, &workers[i]) == 0
    with nogil:
        for done in range(THREADS):
            pthread_join(threads[done], NULL)
    assert wrong == 0
    assert memory.stats()["blocks"] == 0 and memory.stats()["total"] == 0
