"""vhostrt.app, from the viewpoint of who writes an application: its life, again and again."""
import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.lib import cy_app
from tests.lib.apps import opts
from tests.lib.target import RpcError, rpc_call
from vhostrt import app, log
from vhostrt.env import lcore
from vhostrt.event import reactor

ROOT = Path(__file__).parent.parent
STOP = cy_app.__pyx_capi__["stop_with"]


@pytest.fixture(autouse=True)
def ended():
    before = os.sched_getaffinity(0), signal.getsignal(signal.SIGTERM)
    yield
    app.fini()
    assert (os.sched_getaffinity(0), signal.getsignal(signal.SIGTERM)) == before
    assert lcore.enabled() == [] and app.current() is None
    log.set_up(log.INFO)


class Noting(app.Subsystem):
    """Notes its start and its stop."""

    def __init__(self, name, notes, depends_on=(), error=None):
        self.name, self.notes, self.depends_on, self.error = name, notes, depends_on, error

    async def init(self):
        self.notes.append(f"+{self.name}")
        if self.error:
            raise self.error

    async def fini(self):
        self.notes.append(f"-{self.name}")


# Status

@pytest.mark.parametrize("rc, status", [(0, 0), (3, 3), (-1, 255), (259, 3), (256, 0)])
def test_the_status_is_that_of_stop(rc, status):
    assert app.start(opts(), lambda running: app.stop(rc)) == status


def test_stop_keeps_the_first_status_but_0(capsys):
    def begin(running):
        for rc in (0, 5, 7):
            app.stop(rc)
    assert app.start(opts(), begin) == 5
    assert capsys.readouterr().err.count("spdk_app_stop called twice") == 2


@pytest.mark.parametrize("rc", [None, "3", 2.0, [1]])
def test_a_status_that_is_no_number_is_refused_where_it_is_given(rc):
    said = []

    def begin(running):
        for stop in (app.stop, running.stop):
            with pytest.raises(TypeError) as refused:
                stop(rc)
            said.append(str(refused.value))
        app.stop(2)
    assert app.start(opts(), begin) == 2
    assert said == [f"the exit status {ascii(repr(rc))} must be a whole number"] * 2


def test_what_is_no_options():
    with pytest.raises(TypeError, match="an application is started with AppOpts, not with 'x'"):
        app.start("x")
    assert app.current() is None


def test_without_anything():
    timer = threading.Timer(0.2, app.stop)      # any thread may stop it
    timer.start()
    assert app.start() == 0
    timer.join()


# Life

def test_again_and_again():
    for count in (1, 2, 1, 3):
        def begin(running, count=count):
            assert list(running.lcores) == reactor.lcores() == list(range(count))
            assert app.current() is running
            app.stop()
        assert app.start(opts(count), begin) == 0
        app.fini()
        fds = sorted(os.listdir("/proc/self/fd"))
        if count == 1:
            first = fds
    assert len(fds) == len(first)
    assert [t for t in os.listdir("/proc/self/task")
            if Path(f"/proc/self/task/{t}/comm").read_text().startswith(("reactor", "lcore"))] == []


def test_the_environment_stays_until_fini():
    assert app.start(opts(), lambda running: app.stop()) == 0
    assert reactor.lcores() == [] and lcore.enabled() == [0]
    app.fini()
    assert lcore.enabled() == []
    app.fini()


def test_one_at_a_time():
    said = []

    def begin(running):
        for wrong in (app.fini, app.start):
            with pytest.raises(RuntimeError) as refused:
                wrong()
            said.append(str(refused.value))
        app.stop()
    app.start(opts(name="first"), begin)
    assert said == ["the application first runs: vhostrt.app.stop() first",
                    "a loop runs on this thread: await vhostrt.app.run() instead of start()"]
    with pytest.raises(RuntimeError, match="the application first has not ended: vhostrt.app.fini"):
        app.start(opts())
    app.stop()                          # nothing runs


def test_in_a_loop_of_ones_own():
    async def main():
        running = asyncio.create_task(app.run(opts(), lambda running: None))
        while app.current() is None or not app.current().up:
            await asyncio.sleep(0.001)
        assert await app.call(0, cy_app.__pyx_capi__["give_int"], 5) == 5
        app.stop(2)
        return await running
    assert asyncio.run(main()) == 2


def test_a_cancelled_run_stops_in_order():
    notes = []

    async def main():
        running = asyncio.create_task(app.run(opts(subsystems=[Noting("a", notes)])))
        while app.current() is None or not app.current().up:
            await asyncio.sleep(0.001)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    asyncio.run(main())
    assert notes == ["+a", "-a"] and reactor.lcores() == []


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("error", [ZeroDivisionError, FileNotFoundError, MemoryError,
                                   asyncio.CancelledError, SystemExit, KeyboardInterrupt])
def test_an_error_of_the_start_callback_is_raised_when_all_is_undone(error, asynchronous):
    notes = []

    def begin(running):
        raise error

    async def begin_later(running):
        await asyncio.sleep(0)
        raise error
    with pytest.raises(error):
        app.start(opts(subsystems=[Noting("a", notes)]), begin_later if asynchronous else begin)
    assert notes == ["+a", "-a"] and reactor.lcores() == []
    app.fini()
    assert app.start(opts(), lambda running: app.stop(4)) == 4


def test_it_ends_where_no_thread_can_be_had(monkeypatch, capsys):
    async def none(function):
        raise RuntimeError("can't start new thread")

    def begin(running):
        monkeypatch.setattr(asyncio, "to_thread", none)
        app.stop(6)
    assert app.start(opts(), begin) == 6 and reactor.lcores() == []
    assert "reactors are joined by the control thread" in capsys.readouterr().err


def test_the_running_app_may_be_stopped_by_any_thread():
    def begin(running):
        threading.Thread(target=running.stop, args=(5,)).start()
    assert app.start(opts(), begin) == 5


def test_a_forked_child_cannot_have_an_application():
    def begin(running):
        child = os.fork()
        if child == 0:
            said = []

            def other():
                try:
                    app.start(opts(signal_handlers=False))
                except RuntimeError as error:
                    said.append(str(error))
            thread = threading.Thread(target=other)
            thread.start()
            thread.join(60)
            os._exit(7 if said and "was forked from one with an application" in said[0] else 8)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        app.stop()
    assert app.start(opts(), begin) == 0


def test_a_forked_child_has_no_application():
    def begin(running):
        child = os.fork()
        if child == 0:
            os._exit(7 if app.current() is None and reactor.lcores() == [] else 8)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        app.stop()
    assert app.start(opts(), begin) == 0


# Subsystems

def test_its_own_subsystems_start_in_order_before_the_callback():
    notes = []
    parts = [Noting("top", notes, ("low",)), Noting("low", notes)]

    def begin(running):
        notes.append("up")
        app.stop()
    assert app.start(opts(subsystems=parts), begin) == 0
    assert notes == ["+low", "+top", "up", "-top", "-low"]


def test_a_subsystem_that_fails_is_finalised_and_the_status_is_255(capsys):
    notes = []
    parts = [Noting("a", notes), Noting("b", notes, error=OSError(5, "broken"))]
    assert app.start(opts(subsystems=parts), lambda running: notes.append("up")) == 255
    assert notes == ["+a", "+b", "-b", "-a"]
    assert "Init subsystem b failed: [Errno 5] broken" in capsys.readouterr().err


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_what_ends_the_program_during_the_stop_does_not_keep_the_rest(error):
    notes = []

    class Ending(Noting):
        async def fini(self):
            await super().fini()
            raise error
    parts = [Noting("a", notes), Ending("b", notes), Noting("c", notes)]
    with pytest.raises(error):
        app.start(opts(subsystems=parts), lambda running: app.stop())
    assert notes == ["+a", "+b", "+c", "-c", "-b", "-a"] and reactor.lcores() == []


def test_two_subsystems_of_one_name():
    with pytest.raises(Exception, match="subsystem a is registered twice"):
        app.start(opts(subsystems=[Noting("a", []), Noting("a", [])]))
    assert app.current() is None


# RPC

def test_rpc_answers_before_the_callback_and_has_the_methods_of_the_subsystems(tmp_path):
    from vhostrt.subsystems import BdevSubsystem
    path = tmp_path / "rpc"
    found = {}

    async def begin(running):
        found["names"] = await asyncio.to_thread(rpc_call, path, "rpc_get_methods")
        app.stop()
    for name, parts in (("none", []), ("bdev", [BdevSubsystem()])):
        assert app.start(opts(rpc_addr=str(path), subsystems=parts), begin) == 0
        found[name] = set(found.pop("names"))
        app.fini()
        assert not path.exists()
    assert {"spdk_get_version", "thread_get_stats", "framework_get_reactors"} <= found["none"]
    brought = found["bdev"] - found["none"]
    assert "bdev_malloc_create" in brought and all(name.startswith("bdev_") for name in brought)
    assert not any(name.startswith("vhost_") for name in found["bdev"])


def test_the_parts_of_the_vhost_target(tmp_path):
    from vhostrt.subsystems import BdevSubsystem, VhostBlkSubsystem
    path = tmp_path / "rpc"

    async def begin(running):
        def client():
            rpc_call(path, "bdev_null_create", name="n", num_blocks=8, block_size=512)
            rpc_call(path, "vhost_create_blk_controller", ctrlr="c", dev_name="n")
            assert (tmp_path / "c").is_socket()
        await asyncio.to_thread(client)
        app.stop()
    parts = [BdevSubsystem(), VhostBlkSubsystem(f"{tmp_path}/")]
    assert app.start(opts(rpc_addr=str(path), subsystems=parts), begin) == 0
    assert not (tmp_path / "c").exists()


def test_a_method_of_its_own(tmp_path):
    from vhostrt.rpc.method import METHODS, method

    @method("sample_get_answer")
    async def sample_get_answer(rpc):
        return {"name": rpc.target.options.name}

    class Sample(app.Subsystem):
        name = "sample"
        rpc = (__name__,)

    async def begin(running):
        answer = await asyncio.to_thread(rpc_call, tmp_path / "rpc", "sample_get_answer")
        assert answer == {"name": "mine"}
        app.stop()
    try:
        made = opts(rpc_addr=f"{tmp_path}/rpc", subsystems=[Sample()], name="mine")
        assert app.start(made, begin) == 0
        app.fini()

        async def begin_without(running):
            with pytest.raises(RpcError) as refused:
                await asyncio.to_thread(rpc_call, tmp_path / "rpc", "sample_get_answer")
            assert refused.value.code == -32601
            app.stop()
        assert app.start(opts(rpc_addr=f"{tmp_path}/rpc"), begin_without) == 0
    finally:
        del METHODS["sample_get_answer"]


# C callbacks

def test_a_c_callback_runs_on_the_main_reactor_with_its_argument():
    assert app.start(opts(2, main_core=1), STOP, 9) == 9


def test_a_c_callback_that_fails_stops():
    assert app.start(opts(), cy_app.__pyx_capi__["give_int"], -3) == 253


def test_a_python_function_behind_a_c_type_is_refused_before_anything_starts():
    import ctypes
    hidden = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda arg: 0)
    with pytest.raises(TypeError, match="runs Python, and a reactor never takes the GIL"):
        app.start(opts(), hidden)
    with pytest.raises(TypeError, match="cannot run there"):
        app.start(opts(), "begin")
    assert app.current() is None


@pytest.mark.parametrize("stopper, status", [
    (lambda: app.call(0, STOP, 6), 6),
    (lambda: cy_app.stop_on_own_thread(11), 11),
    (cy_app.stop_in_signal_handler, 12),
], ids=["reactor", "thread", "signal handler"])
def test_c_code_stops_it_from_anywhere(stopper, status):
    assert app.start(opts(), lambda running: stopper() and None) == status


def test_c_code_that_stops_keeps_the_first_status_and_later_ones_do_nothing():
    async def begin(running):
        for rc in (0, 21, 22):
            await app.call(0, STOP, rc)
    assert app.start(opts(), begin) == 21
    cy_app.stop_on_own_thread(3)        # too late, and not for the next one
    app.fini()
    assert app.start(opts(), lambda running: app.stop(1)) == 1


# Signals

PROGRAM = """
import asyncio, os, signal, sys, threading
from tests.lib.apps import opts
from vhostrt import app

def begin(running):
    print("up", flush=True)

def later(running):
    print("asked", flush=True)
    threading.Thread(target=lambda: (sys.stdin.readline(), app.stop(6))).start()

async def soon(running):
    await asyncio.sleep(0)
    print("asked", flush=True)
    running.stop(7)

def wrong(running):
    return 1 / 0

before = signal.getsignal(signal.SIGTERM)
chosen = {CHOICE}
try:
    status = app.start(opts(**chosen), begin)
finally:
    app.fini()
    assert signal.getsignal(signal.SIGTERM) is before
print("status", status)
"""


class Program:
    """PROGRAM with a choice of options, in a process of its own."""

    def __init__(self, choice):
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM.replace("{CHOICE}", choice)],
                                        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "up\n"

    def signal(self, number):
        self.process.send_signal(number)

    def end(self, text=""):
        """Return what else it printed, its exit status, and its log."""
        out, err = self.process.communicate(text, timeout=60)
        return out, self.process.returncode, err

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_it_in_order(number):
    with Program("{}") as program:
        program.signal(number)
        out, status, err = program.end()
    assert (out, status) == ("status 0\n", 0) and f"{signal.Signals(number).name}: stopping" in err


def test_the_shutdown_callback_stops_it_when_it_wants():
    with Program("dict(shutdown_cb=later)") as program:
        program.signal(signal.SIGTERM)
        assert program.process.stdout.readline() == "asked\n"
        program.signal(signal.SIGTERM)
        while "SIGTERM is ignored" not in (line := program.process.stderr.readline()):
            assert line
        assert program.process.poll() is None
        out, status, _ = program.end("go\n")
    assert (out, status) == ("status 6\n", 0)


@pytest.mark.parametrize("callback, printed, sentence", [
    ("soon", "asked\nstatus 7\n", ""),
    ("wrong", "status 1\n", "the shutdown callback failed: division by zero"),
])
def test_other_shutdown_callbacks(callback, printed, sentence):
    with Program(f"dict(shutdown_cb={callback})") as program:
        program.signal(signal.SIGINT)
        out, status, err = program.end()
    assert (out, status) == (printed, 0) and sentence in err and "Traceback" not in err


def test_without_handlers_signals_do_what_they_did():
    with Program("dict(signal_handlers=False)") as program:
        program.signal(signal.SIGTERM)
        assert program.end()[1] == -signal.SIGTERM
    with Program("dict(signal_handlers=False)") as program:
        program.signal(signal.SIGINT)
        _, status, err = program.end()
    assert status != 0 and "KeyboardInterrupt" in err and "still" not in err


def test_another_thread_can_be_the_control_thread():
    found = []

    def main(**fields):
        try:
            found.append(app.start(opts(**fields), lambda running: app.stop(5)))
        except RuntimeError as error:
            found.append(str(error))
    for fields in ({}, {"signal_handlers": False}):
        thread = threading.Thread(target=main, kwargs=fields)
        thread.start()
        thread.join()
    assert found == ["signals are handled by the main thread alone: start the application there, "
                     "or with signal_handlers=False", 5]


# Options

@pytest.mark.parametrize("fields, name, value", [
    ({"cores": "0x5"}, "cores", (0, 2)), ({"cores": "[1-2]"}, "cores", (1, 2)),
    ({"cores": [3, 1]}, "cores", (1, 3)), ({"cores": 4}, "cores", (4,)),
    ({"cores": range(2)}, "cores", (0, 1)),
    ({"lcore_map": "0@2,1@(3-4)"}, "lcore_map", ((0, (2,)), (1, (3, 4)))),
    ({"lcore_map": {1: 4, 0: [2, 3]}}, "lcore_map", ((0, (2, 3)), (1, (4,)))),
    ({"mem_size": "2G"}, "mem_size", 2048), ({"mem_size": 64}, "mem_size", 64),
    ({"print_level": "ERROR"}, "print_level", log.ERROR), ({"print_level": 4}, "print_level", 4),
    ({"log_flags": "rpc"}, "log_flags", ("rpc",)),
    ({"log_flags": ["rpc", "bdev"]}, "log_flags", ("rpc", "bdev")),
    ({"rpcs_allowed": "a,b"}, "rpcs_allowed", ("a", "b")),
    ({"rpcs_allowed": ["a", "b"]}, "rpcs_allowed", ("a", "b")),
    ({"idle": "interrupt"}, "idle", "interrupt"), ({}, "rpc_addr", ()),
    ({"rpc_addr": "/a"}, "rpc_addr", ("/a",)), ({"rpc_addr": None}, "rpc_addr", ()),
    ({"rpc_addr": ["/a", "h:1"]}, "rpc_addr", ("/a", "h:1")), ({}, "name", "app"),
    ({"rpc_socket_owner": ":7"}, "rpc_socket_owner", (-1, 7)),
])
def test_options(fields, name, value):
    assert getattr(app.AppOpts(**fields), name) == value


@pytest.mark.parametrize("fields, sentence", [
    ({"cores": "zz"}, "AppOpts cores: 'zz' is neither a hexadecimal core mask nor a list"),
    ({"cores": []}, "AppOpts cores: [] are no numbers of CPUs"),
    ({"cores": [-1]}, "AppOpts cores: [-1] are no numbers of CPUs"),
    ({"cores": ["0"]}, "AppOpts cores: ['0'] are no numbers of CPUs"),
    ({"cores": 1.5}, "AppOpts cores:"),
    ({"cores": [0], "main_core": 3}, "AppOpts: option -p: main core 3 is not among the cores 0"),
    ({"cores": "0x1", "lcore_map": "0@0"}, "AppOpts: options -m and --lcores exclude each other"),
    ({"idle": "doze"}, "AppOpts idle: 'doze' is none of spin, yield, sleep, interrupt"),
    ({"print_level": "LOUD"}, "AppOpts print_level: 'LOUD' is none of ERROR"),
    ({"print_level": 9}, "AppOpts print_level: '9' is none of ERROR"),
    ({"log_flags": ["nope"]}, "AppOpts log_flags: unknown flag 'nope'"),
    ({"mem_size": "2X"}, "AppOpts mem_size: '2X' is not a size"),
    ({"rpc_addr": "/" + "x" * 120}, "AppOpts rpc_addr: socket path"),
    ({"no_huge": True}, "AppOpts: option --no-huge needs -s"),
    ({"name": 5}, "AppOpts name: '5' must be a str"),
    ({"name": None}, "AppOpts name: 'None' must be a str"),
    ({"max_delay_us": -1}, "AppOpts max_delay_us: '-1' is not a whole number"),
    ({"max_delay_us": 2**70}, "AppOpts max_delay_us: '1180591620717411303424' is not between"),
    ({"max_delay_us": float("nan")}, "AppOpts max_delay_us: 'nan' must be a whole number or None"),
    ({"max_delay_us": True}, "AppOpts max_delay_us: 'True' must be a whole number or None"),
    ({"main_core": 1.5}, "AppOpts main_core: '1.5' must be a whole number or None"),
    ({"main_core": -1}, "AppOpts main_core: '-1' is not a whole number"),
    ({"trace_entries": 3}, "AppOpts trace_entries: '3' is neither 0 nor a power of two"),
    ({"mem_size": -4}, "AppOpts mem_size: '-4' is not a size"),
    ({"shm_id": 2**40}, "AppOpts shm_id: '1099511627776' is not between"),
    ({"base_virtaddr": 5}, "AppOpts base_virtaddr: '5' is not a page"),
    ({"core_locks": "no"}, "AppOpts core_locks: \"'no'\" must be True or False"),
    ({"config": 5}, "AppOpts config: '5' must be a str or None"),
    ({"shutdown_cb": 5}, "AppOpts shutdown_cb: '5' must be a function or None"),
    ({"subsystems": 5}, "AppOpts subsystems: '5' must be a list of vhostrt.app.Subsystem"),
    ({"subsystems": "ab"}, "AppOpts subsystems: \"('a', 'b')\" are not all of vhostrt"),
])
def test_options_that_cannot_be(fields, sentence):
    with pytest.raises(ValueError) as refused:
        app.AppOpts(**fields)
    assert str(refused.value).startswith(sentence)


def test_a_core_that_is_not_there(capsys):
    assert app.start(app.AppOpts(cores=[1000], core_locks=False)) == 1
    assert "1000" in capsys.readouterr().err
