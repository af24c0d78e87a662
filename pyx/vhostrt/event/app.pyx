"""What the C code of an application may ask of its life: to stop, from anywhere.

Threads:  app_stop: any.  Python functions: the control thread.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport uint32_t
from vhostrt.base.atomics cimport (cas_u32, exchange_u32, load_acquire_u32, load_relaxed_u32,
                                   store_relaxed_u32, store_release_u32)
from vhostrt.event.post cimport control_node_t, control_post

cdef object g_stop = None               # callable (rc): stops the application; control thread
cdef uint32_t g_open = 0                # 1: there is one
cdef uint32_t g_rc = 0                  # the first status but 0 that was asked for
cdef uint32_t g_posted = 0              # 1: g_note is on its way
cdef control_node_t g_note


cdef void app_stop(int rc) noexcept nogil:
    """Ask for the end of the application, with this exit status; the first one but 0 counts.

    Any thread, and signal handlers.  Nothing happens when no application runs.
    """
    if not load_acquire_u32(&g_open):
        return
    if rc:
        cas_u32(&g_rc, 0, <uint32_t>rc)
    # Whoever finds the note on its way has put its status there before that is read.
    if not exchange_u32(&g_posted, 1):
        control_post(&g_note)


cdef void stop(void *arg) noexcept:
    """On the control thread."""
    exchange_u32(&g_posted, 0)
    rc = <int>load_relaxed_u32(&g_rc)
    if g_stop is not None:
        g_stop(rc)


def open_to(callback not None) -> None:
    """Have app_stop(rc) call callback(rc: int) on the control thread, from now on."""
    global g_stop
    g_stop = callback
    g_note.run = stop
    store_relaxed_u32(&g_rc, 0)
    store_release_u32(&g_open, 1)


def close() -> None:
    """Let app_stop be without effect; reactors have ended, and the control thread's notes have run.
    """
    global g_stop
    store_release_u32(&g_open, 0)
    g_stop = None


cdef object app_function(app_fn fn):
    """Return a C function as the capsule that vhostrt.app takes."""
    return PyCapsule_New(<void *>fn, "int (void *)", NULL)
