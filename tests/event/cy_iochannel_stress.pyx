"""vhostrt.event.iochannel: threads of two reactors that get, put, register, unregister and walk at
once."""
import asyncio
import os

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from vhostrt.base.atomics cimport (fetch_add_u32, load_acquire_u32, load_relaxed_u32,
                                   store_release_u32)
from vhostrt.event.control cimport thread_current
from vhostrt.event.iochannel cimport (for_each_channel, for_each_channel_continue, get_io_channel,
                                      io_channel_get_ctx, io_channel_iter_get_channel,
                                      io_channel_iter_get_ctx, io_channel_iter_t, io_channel_t,
                                      io_device_register, io_device_unregister, put_io_channel)
from vhostrt.event.poller cimport poller_register, poller_unregister
from vhostrt.event.reactor cimport poller_t
from vhostrt.event.thread cimport Thread, thread_call

from tests.lib.light_threads import attached, end, run, until
from vhostrt.event import iochannel

cdef enum:
    DEVICES = 3
    HELD = 8                    # channels that a thread has at a time

STRESS = int(os.environ.get("VHOSTRT_STRESS", "1"))

cdef struct device_t:           # counted by all threads
    uint32_t registered
    uint32_t unregistered
    uint32_t gone
    uint32_t created
    uint32_t destroyed
    uint32_t walks
    uint32_t walked
    uint32_t visits
    uint32_t wrong

cdef struct ctx_t:
    uint64_t owner

cdef struct user_t:
    poller_t poller
    device_t *devices
    io_channel_t *held[HELD]
    uint64_t seed
    uint32_t left               # steps
    uint32_t over


cdef int create(void *io_device, void *ctx) noexcept nogil:
    cdef device_t *d = <device_t *>io_device
    if (fetch_add_u32(&d.created, 1) & 15) == 15:
        fetch_add_u32(&d.destroyed, 1)
        return -1
    (<ctx_t *>ctx).owner = thread_current().id
    return 0


cdef void destroy(void *io_device, void *ctx) noexcept nogil:
    cdef device_t *d = <device_t *>io_device
    fetch_add_u32(&d.destroyed, 1)
    fetch_add_u32(&d.wrong, (<ctx_t *>ctx).owner != thread_current().id)


cdef void gone(void *io_device) noexcept nogil:
    fetch_add_u32(&(<device_t *>io_device).gone, 1)


cdef void visit(io_channel_iter_t *i) noexcept nogil:
    cdef device_t *d = <device_t *>io_channel_iter_get_ctx(i)
    cdef ctx_t *ctx = <ctx_t *>io_channel_get_ctx(io_channel_iter_get_channel(i))
    fetch_add_u32(&d.visits, 1)
    fetch_add_u32(&d.wrong, ctx.owner != thread_current().id)
    for_each_channel_continue(i, 0)


cdef void visited(io_channel_iter_t *i, int status) noexcept nogil:
    fetch_add_u32(&(<device_t *>io_channel_iter_get_ctx(i)).walked, 1)


cdef int step(void *arg) noexcept nogil:
    """Do one thing at random; at the end, put what is held."""
    cdef user_t *u = <user_t *>arg
    cdef uint32_t slot, what
    cdef device_t *d
    u.seed = u.seed * 6364136223846793005u + 1442695040888963407u
    what = (u.seed >> 33) % 16
    slot = (u.seed >> 40) % HELD
    d = &u.devices[(u.seed >> 50) % DEVICES]
    if u.left == 0:
        for slot in range(<uint32_t>HELD):
            if u.held[slot] is not NULL:
                put_io_channel(u.held[slot])
        poller_unregister(&u.poller)
        store_release_u32(&u.over, 1)
        return 1
    u.left -= 1
    if what == 0:
        fetch_add_u32(&d.registered, io_device_register(d, create, destroy, 64, b"d") == 0)
    elif what == 1:
        fetch_add_u32(&d.unregistered, io_device_unregister(d, gone) == 0)
    elif what < 4:
        fetch_add_u32(&d.walks, for_each_channel(d, visit, d, visited) == 0)
    elif u.held[slot] is NULL:
        u.held[slot] = get_io_channel(d)
    else:
        put_io_channel(u.held[slot])
        u.held[slot] = NULL
    return 1


cdef int begin(void *arg) noexcept nogil:
    cdef user_t *u = <user_t *>arg
    u.poller.poll = step
    u.poller.arg = u
    u.poller.fd = -1
    poller_register(thread_current(), &u.poller, 0)
    return 0


cdef int unregister_all(void *arg) noexcept nogil:
    cdef device_t *d = <device_t *>arg
    cdef uint32_t i
    for i in range(<uint32_t>DEVICES):
        fetch_add_u32(&d[i].unregistered, io_device_unregister(&d[i], gone) == 0)
    return 0


cdef class Users:
    """Threads that use the same devices, each `steps` times."""
    cdef device_t *devices
    cdef user_t *users
    cdef uint32_t count

    def __cinit__(self, uint32_t count, uint32_t steps):
        cdef uint32_t i
        self.count = count
        self.devices = <device_t *>calloc(DEVICES, sizeof(device_t))
        self.users = <user_t *>calloc(count, sizeof(user_t))
        for i in range(count):
            self.users[i].devices = self.devices
            self.users[i].seed = i + 1
            self.users[i].left = steps

    def __dealloc__(self):
        free(self.devices)
        free(self.users)

    async def begin(self, threads):
        cdef uint32_t i
        for i in range(self.count):
            await thread_call(threads[i], begin, &self.users[i], self)

    async def unregister(self, Thread light):
        await thread_call(light, unregister_all, self.devices, self)

    def over(self):
        cdef uint32_t i
        for i in range(self.count):
            if not load_acquire_u32(&self.users[i].over):
                return False
        return True

    def about(self):
        cdef uint32_t i
        cdef device_t *d
        found = []
        for i in range(<uint32_t>DEVICES):
            d = &self.devices[i]
            found.append({"registered": load_relaxed_u32(&d.registered),
                          "unregistered": load_relaxed_u32(&d.unregistered),
                          "gone": load_relaxed_u32(&d.gone),
                          "channels": load_relaxed_u32(&d.created) -
                          load_relaxed_u32(&d.destroyed),
                          "walks": load_relaxed_u32(&d.walks),
                          "walked": load_relaxed_u32(&d.walked),
                          "visits": load_relaxed_u32(&d.visits),
                          "wrong": load_relaxed_u32(&d.wrong)})
        return found


@run()
async def test_stress_channels_of_threads_that_move():
    made = await attached(0, 1, 0, 1)
    users = Users(4, 60_000 * min(STRESS, 5))
    await users.begin(made)
    turn = 0
    while not users.over():
        light = made[turn % 4]
        await light.move(1 - light.lcore)
        turn += 1
        iochannel.devices()
        iochannel.channels(light)
        await asyncio.sleep(0)
    await until(lambda: all(d["walks"] == d["walked"] for d in users.about()))
    await users.unregister(made[0])
    await end(*made)
    for device in users.about():
        assert device["wrong"] == device["channels"] == 0
        assert device["registered"] == device["unregistered"] == device["gone"] > 0
        assert device["walks"] > 0 and device["visits"] > 0
    assert iochannel.devices() == []
