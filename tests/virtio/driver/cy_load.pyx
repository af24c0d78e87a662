# cython: wraparound=True
"""vhostrt.virtio.driver.load: the loop, against a device in this process that the test plays."""
import mmap
import os
import struct
import threading
import time

import pytest
from libc.stdint cimport uint16_t
from vhostrt.virtio.driver.load cimport Load, load_turn
from vhostrt.virtio.split cimport (split_available, split_head, split_publish, split_push, split_t,
                                   vring_desc)

from vhostrt.base.ticks import hz
from vhostrt.virtio.driver import load as loads

IN, OUT, FLUSH, DISCARD = 0, 1, 4, 11
READ, WRITE, FLUSHES, TRIM = range(4)
NEXT, WRITABLE, INDIRECT = 1, 2, 4
GUEST, DISK = 1 << 32, 1 << 20
FOREVER = 1000.0


cdef class Rig:
    """A load with its memory, and a disk of 1 MiB behind its ring.

    status: what requests come back with.  seen: (kind, byte, length) of each.
    """
    cdef readonly Load load
    cdef split_t s
    cdef readonly object map, disk, seen, kick, fd_call
    cdef public object status

    def __cinit__(self, depth=4, size=16, most=4096, indirect=False, event_idx=False, call=False):
        lines = loads.ring_bytes(size) + 64
        data = lines + depth * loads.line_bytes()
        self.map = mmap.mmap(-1, data + depth * most)
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.fd_call = os.eventfd(0, os.EFD_NONBLOCK) if call else -1
        self.load = Load(self.map, guest=GUEST, ring_at=0, lines_at=lines, data_at=data, size=size,
                         depth=depth, most=most, kick_fd=self.kick, call_fd=self.fd_call,
                         indirect=indirect, event_idx=event_idx)
        self.s.desc = self.load.t.driver.desc
        self.s.avail = self.load.t.driver.avail
        self.s.used = self.load.t.driver.used
        self.s.size = size
        self.s.event_idx = event_idx
        self.disk = bytearray(DISK)
        self.seen = []
        self.status = 0

    def __dealloc__(self):
        os.close(self.kick)
        if self.fd_call >= 0:
            os.close(self.fd_call)

    def turn(self):
        return load_turn(self.load.t)

    def buffers(self, head):
        """Return [(offset in the memory, length, writable)] of a chain."""
        cdef vring_desc d = self.s.desc[<uint16_t>head]
        cdef vring_desc *table = self.s.desc
        found = []
        if d.flags & INDIRECT:
            table = <vring_desc *>(<char *>self.load.t.lines + (d.addr - self.load.t.lines_guest))
            assert d.len == 48
            d = table[0]
        while True:
            found.append((d.addr - GUEST, d.len, bool(d.flags & WRITABLE)))
            if not d.flags & NEXT:
                return found
            d = table[d.next]

    def waiting(self):
        """Return the heads on the ring, which the device has now."""
        n = split_available(&self.s)
        heads = [split_head(&self.s, <uint16_t>i) for i in range(n)]
        self.s.next_avail += <uint16_t>n
        return heads

    def answer(self, head):
        """Do one request; return (kind, byte, length)."""
        parts = self.buffers(head)
        (at, length, writable), *data, (status, one, is_writable) = parts
        assert (length, writable, one, is_writable) == (16, False, 1, True)
        kind, _, sector = struct.unpack("<IIQ", self.map[at:at + 16])
        assert self.map[status] == 0xff
        size = sum(n for _, n, _ in data)
        where = sector * 512
        if kind == DISCARD:
            where, size, flags = struct.unpack("<QII", self.map[data[0][0]:data[0][0] + 16])
            where, size = where * 512, size * 512
            assert flags == 0 and not data[0][2]
        elif kind == OUT:
            self.disk[where:where + size] = self.map[data[0][0]:data[0][0] + size]
        elif kind == IN:
            assert data[0][2]
            self.map[data[0][0]:data[0][0] + size] = bytes(self.disk[where:where + size])
        self.map[status] = self.status
        split_push(&self.s, <uint16_t>head, size + 1 if kind == IN else 1)
        self.seen.append((kind, where, size))
        return kind, where, size

    def show(self):
        return bool(split_publish(&self.s))

    def serve(self, most=100000):
        """Run load and device in turn until the load is over."""
        for _ in range(most):
            self.turn()
            for head in self.waiting():
                self.answer(head)
            self.show()
            if self.load.t.closing and not self.load.t.inflight:
                return
        raise AssertionError("it does not end")

    def bogus(self, head):
        """Give back what the device never had."""
        split_push(&self.s, <uint16_t>head, 0)
        self.show()

    def in_flight(self):
        """Return (byte, length) of every request that is with the device."""
        cdef Load one = self.load
        busy = set(range(one.t.depth)) - {one.t.free_slots[i]
                                          for i in range(one.t.depth - one.t.inflight)}
        return [(one.t.slots[<uint16_t>i].offset, one.t.slots[<uint16_t>i].length) for i in busy]

    @property
    def closing(self):
        return self.load.t.closing

    @property
    def ramping(self):
        return self.load.t.ramping

    @property
    def ramp_end(self):
        return self.load.t.ramp_end

    @property
    def now(self):
        return self.load.t.now


def begin(ios=100, seconds=FOREVER, ramp=0, pace_s=0, pace_bytes=False, depth=4, size=16,
          most=4096, indirect=False, event_idx=False, call=False, **job):
    """Return a rig that is ready."""
    rig = Rig(depth=depth, size=size, most=most, indirect=indirect, event_idx=event_idx, call=call)
    rig.load.job(**({"base": 0, "area": DISK, "sizes": [(4096, 1)], "reads": 1.0} | job))
    rig.load.prepare(seconds=seconds, ramp=ramp, ios=ios, pace_s=pace_s, pace_bytes=pace_bytes)
    return rig


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("reads", [0.0, 1.0])
def test_so_many_requests_and_no_more(reads, indirect):
    rig = begin(ios=1000, reads=reads, indirect=indirect)
    rig.serve()
    kind = READ if reads else WRITE
    counts = rig.load.counts()
    assert counts[kind] == (1000, 1000 * 4096) and counts[1 - kind] == (0, 0) and counts[-1] == 0
    assert {k for k, _, _ in rig.seen} == {IN if reads else OUT} and len(rig.seen) == 1000
    requests, size, ticks, least, most, buckets = rig.load.latency(kind)
    assert (requests, size, sum(buckets)) == (1000, 1000 * 4096, 1000)
    assert 0 < least <= ticks / 1000 <= most


def test_as_many_in_flight_as_asked_for():
    rig = begin(depth=5, size=15 + 1)
    rig.turn()
    assert len(rig.waiting()) == rig.load.inflight == 5
    assert rig.turn() == 0


def test_one_after_the_other_and_around():
    rig = begin(ios=20, random=False, base=65536, area=5 * 4096)
    rig.serve()
    assert [at for _, at, _ in rig.seen] == [65536 + i % 5 * 4096 for i in range(20)]


def test_random_places_fill_the_area_and_stay_in_it():
    rig = begin(ios=4000, base=8192, area=65536 + 512)
    rig.serve()
    places = [at for _, at, _ in rig.seen]
    assert set(places) == {8192 + 4096 * i for i in range(16)}
    assert all(150 < places.count(at) < 360 for at in set(places))


def test_the_seed_says_where():
    def places(seed):
        rig = begin(ios=50, seed=seed)
        rig.serve()
        return rig.seen
    assert places(1) == places(1) != places(2)


def test_sizes_by_their_weights():
    rig = begin(ios=4000, sizes=[(512, 3), (4096, 1)])
    rig.serve()
    lengths = [n for *_, n in rig.seen]
    assert set(lengths) == {512, 4096} and 2800 < lengths.count(512) < 3200
    assert all(at % n == 0 for _, at, n in rig.seen)


def test_a_mix():
    rig = begin(ios=4000, reads=0.7)
    rig.serve()
    assert 2680 < rig.load.counts()[READ][0] < 2920
    assert rig.load.counts()[READ][0] + rig.load.counts()[WRITE][0] == 4000


def test_a_flush_behind_so_many_writes():
    rig = begin(ios=90, reads=0.0, flush_every=8, depth=1)
    rig.serve()
    kinds = [kind for kind, *_ in rig.seen]
    assert kinds == ([OUT] * 8 + [FLUSH]) * 10
    assert rig.load.counts()[FLUSHES] == (10, 0)


def test_trims():
    rig = begin(ios=10, reads=0.0, other=TRIM, random=False)
    rig.serve()
    assert rig.seen == [(DISCARD, i * 4096, 4096) for i in range(10)]
    assert rig.load.counts()[TRIM] == (10, 40960)


def test_failures_are_counted_by_status():
    rig = begin(ios=30)
    rig.status = 2
    rig.turn()
    for head in rig.waiting():
        rig.answer(head)
    rig.show()
    rig.status = 1
    rig.serve()
    assert rig.load.errors() == {2: 4, 1: 26} and rig.load.counts()[READ] == (0, 0)
    assert rig.load.counts()[-1] == 30


@pytest.mark.parametrize("head", [5, 1000])
def test_a_request_that_the_device_never_had(head):
    rig = begin(depth=1)
    rig.turn()
    rig.bogus(head)
    rig.load.run()
    assert rig.load.broken < 0


# Time

def test_the_time_is_over():
    rig = begin(ios=None, seconds=0.05)
    end = time.monotonic() + 60
    while not rig.closing:
        rig.turn()
        for head in rig.waiting():
            rig.answer(head)
        rig.show()
        assert time.monotonic() < end
    first, _ = rig.load.span
    rig.load.run()
    assert rig.load.inflight == 0 and rig.load.span[1] - first >= 0.05 * hz()


def test_the_ramp_is_not_counted():
    rig = begin(ios=40, ramp=0.05)
    rig.status = 1
    while rig.ramping:
        rig.turn()
        for head in rig.waiting():
            rig.answer(head)
        rig.show()
    in_ramp = len(rig.seen)
    rig.status = 0
    rig.serve()
    assert in_ramp > 40
    # Of what is in flight as the ramp ends some may still fail, and is counted as that.
    assert rig.load.counts()[READ][0] + rig.load.counts()[-1] in range(40, 45)
    assert rig.load.span[0] > rig.ramp_end - hz()


@pytest.mark.parametrize(("pace_s", "pace_bytes"), [(0.002, False), (0.002 / 4096, True)])
def test_a_rate(pace_s, pace_bytes):
    rig = begin(ios=50, pace_s=pace_s, pace_bytes=pace_bytes)
    rig.serve(most=1 << 40)
    first, _ = rig.load.span
    # 49 times the pace, less the 10 ms that may be made good for.
    assert (rig.now - first) / hz() > 49 * 0.002 - 0.011


def test_stop_waits_for_what_is_in_flight():
    rig = begin(ios=None)
    rig.turn()
    heads = rig.waiting()
    rig.load.stop()
    rig.turn()
    assert rig.closing and rig.load.inflight == 4 and not rig.waiting()
    for head in heads:
        rig.answer(head)
    rig.show()
    rig.load.run()
    assert rig.load.inflight == 0 and rig.load.counts()[READ][0] == 4


def test_stop_at_once_does_not():
    rig = begin(ios=None)
    rig.turn()
    rig.load.stop(at_once=True)
    rig.load.run()
    assert rig.load.inflight == 4
    with pytest.raises(OSError, match="a load that runs"):
        rig.load.prepare(seconds=1)


@pytest.mark.parametrize("event_idx", [False, True])
def test_calls_wake_it(event_idx):
    """No request is lost while the load sleeps between the calls of the device."""
    rig = begin(ios=200, call=True, event_idx=event_idx)
    thread = threading.Thread(target=rig.load.run)
    thread.start()
    calls = 0
    end = time.monotonic() + 60
    while thread.is_alive():
        heads = rig.waiting()
        for head in heads:
            rig.answer(head)
        if heads and rig.show():
            calls += 1
            os.eventfd_write(rig.fd_call, 1)
        time.sleep(0.0002)
        assert time.monotonic() < end
    assert rig.load.counts()[READ][0] == 200 and calls > 0


def test_it_kicks():
    rig = begin(depth=2)
    rig.turn()
    assert os.eventfd_read(rig.kick) == 1


# Verification

def written(**job):
    """Return a rig whose writes were all done and not yet checked."""
    rig = begin(**({"reads": 0.0, "unit": 512, "seed": 5} | job))
    rig.serve()
    return rig


def checked(rig):
    """Have what was written read once more; return what was found."""
    rig.load.prepare(seconds=FOREVER, recheck=True)
    rig.serve()
    return rig.load.verified()


@pytest.mark.parametrize("job", [
    {}, {"sizes": [(512, 2), (1536, 1), (4096, 1)]}, {"reads": 0.5, "unit": 4096},
    {"random": False, "area": 40 * 4096}, {"base": 4096, "area": 8192, "unit": 512}],
    ids=["plain", "sizes", "mixed", "sequential", "small"])
def test_a_good_device_is_found_good(job):
    rig = written(ios=500, **job)
    places = {at + i for kind, at, n in rig.seen if kind == OUT for i in range(0, n, 512)}
    before = rig.load.verified()[0]
    sectors, wrong, faults = checked(rig)
    assert (sectors - before, wrong, faults) == (len(places), 0, [])
    assert rig.load.counts()[READ][1] == len(places) * 512


def test_no_two_requests_in_flight_touch_each_other():
    rig = begin(ios=2000, reads=0.5, unit=512, area=12 * 512, sizes=[(512, 1), (1024, 1)], depth=5,
                size=16)
    for _ in range(1000):
        rig.turn()
        ranges = sorted(rig.in_flight())
        assert all(a + n <= b for (a, n), (b, _) in zip(ranges, ranges[1:]))
        for head in rig.waiting():
            rig.answer(head)
        rig.show()
    assert rig.load.verified()[1] == 0


def test_a_corruption_is_found():
    rig = written(ios=100)
    _, at, _ = rig.seen[-1]
    rig.disk[at + 700] ^= 4
    _, wrong, [(offset, kind, *_)] = checked(rig)
    assert (wrong, offset, kind) == (1, at + 512, 2)


def test_a_lost_write_is_found():
    rig = begin(ios=2, reads=0.0, unit=4096, area=4096, depth=1)
    rig.turn()
    [head] = rig.waiting()
    rig.answer(head)
    rig.show()
    old = bytes(rig.disk[:4096])
    rig.serve()
    rig.disk[:4096] = old
    _, wrong, faults = checked(rig)
    assert wrong == 8 and faults[0][1:4] == (4, 2, 1)


def test_what_a_failed_write_left_is_not_known():
    rig = begin(ios=4, reads=0.0, unit=4096, random=False)
    rig.status = 1
    rig.serve()
    assert checked(rig) == (0, 0, [])


def test_an_earlier_run_is_checked():
    rig = written(ios=256, random=False)
    disk = rig.disk
    again = begin(ios=256, random=False, unit=512, check_all=True, seed=77)
    again.disk[:] = disk
    again.disk[9 * 512] ^= 1
    again.disk[20 * 512:21 * 512] = disk[21 * 512:22 * 512]
    again.disk[30 * 512:31 * 512] = bytes(512)
    again.serve()
    sectors, wrong, faults = again.load.verified()
    assert (sectors, wrong) == (2048, 3)
    assert [(at, kind) for at, kind, *_ in faults] == [(9 * 512, 2), (20 * 512, 3), (30 * 512, 1)]
    assert faults[1][4] == 21 * 512


# What cannot be

@pytest.mark.parametrize("wrong", [
    {"depth": 0}, {"depth": 6}, {"most": 1 << 20}, {"data_at": 1 << 40}, {"size": 15}])
def test_a_load_that_cannot_be(wrong):
    words = {"guest": GUEST, "ring_at": 0, "lines_at": 1024, "data_at": 4096, "size": 16,
             "depth": 2, "most": 4096, "kick_fd": -1}
    with mmap.mmap(-1, 65536) as memory:
        with pytest.raises((ValueError, OSError)):
            Load(memory, **(words | wrong))


@pytest.mark.parametrize("wrong", [
    {"sizes": []}, {"sizes": [(0, 1)]}, {"sizes": [(8192, 1)]}, {"sizes": [(4096, 0)]},
    {"sizes": [(512, 1)] * 17}, {"sizes": [(4096, 1)], "unit": 1536}, {"area": 512}])
def test_a_job_that_cannot_be(wrong):
    rig = Rig()
    with pytest.raises(ValueError):
        rig.load.job(**({"base": 0, "area": DISK, "sizes": [(4096, 1)], "reads": 1.0} | wrong))
