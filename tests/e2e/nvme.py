"""What runs in the guest of test_nvme: a small driver of an NVMe controller, in Python.

    python -m tests.e2e.nvme identify|limits pa|va [legacy]

It brings the controller up with one pair of admin queues and has it write what it is into memory
of the environment. What it finds it tells with 'VALUE KEY TEXT' lines on the second serial port.
"""
import os
import struct
import sys
import time

from vhostrt.env import memmap, memory, vtophys, zone
from vhostrt.env.options import EnvOptions
from vhostrt.env.pci import bus as pci
from vhostrt.env.pci import config
from vhostrt.env.pci.claim import owner_of
from vhostrt.env.pci.driver import Driver, Id

NVME_CLASS = 0x010802
CAP, VS, CC, CSTS, AQA, ASQ, ACQ, DOORBELLS = 0, 8, 0x14, 0x1c, 0x24, 0x28, 0x30, 0x1000
ENABLE = 0x460001                       # CC: entries of 64 and 16 bytes, pages of 4 KiB, enabled
IDENTIFY, CONTROLLER = 6, 1
DEPTH = 16
PAGE = 4096
PAGEMAP = "/proc/self/pagemap"


def tell(key, value):
    with open("/dev/ttyS1", "w") as file:
        file.write(f"VALUE {key} {value}\n")


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def wait_for(condition, what, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < end, f"no {what} within {seconds} s")
        time.sleep(0.001)


class Controller:
    """A controller whose registers are mapped, between start and stop."""

    def __init__(self, bar):
        self.bar = bar
        self.submitted = 0

    def start(self, name):
        """Enable it with admin queues in new zones."""
        self.bar.write32(CC, 0)
        wait_for(lambda: not self.bar.read32(CSTS) & 1, "reset")
        self.submission = zone.reserve(f"{name}-submission", DEPTH * 64, align=PAGE)
        self.completion = zone.reserve(f"{name}-completion", DEPTH * 16, align=PAGE)
        self.bar.write32(AQA, (DEPTH - 1) << 16 | DEPTH - 1)
        self.bar.write64(ASQ, address_of(self.submission))
        self.bar.write64(ACQ, address_of(self.completion))
        self.bar.write32(CC, ENABLE)
        wait_for(lambda: self.bar.read32(CSTS) & 1, "controller that is ready")

    def identify(self, address):
        """Have it write what it is to an address of a device's; return the status."""
        slot, phase = self.submitted % DEPTH, 1 - self.submitted // DEPTH % 2
        command = struct.pack("<BBHIQQQQIIIIII", IDENTIFY, 0, slot, 0, 0, 0, address, 0,
                              CONTROLLER, 0, 0, 0, 0, 0)
        memoryview(self.submission)[slot * 64:slot * 64 + 64] = command
        self.submitted += 1
        self.bar.write32(DOORBELLS, self.submitted % DEPTH)
        done = memoryview(self.completion)[slot * 16:slot * 16 + 16].cast("H")
        wait_for(lambda: done[7] & 1 == phase, "answer")
        self.bar.write32(DOORBELLS + 4, self.submitted % DEPTH)
        check(done[6] == slot, "the answer is to another command")
        return done[7] >> 1

    def stop(self):
        self.bar.write32(CC, 0)
        wait_for(lambda: not self.bar.read32(CSTS) & 1, "end")
        self.submission.free()
        self.completion.free()


class NvmeDriver(Driver):
    """Takes the controllers that it finds."""

    name = "test_nvme"
    ids = (Id(class_code=NVME_CLASS),)

    def __init__(self):
        self.controllers = {}

    def probe(self, device):
        device.claim()
        self.controllers[device.address] = controller = Controller(device.bars[0])
        controller.start(device.address)

    def remove(self, device):
        self.controllers.pop(device.address).stop()


def address_of(block):
    """Return where devices find a block or a zone."""
    vtophys.learn(block.address, len(block))
    return vtophys.translate(block.address)


def frames_of(address, size):
    """Return the physical addresses of pages, read here and in another way than vtophys does."""
    with open(PAGEMAP, "rb") as file:
        file.seek(address // PAGE * 8)
        entries = struct.unpack(f"{size // PAGE}Q", file.read(size // PAGE * 8))
    check(all(entry >> 63 for entry in entries), "pages that are not in memory")
    return [(entry & (1 << 55) - 1) * PAGE for entry in entries]


def check_translation(block, mode):
    """Check the translation of every page of a block."""
    vtophys.learn(block.address, len(block))
    got = [vtophys.translate(block.address + at) for at in range(0, len(block), PAGE)]
    wanted = (frames_of(block.address, len(block)) if mode == "pa"
              else list(range(block.address, block.address + len(block), PAGE)))
    check(got == wanted, "vtophys and the page map differ")
    check(block.iova in (None, got[0]), "the heap and vtophys differ")
    tell("pages", len(got))


def check_registers(device):
    """Tell the registers and the numbers of the configuration space."""
    bar = device.bars[0]
    cap = bar.read64(CAP)
    check(cap == bar.read32(CAP + 4) << 32 | bar.read32(CAP), "CAP differs by width")
    tell("cap", f"{cap:#x}")
    tell("vs", f"{bar.read32(VS):#x}")
    check(config.read(device, 0, 2) == device.vendor, "vendor of the configuration space")
    check(config.read(device, config.COMMAND, 2) & config.COMMAND_MASTER, "no bus master")


def check_bar_address(device):
    """Check that registers that are registered as memory have the address of the resource."""
    bar, resource = device.bars[0], device.resources[0]
    memmap.register(bar.address, PAGE)
    check(vtophys.translate(bar.address + 8) == resource.start + 8, "address of a BAR")
    memmap.unregister(bar.address, PAGE)


def identify(bus, driver, device, which=""):
    """Have the controller write what it is, and tell that."""
    data = zone.reserve("data", PAGE, align=PAGE)
    status = driver.controllers[device.address].identify(address_of(data))
    check(status == 0, f"status {status:#x} of identify")
    content = bytes(memoryview(data))
    tell(f"serial{which}", content[4:24].decode().strip())
    tell(f"model{which}", content[24:64].decode().strip())
    check(struct.unpack_from("<H", content)[0] == device.vendor, "vendor of identify")
    data.free()


def limits(bus, driver, device):
    """Check that a device reaches registered memory only, and no other, through its IOMMU."""
    controller = driver.controllers[device.address]
    tell("mappings", len(vtophys.mappings()))
    block = memory.zalloc(8 << 20, 2 << 20)
    address_of(block)
    places = [vtophys.translate(block.address + at) for at in range(0, len(block), PAGE)]

    def written(page):
        """Return whether the controller reaches a page."""
        view = memoryview(block)[page * PAGE:(page + 1) * PAGE]
        view[:] = bytes(PAGE)
        controller.identify(places[page])
        return any(view)

    check(written(0) and written(16) and written(2000), "pages that are mapped")
    # One of 2 MiB is taken away: those around it stay within reach.
    memmap.unregister(block.address + 16 * PAGE, PAGE)
    check(not written(16), "memory that was taken away is written to")
    check(written(15) and written(17) and written(2000), "pages around the one that is away")
    memmap.register(block.address + 16 * PAGE, PAGE)
    vtophys.learn(block.address + 16 * PAGE, PAGE)
    check(written(16), "a page that is back")
    tell("limits", "kept")
    block.free()


def main(what, mode, *more):
    driver = NvmeDriver()
    options = EnvOptions(mem_size=64 << 20, legacy_mem="legacy" in more)
    print(memory.init(options))
    bus, sentences = pci.start(options)
    print(*sentences, sep="\n")
    tell("vfio", sentences[0])
    check(vtophys.mode() == mode, f"mode {vtophys.mode()}")
    bus.register(driver)
    device, *others = bus.probe()
    tell("found", f"{device.address} {device.class_code:06x}")
    check(owner_of(device.address) == os.getpid(), "no claim")
    check_registers(device)
    identify(bus, driver, device)
    block = memory.zalloc(6 << 20, PAGE)
    check_translation(block, mode)
    block.free()
    if mode == "pa":
        check_bar_address(device)
    if what == "limits":
        limits(bus, driver, device)
    bus.detach(device.address)
    check(owner_of(device.address) is None, "a claim that is left")
    # The first has gone, with the descriptors that it brought; the others go on.
    for other in others:
        identify(bus, driver, other, "-of-another")
        bus.detach(other.address)
    check(vtophys.mappings() == [], "mappings that are left")
    pci.stop(bus)
    memory.fini()
    left = {os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if n > "2"
            and os.path.exists(f"/proc/self/fd/{n}")}
    check(not left, f"left open: {left}")


if __name__ == "__main__":
    main(*sys.argv[1:])
