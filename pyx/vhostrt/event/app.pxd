"""What the C code of an application may ask of its life: to stop, from anywhere.

    from vhostrt.event.app cimport app_function, app_stop

    cdef int begin(void *arg) noexcept nogil:   # on the main lcore's reactor
        ...
        return 0

    status = vhostrt.app.start(opts, app_function(begin), <uintptr_t>&state)

Threads:  app_stop from any, and from a signal handler.
"""

ctypedef int (*app_fn)(void *arg) noexcept nogil

cdef void app_stop(int rc) noexcept nogil
cdef object app_function(app_fn fn)         # for vhostrt.app.start, call, send
