"""A real Linux guest on a disk that vhostrt serves from a file: all that it does to it is true."""
import pytest

from tests.e2e import image
from tests.e2e.target import Target


@pytest.mark.parametrize("cores, lcores", [("0x1", [0, 0]), ("0x3", [0, 1])])
def test_guest_uses_the_disk(boot, tmp_path, cores, lcores):
    disk, before, sock = tmp_path / "disk.img", tmp_path / "before.img", tmp_path / "disk.sock"
    image.make(disk)
    image.make(before)
    options = ["-m", cores, "--disk", f"{disk},name=disk0,socket={sock}"]
    with Target(tmp_path, options) as target:
        with boot(steps=image.STEPS, files=image.FILES, disks=[sock], queues=2) as guest:
            guest.wait_step("find")
            assert lcores_of_queues(target) == lcores
            guest.wait()
            assert int(guest.value("size")) * image.BLOCK == image.SIZE
            assert guest.value("serial") == "disk0"
            assert guest.value("queues") == "2"
            for queue in range(2):
                assert int(guest.value(f"interrupts{queue}")) > 100
        assert target.stop() == 0, target.said()
    image.check(disk, before)


def lcores_of_queues(target):
    """Return the logical core of each queue of the only session, in order of the cores."""
    [controller] = target.call("vhost_get_controllers")
    [session] = controller["sessions"]
    return sorted(queue["lcore"] for queue in session["queues"])
