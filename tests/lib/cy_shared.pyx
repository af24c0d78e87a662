"""The lock of the record, for processes that die while they hold it."""
from vhostrt.env.memory cimport env_lock


def take_lock(change):
    """Take the lock and keep it; 0 or -errno."""
    cdef int rc = 0
    env_lock(change, &rc)
    return rc
