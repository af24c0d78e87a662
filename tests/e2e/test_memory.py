"""A guest whose memory grows and shrinks while it uses its disk."""
import hashlib
import json
import os
import socket
import time
from pathlib import Path

from tests.e2e import image
from tests.e2e.target import Target

SMALL, MORE = 256, 256                                          # MiB
LIMIT = (SMALL + MORE // 2) << 10                               # KiB: between small and grown

# The disk is read past the cache all the time; meanwhile the memory changes, and all of the disk
# is read through the cache, which is larger than what the guest had at first.
STEP = """
(while [ ! -e /stop ]; do dd if=/dev/vda of=/dev/null bs=64k count=512 iflag=direct; done) &
for i in $(seq 1200); do
    read name total unit < /proc/meminfo
    [ $total %s ] && break
    usleep 100000
done
value %s $total
echo 3 > /proc/sys/vm/drop_caches
value sum-%s $(cat /dev/vda | md5sum)
touch /stop
wait
rm /stop
"""

STEPS = {
    "find": image.FIND + "echo online_movable > /sys/devices/system/memory/auto_online_blocks",
    "grow": STEP % (f"-gt {LIMIT}", "grown", "grown"),
    "shrink": STEP % (f"-lt {LIMIT}", "shrunk", "shrunk"),
}


class Monitor:
    """QEMU's monitor at a socket."""

    def __init__(self, path: Path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(path))
        self.lines = self.sock.makefile()
        self.lines.readline()                                   # the greeting
        self.call("qmp_capabilities")

    def call(self, command: str, **arguments: object) -> None:
        """Run a command; events that come before its reply are passed over."""
        self.sock.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        reply = json.loads(self.lines.readline())
        while "event" in reply:
            reply = json.loads(self.lines.readline())
        assert "return" in reply, reply

    def close(self) -> None:
        self.lines.close()
        self.sock.close()


def mapped(target: Target) -> int:
    """Return how many MiB of memfds the target has mapped."""
    size = 0
    for line in Path(f"/proc/{target.program.pid}/maps").read_text().splitlines():
        if "/memfd:memory-backend-memfd" in line:
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            size += end - start
    return size >> 20


def await_mapped(target: Target, size: int) -> None:
    end = time.monotonic() + 60
    while mapped(target) != size:
        assert time.monotonic() < end, f"{mapped(target)} MiB are mapped, want {size}"
        time.sleep(0.05)


def test_memory_is_plugged_and_unplugged_under_load(boot, tmp_path):
    disk, sock, monitor = tmp_path / "disk.img", tmp_path / "disk.sock", tmp_path / "qmp.sock"
    image.make(disk)
    with disk.open("r+b") as f:
        f.seek(32 << 20)
        f.write(os.urandom(64 << 20))
    want = hashlib.md5(disk.read_bytes()).hexdigest()
    words = ["-m", "slots=4,maxmem=2G", "-qmp", f"unix:{monitor},server=on,wait=off",
             "-object", f"memory-backend-memfd,id=more,size={MORE}M,share=on"]
    with Target(tmp_path, ["-m", "0x3", "--disk", f"{disk},name=disk0,socket={sock}"]) as target:
        with boot(steps=STEPS, files=image.FILES, disks=[sock], queues=2, memory=SMALL,
                  devices=words) as guest:
            guest.wait_step("find")
            qmp = Monitor(monitor)
            await_mapped(target, SMALL)
            qmp.call("device_add", driver="pc-dimm", id="dimm", memdev="more")
            await_mapped(target, SMALL + MORE)
            guest.wait_step("grow")
            assert guest.value("sum-grown").split()[0] == want
            qmp.call("device_del", id="dimm")
            await_mapped(target, SMALL)
            guest.wait()
            qmp.close()
            assert int(guest.value("grown")) > LIMIT > int(guest.value("shrunk"))
            assert guest.value("sum-shrunk").split()[0] == want
        assert target.stop() == 0, target.said()
        assert "broken" not in target.said()
