"""I/O devices, and the channels to them that light threads have: what a thread needs of its own to
use a device, made when it first asks and shared by all that asks on that thread.

Owner:    an io_device_t and an io_channel_t belong to this module; a channel lives from the first
          get_io_channel of a thread to the message after the last put_io_channel.
Threads:  light threads, app_thread too.  create and destroy functions run on the channel's thread.
          All of it allocates or locks: it is for setting up, not for requests.
Fails:    -errno or NULL, as told at each function.
Source:   spdk_io_device_register, spdk_get_io_channel, spdk_for_each_channel and their kin.
"""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.event.reactor cimport msg_t, thread_t

# Makes and ends what ctx holds, which is all zeroes at first.  create: < 0: there is no channel.
ctypedef int (*io_channel_create_fn)(void *io_device, void *ctx) noexcept nogil
ctypedef void (*io_channel_destroy_fn)(void *io_device, void *ctx) noexcept nogil
ctypedef void (*io_device_unregister_fn)(void *io_device) noexcept nogil
# Must have for_each_channel_continue called, at once or later.
ctypedef void (*channel_msg_fn)(io_channel_iter_t *i) noexcept nogil
ctypedef void (*channel_cpl_fn)(io_channel_iter_t *i, int status) noexcept nogil

cdef struct io_device_t:
    io_device_t *next           # in its bucket
    void *key
    io_channel_create_fn create
    io_channel_destroy_fn destroy
    char *name
    uint32_t ctx_size
    uint32_t refs               # channels that there are, also those that wait for their end
    uint32_t walks              # for_each_channel under way
    bint unregistered
    io_channel_t *channels      # those that are in use, of all threads
    io_device_unregister_fn done
    thread_t *unregistered_by
    msg_t msg                   # to that one

cdef struct io_channel_t:
    # The context follows, at a multiple of 64 bytes.
    thread_t *thread
    io_device_t *device
    uint32_t refs
    io_channel_t *next          # of its thread
    io_channel_t *prev
    io_channel_t *device_next   # of its device
    io_channel_t *device_prev
    msg_t msg                   # that ends it

cdef struct io_channel_iter_t:
    void *key
    io_device_t *device         # not to be touched in cpl, when it may be gone
    channel_msg_fn fn
    void *ctx
    channel_cpl_fn cpl
    io_channel_t *channel       # NULL in cpl
    thread_t *origin
    uint64_t at                 # id of the thread that it is at, or was
    int status
    msg_t msg

cdef enum:
    IO_CHANNEL_HEADER = 192     # bytes in front of the context

cdef int io_device_register(void *io_device, io_channel_create_fn create,
                            io_channel_destroy_fn destroy, uint32_t ctx_size,
                            const char *name) noexcept nogil
cdef int io_device_unregister(void *io_device, io_device_unregister_fn done) noexcept nogil
cdef io_channel_t *get_io_channel(void *io_device) noexcept nogil
cdef int put_io_channel(io_channel_t *channel) noexcept nogil
cdef int for_each_channel(void *io_device, channel_msg_fn fn, void *ctx,
                          channel_cpl_fn cpl) noexcept nogil
cdef void for_each_channel_continue(io_channel_iter_t *i, int status) noexcept nogil


cdef inline void *io_channel_get_ctx(io_channel_t *channel) noexcept nogil:
    return <char *>channel + IO_CHANNEL_HEADER


cdef inline io_channel_t *io_channel_from_ctx(void *ctx) noexcept nogil:
    return <io_channel_t *>(<char *>ctx - IO_CHANNEL_HEADER)


cdef inline thread_t *io_channel_get_thread(io_channel_t *channel) noexcept nogil:
    return channel.thread


cdef inline void *io_channel_get_io_device(io_channel_t *channel) noexcept nogil:
    return channel.device.key


cdef inline const char *io_channel_get_io_device_name(io_channel_t *channel) noexcept nogil:
    return channel.device.name


cdef inline uint32_t io_channel_get_ref_count(io_channel_t *channel) noexcept nogil:
    return channel.refs


cdef inline io_channel_t *io_channel_iter_get_channel(io_channel_iter_t *i) noexcept nogil:
    return i.channel


cdef inline void *io_channel_iter_get_io_device(io_channel_iter_t *i) noexcept nogil:
    return i.key


cdef inline void *io_channel_iter_get_ctx(io_channel_iter_t *i) noexcept nogil:
    return i.ctx
