"""The loop of vhostrt-perf and, in the same thread, a device that answers at once.

The device does the least that a device can: it reads each head, follows the chain to its status
byte, writes that, and gives the chain back.  It copies and checks nothing.
"""
import mmap

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from vhostrt.virtio.driver.load cimport Load, load_turn
from vhostrt.virtio.split cimport (VRING_DESC_F_NEXT, split_available, split_head, split_publish,
                                   split_push, split_t)

from vhostrt.virtio.driver import load as loads

GUEST, DISK = 1 << 32, 1 << 30


cdef void answer(split_t *s, uint8_t *memory, uint64_t guest) noexcept nogil:
    """Answer all that wait."""
    cdef int n = split_available(s)
    cdef uint16_t head, index
    cdef int i
    for i in range(n):
        head = index = split_head(s, <uint16_t>i)
        while s.desc[index].flags & VRING_DESC_F_NEXT:
            index = s.desc[index].next
        memory[s.desc[index].addr - guest] = 0
        split_push(s, head, 1)
    s.next_avail += <uint16_t>n
    split_publish(s)


def run(uint16_t depth, uint64_t requests, uint16_t size=512, most=4096, reads=1.0, sizes=None,
        unit=0):
    """Have so many requests done."""
    cdef split_t s
    cdef Load one
    cdef uint8_t[::1] memory
    cdef uint64_t guest = GUEST
    lines = (loads.ring_bytes(size) + 4095) // 4096 * 4096
    data = lines + depth * loads.line_bytes()
    mapped = mmap.mmap(-1, data + depth * most, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    memory = mapped
    one = Load(mapped, guest=GUEST, ring_at=0, lines_at=lines, data_at=data, size=size,
               depth=depth, most=most, kick_fd=-1)
    one.job(base=0, area=DISK, sizes=sizes or [(most, 1)], reads=reads, unit=unit)
    one.prepare(seconds=1000, ios=requests)
    s.desc = one.t.driver.desc
    s.avail = one.t.driver.avail
    s.used = one.t.driver.used
    s.size = size
    s.next_avail = s.next_used = s.published = s.signalled = 0
    s.event_idx = s.signalled_valid = False
    s.used.flags = 1                    # as a target that polls, it wants no kicks
    with nogil:
        while not (one.t.closing and one.t.inflight == 0):
            load_turn(one.t)
            answer(&s, &memory[0], guest)
