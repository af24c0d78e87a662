"""vhostrt.env.ring from Python: order, capacity, all or nothing or what fits, and refusals."""
import errno
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostrt.env import memory
from vhostrt.env.ring import Ring

KINDS = ["mp_sc", "sp_sc", "mp_mc", "sp_mc"]


@pytest.mark.parametrize("kind", KINDS)
def test_check_14_capacity_and_all_or_nothing(kind):
    ring = Ring(65536, kind)
    assert ring.capacity == 65535
    assert ring.enqueue(range(65534)) == 65534
    assert ring.enqueue([1, 2]) == 0, "two into one free slot"
    assert ring.enqueue([65534]) == 1
    assert ring.enqueue([1]) == 0
    assert len(ring) == 65535
    assert ring.dequeue(65536) == list(range(65535)), "nothing is lost when it overflows"


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_suffix_enqueue_is_all_or_nothing_and_dequeue_is_not(kind):
    ring = Ring(8, kind)
    assert ring.enqueue(range(6)) == 6
    assert ring.enqueue([7, 8]) == 0
    assert len(ring) == 6
    assert ring.dequeue(99) == [0, 1, 2, 3, 4, 5]
    assert ring.dequeue(1) == []
    assert ring.enqueue([]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_bursts_move_what_fits_and_bulks_all_or_nothing(kind):
    ring = Ring(8, kind)
    assert ring.enqueue_burst(range(5)) == 5
    assert ring.enqueue_burst([5, 6, 7, 8]) == 2
    assert ring.enqueue_burst([9]) == 0
    assert ring.dequeue_bulk(8) == []
    assert ring.dequeue_bulk(4) == [0, 1, 2, 3]
    assert ring.dequeue_bulk(4) == []
    assert ring.dequeue_bulk(0) == []
    assert ring.dequeue(4) == [4, 5, 6]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "slots"), [(1, 2), (2, 4), (3, 4), (4, 8), (7, 8), (1000, 1024)])
def test_exact_capacity(kind, count, slots):
    ring = Ring(count, kind, exact=True)
    assert (ring.capacity, ring.exact, len(memoryview(ring)) // 8) == (count, True, slots)
    for turn in range(5):
        words = list(range(turn, turn + count))
        assert ring.enqueue_burst([*words, 99]) == count
        assert ring.full and ring.enqueue([1]) == 0
        assert ring.dequeue(count + 1) == words


@pytest.mark.parametrize("kind", KINDS)
def test_questions(kind):
    ring = Ring(4, kind)
    assert (ring.kind, ring.exact) == (kind, False)
    assert (len(ring), ring.empty, ring.full, ring.room) == (0, True, False, 3)
    ring.enqueue([1, 2])
    assert (len(ring), ring.empty, ring.full, ring.room) == (2, False, False, 1)
    ring.enqueue([3])
    assert (len(ring), ring.empty, ring.full, ring.room) == (3, False, True, 0)


WORDS = st.lists(st.integers(0, 2**64 - 1), max_size=9)
MOVES = st.lists(st.one_of(
    st.tuples(st.sampled_from(["enqueue", "enqueue_burst"]), WORDS),
    st.tuples(st.sampled_from(["dequeue", "dequeue_bulk"]), st.integers(0, 10))), max_size=60)


def model_of(model, capacity, call, given):
    """Do to a deque what a ring does; return what it answers."""
    if call in ("enqueue", "enqueue_burst"):
        room = capacity - len(model)
        n = len(given) if len(given) <= room else (room if call == "enqueue_burst" else 0)
        model.extend(given[:n])
        return n
    n = given if given <= len(model) else (len(model) if call == "dequeue" else 0)
    return [model.popleft() for _ in range(n)]


@pytest.mark.parametrize("kind", KINDS)
@given(count=st.integers(1, 9), exact=st.booleans(), moves=MOVES)
def test_like_a_deque(kind, count, exact, moves):
    ring, model = Ring(count if exact else 8, kind, exact=exact), deque()
    for call, given_ in moves:
        assert getattr(ring, call)(given_) == model_of(model, ring.capacity, call, given_)
        assert (len(ring), ring.room) == (len(model), ring.capacity - len(model))


@pytest.mark.parametrize("count", [0, 1, 3, 100, -8, 2**31, 2**64])
def test_count_refused(count):
    with pytest.raises(OSError, match=f"ring of {count} slots: Requested size is invalid, must be "
                       "power of 2, and do not exceed the size limit 2147483647") as refused:
        Ring(count)
    assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize("count", [0, -1, 2**30, 2**31, 2**64])
def test_exact_count_refused(count):
    with pytest.raises(OSError, match=f"ring of {count} objects: from 1 to 1073741823") as refused:
        Ring(count, exact=True)
    assert refused.value.errno == errno.EINVAL


def test_kind_refused():
    with pytest.raises(ValueError, match="'many'.*mp_sc, sp_sc, mp_mc, sp_mc"):
        Ring(8, "many")


def test_no_memory(heap):
    memory.fini()
    memory.init(4 << 20, no_huge=True)
    with pytest.raises(OSError, match="ring of 1048576 slots: Cannot reserve memory") as refused:
        Ring(2**20)
    assert refused.value.errno == errno.ENOMEM


def test_object_that_is_no_word_is_refused():
    ring = Ring(8)
    with pytest.raises(OverflowError):
        ring.enqueue([1, 2**64])
    assert len(ring) == 0


def test_slots_share_the_memory_and_keep_it():
    ring = Ring(8)
    slots = ring.slots
    ring.enqueue([11, 22])
    assert slots[:3].tolist() == [11, 22, 0]
    del ring
    assert slots.tolist() == [11, 22, 0, 0, 0, 0, 0, 0]
