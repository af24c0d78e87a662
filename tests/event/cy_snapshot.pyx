"""vhostrt.event.snapshot: the pollers of a light thread, as people see them."""
import asyncio
import random

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from vhostrt.base.atomics cimport cpu_pause, load_acquire_u32, store_release_u32
from vhostrt.base.ticks cimport ticks_from_us
from vhostrt.event.control cimport call_on, call_t
from vhostrt.event.poller cimport poller_pause, poller_register, poller_unregister
from vhostrt.event.reactor cimport poller_t, thread_attach, thread_detach, thread_t
from vhostrt.event.thread cimport Thread

from tests.lib.reactors import reactors
from vhostrt.event import snapshot

KINDS = ("active_pollers", "timed_pollers", "paused_pollers")


cdef int poll(void *arg) noexcept nogil:
    return <uint64_t>arg & 1


cdef struct some_t:
    thread_t *thread
    poller_t *pollers
    uint64_t *periods
    uint32_t count
    uint32_t paused
    uint32_t gone               # of the first, that unregister takes


cdef int register(call_t *call) noexcept nogil:
    cdef some_t *some = <some_t *>call.arg
    cdef uint32_t i
    for i in range(some.count):
        poller_register(some.thread, &some.pollers[i], some.periods[i])
        if i < some.paused:
            poller_pause(&some.pollers[i])
    return 0


cdef int unregister(call_t *call) noexcept nogil:
    cdef some_t *some = <some_t *>call.arg
    cdef uint32_t i
    for i in range(some.gone):
        poller_unregister(&some.pollers[i])
    return 0


cdef int come(call_t *call) noexcept nogil:
    thread_attach(call.event.reactor, (<some_t *>call.arg).thread)
    return 0


cdef int leave(call_t *call) noexcept nogil:
    thread_detach((<some_t *>call.arg).thread)
    return 0


cdef int hold(call_t *call) noexcept nogil:
    """Hold the reactor until the word is 1."""
    while not load_acquire_u32(<uint32_t *>call.arg):
        cpu_pause()
    return 0


cdef class Pollers:
    """Pollers of a light thread: their periods in microseconds, and how many of them are paused."""
    cdef readonly Thread light
    cdef readonly int lcore
    cdef some_t some

    def __cinit__(self, Thread light not None, periods, uint32_t paused=0, bint named=False):
        self.light = light
        self.some.thread, self.some.count, self.some.paused = light.t, len(periods), paused
        self.some.pollers = <poller_t *>calloc(self.some.count, sizeof(poller_t))
        self.some.periods = <uint64_t *>calloc(self.some.count, sizeof(uint64_t))
        for i, period in enumerate(periods):
            self.set_up(&self.some.pollers[<uint32_t>i], i, named)
            self.some.periods[<uint32_t>i] = period

    cdef void set_up(self, poller_t *poller, uint64_t number, bint named):
        poller.poll, poller.arg, poller.fd = poll, <void *>number, -1
        if named:
            poller.name = "worker"

    def __dealloc__(self):
        free(self.some.pollers)
        free(self.some.periods)

    def come(self, int lcore):
        """Have it run on a core, with its pollers or before they are there."""
        self.lcore = lcore
        return call_on(lcore, come, &self.some, self)

    def leave(self):
        """Have it run nowhere."""
        return call_on(self.lcore, leave, &self.some, self)

    async def up(self, int lcore):
        await self.come(lcore)
        await call_on(lcore, register, &self.some, self)

    async def unregister(self, uint32_t count):
        """Unregister the first; those that are off already are none."""
        self.some.gone = count
        await call_on(self.lcore, unregister, &self.some, self)

    async def down(self):
        await self.unregister(self.some.count)
        assert set(snapshot.counts(self.light).values()) == {0}
        await self.leave()


def ids(shown):
    return sorted(poller["id"] for kind in KINDS for poller in shown[kind])


async def show_kinds():
    # Two paused, three active, and timed ones of more periods than there are lanes.
    periods = [0, 70_000_000] + [0] * 3 + [60_000_000 + i % 7 for i in range(20)]
    async with reactors():
        some = Pollers(Thread("some"), periods, paused=2, named=True)
        await some.up(0)
        shown = await snapshot.pollers(some.light)
        while min(poller["run_count"] for poller in shown["active_pollers"]) < 10:
            shown = await snapshot.pollers(some.light)
        counts = snapshot.counts(some.light)
        await some.down()
        nothing = await snapshot.pollers(some.light)
    return shown, counts, nothing


def test_every_poller_is_shown_in_the_list_of_its_kind():
    shown, counts, nothing = asyncio.run(show_kinds())
    assert list(shown) == list(KINDS) and ids(shown) == list(range(1, 26))
    assert counts == {"active_pollers_count": 3, "timed_pollers_count": 20,
                      "paused_pollers_count": 2}
    assert [len(shown[kind]) for kind in KINDS] == [3, 20, 2]
    assert nothing == {kind: [] for kind in KINDS}
    for kind in KINDS:
        for poller in shown[kind]:
            assert poller["name"] == "worker"
            assert poller["state"] == ("paused" if kind == "paused_pollers" else "waiting")
    assert sorted(poller["period_ticks"] for poller in shown["timed_pollers"]) == sorted(
        ticks_from_us(60_000_000 + i % 7) for i in range(20))
    assert [poller.get("period_ticks") for poller in shown["paused_pollers"]] == [
        None, ticks_from_us(70_000_000)]
    assert all("period_ticks" not in poller for poller in shown["active_pollers"])
    for poller in shown["active_pollers"]:          # every other one finds work
        assert poller["busy_count"] == poller["run_count"] * (poller["id"] % 2 == 0)


async def show_many(periods):
    async with reactors():
        many = Pollers(Thread("many"), periods)
        await many.up(0)
        shown = await snapshot.pollers(many.light)
        await many.down()
    return shown


def test_no_more_than_1024_are_shown_and_the_rest_is_counted():
    for periods in ([0] * 3000, [60_000_000] * 3000, range(60_000_000, 60_003_000)):
        shown = asyncio.run(show_many(list(periods)))
        assert len(ids(shown)) == len(set(ids(shown))) == 1024 and shown["left_out"] == 1976
    assert "left_out" not in asyncio.run(show_many([0] * 1024))
    name = asyncio.run(show_many([0]))["active_pollers"][0]["name"]
    assert int(name, 16) == <uint64_t>&poll         # that of its function, when it has none


async def show_heap(periods, gone):
    async with reactors():
        some = Pollers(Thread("some"), periods)
        await some.up(0)
        await some.unregister(gone)
        shown = await snapshot.pollers(some.light)
        await some.down()
    return shown


def test_timers_of_many_periods_are_shown_whatever_has_gone():
    for seed in range(20):
        rng = random.Random(seed)
        periods = [rng.randrange(60_000_000, 90_000_000) for _ in range(800)]
        gone = rng.randrange(1, 800)
        shown = asyncio.run(show_heap(periods, gone))
        assert ids(shown) == list(range(gone + 1, 801)), seed


async def show_one_that_leaves():
    cdef uint32_t go = 0
    async with reactors():
        some = Pollers(Thread("some"), [0, 0])
        await some.up(0)
        holding = call_on(0, hold, &go, None)
        leaving = some.leave()              # its event is on its way, before that of the next
        asking = asyncio.ensure_future(snapshot.pollers(some.light))
        await asyncio.sleep(0)
        store_release_u32(&go, 1)
        shown = await asking
        await asyncio.gather(holding, leaving)
        await some.come(0)
        await some.down()
    return shown


def test_a_thread_that_has_left_is_looked_for_again():
    assert ids(asyncio.run(show_one_that_leaves())) == []


async def show_while_it_moves():
    async with reactors(2):
        some = Pollers(Thread("some"), [0] * 3 + [60_000_000] * 4, paused=1)
        await some.up(0)
        found, moves, wanted = [], 0, True

        async def ask():
            while wanted:
                found.append(ids(await snapshot.pollers(some.light)))
                await asyncio.sleep(0)      # a thread that runs nowhere is known at once
        asking = asyncio.ensure_future(ask())
        while moves < 300 or len(found) < 300:
            await some.leave()
            await some.come(1 - some.lcore)
            moves += 1
        wanted = False
        await asking
        await some.down()
    return found


def test_a_thread_that_moves_is_shown_whole_or_as_running_nowhere():
    found = asyncio.run(show_while_it_moves())
    whole = list(range(1, 8))
    assert {tuple(each) for each in found} == {(), tuple(whole)}
