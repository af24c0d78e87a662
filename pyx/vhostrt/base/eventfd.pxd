"""Signals by eventfd to somebody whom we do not trust: a client that made the descriptor.

Threads:  any.
"""
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint64_t
from posix.unistd cimport write


cdef inline bint eventfd_signal(int fd) noexcept nogil:
    """Add 1 to an eventfd; none (-1) is as good.  So is a full counter; any other failure is the
    client's loss.

    False: the write blocked, which only a client can bring about that fills the counter and takes
    O_NONBLOCK away, until the watchdog interrupted it.
    """
    cdef uint64_t one = 1
    return fd < 0 or write(fd, &one, sizeof(one)) >= 0 or errno != EINTR
