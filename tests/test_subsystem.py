"""The registry of subsystems, from the viewpoint of a subsystem and of the application."""
import asyncio

import pytest

from vhostrt.subsystem import Registry, Subsystem, SubsystemError


class Part(Subsystem):
    """Notes what is called; fails where told to."""

    def __init__(self, name, depends_on=(), calls=None, init_error=None, fini_error=None):
        self.name, self.depends_on, self.calls = name, tuple(depends_on), calls
        self.init_error, self.fini_error = init_error, fini_error

    async def init(self):
        self.calls.append(f"+{self.name}")
        await asyncio.sleep(0)
        if self.init_error:
            raise self.init_error

    async def fini(self):
        await asyncio.sleep(0)
        self.calls.append(f"-{self.name}")
        if self.fini_error:
            raise self.fini_error

    def config(self):
        return [{"method": f"{self.name}_make", "params": {}}]


def names(*parts):
    return [part.name for part in Registry(parts).order()]


def test_order_of_the_original_program():
    """runtime.md 12: dependencies first, otherwise by registration."""
    parts = [Part("bdev", ["copy"]), Part("copy"), Part("nbd", ["bdev"]), Part("interface"),
             Part("net_framework", ["interface"]), Part("scsi", ["bdev"]), Part("vhost", ["scsi"])]
    assert names(*parts) == ["copy", "interface", "net_framework", "bdev", "nbd", "scsi", "vhost"]


def test_start_in_order_and_stop_in_reverse():
    calls = []
    registry = Registry([Part("b", ["a"], calls), Part("a", [], calls)])

    async def life():
        await registry.start()
        calls.append("run")
        await registry.stop()
        await registry.stop()
    asyncio.run(life())
    assert calls == ["+a", "+b", "run", "-b", "-a"]


def test_a_failed_start_stops_the_failed_one_and_those_before():
    calls = []
    registry = Registry([Part("a", [], calls), Part("b", ["a"], calls, OSError(12, "no memory")),
                         Part("c", ["b"], calls)])
    with pytest.raises(SubsystemError, match="Init subsystem b failed: .*no memory"):
        asyncio.run(registry.start())
    assert calls == ["+a", "+b", "-b", "-a"]


def test_an_error_without_text_is_named_by_its_kind():
    with pytest.raises(SubsystemError, match="Init subsystem a failed: ZeroDivisionError"):
        asyncio.run(Registry([Part("a", [], [], ZeroDivisionError())]).start())


def test_a_cancelled_start_stops_what_runs():
    calls = []
    registry = Registry([Part("a", [], calls), Part("b", [], calls)])

    async def life():
        starting = asyncio.create_task(registry.start())
        await asyncio.sleep(0)
        starting.cancel()
        await starting
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(life())
    assert calls == ["+a", "-a"]


def test_a_failing_stop_is_logged_and_does_not_keep_the_rest(capsys):
    calls = []
    registry = Registry([Part("a", [], calls), Part("b", [], calls, fini_error=OSError(5, "gone"))])

    async def life():
        await registry.start()
        await registry.stop()
    asyncio.run(life())
    assert calls == ["+a", "+b", "-b", "-a"]
    assert "*ERROR*: Fini subsystem b failed: [Errno 5] gone" in capsys.readouterr().err


@pytest.mark.parametrize("parts, sentence", [
    ([("a", ["x"])], "subsystem a dependency x is missing"),
    ([("a", ["b"]), ("b", ["a"]), ("c", [])], "wait for each other: a, b$"),
    ([("a", ["a"])], "wait for each other: a$"),
    ([("a", []), ("a", [])], "subsystem a is registered twice"),
])
def test_refused_sets(parts, sentence):
    calls = []
    with pytest.raises(SubsystemError, match=sentence):
        asyncio.run(Registry(Part(*part, calls=calls) for part in parts).start())
    assert calls == []


def test_configuration_of_one_and_of_all():
    registry = Registry([Part("b", ["a"]), Part("a"), Subsystem()])
    assert registry.config("a") == [{"method": "a_make", "params": {}}]
    assert registry.describe()[2] == {"subsystem": "b", "depends_on": ["a"]}
    assert registry.save() == {"subsystems": [
        {"subsystem": "a", "config": [{"method": "a_make", "params": {}}]},
        {"subsystem": "", "config": []},
        {"subsystem": "b", "config": [{"method": "b_make", "params": {}}]}]}
    with pytest.raises(SubsystemError, match="no subsystem 'x'"):
        registry.config("x")
