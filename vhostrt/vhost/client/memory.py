"""Memory that a front end shares with its back end: one file without a name.

Owner:   a SharedMemory owns its descriptor and mapping.
Threads: one.
Fails:   TargetError where the kernel does not give it.
"""
import contextlib
import fcntl
import mmap
import os
from typing import Self

from vhostrt.vhost.client.connection import TargetError

PAGE_2M, PAGE_1G = 2 << 20, 1 << 30
HUGE_FLAGS = {PAGE_2M: os.MFD_HUGE_2MB, PAGE_1G: os.MFD_HUGE_1GB}
# linux/fcntl.h; the module fcntl does not have all of them in every Python.
F_ADD_SEALS, SEALS = 1033, 1 | 2 | 4    # no other seals, no shrinking, no growing


class Area:
    """How a piece of memory is divided, before it is there."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, size: int, align: int = 4096) -> int:
        """Return the offset of `size` bytes more."""
        at = (self.size + align - 1) // align * align
        self.size = at + size
        return at


class SharedMemory:
    """size: bytes, rounded up to whole pages.  page: bytes of a huge page, or 0 for ordinary ones.

    The file is sealed, so that a back end cannot take pages away under us.
    """

    def __init__(self, size: int, page: int = 0) -> None:
        # Whole huge pages in any case: some back ends map no less.
        unit = page or PAGE_2M
        self.size = (size + unit - 1) // unit * unit
        flags = os.MFD_HUGETLB | HUGE_FLAGS[page] if page else 0
        try:
            self.fd = os.memfd_create("vhostrt-perf", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
            os.ftruncate(self.fd, self.size)
            fcntl.fcntl(self.fd, F_ADD_SEALS, SEALS)
            self.map = mmap.mmap(self.fd, self.size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except OSError as error:
            kind = f"huge pages of {page >> 20} MiB" if page else "shared memory"
            more = "; vhostrt-hugepages shows and reserves them" if page else ""
            raise TargetError(f"{self.size >> 20} MiB of {kind} cannot be had: "
                              f"{error.strerror}{more}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        # A traceback may still hold a view of it; then it goes with the process.
        with contextlib.suppress(BufferError):
            self.map.close()
        os.close(self.fd)
