"""Files and block devices as stores of a bdev: opened, locked, measured and asked what they can do.

Owner:    the FileBdev owns the descriptor, and with it the lock, until close().
Threads:  a FileBdev is made on a helper thread, as opening may block, and then belongs to the
          control thread.
Fails:    OSError with the errno and one sentence; ValueError for a block size that does not fit.
"""
import asyncio
import errno
import fcntl
import functools
import os
import stat
import struct

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, mmap
from posix.unistd cimport close
from vhostrt.base.check cimport static_check
from vhostrt.bdev.core cimport (BDEV_FLUSH, BDEV_IO_WORDS, BDEV_READ, BDEV_UNMAP, BDEV_WRITE,
                                BDEV_WRITE_ZEROES, Bdev, bdev_submit_fn)

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, long long offset, long long size)

cdef extern from "<linux/falloc.h>" nogil:
    enum:
        FALLOC_FL_KEEP_SIZE
        FALLOC_FL_PUNCH_HOLE

cdef extern from "<linux/fs.h>" nogil:
    unsigned long BLKSSZGET
    unsigned long BLKGETSIZE64

cdef enum:
    FILE_BLOCK = 512                    # bytes, of a regular file when nobody says

KINDS = ((stat.S_ISDIR, "directory"), (stat.S_ISCHR, "character device"), (stat.S_ISFIFO, "FIFO"),
         (stat.S_ISSOCK, "socket"))

cdef void *g_zeroes = NULL              # mapped by the first store, kept to the end


cdef void *zeroes() except NULL:
    """Return the page of zeroes that writes of zeroes come from: address space, hardly memory."""
    global g_zeroes
    if g_zeroes is NULL:
        p = mmap(NULL, STORE_ZEROES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if p == MAP_FAILED:
            raise MemoryError("no address space for a page of zeroes")
        g_zeroes = p
    return g_zeroes


def kind_of(mode) -> str:
    return next((name for test, name in KINDS if test(mode)), "special file")


def refuse_kind(filename, kind):
    return OSError(errno.EINVAL,
                   f"{filename} is a {kind}; a disk must be a regular file or a block device")


ADVICE = {errno.ENOENT: "; make it (truncate -s 10G makes an empty disk), or name another"}


def open_file(str filename not None, bint readonly) -> int:
    """Return a descriptor of a regular file or block device, or raise OSError."""
    # O_NONBLOCK is for the open alone: a FIFO would wait there, and io_uring obeys the flag later.
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(filename, flags)
    except IsADirectoryError:
        raise refuse_kind(filename, "directory") from None
    except OSError as error:
        how = "for reading" if readonly else "for reading and writing"
        advice = ADVICE.get(error.errno, "")
        raise OSError(error.errno, f"{filename} cannot be opened {how}: "
                      f"{os.strerror(error.errno)}{advice}") from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        os.close(fd)
        raise refuse_kind(filename, kind_of(mode))
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    return fd


def lock(int fd, filename, bint readonly):
    """One writer, or any number of readers, of this and of every other process that locks."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        who = "a writer" if readonly else "another reader or writer"
        raise OSError(errno.EBUSY, f"{filename} is locked by {who}") from None


def measure(int fd, filename, uint32_t block_size) -> tuple:
    """Return (number of blocks, block size in bytes).  block_size 0: the device's, or 512."""
    about = os.fstat(fd)
    size, device_block = about.st_size, FILE_BLOCK
    if stat.S_ISBLK(about.st_mode):
        size = struct.unpack("Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0]
        device_block = struct.unpack("I", fcntl.ioctl(fd, BLKSSZGET, bytes(4)))[0]
    block_size = block_size or device_block
    if block_size < device_block or block_size > 65536 or block_size & (block_size - 1):
        raise ValueError(f"block size {block_size} of {filename} must be a power of two from "
                         f"{device_block} to 65536")
    if size == 0:
        raise OSError(errno.EINVAL, f"{filename} is empty; a disk must have at least one block "
                      "(truncate -s 10G gives it a size)")
    if size % block_size:
        whole = -(-size // block_size) * block_size
        raise OSError(errno.EINVAL, f"the size of {filename}, {size} bytes, is not a whole number "
                      f"of {block_size}-byte blocks; truncate -s {whole} fills up the last one")
    return size // block_size, block_size


def can_punch(int fd) -> bool:
    """True when blocks can be given back: to the file system, or to a device that says so."""
    about = os.fstat(fd)
    if not stat.S_ISBLK(about.st_mode):
        # A hole behind the end changes nothing, and is refused where holes cannot be made.
        return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, about.st_size, 4096) == 0
    device = f"{os.major(about.st_rdev)}:{os.minor(about.st_rdev)}"
    try:
        with open(f"/sys/dev/block/{device}/queue/discard_max_bytes", encoding="ascii") as limit:
            return int(limit.read()) > 0
    except (OSError, ValueError):
        return False                    # a partition has no queue of its own; it is a hint anyway


cdef class FileBdev(Bdev):
    """A bdev over a regular file or block device; its subclasses say how it is read and written.

    filename: str.  block_size: bytes, 0 for the device's own (512 for a file).  readonly: opened
    for reading, with a shared lock; else with an exclusive one.  uuid: str or None.
    """

    def __cinit__(self, *args, **kwargs):
        self.store = <store_t *>calloc(1, sizeof(store_t))
        if self.store is NULL:
            raise MemoryError
        self.store.fd = -1

    def __init__(self, str name not None, str product_name not None, str filename not None, uuid):
        super().__init__(name, product_name, uuid)
        if not filename or "\0" in filename:
            raise ValueError(f"{filename!r} is not the name of a file")
        self.filename = filename

    cdef int open_with(self, uint32_t block_size, bint readonly, bdev_submit_fn submit) except -1:
        """Open, lock and measure the file; what has been opened is closed with the object."""
        cdef uint32_t types = (1 << BDEV_READ | 1 << BDEV_WRITE | 1 << BDEV_FLUSH
                               | 1 << BDEV_WRITE_ZEROES)
        static_check(sizeof(progress_t) <= 8 * BDEV_IO_WORDS)
        self.store.zeroes = zeroes()
        self.store.fd = open_file(self.filename, readonly)
        lock(self.store.fd, self.filename, readonly)
        num_blocks, block_size = measure(self.store.fd, self.filename, block_size)
        self.store.offers_punch = not readonly and can_punch(self.store.fd)
        if self.store.offers_punch:
            types |= 1 << BDEV_UNMAP
        self.setup(num_blocks, block_size, types, submit)
        self.b.read_only = readonly
        self.b.write_cache = not readonly
        self.b.ctx = self.store
        return 0

    def __dealloc__(self):
        if self.store is not NULL and self.store.fd >= 0:
            close(self.store.fd)
        free(self.store)

    @classmethod
    async def create(cls, *args):
        """Make one on a helper thread; the arguments are those of the class."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, functools.partial(cls, *args))

    def set_num_blocks(self, uint64_t num_blocks):
        """Have another size, as measured; ValueError when no bdev has it."""
        self.set_size(num_blocks)

    async def measured(self):
        """Return how many blocks the file has now; OSError when they are not whole ones."""
        loop = asyncio.get_running_loop()
        num_blocks, _ = await loop.run_in_executor(None, measure, self.store.fd, self.filename,
                                                   self.b.block_size)
        return num_blocks

    async def close(self):
        """Close the file, on a helper thread: that may wait for the device."""
        fd, self.store.fd = self.store.fd, -1
        if fd >= 0:
            await asyncio.get_running_loop().run_in_executor(None, os.close, fd)
