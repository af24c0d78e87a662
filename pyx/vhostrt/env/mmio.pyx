"""Registers of devices: mapped BARs, read and written with exactly the width that is said."""
from libc.errno cimport errno
from libc.stdint cimport UINT64_MAX, uint64_t, uintptr_t
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from vhostrt.base.errors cimport ok

cdef extern from *:
    """
    #include <pthread.h>
    #include <sys/mman.h>
    static pthread_mutex_t vh_bars_mutex = PTHREAD_MUTEX_INITIALIZER;
    static inline void vh_bar_stays_here(void *p, size_t n) { (void)madvise(p, n, MADV_DONTFORK); }
    """
    ctypedef struct pthread_mutex_t:
        pass
    pthread_mutex_t g_mutex "vh_bars_mutex"
    int pthread_mutex_lock(pthread_mutex_t *mutex) nogil
    int pthread_mutex_unlock(pthread_mutex_t *mutex) nogil
    void stays_here "vh_bar_stays_here"(void *base, size_t size) nogil

cdef bar_t *g_bars = NULL       # under g_mutex


cdef uint64_t mmio_physical(const void *at) noexcept nogil:
    """Return the physical address behind an address in a mapped BAR, else UINT64_MAX."""
    cdef uint64_t physical = UINT64_MAX
    cdef bar_t *bar
    pthread_mutex_lock(&g_mutex)
    bar = g_bars
    while bar is not NULL:
        if bar.base <= <const char *>at < bar.base + bar.size and bar.physical != UINT64_MAX:
            physical = bar.physical + <size_t>(<const char *>at - bar.base)
        bar = bar.next
    pthread_mutex_unlock(&g_mutex)
    return physical


cdef void join(bar_t *bar) noexcept nogil:
    global g_bars
    pthread_mutex_lock(&g_mutex)
    bar.next = g_bars
    g_bars = bar
    pthread_mutex_unlock(&g_mutex)


cdef void leave(bar_t *bar) noexcept nogil:
    cdef bar_t **link = &g_bars
    pthread_mutex_lock(&g_mutex)
    while link[0] != bar:
        link = &link[0].next
    link[0] = bar.next
    pthread_mutex_unlock(&g_mutex)


cdef void unmap(bar_t *bar) noexcept nogil:
    """Give a mapping back; again does nothing."""
    if bar.base is not NULL:
        leave(bar)
        munmap(bar.base - bar.skip, bar.skip + bar.size)
        bar.base = NULL


cdef class Bar:
    """The registers behind a base address register of a device, made by Bar.map.

    Given back by release or with the last reference.
    """

    def __dealloc__(self):
        unmap(&self.b)

    @staticmethod
    def map(fd: int, size: int, offset: int = 0, physical: int | None = None,
            skip: int = 0) -> Bar:
        """Map `size` bytes of registers, which begin `skip` bytes behind `offset` of a descriptor.

        fd stays the caller's; offset: whole pages.  physical: where the registers are on the bus,
        when that is known.  OSError when the system refuses.
        """
        cdef Bar bar = Bar.__new__(Bar)
        cdef void *base = mmap(NULL, skip + size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset)
        if base == MAP_FAILED:
            ok(-errno, f"mapping of {size} bytes of registers")
        stays_here(base, skip + size)
        bar.b.skip = skip
        bar.b.base = <char *>base + bar.b.skip
        bar.b.size = size
        bar.b.physical = UINT64_MAX if physical is None else physical
        join(&bar.b)
        return bar

    @property
    def address(self) -> int:
        """Where it is mapped; 0 once released."""
        return <uintptr_t>self.b.base

    @property
    def physical(self) -> int | None:
        """Its address on the bus; None when that is not known."""
        return None if self.b.physical == UINT64_MAX else self.b.physical

    def __len__(self) -> int:
        return self.b.size

    cdef char *place(self, offset, size_t width) except NULL:
        """Return where a register is; ValueError: released, outside, or not aligned."""
        if self.b.base is NULL:
            raise ValueError("the BAR has been released")
        if offset < 0 or offset + width > self.b.size or offset % width:
            raise ValueError(f"there is no register of {width * 8} bits at {offset:#x} of a BAR of "
                             f"{self.b.size:#x} bytes")
        return self.b.base + <size_t>offset

    def read8(self, offset: int) -> int:
        """Return the register of 8 bits at a byte offset; ValueError when there is none."""
        return mmio_read8(self.place(offset, 1))

    def read16(self, offset: int) -> int:
        """Return the register of 16 bits at a byte offset; ValueError when there is none."""
        return mmio_read16(self.place(offset, 2))

    def read32(self, offset: int) -> int:
        """Return the register of 32 bits at a byte offset; ValueError when there is none."""
        return mmio_read32(self.place(offset, 4))

    def read64(self, offset: int) -> int:
        """Return the register of 64 bits at a byte offset; ValueError when there is none."""
        return mmio_read64(self.place(offset, 8))

    def write8(self, offset: int, value: int) -> None:
        """Write the register of 8 bits at a byte offset; ValueError when there is none."""
        mmio_write8(self.place(offset, 1), fitting(value, 8))

    def write16(self, offset: int, value: int) -> None:
        """Write the register of 16 bits at a byte offset; ValueError when there is none."""
        mmio_write16(self.place(offset, 2), fitting(value, 16))

    def write32(self, offset: int, value: int) -> None:
        """Write the register of 32 bits at a byte offset; ValueError when there is none."""
        mmio_write32(self.place(offset, 4), fitting(value, 32))

    def write64(self, offset: int, value: int) -> None:
        """Write the register of 64 bits at a byte offset; ValueError when there is none."""
        mmio_write64(self.place(offset, 8), fitting(value, 64))

    def release(self) -> None:
        """Give the mapping back; nobody uses a pointer into it any more.  Again: nothing."""
        unmap(&self.b)


cdef object fitting(value, int bits):
    """Return value; ValueError when a register of so many bits cannot hold it."""
    if value < 0 or value.bit_length() > bits:
        raise ValueError(f"{value} does not fit in a register of {bits} bits")
    return value
