"""Guest memory of a test client: memfd regions, mapped here and shared with the back end.

Guest physical addresses, front-end user addresses and file offsets of a region all differ on
purpose: a back end that takes one for another reads the wrong bytes.
"""
import mmap
import os
import struct

import numpy as np

PAGE = 4096
UADDR_SHIFT = 0x7F0000000000            # front-end user address = guest physical address + this


class Region:
    """One memfd of `size` bytes at guest physical address `gpa`; it owns fd and mapping.

    The region begins `offset` bytes into the file.
    """

    def __init__(self, gpa: int, size: int, offset: int = 0, uaddr: int | None = None):
        self.gpa, self.size, self.offset = gpa, size, offset
        self.uaddr = gpa + UADDR_SHIFT if uaddr is None else uaddr
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, offset + size)
        self.bytes = np.frombuffer(mmap.mmap(self.fd, offset + size), np.uint8)[offset:]
        self.used = 0                   # bytes handed out by Memory.alloc

    def entry(self) -> bytes:
        """Return the region as SET_MEM_TABLE and ADD_MEM_REG carry it."""
        return struct.pack("=QQQQ", self.gpa, self.size, self.uaddr, self.offset)

    def close(self) -> None:
        """Close the fd; the mapping goes with the last NumPy view of it."""
        os.close(self.fd)
        self.bytes = None


class Memory:
    """The regions of one guest and a bump allocator over each of them."""

    def __init__(self, *regions: Region):
        self.regions = list(regions)

    @classmethod
    def of_sizes(cls, *sizes: int) -> "Memory":
        """Make regions of these sizes with holes between them and different file offsets."""
        regions, gpa = [], 0x100000
        for i, size in enumerate(sizes):
            regions.append(Region(gpa, size, offset=i * PAGE))
            gpa += size + 16 * PAGE
        return cls(*regions)

    @classmethod
    def adjacent(cls, *sizes: int) -> "Memory":
        """Make regions that touch in guest addresses but not in front-end addresses."""
        regions, gpa = [], 0x100000
        for i, size in enumerate(sizes):
            regions.append(Region(gpa, size, uaddr=UADDR_SHIFT + gpa + i * (1 << 32)))
            gpa += size
        return cls(*regions)

    def find(self, gpa: int) -> Region:
        """Return the region that holds guest address `gpa`; LookupError when none does."""
        for r in self.regions:
            if r.gpa <= gpa < r.gpa + r.size:
                return r
        raise LookupError(f"guest address {gpa:#x} is in no region")

    def view(self, gpa: int, length: int) -> np.ndarray:
        """Return the `length` bytes at `gpa` as a writable uint8 array; inside one region."""
        r = self.find(gpa)
        at = gpa - r.gpa
        if at + length > r.size:
            raise LookupError(f"{length} bytes at {gpa:#x} cross the end of their region")
        return r.bytes[at:at + length]

    def uaddr(self, gpa: int) -> int:
        """Return the front-end user address of guest address `gpa`."""
        r = self.find(gpa)
        return gpa - r.gpa + r.uaddr

    def alloc(self, size: int, align: int = 16, region: int = 0) -> int:
        """Return the guest address of `size` fresh bytes in region number `region`."""
        r = self.regions[region]
        at = -(-(r.gpa + r.used) // align) * align - r.gpa
        if at + size > r.size:
            raise MemoryError(f"region {region} has no {size} bytes left")
        r.used = at + size
        return r.gpa + at

    def table(self) -> bytes:
        """Return the payload of SET_MEM_TABLE."""
        head = struct.pack("=II", len(self.regions), 0)
        return head + b"".join(r.entry() for r in self.regions)

    def fds(self) -> list[int]:
        """Return the file descriptors in the order of table()."""
        return [r.fd for r in self.regions]

    def close(self) -> None:
        """Close every region."""
        for r in self.regions:
            r.close()
