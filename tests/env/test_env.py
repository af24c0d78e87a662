"""import vhostrt.env as a library: started, used, ended and started again; what it refuses."""
import doctest
import errno
import gc
import os
import subprocess
import sys
import threading
import time

import pytest

from tests.lib.pci_tree import PciTree
from tests.lib.recorded import System
from vhostrt import env
from vhostrt.env import lcore, memory, vtophys
from vhostrt.env.options import EnvOptions
from vhostrt.env.pci.driver import Driver, Id
from vhostrt.env.ring import Ring
from vhostrt.env.roots import Roots
from vhostrt.event import reactor

MIB = 2**20
ALL = sorted(os.sched_getaffinity(0))
FIRST, LAST = ALL[0], ALL[-1]


@pytest.fixture(autouse=True)
def ended():
    before = descriptors()
    yield
    gc.collect()
    env.fini()
    assert env.current() is None and lcore.enabled() == [] and not memory.ready()
    assert descriptors() == before and os.sched_getaffinity(0) == set(ALL)


def tasks():
    return set(os.listdir("/proc/self/task"))


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def start(**said):
    return env.init(**({"no_huge": True} | said))


def run(code):
    """Run code in a process of its own; return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Life

def test_the_example_of_the_module():
    code = "import doctest, sys; from vhostrt import env; sys.exit(doctest.testmod(env).failed)"
    run(code)
    assert len(doctest.DocTestParser().get_examples(env.__doc__)) == 2


def test_importing_starts_and_loads_nothing():
    code = ("import os, sys; from vhostrt import env; from vhostrt.env import eal, arguments\n"
            "print(len(os.listdir('/proc/self/task')), "
            "[name for name in sys.modules if name.startswith('vhostrt.') and "
            "getattr(sys.modules[name], '__file__', '').endswith('.so')], 'numpy' in sys.modules, "
            "'asyncio' in sys.modules)")
    assert run(code) == "1 [] False False\n"


def test_an_environment_is_what_was_asked_for():
    environment = start(lcores=[LAST], mem_size=8 * MIB, name="test")
    assert env.current() is environment
    assert (environment.lcores, environment.main_lcore) == ({LAST: (LAST,)}, LAST)
    assert (lcore.enabled(), lcore.main()) == ([LAST], LAST)
    assert memory.ready() and memory.stats()["limit"] == 8 * MIB
    assert environment.memory.startswith("Memory: ordinary pages")
    assert environment.arguments == [
        "test", "--no-shconf", f"-l {LAST}", "-m 8", f"--main-lcore={LAST}", "--no-huge",
        "--legacy-mem", "--iova-mode=va", f"--file-prefix=spdk_pid{os.getpid()}"]
    assert repr(environment) == f"<Environment test, running, lcores {LAST}>"
    env.fini()
    assert repr(environment) == f"<Environment test, ended, lcores {LAST}>"


def test_without_lcores_there_is_one_on_each_cpu_we_may_use():
    assert list(start().lcores) == ALL
    assert {tuple(os.sched_getaffinity(tid)) for tid in lcore.threads().values()} == {
        (cpu,) for cpu in ALL}
    env.fini()
    os.sched_setaffinity(0, {LAST})
    try:
        assert start().lcores == {LAST: (LAST,)}
    finally:
        os.sched_setaffinity(0, ALL)


def test_the_calling_thread_keeps_its_cpus():
    start(lcores=[FIRST])
    assert os.sched_getaffinity(0) == set(ALL)


@pytest.mark.parametrize("said, lcores", [
    ([FIRST], {FIRST: (FIRST,)}), ({FIRST}, {FIRST: (FIRST,)}), (range(FIRST, FIRST + 1),
                                                                 {FIRST: (FIRST,)}),
    ({9: [FIRST], 3: ALL}, {3: tuple(ALL), 9: (FIRST,)}), (f"7@{FIRST}", {7: (FIRST,)}),
    (f"{FIRST}", {FIRST: (FIRST,)}),
])
def test_the_ways_to_say_lcores(said, lcores):
    assert start(lcores=said).lcores == lcores
    assert list(start_again(lcores=said).lcores) == sorted(lcores)


def start_again(**said):
    env.fini()
    return start(**said)


def test_a_record_of_options_stays_as_it_was_and_keywords_come_on_top():
    options = EnvOptions(name="mine", lcores={FIRST: (FIRST,)}, mem_size=4 * MIB, no_huge=True)
    kept = EnvOptions(name="mine", lcores={FIRST: (FIRST,)}, mem_size=4 * MIB, no_huge=True)
    environment = env.init(options, mem_size=8 * MIB, socket_mem=[])
    assert options == kept
    assert environment.options.mem_size == 8 * MIB and environment.options.name == "mine"


def test_init_and_fini_repeat_and_a_context_ends_it():
    for _ in range(3):
        with start(lcores=[FIRST]) as environment:
            assert env.current() is environment
        assert env.current() is None
    env.fini()
    with start():
        env.fini()
        second = start(lcores=[FIRST])          # another's end is not the context's business
    assert env.current() is second


def test_a_second_start_is_refused():
    first = start(lcores=[FIRST])
    with pytest.raises(OSError, match="already called initialization") as refused:
        start()
    assert refused.value.errno == errno.EALREADY
    assert env.current() is first and lcore.state(FIRST) == "WAIT"


def test_an_end_is_refused_while_memory_is_in_use_and_may_be_repeated():
    start(lcores=[FIRST])
    block = memory.zalloc(64)
    with pytest.raises(OSError, match="memory: 1 blocks of .* still in use") as refused:
        env.fini()
    assert refused.value.errno == errno.EBUSY
    assert env.current() is not None and lcore.enabled() == []
    with pytest.raises(OSError, match="already called initialization"):
        start()
    block.free()
    env.fini()
    start(lcores=[FIRST])


def test_what_a_process_does_with_it_at_its_end():
    assert run("from vhostrt import env\nfrom vhostrt.env import memory\n"
               "env.init(no_huge=True); kept = memory.zalloc(64); print(1)") == "1\n"


def test_a_forked_child_has_none():
    start(lcores=[FIRST])
    child = os.fork()
    if child == 0:
        ok = env.current() is None
        env.fini()
        with start(lcores=[FIRST]) as again:
            ok = ok and again.lcores == {FIRST: (FIRST,)} and len(memory.zalloc(64)) == 64
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert env.current() is not None and lcore.wait(FIRST) == 0


# Parts that come when they are asked for

def test_service_lcores_are_none_of_the_applications():
    with start(lcores={n: ALL[:1] for n in range(4)}, service_lcores=[0, 3]) as environment:
        assert environment.lcores == {1: (ALL[0],), 2: (ALL[0],)}
        assert environment.service_lcores == (0, 3) and environment.main_lcore == 1
        assert (lcore.enabled(), lcore.services(), lcore.main()) == ([1, 2], [0, 3], 1)
        from vhostrt.env import services
        services.lcore_start(3)
        assert services.loops(3) >= 0 and lcore.state(3) == "RUNNING"
    assert lcore.services() == []


def test_alarms_end_with_the_environment():
    from vhostrt.env import alarm, interrupt
    with start(lcores=[FIRST]):
        alarm.set_alarm(600_000_000, lambda: None)
        assert alarm.pending() == 1 and interrupt.running()
    assert alarm.pending() == 0 and not interrupt.running()


def test_the_bus_is_looked_at_when_it_is_asked_for(tmp_path):
    tree = PciTree(tmp_path)
    tree.device("0000:5e:00.0")
    tree.device("0000:5f:00.0")
    with start(lcores=[FIRST], roots=tree.roots, pci_allowed=["5e:0.0,x=1"]) as environment:
        assert environment.dma == () and vtophys.mode() is None
        bus = environment.pci
        assert environment.pci is bus
        assert [str(device.address) for device in bus.devices] == ["0000:5e:00.0", "0000:5f:00.0"]
        assert {str(address): text for address, text in bus.allowed.items()} == {
            "0000:5e:00.0": "x=1"}
        assert vtophys.mode() == "va", "ordinary pages may move"
        assert all(sentence for sentence in environment.dma) and environment.dma
        block = memory.zalloc(4096)
        assert vtophys.translate(block.address) in (block.address, vtophys.ERROR)
        del block
    assert vtophys.mode() is None and bus.devices == []
    with pytest.raises(OSError, match="the PCI bus: this environment has ended") as refused:
        environment.pci.scan()
    assert refused.value.errno == errno.ESRCH


class Disk(Driver):
    """Takes every device, and notes those that it lets go of."""

    ids, needs_mapping = (Id(),), False

    def __init__(self):
        self.removed = []

    def probe(self, device):
        return 0

    def remove(self, device):
        self.removed.append(device)


def test_a_forked_child_leaves_the_devices_to_its_parent(tmp_path):
    tree, driver = PciTree(tmp_path), Disk()
    tree.device("0000:5e:00.0")
    with start(lcores=[FIRST], roots=tree.roots) as environment:
        taken = environment.pci.enumerate(driver)
        child = os.fork()
        if child == 0:
            env.fini()
            os._exit(len(driver.removed) + 2 * (env.current() is not None))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(taken) == 1 and driver.removed == []
    assert driver.removed == taken


def test_ordinary_pages_without_an_iommu_have_no_addresses_for_devices(tmp_path):
    with start(lcores=[FIRST], roots=PciTree(tmp_path).roots) as environment:
        assert environment.pci.devices == []
        assert environment.dma[0].startswith("VFIO is not there")
        assert environment.dma[1:] == ("no addresses for devices: ordinary pages may move, and "
                                       "there is no IOMMU",)


def test_what_goes_wrong_inside_is_not_hidden_by_what_it_holds():
    kept = []
    with pytest.raises(KeyError, match="wrong") as raised:
        with start(lcores=[FIRST]):
            kept.append(memory.zalloc(64))
            raise KeyError("wrong")
    assert "could not be ended: [Errno 16] memory: 1 blocks" in raised.value.__notes__[0]
    assert env.current() is not None
    kept.clear()
    env.fini()


def test_no_bus_is_looked_at(tmp_path):
    tree = PciTree(tmp_path)
    tree.device("0000:5e:00.0")
    with start(lcores=[FIRST], roots=tree.roots, no_pci=True) as environment:
        assert environment.pci.devices == [] and vtophys.mode() is None


def test_this_machines_bus():
    folder = "/sys/bus/pci/devices"
    with env.init(lcores=[FIRST]) as environment:
        there = os.listdir(folder) if os.path.isdir(folder) else []
        assert len(environment.pci.devices) == len(there)
        assert vtophys.mode() in ("pa", "va")


def test_a_machine_without_a_bus_has_no_devices(tmp_path, capfd):
    with start(lcores=[FIRST], roots=Roots(str(tmp_path), str(tmp_path))) as environment:
        assert environment.pci.devices == [] and vtophys.mode() == "va"
        with pytest.raises(OSError, match="the PCI bus cannot be scanned"):
            environment.pci.scan()
    assert vtophys.mode() is None
    said = capfd.readouterr().err
    assert said.count("Scan for (pci) bus failed: the PCI bus cannot be scanned") == 1


def test_a_bus_that_cannot_be_had_leaves_the_rest_as_it_was(tmp_path):
    tree = PciTree(tmp_path / "machine")
    with env.init(lcores=[FIRST], roots=tree.roots, iova_mode="va", in_memory=True) as environment:
        for _ in range(2):
            with pytest.raises(ValueError, match="option --iova-mode va: it needs an IOMMU"):
                environment.pci.scan()
        assert env.current() is environment
        assert vtophys.mode() is None and len(environment.ends) == 2


SECONDARY = """if 1:
    import sys
    from vhostrt import env
    with env.init(shm_id=int(sys.argv[1]), proc_type="secondary", lcores=[int(sys.argv[2])]) as two:
        from vhostrt.env import zone
        words = zone.lookup("numbers").array("uint32", 4)
        print(words.sum(), two.options.file_prefix)
        words[3] = 90
        del words
"""


def test_another_process_attaches_by_the_id():
    with env.init(shm_id=os.getpid() % 10**6, lcores=[FIRST], mem_size=8 * MIB) as environment:
        from vhostrt.env import zone
        prefix = environment.options.file_prefix
        assert environment.memory.endswith(f"; other processes attach as {prefix}")
        numbers = zone.reserve("numbers", 64)
        numbers.array("uint32", 4)[:] = range(4)
        done = subprocess.run([sys.executable, "-c", SECONDARY, prefix.removeprefix("spdk"),
                               str(FIRST)], capture_output=True, text=True, timeout=120)
        assert (done.stdout, done.stderr) == (f"6 {prefix}\n", "")
        assert list(numbers.array("uint32", 4)) == [0, 1, 2, 90]
        with pytest.raises(OSError, match="memory: 1 blocks of .* still in use"):
            env.fini()
        numbers.free()


FORGETFUL = """if 1:
    import sys
    from vhostrt import env
    from vhostrt.env import memory
    from vhostrt.env.pci.driver import Driver, Id
    from vhostrt.env.roots import Roots

    class Disk(Driver):
        name, ids, needs_mapping = "disk", (Id(),), False
        def probe(self, device):
            return 0
        def remove(self, device):
            print("removed", device.address)

    one = env.init(shm_id=int(sys.argv[1]), lcores=[int(sys.argv[2])], mem_size=8 << 20,
                   no_huge=True, roots=Roots(sys.argv[3]))
    one.pci.enumerate(Disk())
    kept = memory.zalloc(64)
"""


def test_a_process_that_forgets_it_lets_devices_go_and_leaves_no_files(tmp_path):
    tree, number = PciTree(tmp_path), os.getpid() % 10**6
    tree.device("0000:5e:00.0")
    done = subprocess.run([sys.executable, "-c", FORGETFUL, str(number), str(FIRST),
                           tree.roots.sys], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "TMPDIR": str(tmp_path), "XDG_RUNTIME_DIR": ""})
    assert (done.stdout, done.stderr) == ("removed 0000:5e:00.0\n", "")
    for top in (tmp_path, "/run/vhostrt", "/dev/shm"):
        for folder, _, files in os.walk(top):
            assert f"spdk{number}" not in folder or files == []
            assert not [name for name in files if name.startswith(f"spdk{number}map_")]


# Refusals: one sentence, and nothing left behind

@pytest.mark.parametrize("said, error, sentence", [
    ({"lcores": [1000]}, ValueError, "CPU 1000 of lcore 1000 does not exist or is offline: this "
                                     "machine has"),
    ({"lcores": [1000], "mem_size": 1 << 50}, ValueError, "CPU 1000 of lcore 1000"),
    ({"lcores": {5: [900]}}, ValueError, "CPU 900 of lcore 5 does not exist"),
    ({"lcores": "0-x"}, ValueError, "lcores: 'x' is not a whole number"),
    ({"lcores": {0: 0}}, ValueError, "lcores: '{0: 0}' is not of the type"),
    ({"lcores": {0: None, 1: (0,)}}, ValueError, "lcores: '{0: None, 1: (0,)}' is not of the type"),
    ({"lcores": ["1", 0]}, ValueError, "is not of the type"),
    ({"lcores": range(10**12)}, ValueError, "lcores: 1000000000000 of them are more than 1024"),
    ({"lcores": []}, ValueError, "no lcore is asked for"),
    ({"lcores": 5}, ValueError, "lcores: '5' is not of the type dict"),
    ({"lcores": [FIRST], "main_lcore": 9}, ValueError, "option --main-lcore: lcore 9 is not"),
    ({"mem_size": 1000}, ValueError, "mem_size: '1000' is not a whole number of MiB"),
    ({"mem_size": 1 << 50}, OSError, "memory of 1073741824 MiB: "),
    ({"huge_dir": "/h"}, ValueError, "options --no-huge and --huge-dir cannot be specified"),
    ({"proc_type": "secondary"}, ValueError, "--proc-type=secondary needs the --file-prefix"),
    ({"no_such": 1}, TypeError, "no_such"),
])
def test_refused(said, error, sentence):
    before = tasks()
    with pytest.raises(error) as refused:
        start(**said)
    assert sentence in str(refused.value)
    assert env.current() is None and lcore.enabled() == [] and not memory.ready()
    deadline = time.monotonic() + 10    # the kernel lists a thread for a moment after its join
    while not tasks() <= before:
        assert time.monotonic() < deadline, "threads are left behind"
        time.sleep(0.001)
    start(lcores=[FIRST])


def test_a_start_that_fails_half_way_gives_back_what_it_had(tmp_path):
    system = System(tmp_path)
    for cpu in (*ALL, 1000):                    # a CPU that only the recording has
        system.cpu(cpu)
    with pytest.raises(OSError, match="lcore 1000 cannot run on CPU 1000"):
        start(lcores=[*ALL, 1000], roots=system.roots)
    assert not memory.ready() and lcore.enabled() == []


def test_more_than_128_cpus(tmp_path):
    system = System(tmp_path)
    for cpu in range(200):
        system.cpu(cpu, cpu // 50)
    with pytest.raises(ValueError, match=r"CPU 200 of lcore 0 does not exist .* has 0-199, "):
        start(lcores={0: [200]}, roots=system.roots)
    # The lcores of node 3 run on the CPUs there are: only the recording has 199.
    environment = start(lcores={199: ALL[:1]}, roots=system.roots)
    assert environment.lcores == {199: (ALL[0],)} and lcore.socket(199) == 0


def test_an_end_is_refused_while_an_lcore_runs():
    start(lcores=[FIRST])
    reactor.init([FIRST], "yield", 1000)
    reactor.start()
    try:
        with pytest.raises(OSError, match=f"lcore {FIRST} is still running") as refused:
            env.fini()
        assert refused.value.errno == errno.EBUSY
        assert env.current() is not None and memory.ready() and lcore.state(FIRST) == "RUNNING"
    finally:
        reactor.stop()
        assert reactor.fini() == 0


def test_a_ring_between_threads():
    with start(lcores=[FIRST]):
        ring = Ring(8)
        helper = threading.Thread(target=ring.enqueue, args=([1, 2],))
        helper.start()
        helper.join()
        assert ring.dequeue(8) == [1, 2]
        del ring
