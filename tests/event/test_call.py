"""vhostrt.app.call and send: C functions on reactors and light threads, awaited in Python."""
import array
import asyncio
import ctypes
import errno
import gc
import threading
import weakref

import pytest

from tests.lib import cy_app
from tests.lib.apps import in_app, opts
from vhostrt import app
from vhostrt.event import thread
from vhostrt.event.scheduler import scheduling
from vhostrt.event.thread import Thread

C = cy_app.__pyx_capi__
LIBC = ctypes.CDLL(None)


class Pair(ctypes.Structure):
    """cy_app's pair_t."""

    _fields_ = [("given", ctypes.c_int64), ("lcore", ctypes.c_int64), ("order", ctypes.c_uint64)]


def typed(name, restype):
    """A ctypes function of libc, of its own, with a type of result."""
    function = ctypes.CDLL(None)[name]
    function.restype = restype
    return function


# Functions and results

@pytest.mark.parametrize("fn, arg, result", [
    (C["give_int"], 5, 5), (C["give_int"], -5, -5), (C["give_int"], 2**32 + 3, 3),
    (C["give_i64"], -2**63, -2**63), (C["give_u64"], 2**64 - 1, 2**64 - 1),
    (C["give_u32"], 2**32 - 1, 2**32 - 1), (C["give_nothing"], 1, None), (C["give_int"], None, 0),
    (None, None, None), (None, 7, None), (cy_app.address("give_int"), 6, 6),
    (cy_app.made(), 8, 8), (LIBC.abs, -3, 3), (typed("labs", ctypes.c_long), -2**40, 2**40),
    (typed("abs", None), -1, None), (typed("labs", ctypes.c_uint64), -4, 4),
    (typed("abs", ctypes.c_uint), -2**31, 2**31),
])
def test_functions(fn, arg, result):
    assert in_app(lambda running: app.call(0, fn, arg)) == result


def hidden_callback():
    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda arg: 0)


def cast_callback():
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
    return ctypes.cast(ctypes.cast(hidden_callback(), ctypes.c_void_p), kind), \
        ctypes.cast(hidden_callback(), kind)


NEVER = "a reactor never takes the GIL: give it the capsule"


@pytest.mark.parametrize("fn, arg, sentence", [
    (print, None, f"<built-in function print> cannot run there, as {NEVER}"),
    (lambda: 0, None, f"cannot run there, as {NEVER}"),
    (True, None, f"True cannot run there, as {NEVER}"),
    ("give_int", None, f"'give_int' cannot run there, as {NEVER}"),
    (hidden_callback(), None, f"runs Python, and {NEVER}"),
    (cast_callback()[1], None, f"runs Python, and {NEVER}"),
    (ctypes.pythonapi.Py_IsInitialized, None, f"runs Python, and {NEVER}"),
    (C["give_double"], None, "the capsule holds a function 'double (void *)': it must take one "
                             "pointer and return void or an integer"),
    (C["give_sum"], None, "the capsule holds a function 'int (void *, void *)'"),
    (typed("abs", ctypes.c_double), None, "must be None or an integer, not <class 'ctypes.c_do"),
    (typed("abs", int), None, "must be None or an integer, not <class 'int'>"),
    (5, None, "5 is no address of a function: there is no code of this process"),
    (-1, None, "-1 is no address of a function"),
    (C["give_int"], 2**64, f"the argument {2**64} does not fit into a pointer"),
    (C["give_int"], -2**63 - 1, "does not fit into a pointer"),
    (C["give_int"], object, "the argument <class 'object'> is neither None, a number, a capsule"),
    (C["give_int"], 1.5, "the argument 1.5 is neither None, a number, a capsule"),
])
def test_refusals(fn, arg, sentence):
    async def main(running):
        with pytest.raises((TypeError, ValueError)) as refused:
            app.call(0, fn, arg)
        return str(refused.value)
    assert sentence in in_app(main)


@pytest.mark.parametrize("core", [2, 1000, -1, 2**31, 2**64, -2**70])
def test_a_core_without_a_reactor(core):
    async def main(running):
        with pytest.raises(ValueError) as refused:
            app.call(core, C["give_int"])
        return str(refused.value)
    assert in_app(main, 2) == f"no reactor is on core {core}, but on 0, 1"


@pytest.mark.parametrize("core", ["0", 0.0, None, True])
def test_what_is_no_core(core):
    async def main(running):
        with pytest.raises(TypeError, match="a core is told by its number"):
            app.call(core, C["give_int"])
    in_app(main)


# Arguments

@pytest.mark.parametrize("make", [
    lambda pair: pair, lambda pair: bytearray(pair), lambda pair: memoryview(bytearray(pair)),
    lambda pair: array.array("q", bytes(pair)), ctypes.pointer,
    lambda pair: ctypes.c_void_p(ctypes.addressof(pair)), ctypes.addressof,
], ids=["structure", "bytearray", "memoryview", "array", "pointer", "void pointer", "address"])
def test_arguments_point_to_memory_of_python(make):
    pair = Pair(given=7)

    async def main(running):
        assert await app.call(1, C["fill_pair"], argument) == 1
    argument = make(pair)
    in_app(main, 2)
    if isinstance(argument, bytearray | memoryview | array.array):
        pair = Pair.from_buffer_copy(argument)
    assert pair.lcore == 1


def test_a_capsule_is_an_argument():
    async def main(running):
        return await app.call(0, C["give_u64"], C["give_int"])
    assert in_app(main) == cy_app.address("give_int")


class Held(bytearray):
    """Memory that can be watched."""


def test_function_and_argument_are_kept_until_the_answer():
    async def main(running):
        held = Held(bytes(Pair(given=7)))
        watch = weakref.ref(held)
        cy_app.set_flag(0)
        waiting = app.call(0, C["wait_for_flag"])
        filled = app.call(0, C["fill_pair"], held)
        with pytest.raises(BufferError):
            held.append(0)              # a reactor has its address
        del held
        gc.collect()
        assert watch() is not None and not filled.done()
        cy_app.set_flag(1)
        assert (await waiting, await filled) == (0, 1)
        gc.collect()
        return watch()
    assert in_app(main) is None


@pytest.mark.filterwarnings("error")
def test_a_wait_that_is_cancelled_leaves_the_call_alone():
    async def main(running):
        pair = Pair(given=7)
        cy_app.set_flag(0)
        waiting = app.call(0, C["wait_for_flag"])
        cancelled = app.call(0, C["fill_pair"], pair)
        cancelled.cancel()
        await asyncio.sleep(0)
        cy_app.set_flag(1)
        await waiting
        await app.call(0)
        assert cancelled.cancelled()
        return pair.lcore, pair.order
    lcore, order = in_app(main)
    assert (lcore, order) == (0, order) and order > 0


# Order, and who may ask

def test_calls_of_one_core_run_in_their_order_and_the_loop_goes_on():
    async def main(running):
        pairs = [Pair(given=7) for _ in range(1000)]
        await asyncio.gather(*[app.call(i % 2, C["fill_pair"], pair)
                               for i, pair in enumerate(pairs)])
        for core in (0, 1):
            orders = [pair.order for pair in pairs[core::2]]
            assert orders == sorted(orders)
            assert {pair.lcore for pair in pairs[core::2]} == {core}
    in_app(main, 2)


def test_a_reactor_goes_on_between_calls():
    async def main(running):
        return [await app.call(0, C["count_iterations"]) for _ in range(3)]
    turns = in_app(main)
    assert turns == sorted(turns) and turns[0] < turns[2]


def test_a_light_thread_runs_what_is_sent_where_it_is():
    async def main(running):
        light, found = Thread("here and there"), []
        with pytest.raises(OSError, match="here and there") as failed:
            await app.send(light, C["fill_pair"], Pair(given=7))       # it runs nowhere
        await light.attach(1)
        for core in (1, 0):
            await light.move(core)
            pair = Pair(given=7)
            await app.send(light, C["fill_pair"], pair)
            found.append(pair.lcore)
        await light.exit()
        return failed.value.errno, found
    assert in_app(main, 2) == (errno.EIO, [1, 0])


def test_a_scheduler_moves_the_threads_of_an_application():
    """One without work goes to the main core, and what is sent to it runs there."""
    async def main(running):
        light = await thread.create("idle", [0, 1])
        await light.move(1)
        scheduling.set("dynamic", 5000, {"load_limit": 100})
        while light.lcore != 0:
            await asyncio.sleep(0.005)
        pair = Pair()
        await app.send(light, C["fill_pair"], pair)
        await light.exit()
        return pair.lcore
    assert in_app(main, 2) == 0


@pytest.mark.parametrize("name, arguments", [
    ("call", (0,)), ("send", (None,)), ("register_poller", (print,)),
    ("register_timer", (print, 1)),
])
def test_it_belongs_to_the_control_thread(name, arguments):
    function = getattr(app, name)
    said = []

    def ask():
        with pytest.raises(RuntimeError) as refused:
            function(*arguments)
        said.append(str(refused.value))

    async def main(running):
        await asyncio.to_thread(ask)
    ask()
    in_app(main)
    assert said == 2 * [f"vhostrt.app.{name}() belongs to the control thread of a running "
                        "application; from another thread, hand it a function with call_soon()"]


# call_soon

def test_call_soon_from_another_thread():
    async def main(running):
        done, seen = asyncio.Event(), []

        async def later(word):
            await asyncio.sleep(0)
            seen.append((word, threading.current_thread()))
            done.set()
        await asyncio.to_thread(app.call_soon, seen.append, "first")
        await asyncio.to_thread(app.call_soon, later, "second")
        await done.wait()
        return seen
    assert in_app(main) == ["first", ("second", threading.main_thread())]


def test_call_soon_of_what_cannot_be_called():
    async def main(running):
        with pytest.raises(TypeError, match="5 is no function that could be called"):
            app.call_soon(5)
    in_app(main)


def test_call_soon_without_an_application():
    with pytest.raises(RuntimeError, match="no application runs that could call <built-in"):
        app.call_soon(print)


@pytest.mark.parametrize("own_loop", [False, True])
def test_a_coroutine_of_call_soon_ends_with_the_application(own_loop):
    ended = []

    async def for_ever():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def main(running):
        app.call_soon(for_ever)
        await asyncio.sleep(0.01)

    async def begin(running):
        await main(running)
        app.stop()

    async def in_own_loop():
        await app.run(opts(), begin)
        assert ended == [True]
    try:
        asyncio.run(in_own_loop()) if own_loop else in_app(main)
    finally:
        app.fini()
    assert ended == [True]
