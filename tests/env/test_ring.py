"""vhostrt.env.ring from Python: order, capacity, all or nothing, and refusals."""
import errno
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostrt.env.ring import Ring

KINDS = ["mp_sc", "sp_sc", "mp_mc"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_slot_is_never_used(kind):
    ring = Ring(65536, kind)
    assert ring.capacity == 65535
    assert ring.enqueue(range(65535)) == 65535
    assert ring.enqueue([1]) == 0
    assert len(ring) == 65535


@pytest.mark.parametrize("kind", KINDS)
def test_enqueue_is_all_or_nothing_and_dequeue_is_not(kind):
    ring = Ring(8, kind)
    assert ring.enqueue(range(6)) == 6
    assert ring.enqueue([7, 8]) == 0
    assert len(ring) == 6
    assert ring.dequeue(99) == [0, 1, 2, 3, 4, 5]
    assert ring.dequeue(1) == []
    assert ring.enqueue([]) == 0


@pytest.mark.parametrize("kind", KINDS)
@given(moves=st.lists(st.one_of(st.lists(st.integers(0, 2**64 - 1), max_size=9),
                                st.integers(0, 9)), max_size=60))
def test_like_a_deque(kind, moves):
    ring, model = Ring(8, kind), deque()
    for move in moves:
        if isinstance(move, int):
            assert ring.dequeue(move) == [model.popleft() for _ in range(min(move, len(model)))]
        else:
            room = ring.capacity - len(model)
            assert ring.enqueue(move) == (len(move) if len(move) <= room else 0)
            model.extend(move if len(move) <= room else [])
        assert len(ring) == len(model)


@pytest.mark.parametrize("count", [0, 1, 3, 100, -8, 2**31, 2**64])
def test_count_refused(count):
    with pytest.raises(OSError, match=f"ring of {count} slots") as refused:
        Ring(count)
    assert refused.value.errno == errno.EINVAL


def test_kind_refused():
    with pytest.raises(ValueError, match="'sp_mc'.*mp_sc, sp_sc, mp_mc"):
        Ring(8, "sp_mc")


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
