"""I/O devices, and the channels to them that light threads have.

Devices lie in a table by their key, the address of whatever they are to who registers them.  A
mutex guards the table, the devices and all lists of channels; it is never held while a function of
a device runs.
"""
from libc.errno cimport EBUSY, EEXIST, EINVAL, ENODEV, ENOMEM
from libc.stdint cimport UINT64_MAX, uint32_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strdup, strncpy
from vhostrt.base.check cimport check, static_check
from vhostrt.base.pthreads cimport pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock
from vhostrt.event.control cimport thread_current
from vhostrt.event.loop_trace cimport THREAD_IOCH_GET, THREAD_IOCH_PUT, trace_channel
from vhostrt.event.message cimport thread_deliver
from vhostrt.event.reactor cimport thread_t
from vhostrt.event.thread cimport Thread

cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t align, size_t size)

cdef enum:
    BUCKETS = 256
    NAME_MAX = 256              # bytes of a name that are told

cdef io_device_t *g_devices[BUCKETS]
cdef pthread_mutex_t g_mutex            # zeroed, which is as good as initialised


cdef inline io_device_t **bucket_of(void *key) noexcept nogil:
    # Addresses are multiples of 16, and those of objects that lie together of more.
    return &g_devices[(<uintptr_t>key >> 4 ^ <uintptr_t>key >> 12) % BUCKETS]


cdef io_device_t *device_find(void *key) noexcept nogil:
    """Return a registered device, or NULL.  With the mutex."""
    cdef io_device_t *device = bucket_of(key)[0]
    while device is not NULL and device.key != key:
        device = device.next
    return device


# Devices

cdef int io_device_register(void *io_device, io_channel_create_fn create,
                            io_channel_destroy_fn destroy, uint32_t ctx_size,
                            const char *name) noexcept nogil:
    """Let threads have channels to a device, known by its address.

    create(io_device, ctx), destroy(io_device, ctx): make and end the ctx_size bytes of one thread.
    name: for people; copied, NULL for none.
    0; or -EEXIST: it is registered already.  -EINVAL: no address, no function, or the caller is no
    light thread.  -ENOMEM.
    """
    cdef io_device_t *device
    cdef bint there
    if io_device is NULL or create is NULL or destroy is NULL or thread_current() is NULL:
        return -EINVAL
    device = <io_device_t *>calloc(1, sizeof(io_device_t))
    if device is NULL:
        return -ENOMEM
    if name is not NULL:
        device.name = strdup(name)
        if device.name is NULL:
            free(device)
            return -ENOMEM
    device.key = io_device
    device.create = create
    device.destroy = destroy
    device.ctx_size = ctx_size
    pthread_mutex_lock(&g_mutex)
    there = device_find(io_device) is not NULL
    if not there:
        device.next = bucket_of(io_device)[0]
        bucket_of(io_device)[0] = device
    pthread_mutex_unlock(&g_mutex)
    if there:
        device_free(device)
        return -EEXIST
    return 0


cdef void device_free(io_device_t *device) noexcept nogil:
    free(device.name)
    free(device)


cdef void device_end(void *arg) noexcept nogil:
    """On the thread that has unregistered it: no channel is left."""
    cdef io_device_t *device = <io_device_t *>arg
    device.unregistered_by.holds -= 1
    if device.done is not NULL:
        device.done(device.key)
    device_free(device)


cdef void device_done(io_device_t *device) noexcept nogil:
    device.msg.fn = device_end
    device.msg.ctx = device
    thread_deliver(device.unregistered_by, &device.msg)


cdef int io_device_unregister(void *io_device, io_device_unregister_fn done) noexcept nogil:
    """Let no thread have a new channel.  done(io_device), which may be NULL, runs as a message on
    the caller's thread when the last channel of any thread is gone.

    0; or -ENODEV: it is not registered.  -EBUSY: a for_each_channel is under way.  -EINVAL: the
    caller is no light thread.
    """
    cdef thread_t *thread = thread_current()
    cdef io_device_t **place = bucket_of(io_device)
    cdef io_device_t *device
    cdef bint over
    if thread is NULL:
        return -EINVAL
    pthread_mutex_lock(&g_mutex)
    while place[0] is not NULL and place[0].key != io_device:
        place = &place[0].next
    device = place[0]
    if device is NULL or device.walks:
        pthread_mutex_unlock(&g_mutex)
        return -ENODEV if device is NULL else -EBUSY
    place[0] = device.next
    device.unregistered = True
    device.done = done
    device.unregistered_by = thread
    thread.holds += 1
    over = device.refs == 0
    pthread_mutex_unlock(&g_mutex)
    if over:
        device_done(device)
    return 0


# Channels

cdef io_channel_t *channel_on(thread_t *thread, io_device_t *device) noexcept nogil:
    """Return the channel that a thread has to a device, or NULL.  On that thread, or with the
    mutex."""
    cdef io_channel_t *channel = <io_channel_t *>thread.channels
    while channel is not NULL and channel.device is not device:
        channel = channel.next
    return channel


cdef void channel_list(io_channel_t *channel) noexcept nogil:
    """Show a channel to its thread and its device.  On the thread, with the mutex."""
    cdef thread_t *thread = channel.thread
    cdef io_device_t *device = channel.device
    channel.prev = channel.device_prev = NULL
    channel.next = <io_channel_t *>thread.channels
    if channel.next is not NULL:
        channel.next.prev = channel
    thread.channels = channel
    channel.device_next = device.channels
    if channel.device_next is not NULL:
        channel.device_next.device_prev = channel
    device.channels = channel


cdef void channel_unlist(io_channel_t *channel) noexcept nogil:
    """Undo channel_list, likewise."""
    if channel.prev is NULL:
        channel.thread.channels = channel.next
    else:
        channel.prev.next = channel.next
    if channel.next is not NULL:
        channel.next.prev = channel.prev
    if channel.device_prev is NULL:
        channel.device.channels = channel.device_next
    else:
        channel.device_prev.device_next = channel.device_next
    if channel.device_next is not NULL:
        channel.device_next.device_prev = channel.device_prev


cdef void channel_free(io_channel_t *channel) noexcept nogil:
    """Free a channel that is not listed; the last one of a device that is unregistered ends it."""
    cdef io_device_t *device = channel.device
    cdef bint over
    pthread_mutex_lock(&g_mutex)
    device.refs -= 1
    over = device.unregistered and device.refs == 0
    pthread_mutex_unlock(&g_mutex)
    free(channel)
    if over:
        device_done(device)


cdef io_channel_t *channel_new(thread_t *thread, void *key, uint32_t ctx_size) noexcept nogil:
    """Return a channel with room for ctx_size bytes, listed, or NULL."""
    cdef size_t size = (IO_CHANNEL_HEADER + <size_t>ctx_size + 63) & ~<size_t>63
    cdef io_channel_t *channel = <io_channel_t *>aligned_alloc(64, size)
    cdef io_device_t *device
    if channel is NULL:
        return NULL
    memset(channel, 0, size)
    pthread_mutex_lock(&g_mutex)
    # It may have been unregistered, and even registered anew, since it was looked at.
    device = device_find(key)
    if device is not NULL and device.ctx_size <= ctx_size:
        channel.thread = thread
        channel.device = device
        channel.refs = 1
        device.refs += 1
        channel_list(channel)
    pthread_mutex_unlock(&g_mutex)
    if channel.device is NULL:
        free(channel)
        return NULL
    return channel


cdef io_channel_t *get_io_channel(void *io_device) noexcept nogil:
    """Return the calling thread's channel to a device, one reference more; the first one makes it.

    NULL: there is no such device, the caller is no light thread, there is no memory, or the
    device's create function failed.
    """
    cdef thread_t *thread = thread_current()
    cdef io_channel_t *channel = NULL
    cdef io_device_t *device
    cdef uint32_t ctx_size = 0
    static_check(sizeof(io_channel_t) <= IO_CHANNEL_HEADER)
    if thread is NULL:
        return NULL
    pthread_mutex_lock(&g_mutex)
    device = device_find(io_device)
    if device is not NULL:
        ctx_size = device.ctx_size
        channel = channel_on(thread, device)
        if channel is not NULL:
            channel.refs += 1
    pthread_mutex_unlock(&g_mutex)
    if device is NULL:
        return NULL
    if channel is NULL:
        channel = channel_create(thread, io_device, ctx_size)
    if channel is not NULL:
        trace_channel(THREAD_IOCH_GET, thread, channel.device.name, channel, channel.refs)
    return channel


cdef io_channel_t *channel_create(thread_t *thread, void *key, uint32_t ctx_size) noexcept nogil:
    """Return a thread's first channel to a device, or NULL, as get_io_channel."""
    cdef io_channel_t *channel = channel_new(thread, key, ctx_size)
    if channel is not NULL and channel.device.create(key, io_channel_get_ctx(channel)) < 0:
        pthread_mutex_lock(&g_mutex)
        channel_unlist(channel)
        pthread_mutex_unlock(&g_mutex)
        channel_free(channel)
        return NULL
    return channel


cdef void channel_end(void *arg) noexcept nogil:
    cdef io_channel_t *channel = <io_channel_t *>arg
    channel.device.destroy(channel.device.key, io_channel_get_ctx(channel))
    channel_free(channel)


cdef int put_io_channel(io_channel_t *channel) noexcept nogil:
    """Give a reference back.  With the last one the channel is gone for everybody; the device's
    destroy function runs as a message on the thread.

    0, or -EINVAL: this is not the channel's thread.
    """
    cdef bint last
    if thread_current() is not channel.thread:
        return -EINVAL
    check(channel.refs > 0)
    pthread_mutex_lock(&g_mutex)
    channel.refs -= 1
    last = channel.refs == 0
    if last:
        channel_unlist(channel)
    pthread_mutex_unlock(&g_mutex)
    trace_channel(THREAD_IOCH_PUT, channel.thread, channel.device.name, channel, channel.refs)
    if last:
        channel.msg.fn = channel_end
        channel.msg.ctx = channel
        thread_deliver(channel.thread, &channel.msg)
    return 0


# Walks

cdef void iter_end(void *arg) noexcept nogil:
    """On the thread that began it."""
    cdef io_channel_iter_t *i = <io_channel_iter_t *>arg
    i.origin.holds -= 1
    if i.cpl is not NULL:
        i.cpl(i, i.status)
    free(i)


cdef void iter_visit(void *arg) noexcept nogil:
    """On a thread that had a channel when the message was sent."""
    cdef io_channel_iter_t *i = <io_channel_iter_t *>arg
    i.channel = channel_on(thread_current(), i.device)
    if i.channel is NULL:
        for_each_channel_continue(i, 0)
    else:
        i.fn(i)


cdef bint iter_on(io_channel_iter_t *i) noexcept nogil:
    """Go on to the next thread with a channel, by id; False when there is none, and the device may
    be gone from then on.  With the mutex.

    The channel keeps the thread from its end, and once the message is in the thread that does.
    """
    cdef io_channel_t *channel = i.device.channels
    cdef io_channel_t *best = NULL
    while channel is not NULL:
        if channel.thread.id > i.at and (best is NULL or channel.thread.id < best.thread.id):
            best = channel
        channel = channel.device_next
    if best is NULL:
        i.device.walks -= 1
        return False
    i.at = best.thread.id
    thread_deliver(best.thread, &i.msg)
    return True


cdef int for_each_channel(void *io_device, channel_msg_fn fn, void *ctx,
                          channel_cpl_fn cpl) noexcept nogil:
    """Run fn(i) on each thread that has a channel to a device, one after the other by id, as a
    message; fn has for_each_channel_continue called.  Then cpl(i, status), which may be NULL, runs
    on the caller's thread: as a message, or at once when no thread has a channel.

    0; or -ENODEV: there is no such device.  -EINVAL: the caller is no light thread.  -ENOMEM.
    """
    cdef thread_t *origin = thread_current()
    cdef io_channel_iter_t *i
    cdef bint any_ = False
    if origin is NULL:
        return -EINVAL
    i = <io_channel_iter_t *>calloc(1, sizeof(io_channel_iter_t))
    if i is NULL:
        return -ENOMEM
    i.fn = fn
    i.ctx = ctx
    i.cpl = cpl
    i.origin = origin
    i.key = io_device
    i.msg.fn = iter_visit
    i.msg.ctx = i
    pthread_mutex_lock(&g_mutex)
    i.device = device_find(io_device)
    if i.device is not NULL:
        i.device.walks += 1
        origin.holds += 1
        any_ = iter_on(i)
    pthread_mutex_unlock(&g_mutex)
    if i.device is NULL:
        free(i)
        return -ENODEV
    if not any_:
        iter_end(i)
    return 0


cdef void for_each_channel_continue(io_channel_iter_t *i, int status) noexcept nogil:
    """Go on to the next thread.  status: not 0 ends the walk, and is what cpl is told."""
    cdef bint any_
    i.status = status
    i.channel = NULL
    if status != 0:
        i.at = UINT64_MAX
    pthread_mutex_lock(&g_mutex)
    any_ = iter_on(i)
    pthread_mutex_unlock(&g_mutex)
    if not any_:
        i.msg.fn = iter_end
        thread_deliver(i.origin, &i.msg)


# For people

cdef struct told_t:
    char name[NAME_MAX]
    void *key
    uint32_t refs
    uint32_t walks
    uint32_t ctx_size


cdef int tell_devices(told_t *told, int room) noexcept nogil:
    """Copy what there is to say of up to `room` devices; return how many there are."""
    cdef io_device_t *device
    cdef int n = 0
    cdef uint32_t i
    for i in range(<uint32_t>BUCKETS):
        device = g_devices[i]
        while device is not NULL:
            if n < room:
                tell_name(&told[n], device)
                told[n].key = device.key
                told[n].refs = device.refs
                told[n].walks = device.walks
                told[n].ctx_size = device.ctx_size
            n += 1
            device = device.next
    return n


cdef int tell_channels(thread_t *thread, told_t *told, int room) noexcept nogil:
    """Likewise for the channels of a thread."""
    cdef io_channel_t *channel = <io_channel_t *>thread.channels
    cdef int n = 0
    while channel is not NULL:
        if n < room:
            tell_name(&told[n], channel.device)
            told[n].refs = channel.refs
        n += 1
        channel = channel.next
    return n


cdef void tell_name(told_t *told, io_device_t *device) noexcept nogil:
    if device.name is not NULL:
        strncpy(told.name, device.name, NAME_MAX - 1)


cdef class Told:
    """What was told of the devices (thread NULL) or of a thread's channels; never with the mutex
    held while Python runs."""
    cdef told_t *told
    cdef int n

    def __dealloc__(self):
        free(self.told)

    cdef int ask(self, thread_t *thread) except -1:
        cdef int room = 0
        self.n = 16
        while self.n > room:
            room = self.n
            free(self.told)
            self.told = <told_t *>calloc(room, sizeof(told_t))
            if self.told is NULL:
                raise MemoryError
            pthread_mutex_lock(&g_mutex)
            self.n = (tell_devices(self.told, room) if thread is NULL
                      else tell_channels(thread, self.told, room))
            pthread_mutex_unlock(&g_mutex)
        return 0


cdef str text(const char *name):
    return name.decode(errors="replace")


def devices() -> list:
    """Return a dict for each device: name (str), key (int), channels that there are, also those
    that wait for their end, for_each_channel under way, bytes of a channel's context (ctx_size).
    """
    cdef Told told = Told()
    cdef int i
    told.ask(NULL)
    found = [{"name": text(told.told[i].name), "key": <uintptr_t>told.told[i].key,
              "channels": told.told[i].refs, "for_each": told.told[i].walks,
              "ctx_size": told.told[i].ctx_size} for i in range(told.n)]
    return sorted(found, key=lambda device: device["name"])


def channels(Thread light not None) -> list:
    """Return (name, references) of each channel of a light thread: those to I/O devices, the last
    one made first, then those that parts have opened for it from the control thread."""
    cdef Told told = Told()
    cdef int i
    told.ask(light.t)
    found = [(text(told.told[i].name), told.told[i].refs) for i in range(told.n)]
    return found + list(light.held.items())
