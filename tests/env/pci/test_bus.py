"""vhostrt.env.pci.bus on recorded trees: what is found, who gets it, and what is said of it."""
import errno
import os
import shutil

import pytest

from tests.lib.pci_tree import PciTree
from vhostrt import log
from vhostrt.env import memmap, memory, vtophys
from vhostrt.env.options import EnvOptions
from vhostrt.env.pci.address import Address
from vhostrt.env.pci.bus import Bus, start, stop
from vhostrt.env.pci.claim import claim, owner_of
from vhostrt.env.pci.driver import ANY, Driver, Id

NVME = Id(class_code=0x010802)
FIRST, SECOND, THIRD = "0000:5e:00.0", "0000:5e:00.1", "0001:03:00.0"
BAR = {0: (0xfebd0000, 0x4000)}


@pytest.fixture
def tree(tmp_path):
    return PciTree(tmp_path)


@pytest.fixture
def three(tree):
    """Three devices bound to uio_pci_generic, in two domains."""
    for address in (THIRD, FIRST, SECOND):
        tree.device(address, driver="uio_pci_generic", bars=BAR)
    return tree


@pytest.fixture
def make_bus():
    """A function that makes and scans the bus of a tree; it is closed afterwards."""
    made = []

    def make(tree, *drivers, **options):
        bus = Bus(EnvOptions(roots=tree.roots, **options))
        made.append(bus)
        bus.scan()
        for driver in drivers:
            bus.register(driver)
        return bus
    yield make
    for bus in made:
        bus.close()


@pytest.fixture(autouse=True)
def lines(monkeypatch, capsys):
    """A function: the lines logged since it was called last, INFO ones of env among them."""
    monkeypatch.setattr(log.settings, "flags", {"env"})
    monkeypatch.setattr(log.settings, "timestamps", False)

    def lines():
        return [line.split(": ", 2)[2] for line in capsys.readouterr().err.splitlines()]
    return lines


class Taker(Driver):
    """A driver that answers a probe as a test says."""

    name = "taker"
    ids = (NVME,)

    def __init__(self, answer=0, **more):
        self.answer = answer
        self.calls = []
        for name, value in more.items():
            setattr(self, name, value)

    def probe(self, device):
        self.calls.append(("probe", str(device.address), device.bars[0] is not None))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    def remove(self, device):
        self.calls.append(("remove", str(device.address), device.bars[0] is not None))


def addresses(devices):
    return [str(device.address) for device in devices]


def open_files():
    return sorted(os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                  if os.path.exists(f"/proc/self/fd/{n}"))


# Scan.

def test_devices_are_in_the_order_of_their_addresses(three, make_bus):
    assert addresses(make_bus(three).devices) == [FIRST, SECOND, THIRD]


def test_a_second_scan_refreshes_adds_and_drops(three, make_bus):
    bus = make_bus(three)
    first, second, _ = bus.devices
    (three.folder / "sys/bus/pci/devices" / THIRD).unlink()
    (three.home(FIRST) / "driver").unlink()
    three.device("0000:5e:00.2")
    three.device("0000:00:02.0")
    bus.scan()
    assert addresses(bus.devices) == ["0000:00:02.0", FIRST, SECOND, "0000:5e:00.2"]
    assert (bus.devices[1], bus.devices[2]) == (first, second), "a device is another object"
    assert first.kernel_driver is None


def test_a_device_that_is_gone_stays_with_its_driver(three, make_bus, lines):
    driver = Taker()
    bus = make_bus(three, driver)
    bus.probe()
    lines()
    (three.folder / "sys/bus/pci/devices" / SECOND).unlink()
    bus.scan()
    assert addresses(bus.devices) == [FIRST, SECOND, THIRD]
    assert f"*WARNING*: PCI device {SECOND} is gone, and driver taker still has it" in lines()
    bus.detach(SECOND)
    assert driver.calls[-1] == ("remove", SECOND, True)
    bus.scan()
    assert addresses(bus.devices) == [FIRST, THIRD]


def test_a_device_that_cannot_be_read_does_not_hide_the_others(three, make_bus, lines):
    (three.home(SECOND) / "class").unlink()
    assert addresses(make_bus(three).devices) == [FIRST, THIRD]
    [line] = lines()
    assert line.startswith(f"*WARNING*: PCI device {SECOND} cannot be read: ")
    assert line.endswith(f"{SECOND}/class: No such file or directory")


def test_no_pci_means_no_devices(tmp_path, make_bus):
    bus = make_bus(PciTree(tmp_path), no_pci=True)
    shutil.rmtree(tmp_path / "sys")
    bus.scan()
    assert (bus.devices, bus.probe()) == ([], [])


def test_a_machine_without_the_bus(tree):
    shutil.rmtree(tree.folder / "sys/bus/pci/devices")
    with pytest.raises(OSError, match="the PCI bus cannot be scanned: .*/bus/pci/devices: No such"):
        Bus(EnvOptions(roots=tree.roots)).scan()


def test_this_machine_is_scanned_as_it_is():
    bus = Bus()
    try:
        bus.scan()
    except OSError as error:
        assert "the PCI bus cannot be scanned" in str(error)
        return
    assert addresses(bus.devices) == sorted(os.listdir("/sys/bus/pci/devices"))
    assert all(device.vendor for device in bus.devices)
    bus.close()


def test_find(three, make_bus):
    bus = make_bus(three)
    assert bus.find("5e:0.1") is bus.devices[1]
    assert bus.find(bus.devices[2].address) is bus.devices[2]
    with pytest.raises(OSError, match="there is no PCI device 0000:5e:00.7") as refused:
        bus.find("5e:0.7")
    assert refused.value.errno == errno.ENODEV
    with pytest.raises(ValueError, match="is not a PCI address"):
        bus.find("5e")


# Probe.

def test_a_driver_gets_what_its_table_fits(three, make_bus):
    three.device("0000:02:00.0", class_code=0x020000, driver="uio_pci_generic")
    driver = Taker()
    bus = make_bus(three, driver)
    assert addresses(bus.probe()) == [FIRST, SECOND, THIRD]
    assert driver.calls == [("probe", address, True) for address in (FIRST, SECOND, THIRD)]
    assert [device.driver for device in bus.devices] == [None, driver, driver, driver]
    assert bus.probe() == []
    assert len(driver.calls) == 3, "a device that is taken is offered again"


TABLES = {
    "class": (Id(class_code=0x010802), True), "another class": (Id(class_code=0x010801), False),
    "vendor": (Id(0x8086), True), "device": (Id(0x8086, 0xa54), True),
    "device of another vendor": (Id(0x1b36, 0xa54), False),
    "another device": (Id(0x8086, 0xa55), False),
    "subsystem": (Id(0x8086, ANY, 0x8086, 0x4702), True),
    "another subsystem": (Id(0x8086, ANY, 0x8086, 0x4703), False),
    "another subsystem vendor": (Id(ANY, ANY, 0x8087), False), "anything": (Id(), True),
}


@pytest.mark.parametrize(("entry", "fits"), TABLES.values(), ids=TABLES)
def test_tables_of_ids(three, make_bus, entry, fits):
    driver = Taker(ids=(Id(0xffff), entry))
    make_bus(three, driver).probe()
    assert len(driver.calls) == (3 if fits else 0)
    assert Taker(ids=()).fits(make_bus(three).devices[0]) is False


def test_what_is_said_of_a_device_that_is_taken(three, make_bus, lines):
    (three.home(FIRST) / "numa_node").write_text("1\n")
    make_bus(three, Taker(), pci_allowed=(FIRST,)).probe()
    assert lines() == [f"*INFO*: PCI device {FIRST} on NUMA socket 1",
                       "*INFO*:   probe driver: 8086:a54 taker"]


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_node_that_is_not_known_is_node_0(three, make_bus, lines, nodes):
    for node in range(nodes):
        (three.folder / f"sys/devices/system/node/node{node}").mkdir(parents=True)
    (three.home(FIRST) / "numa_node").write_text("-1\n")
    bus = make_bus(three, Taker(), pci_allowed=(FIRST,))
    assert bus.devices[0].numa_node == -1
    bus.probe()
    assert bus.devices[0].numa_node == 0
    warning = f"*WARNING*: PCI device {FIRST}: Invalid NUMA socket, default to 0"
    assert (warning in lines()) == (nodes == 2)
    bus.scan()
    assert bus.devices[0].numa_node == 0, "what its driver was told has changed"


def test_the_next_driver_is_asked_when_one_does_not_want_it(three, make_bus):
    unwilling, misfit = Taker(1), Taker(ids=(Id(0xffff),))
    willing, late = Taker(0), Taker(0)
    bus = make_bus(three, unwilling, misfit, willing, late)
    assert len(bus.probe()) == 3
    assert [len(d.calls) for d in (unwilling, misfit, willing, late)] == [3, 0, 3, 0]
    assert all(device.driver is willing for device in bus.devices)


@pytest.mark.parametrize("answer", [-errno.EIO, OSError(errno.EIO, "it does not answer"),
                                    ValueError("it does not answer")])
def test_a_device_that_fails_is_offered_to_nobody_else(three, make_bus, lines, answer):
    class Choosy(Taker):
        def probe(self, device):
            if str(device.address) != SECOND:
                return 0
            return super().probe(device)
    failing, other = Choosy(answer), Taker()
    before = open_files()
    bus = make_bus(three, failing, other)
    assert addresses(bus.probe()) == [FIRST, THIRD]
    assert other.calls == []
    text = "driver taker: Input/output error" if isinstance(answer, int) else "it does not answer"
    assert f"*ERROR*: Requested device {SECOND} cannot be used: {text}" in lines()
    assert bus.devices[1].access is None
    bus.close()
    assert open_files() == before


def test_all_fail(three, make_bus):
    bus = make_bus(three, Taker(-errno.EIO))
    with pytest.raises(OSError, match="none of the 3 PCI devices could be used") as refused:
        bus.probe()
    assert refused.value.errno == errno.ENODEV


def test_no_device_and_no_driver_are_no_failure(tree, three, make_bus):
    assert make_bus(three).probe() == []
    assert make_bus(three, Taker(1)).probe() == []


def test_an_interrupt_while_a_driver_probes_leaves_the_device_free(three, make_bus):
    bus = make_bus(three, Taker(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        bus.probe()
    assert [device.access for device in bus.devices] == [None] * 3


@pytest.mark.parametrize("driver", [None, "nvme"])
def test_a_device_that_the_kernel_has_not_left_to_us_is_not_ours(tree, make_bus, lines, driver):
    tree.device(FIRST, driver=driver)
    taker, light = Taker(), Taker(needs_mapping=False)
    bus = make_bus(tree, taker, light)
    bus.probe()
    assert (taker.calls, light.calls) == ([], [("probe", FIRST, False)])
    assert any(f"bound to {driver or 'no driver'}, not to vfio-pci" in line for line in lines())


def test_registers_are_unmapped_when_a_driver_does_not_want_the_device(three, make_bus):
    before = open_files()
    bus = make_bus(three, Taker(1))
    bus.probe()
    assert [device.access for device in bus.devices] == [None] * 3
    assert open_files() == before


# Claims; with an address that no machine has, as they are in their real place.

FAR = "fffe:fd:1e.5"


@pytest.mark.parametrize("answer", [0, 1, -errno.EIO, OSError(errno.EIO, "it does not answer")])
def test_a_claim_lasts_as_long_as_the_driver_has_the_device(tree, make_bus, answer):
    class Claimer(Taker):
        def probe(self, device):
            device.claim()
            device.claim()
            assert owner_of(device.address) == os.getpid()
            return super().probe(device)

        def remove(self, device):
            assert owner_of(device.address) == os.getpid()
    tree.device(FAR, driver="uio_pci_generic")
    bus = make_bus(tree, Claimer(answer))
    if answer in (0, 1):
        assert addresses(bus.probe()) == ([] if answer else [FAR])
    else:
        with pytest.raises(OSError, match="none of the 1 PCI devices could be used"):
            bus.probe()
    assert owner_of(bus.devices[0].address) == (os.getpid() if answer == 0 else None)
    bus.close()
    assert owner_of(Address.parse(FAR)) is None


def test_a_device_that_another_has_claimed_cannot_be_used(tree, make_bus, lines):
    class Claimer(Taker):
        def probe(self, device):
            device.claim()
    tree.device(FAR, driver="uio_pci_generic")
    held = claim(Address.parse(FAR))
    with pytest.raises(OSError, match="none of the 1 PCI devices"):
        make_bus(tree, Claimer()).probe()
    assert any(f"probably process {os.getpid()} has claimed it" in line for line in lines())
    held.release()


# Allow and block lists.

def test_only_allowed_devices_are_offered(three, make_bus):
    driver = Taker()
    bus = make_bus(three, driver, pci_allowed=("5e:0.1,a=1,b=2", THIRD))
    assert addresses(bus.devices) == [FIRST, SECOND, THIRD]
    assert addresses(bus.probe()) == [SECOND, THIRD]
    assert [device.arguments for device in bus.devices] == ["", "a=1,b=2", ""]


def test_blocked_devices_are_not_offered(three, make_bus, lines):
    driver = Taker()
    bus = make_bus(three, driver, pci_blocked=(FIRST, "1:3:0"))
    assert addresses(bus.probe()) == [SECOND]
    assert [call[1] for call in driver.calls] == [SECOND]
    said = lines()
    at = said.index(f"*INFO*: PCI device {FIRST} on NUMA socket 0")
    assert said[at + 1] == "*INFO*:   Device is blocked, not initializing"


@pytest.mark.parametrize(("options", "text"), [
    ({"pci_allowed": (FIRST,), "pci_blocked": (SECOND,)}, "options -A and -B exclude each other"),
    ({"pci_allowed": ("5e",)}, "option -A: '5e' is not a PCI address"),
    ({"pci_blocked": ("5e:0.9,x",)}, "option -B: '5e:0.9' is not a PCI address"),
])
def test_lists_that_make_no_sense(options, text):
    with pytest.raises(ValueError, match=text):
        Bus(EnvOptions(**options))


# Drivers and single devices.

def test_drivers_are_registered_once_and_leave_when_they_have_nothing(three, make_bus):
    driver = Taker()
    bus = make_bus(three, driver)
    with pytest.raises(OSError, match="PCI driver taker is registered already") as refused:
        bus.register(driver)
    assert refused.value.errno == errno.EEXIST
    bus.probe()
    with pytest.raises(OSError, match=f"still has {FIRST}, {SECOND}, {THIRD}") as refused:
        bus.unregister(driver)
    assert refused.value.errno == errno.EBUSY
    for address in (FIRST, SECOND, THIRD):
        bus.detach(address)
    bus.unregister(driver)
    with pytest.raises(OSError, match="PCI driver taker is not registered") as refused:
        bus.unregister(driver)
    assert refused.value.errno == errno.ENOENT


def test_enumerate_is_for_one_driver(three, make_bus):
    first, second = Taker(), Taker()
    bus = make_bus(three, first)
    assert len(bus.enumerate(second)) == 3
    assert (len(first.calls), len(second.calls)) == (0, 3)
    assert bus.enumerate(second) == []
    assert bus.drivers == [first, second]


def test_attach_and_detach(three, make_bus):
    driver = Taker()
    bus = make_bus(three, driver)
    device = bus.attach("5e:0.1")
    assert (str(device.address), device.driver) == (SECOND, driver)
    assert [d.driver for d in bus.devices] == [None, driver, None]
    with pytest.raises(OSError, match=f"{SECOND}: driver taker has it") as refused:
        bus.attach(SECOND)
    assert refused.value.errno == errno.EBUSY
    bus.detach(SECOND)
    assert driver.calls == [("probe", SECOND, True), ("remove", SECOND, True)]
    assert addresses(bus.devices) == [FIRST, THIRD]
    with pytest.raises(OSError, match="there is no PCI device"):
        bus.detach(SECOND)
    # Looked for again, and put in its place.
    assert bus.attach(SECOND) is not device
    assert addresses(bus.devices) == [FIRST, SECOND, THIRD]
    with pytest.raises(OSError, match=f"{FIRST}: no driver has it") as refused:
        bus.detach(FIRST)
    assert refused.value.errno == errno.ENOENT


def test_attach_sees_what_has_changed_since_the_scan(tree, make_bus):
    tree.device(FIRST, driver="nvme")
    bus = make_bus(tree, Taker())
    with pytest.raises(OSError, match=f"{FIRST}: no driver takes it") as refused:
        bus.attach(FIRST)
    assert refused.value.errno == errno.ENODEV
    (tree.home(FIRST) / "driver").unlink()
    tree.bind(FIRST, "uio_pci_generic")
    assert bus.attach(FIRST).driver is not None


def test_attach_of_what_is_not_there_or_fails(three, make_bus):
    bus = make_bus(three, Taker(OSError(errno.EIO, "it does not answer")))
    with pytest.raises(OSError, match="there is no PCI device 0000:00:01.0") as refused:
        bus.attach("0:1.0")
    assert refused.value.errno == errno.ENODEV
    with pytest.raises(OSError, match="it does not answer"):
        bus.attach(FIRST)
    (three.home(FIRST) / "class").write_text("none\n")
    with pytest.raises(OSError, match=f"PCI device {FIRST} cannot be read: .*/class"):
        bus.attach(FIRST)


def test_a_driver_that_raises_while_it_lets_go_has_let_go(three, make_bus, lines):
    class Clinging(Taker):
        def remove(self, device):
            raise OSError(errno.EIO, "it clings")
    before = open_files()
    bus = make_bus(three, Clinging())
    bus.probe()
    with pytest.raises(OSError, match="it clings"):
        bus.detach(FIRST)
    assert addresses(bus.devices) == [FIRST, SECOND, THIRD]
    assert bus.devices[0].driver is None and bus.devices[0].access is None
    lines()
    bus.close()
    assert lines() == [f"*ERROR*: PCI device {address}: driver taker: it clings"
                       for address in (SECOND, THIRD)]
    assert open_files() == before
    bus.close()


# Addresses for devices.

def set_up(tree, *devices):
    """Add devices: (driver, bits of its IOMMU or None, without an IOMMU)."""
    for number, (driver, bits, bare) in enumerate(devices):
        address = f"0000:5e:00.{number}"
        tree.device(address, driver=driver)
        if driver == "vfio-pci":
            tree.iommu(address, number + 7, bits=bits, bare=bare)


NONE, UIO, BARE = ("nvme", None, False), ("uio_pci_generic", None, False), ("vfio-pci", None, True)
VFIO, WIDE, NARROW = (("vfio-pci", bits, False) for bits in (None, 48, 39))
CLASSES = {
    "no device": ((), None), "none of a user driver": ((NONE, (None, None, False)), None),
    "vfio": ((VFIO, NONE), "va"), "vfio with a wide IOMMU": ((WIDE, VFIO), "va"),
    "vfio with a narrow IOMMU": ((WIDE, NARROW), "pa"), "uio": ((UIO, NONE), "pa"),
    "vfio and uio": ((VFIO, UIO), "pa"), "no-IOMMU mode": ((VFIO, BARE), "pa"),
}


@pytest.mark.parametrize(("devices", "expected"), CLASSES.values(), ids=CLASSES)
def test_the_class_of_the_bus(tree, make_bus, devices, expected):
    set_up(tree, *devices)
    assert make_bus(tree).iova_class() == expected


def test_a_driver_that_takes_physical_addresses_only(tree, make_bus):
    set_up(tree, VFIO)
    assert make_bus(tree, Taker(takes_virtual=False, ids=(Id(0xffff),))).iova_class() == "va"
    assert make_bus(tree, Taker(), Taker(takes_virtual=False)).iova_class() == "pa"


def test_a_device_of_vfio_without_a_group(tree, make_bus):
    tree.device(FIRST, driver="vfio-pci")
    assert make_bus(tree).iova_class() == "pa"


def test_without_vfio_the_mode_is_physical(tree, make_bus):
    set_up(tree, VFIO)
    missing = "VFIO is not there: the module vfio-pci is not loaded"
    assert make_bus(tree).iova_mode() == ("pa", missing)
    assert make_bus(tree, iova_mode="pa").iova_mode() == ("pa", missing)
    with pytest.raises(ValueError, match=f"option --iova-mode va: it needs an IOMMU. {missing}"):
        make_bus(tree, iova_mode="va").iova_mode()


def test_uio_is_refused_while_addresses_are_virtual(three, make_bus, lines):
    vtophys.init("va")
    try:
        bus = make_bus(three, Taker())
        with pytest.raises(OSError, match="none of the 3 PCI devices"):
            bus.probe()
        assert any("bind it to vfio-pci, or say --iova-mode pa" in line for line in lines())
    finally:
        vtophys.fini()


# The whole.

@pytest.fixture
def heap():
    memory.fini()
    memory.init(EnvOptions(no_huge=True))
    yield
    memory.fini()


def test_start_and_stop_may_be_repeated_and_leave_nothing(three, heap):
    before = open_files()
    for _ in range(3):
        bus, sentences = start(EnvOptions(roots=three.roots))
        assert sentences == (
            "VFIO is not there: the module vfio-pci is not loaded",
            f"no physical addresses: {three.folder}/proc/self/pagemap cannot be opened (No such "
            "file or directory)")
        driver = Taker()
        bus.register(driver)
        assert len(bus.probe()) == 3
        block = memory.zalloc(4096)
        assert len(memmap.registered()) == 1
        stop(bus)
        stop(bus)
        assert [call[0] for call in driver.calls] == ["probe"] * 3 + ["remove"] * 3
        assert (memmap.registered(), vtophys.mode()) == ([], None)
        block.free()
    assert open_files() == before


def test_start_without_pci_has_no_addresses_for_devices(three, heap):
    bus, sentences = start(EnvOptions(roots=three.roots, no_pci=True))
    assert (bus.devices, sentences, vtophys.mode()) == ([], (), None)
    stop(bus)


def test_start_on_a_machine_without_the_bus(tree, heap, lines):
    shutil.rmtree(tree.folder / "sys/bus")
    bus, _ = start(EnvOptions(roots=tree.roots))
    assert (bus.devices, vtophys.mode()) == ([], "pa")
    assert any("*WARNING*: Scan for (pci) bus failed: the PCI bus cannot" in s for s in lines())
    stop(bus)


def test_ordinary_pages_alone_have_virtual_addresses_as_they_may_move(three, heap):
    bus, sentences = start(EnvOptions(roots=three.roots, no_huge=True))
    assert vtophys.mode() == "va" and sentences[0].startswith("VFIO is not there")
    stop(bus)


def test_a_start_that_fails_starts_nothing(three, heap):
    before = open_files()
    with pytest.raises(ValueError, match="option --iova-mode va: it needs an IOMMU"):
        start(EnvOptions(roots=three.roots, iova_mode="va"))
    vtophys.init()
    with pytest.raises(OSError, match="already initialised"):
        start(EnvOptions(roots=three.roots))
    assert (memmap.registered(), vtophys.mode()) == ([], "pa"), "what others have started is ended"
    vtophys.fini()
    assert open_files() == before
