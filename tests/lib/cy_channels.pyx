"""I/O devices for tests, and what light threads do with them; what their functions saw is noted."""
from libc.errno cimport EIO, ENODEV
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from vhostrt.event.control cimport call_on, call_t, thread_current
from vhostrt.event.iochannel cimport (for_each_channel, for_each_channel_continue, get_io_channel,
                                      io_channel_from_ctx, io_channel_get_ctx,
                                      io_channel_get_io_device, io_channel_get_io_device_name,
                                      io_channel_get_ref_count, io_channel_get_thread,
                                      io_channel_iter_get_channel, io_channel_iter_get_ctx,
                                      io_channel_iter_get_io_device, io_channel_iter_t,
                                      io_channel_t, io_device_register, io_device_unregister,
                                      put_io_channel)
from vhostrt.event.thread cimport Thread, thread_call

cdef enum:
    VISITS = 16


# A device, and what its functions have seen.

cdef struct device_t:
    int answer                  # of create
    uint32_t created
    uint32_t destroyed
    uint32_t wrong              # things that must not be
    uint64_t destroyed_on       # id of the thread
    uint64_t gone_on            # likewise, of the unregister callback
    uint32_t gone
    uint32_t destroyed_then     # channels that had been destroyed when it ran

cdef struct ctx_t:
    uint64_t owner
    uint64_t zeroes[11]


cdef int create(void *io_device, void *ctx) noexcept nogil:
    cdef device_t *d = <device_t *>io_device
    cdef ctx_t *c = <ctx_t *>ctx
    cdef int i
    for i in range(11):
        d.wrong += c.zeroes[i] != 0
    d.wrong += <uintptr_t>ctx % 64 != 0
    c.owner = thread_current().id
    memset(c.zeroes, 0xff, sizeof(c.zeroes))
    d.created += 1
    return d.answer


cdef void destroy(void *io_device, void *ctx) noexcept nogil:
    cdef device_t *d = <device_t *>io_device
    d.wrong += (<ctx_t *>ctx).owner != thread_current().id
    d.destroyed_on = thread_current().id
    d.destroyed += 1


cdef void gone(void *io_device) noexcept nogil:
    cdef device_t *d = <device_t *>io_device
    d.gone += 1
    d.gone_on = thread_current().id
    d.destroyed_then = d.destroyed


# What a test has done on a thread.

cdef struct place_t:
    device_t *device
    io_channel_t *channel
    int rc
    # Of a walk.
    uint32_t visits
    uint64_t visited[VISITS]
    int stop_at                 # visit that ends it, from 1; 0: none
    uint32_t ended
    int status
    uint64_t ended_on
    io_channel_iter_t *held     # the walk, when visits are not to go on by themselves
    bint hold
    int inner                   # of what was tried within


cdef int do_register(void *arg) noexcept nogil:
    return io_device_register((<place_t *>arg).device, create, destroy, sizeof(ctx_t), b"device")


cdef int do_unregister(void *arg) noexcept nogil:
    return io_device_unregister((<place_t *>arg).device, gone)


cdef int do_unregister_quietly(void *arg) noexcept nogil:
    return io_device_unregister((<place_t *>arg).device, NULL)


cdef int do_get(void *arg) noexcept nogil:
    cdef place_t *p = <place_t *>arg
    cdef io_channel_t *channel = get_io_channel(p.device)
    if channel is NULL:
        return -ENODEV
    if p.channel is not NULL and p.channel is not channel:
        return 1                    # another one than before
    p.channel = channel
    return 0


cdef int do_put(void *arg) noexcept nogil:
    return put_io_channel((<place_t *>arg).channel)


cdef int do_put_and_get(void *arg) noexcept nogil:
    """Between the put and its message."""
    cdef place_t *p = <place_t *>arg
    cdef io_channel_t *before = p.channel
    cdef int rc = put_io_channel(before)
    if rc < 0 or p.device.destroyed:
        return -EIO
    p.channel = get_io_channel(p.device)
    return p.channel is not NULL and p.channel is not before


cdef int do_look(void *arg) noexcept nogil:
    """Whether a channel says of itself what is so; 0 when all is."""
    cdef place_t *p = <place_t *>arg
    cdef io_channel_t *c = p.channel
    cdef int wrong = 0
    wrong |= io_channel_from_ctx(io_channel_get_ctx(c)) is not c
    wrong |= (io_channel_get_thread(c) is not thread_current()) << 1
    wrong |= (io_channel_get_io_device(c) != p.device) << 2
    wrong |= (io_channel_get_ref_count(c) != 1) << 3
    wrong |= (io_channel_get_io_device_name(c)[0] != b"d") << 4
    return wrong


cdef void visit(io_channel_iter_t *i) noexcept nogil:
    cdef place_t *p = <place_t *>io_channel_iter_get_ctx(i)
    cdef io_channel_t *channel = io_channel_iter_get_channel(i)
    p.device.wrong += io_channel_get_thread(channel) is not thread_current()
    p.device.wrong += io_channel_iter_get_io_device(i) != p.device
    p.visited[p.visits % VISITS] = thread_current().id
    p.visits += 1
    if p.hold:
        p.held = i
    else:
        for_each_channel_continue(i, 77 if p.visits == <uint32_t>p.stop_at else 0)


cdef void visited(io_channel_iter_t *i, int status) noexcept nogil:
    cdef place_t *p = <place_t *>io_channel_iter_get_ctx(i)
    p.device.wrong += io_channel_iter_get_channel(i) is not NULL
    p.status = status
    p.ended_on = thread_current().id
    p.ended += 1
    # Here the walk is over, for unregister as well.
    p.inner = io_device_unregister(p.device, NULL) if p.inner == 1 else p.inner


cdef int do_walk(void *arg) noexcept nogil:
    cdef place_t *p = <place_t *>arg
    p.visits = p.ended = 0
    return for_each_channel(p.device, visit, p, visited)


cdef int do_walk_quietly(void *arg) noexcept nogil:
    return for_each_channel((<place_t *>arg).device, visit, arg, NULL)


cdef int do_continue(void *arg) noexcept nogil:
    cdef place_t *p = <place_t *>arg
    cdef io_channel_iter_t *held = p.held
    p.held = NULL
    for_each_channel_continue(held, 0)
    return 0


cdef void put_visited(io_channel_iter_t *i) noexcept nogil:
    put_io_channel(io_channel_iter_get_channel(i))
    for_each_channel_continue(i, 0)


cdef int do_walk_and_put(void *arg) noexcept nogil:
    return for_each_channel((<place_t *>arg).device, put_visited, NULL, NULL)


ACTIONS = {"register": <uintptr_t>do_register, "unregister": <uintptr_t>do_unregister,
           "unregister quietly": <uintptr_t>do_unregister_quietly, "get": <uintptr_t>do_get,
           "put": <uintptr_t>do_put, "put and get": <uintptr_t>do_put_and_get,
           "look": <uintptr_t>do_look, "walk": <uintptr_t>do_walk,
           "walk quietly": <uintptr_t>do_walk_quietly, "continue": <uintptr_t>do_continue,
           "walk and put": <uintptr_t>do_walk_and_put}


cdef int in_event(call_t *call) noexcept nogil:
    """Run an action outside of a light thread."""
    cdef void **pair = <void **>call.arg
    return (<int (*)(void *) noexcept nogil>pair[0])(pair[1])


cdef class Device:
    cdef device_t d

    @property
    def counts(self):
        return self.d.created, self.d.destroyed, self.d.gone

    @property
    def sound(self):
        return self.d.wrong == 0

    @property
    def about(self):
        return dict(self.d)

    ctx_size = sizeof(ctx_t)

    def answer(self, int answer):
        self.d.answer = answer

    @property
    def key(self):
        return <uintptr_t>&self.d


cdef class Place:
    """A device seen from one thread."""
    cdef place_t p
    cdef Device device
    cdef readonly Thread thread
    cdef void *pair[2]

    def __init__(self, Device device, light):
        self.device = device
        self.thread = light
        self.p.device = &device.d

    async def do(self, what):
        return await thread_call(self.thread, <int (*)(void *) noexcept nogil><uintptr_t>
                                 ACTIONS[what], &self.p, self)

    async def do_in_an_event(self, what):
        self.pair[0] = <void *><uintptr_t>ACTIONS[what]
        self.pair[1] = &self.p
        return await call_on(0, in_event, self.pair, self)

    @property
    def channel(self):
        return <uintptr_t>self.p.channel

    def forget(self):
        self.p.channel = NULL

    def hold(self, on=True):
        self.p.hold = on

    def stop_at(self, n):
        self.p.stop_at = n

    def unregister_within(self):
        self.p.inner = 1

    @property
    def walk(self):
        return {"visited": [self.p.visited[i] for i in range(self.p.visits)],
                "ended": self.p.ended, "status": self.p.status, "on": self.p.ended_on,
                "held": self.p.held is not NULL, "inner": self.p.inner}

    @property
    def number(self):
        """The id of the thread."""
        return self.thread.id

    def take(self, channel):
        """Hold this channel from now on."""
        self.p.channel = <io_channel_t *><uintptr_t>channel


def bad_registers():
    return [io_device_register(NULL, create, destroy, 8, b"x"),
            io_device_register(<void *>16, NULL, destroy, 8, b"x"),
            io_device_register(<void *>16, create, NULL, 8, b"x")]


def register_nameless():
    return io_device_register(<void *>16, create, destroy, 8, NULL)


def unregister_nameless():
    return io_device_unregister(<void *>16, NULL)
