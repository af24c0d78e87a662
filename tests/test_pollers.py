"""vhostrt.pollers: Python functions that the control thread's loop calls again and again."""
import asyncio
import itertools
import time

import pytest

from tests.lib.apps import in_app
from vhostrt import app, pollers
from vhostrt.event import thread
from vhostrt.pollers import Poller

PERIOD_US = 2000


class Notes(list):
    """Notes the time of each call; `count` of them can be awaited."""

    def __init__(self, result=None):
        super().__init__()
        self.result = result
        self.came = asyncio.Event()

    def __call__(self):
        self.append(time.monotonic())
        self.came.set()
        return self.result

    async def reach(self, count):
        while len(self) < count:
            self.came.clear()
            await asyncio.wait_for(self.came.wait(), 60)


def gaps(notes):
    return [later - earlier for earlier, later in itertools.pairwise(notes)]


def run(main):
    """Run a coroutine function in a loop; all pollers that it has left are ended."""
    async def whole():
        try:
            return await main()
        finally:
            await pollers.end_all()
            assert pollers.registered == {}
    return asyncio.run(whole())


# Times

def test_it_is_called_a_period_after_registration_and_after_each_call():
    async def main():
        notes, began = Notes(), time.monotonic()
        Poller(notes, PERIOD_US, "")
        await notes.reach(5)
        return began, notes
    began, notes = run(main)
    # The loop runs what is due within the resolution of its clock.
    least = PERIOD_US / 1e6 - time.get_clock_info("monotonic").resolution
    assert notes[0] - began >= least
    assert notes[4] - began >= 5 * least


def test_a_timer_is_called_once():
    async def main():
        notes, began = Notes(True), time.monotonic()
        timer = Poller(notes, PERIOD_US, "", once=True)
        assert timer.state == "waiting" and timer.id in pollers.registered
        await notes.reach(1)
        assert timer.state == "off" and timer.id not in pollers.registered
        await asyncio.sleep(3 * PERIOD_US / 1e6)
        assert notes[0] - began >= PERIOD_US / 1e6 - 1e-6
        return timer, len(notes)
    timer, count = run(main)
    assert count == 1 and (timer.runs, timer.busy) == (1, 1)


def test_without_a_period_it_is_called_in_each_turn_of_the_loop_while_it_finds_work():
    async def main():
        order, notes = [], Notes(1)
        poller = Poller(lambda: order.append("poll") or notes(), 0, "")
        for _ in range(20):
            order.append("turn")
            await asyncio.sleep(0)
        assert order[3:] == (["poll", "turn"] * 20)[:len(order) - 3] or \
            order[3:] == (["turn", "poll"] * 20)[:len(order) - 3]
        notes.result = 0
        await notes.reach(len(notes) + 5)
        assert min(gaps(notes[-4:])) >= pollers.IDLE_S - 1e-6
        return poller
    poller = run(main)
    assert 10 < poller.busy < poller.runs


# What it returns

@pytest.mark.parametrize("result, busy", [
    (None, 0), (0, 0), (-1, 0), (False, 0), ("text", 0), (1, 1), (2.5, 1), (True, 1),
])
def test_busy_runs(result, busy):
    async def main():
        notes = Notes(result)
        poller = Poller(notes, 1, "")
        await notes.reach(1)
        await asyncio.sleep(0)
        return poller
    poller = run(main)
    assert poller.runs >= 1 and poller.busy == busy * poller.runs


def test_a_coroutine_is_not_called_again_before_it_has_ended():
    async def main():
        inside, most, ended = 0, 0, Notes()

        async def work():
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(3 * PERIOD_US / 1e6)
            inside -= 1
            ended()
            return 1
        poller = Poller(work, PERIOD_US, "")
        await ended.reach(3)
        await asyncio.sleep(0)
        assert most == 1 and min(gaps(ended)) >= 3 * PERIOD_US / 1e6 - 1e-6
        return poller
    poller = run(main)
    assert poller.runs == poller.busy == 3 and poller.name == "work"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_one_that_raises_is_unregistered_and_the_loop_is_told(asynchronous):
    async def main():
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, about: told.append(about))

        def fail():
            raise ZeroDivisionError

        async def fail_later():
            await asyncio.sleep(0)
            raise ZeroDivisionError
        poller = Poller(fail_later if asynchronous else fail, 1, "divider")
        while not told:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert poller.id not in pollers.registered and poller.state == "off" and poller.runs == 1
        return told
    about, = run(main)
    assert about["message"] == "poller divider failed and is unregistered"
    assert isinstance(about["exception"], ZeroDivisionError)


# Changes

async def rest():
    """Give pollers of PERIOD_US time to be called, if they still are."""
    await asyncio.sleep(4 * PERIOD_US / 1e6)


def test_unregister_pause_and_resume_from_outside():
    async def main():
        notes = Notes()
        poller = Poller(notes, PERIOD_US, "")
        await notes.reach(1)
        poller.pause()
        assert poller.state == "paused"
        count = len(notes)
        await rest()
        assert len(notes) == count
        resumed = time.monotonic()
        poller.resume()
        poller.resume()
        await notes.reach(count + 1)
        assert notes[count] - resumed >= PERIOD_US / 1e6 - 1e-6
        poller.unregister()
        assert poller.state == "off"
        poller.unregister()
        poller.resume()
        poller.set_period(1)
        count = len(notes)
        await rest()
        assert len(notes) == count and poller.state == "off" and poller.runs == count
    run(main)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("what, state, again", [
    (["unregister"], "off", False), (["pause"], "paused", False), (["pause", "resume"], "waiting",
                                                                   True),
    (["pause", "unregister"], "off", False), (["unregister", "resume"], "off", False),
])
def test_changes_from_inside(what, state, again, asynchronous):
    async def main():
        notes = Notes()

        def once():
            assert poller.state == "running"
            if not notes:
                for name in what:
                    getattr(poller, name)()
            notes()

        async def once_later():
            await asyncio.sleep(0)
            once()
        poller = Poller(once_later if asynchronous else once, PERIOD_US, "")
        await notes.reach(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        # One that goes on may run again already.
        assert poller.state == state or again and poller.state == "running"
        if again:
            await notes.reach(2)
        else:
            await rest()
            assert len(notes) == 1
    run(main)


def test_another_period():
    async def main():
        notes = Notes()
        poller = Poller(notes, 3_600_000_000, "")
        poller.set_period(1)
        await notes.reach(1)
        count = len(notes)
        poller.set_period(3_600_000_000)
        await rest()
        assert len(notes) == count and poller.period_us == 3_600_000_000
        poller.set_period(0)
        await notes.reach(count + 2)
    run(main)


@pytest.mark.parametrize("period_us", [-1, 1.5, "1", None, True, 2**53 + 1])
def test_a_period_that_cannot_be(period_us):
    async def main():
        poller = Poller(print, 3_600_000_000, "")
        for refuse in (lambda: Poller(print, period_us, ""), lambda: poller.set_period(period_us)):
            with pytest.raises(ValueError) as refused:
                refuse()
            assert str(refused.value) == (f"a period of {period_us!r} must be a whole number of "
                                          "microseconds")
        assert list(pollers.registered) == [poller.id] and poller.period_us == 3_600_000_000
    run(main)


# In an application

def test_those_that_are_left_end_with_the_application():
    ended = []

    async def main(running):
        async def work():
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("cancelled")
        app.register_poller(work, 1)
        light = app.register_timer(lambda: ended.append("called"), 3_600_000_000, "late")
        assert light.name == "late"
        await asyncio.sleep(0.01)
    in_app(main)
    assert ended == ["cancelled"] and pollers.registered == {}


def test_a_poller_asks_reactors():
    async def main(running):
        asked, done = [], asyncio.Event()

        async def ask():
            asked.append(await app.call(len(asked) % 2))
            if len(asked) == 10:
                done.set()
            return True
        poller = app.register_poller(ask, 100)
        await done.wait()
        return poller.busy
    assert in_app(main, 2) >= 9


# What it costs

def test_the_time_that_it_works_is_that_of_app_thread():
    """Also of a coroutine, of which the waits do not count; what found nothing is idle."""
    def spend():
        end = time.monotonic() + 0.01
        while time.monotonic() < end:
            pass

    def found(result):
        spend()
        return result

    async def found_later():
        await asyncio.sleep(0.2)
        spend()
        await asyncio.sleep(0.2)
        return 1

    async def main(running):
        from vhostrt.base import ticks
        spent = []
        for function in (lambda: found(1), lambda: found(0), found_later):
            before = thread.app().busy
            timer = app.register_timer(function, 1)
            while timer.state != "off":
                await asyncio.sleep(0.005)
            spent.append((thread.app().busy - before) / ticks.hz())
        return spent
    busy, idle, later = in_app(main)
    assert busy >= 0.01 and idle < 0.005
    assert 0.01 <= later < 0.2


def test_a_coroutine_that_waits_is_ended_and_told_so():
    async def main(running):
        told = []

        async def wait():
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                told.append("cancelled")
                raise
        poller = app.register_poller(wait, 1)
        while poller.state != "running":
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        return told, poller
    told, poller = in_app(main)
    assert told == ["cancelled"] and poller.state == "off"


@pytest.mark.parametrize("function, name, sentence", [
    (5, "", "5 is no function that could be called"),
    (None, "", "None is no function that could be called"),
    (print, 7, "the name 7 of a poller must be a str"),
])
def test_what_is_no_function_and_what_is_no_name(function, name, sentence):
    async def main():
        with pytest.raises(TypeError) as refused:
            Poller(function, 1, name)
        assert str(refused.value) == sentence and pollers.registered == {}
    run(main)
