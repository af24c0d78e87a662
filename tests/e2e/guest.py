"""A Linux guest in QEMU whose disks are vhost-user-blk sockets.

Owner:    the 'with' block; QEMU is gone when it ends.
Fails:    GuestError with the end of the console, when the guest fails, hangs or dies.
"""
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.e2e import initramfs
from tests.e2e.kernel import Kernel
from tests.e2e.tools import GuestError, need

CONSOLE_TAIL = 40                                               # lines shown in an error
POLL_S = 0.05

# A panic reboots at once, which under -no-reboot ends QEMU: a dead guest is never waited for.
COMMAND_LINE = "console=ttyS0 quiet loglevel=5 panic=-1 no_timer_check random.trust_cpu=on"


def memory_words(memory: int, nodes: int, vcpus: int) -> list[str]:
    """Return QEMU's words for so many MiB, in equal parts on NUMA nodes, each with its vCPUs."""
    backend = f"memory-backend-memfd,size={memory // nodes}M,share=on"
    if nodes == 1:
        return ["-machine", "q35,memory-backend=memory", "-m", f"{memory}M",
                "-object", f"{backend},id=memory"]
    words = ["-machine", "q35", "-m", f"{memory}M"]
    for node in range(nodes):
        cpus = f"{node * vcpus // nodes}-{(node + 1) * vcpus // nodes - 1}"
        words += ["-object", f"{backend},id=memory{node}",
                  "-numa", f"node,nodeid={node},memdev=memory{node},cpus={cpus}"]
    return words


class Guest:
    """One boot of a guest: it runs the named steps in order and powers off.

    disks are the paths of vhost-user-blk sockets (vda, vdb...); steps map names to shell scripts
    (see initramfs.py); files map paths in the guest to contents; folder is an empty one for what
    QEMU reads and writes; memory is in MiB; modules are kernel modules to load besides the usual
    ones; devices are more words for QEMU, append for the kernel's command line; nodes are NUMA
    nodes that share memory and vCPUs. VHOSTRT_GUEST_ACCEL
    chooses another accelerator than tcg, the one that works everywhere.
    """

    def __init__(self, kernel: Kernel, folder: Path, *, steps: Mapping[str, str],
                 disks: Sequence[Path] = (), files: Mapping[str, bytes] | None = None,
                 vcpus: int = 2, queues: int = 2, memory: int = 256,
                 modules: Sequence[str] = (), devices: Sequence[str] = (), append: str = "",
                 nodes: int = 1):
        self.steps = list(steps)
        self.console = folder / "console"
        self.report = folder / "report"
        self.errors = folder / "qemu.err"
        self.qemu: subprocess.Popen[bytes] | None = None
        image = folder / "initramfs"
        image.write_bytes(initramfs.build(kernel, steps, files or {}, modules))
        self.command = [
            need("qemu-system-x86_64", "qemu-system-x86"),
            "-accel", os.environ.get("VHOSTRT_GUEST_ACCEL", "tcg"), "-cpu", "max",
            *memory_words(memory, nodes, vcpus), "-smp", str(vcpus),
            "-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
            "-serial", f"file:{self.console}", "-serial", f"file:{self.report}",
            "-kernel", str(kernel.image), "-initrd", str(image),
            "-append", f"{COMMAND_LINE} {append}", *devices,
        ]
        for i, disk in enumerate(disks):
            self.command += ["-chardev", f"socket,id=disk{i},path={disk}", "-device",
                             f"vhost-user-blk-pci,chardev=disk{i},num-queues={queues}"]

    def __enter__(self) -> Self:
        with self.errors.open("wb") as errors:
            self.qemu = subprocess.Popen(self.command, stdin=subprocess.DEVNULL,
                                         stdout=errors, stderr=errors)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End QEMU at once, as a power cut would."""
        assert self.qemu is not None
        self.qemu.kill()
        self.qemu.wait()

    def wait(self, seconds: float = 180) -> None:
        """Wait until the guest has powered off; a GuestError unless every step ended with 0."""
        self._wait(lambda: False, "to power off", seconds)
        failed = [f"{name} ({rc})" for name, rc in self.results().items() if rc != 0]
        if failed:
            self._fail(f"step {failed[0]} failed in the guest")
        if ["END"] not in self._lines():
            self._fail("the guest or QEMU died before its steps were done")

    def wait_step(self, name: str, seconds: float = 180) -> None:
        """Wait until a step has ended with 0, and let the guest go on."""
        self._wait(lambda: name in self.results(), f"to end step {name}", seconds)
        if self.results().get(name) != 0:
            self._fail(f"step {name} failed in the guest, or was not reached")

    def results(self) -> dict[str, int]:
        """Return the exit status of each step that has ended, in order."""
        return {words[1]: int(words[2]) for words in self._lines() if words[0] == "RESULT"}

    def value(self, key: str) -> str:
        """Return what a step told with 'value KEY TEXT', the last such time."""
        values = {words[1]: " ".join(words[2:]) for words in self._lines() if words[0] == "VALUE"}
        if key not in values:
            self._fail(f"the guest told no value {key}")
        return values[key]

    def _wait(self, done: Callable[[], bool], what: str, seconds: float) -> None:
        assert self.qemu is not None
        end = time.monotonic() + seconds
        while self.qemu.poll() is None and not done():
            if time.monotonic() > end:
                self._fail(f"the guest took more than {seconds} s {what}")
            time.sleep(POLL_S)

    def _lines(self) -> list[list[str]]:
        """Return the words of each whole line of the report; the last may still be growing."""
        if not self.report.exists():
            return []
        text = self.report.read_text(errors="replace")
        return [line.split() for line in text.split("\n")[:-1] if line.strip()]

    def _fail(self, why: str) -> None:
        assert self.qemu is not None
        tail = "nothing"
        if self.console.exists():
            lines = self.console.read_text(errors="replace").splitlines()
            tail = "\n".join(lines[-CONSOLE_TAIL:])
        raise GuestError(f"{why}; its steps so far: {self.results()} of {self.steps}; "
                         f"QEMU's status: {self.qemu.poll()}\n"
                         f"--- QEMU said\n{self.errors.read_text(errors='replace')}"
                         f"--- the end of the console\n{tail}")
