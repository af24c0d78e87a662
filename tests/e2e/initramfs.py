"""The guest's root file system: busybox, kernel modules, e2fsprogs, and an /init that runs steps.

What /init writes on the guest's second serial port is for the host, one line each: RESULT with
the name and exit status of a step, VALUE with a key and the rest of the line (the shell command
'value KEY TEXT' writes it), END when all is done. The first port is the console.
"""
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.e2e.kernel import Kernel
from tests.e2e.tools import need

# Those that a kernel has built in are left out.
MODULES = ("virtio_pci", "virtio_blk", "ext4")

FOLDER, FILE, LINK = 0o040755, 0o100755, 0o120777

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/tools:/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
tell() { echo "$@" > /dev/ttyS1; }
for module in $(cat /modules/order); do
    insmod /modules/$module || tell "RESULT insmod-$module 1"
done
for step in /steps/*; do
    echo "--- ${step##*.}"
    sh -eu $step
    rc=$?
    tell "RESULT ${step##*.} $rc"
    [ $rc = 0 ] || break
done
tell END
poweroff -f
"""

VALUE = """#!/bin/busybox sh
echo "VALUE $*" > /dev/ttyS1
"""


class Archive:
    """A cpio archive of the kind 'newc', the one that Linux unpacks into its first root."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.names: set[str] = set()

    def folder(self, name: str) -> None:
        """Add a folder and those above it, where they are not there yet."""
        for above in reversed([Path(name), *Path(name).parents]):
            if str(above) not in self.names and str(above) not in ("/", "."):
                self._entry(str(above), FOLDER, b"")

    def file(self, name: str, data: bytes) -> None:
        """Add a file that all may read and execute, and the folders above it."""
        self.folder(str(Path(name).parent))
        self._entry(name, FILE, data)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link, and the folders above it."""
        self.folder(str(Path(name).parent))
        self._entry(name, LINK, target.encode())

    def pack(self) -> bytes:
        """Return the archive, whole."""
        return b"".join(self.parts) + entry(0, "TRAILER!!!", 0, b"")

    def _entry(self, name: str, mode: int, data: bytes) -> None:
        self.names.add(name)
        self.parts.append(entry(len(self.names), name.lstrip("/"), mode, data))


def entry(inode: int, name: str, mode: int, data: bytes) -> bytes:
    """Return one entry: magic, thirteen numbers in hexadecimal, name, data; each padded to 4."""
    links = 2 if mode == FOLDER else 1
    numbers = (inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % n for n in numbers) + name.encode() + b"\0"
    return padded(head) + padded(data)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def build(kernel: Kernel, steps: Mapping[str, str], files: Mapping[str, bytes],
          modules: Sequence[str] = ()) -> bytes:
    """Return an initramfs whose /init runs the steps in order, up to the first that fails.

    steps maps a name to the text of a shell script, run under 'sh -eu'; files maps a path in the
    guest to contents; modules are loaded besides MODULES.
    """
    archive = Archive()
    for folder in ("/dev", "/proc", "/sys", "/mnt", "/tmp", "/steps"):
        archive.folder(folder)
    archive.file("/init", INIT.encode())
    add_program(archive, "/bin/busybox", need("busybox", "busybox-static"))
    archive.file("/tools/value", VALUE.encode())
    for program in ("mke2fs", "e2fsck"):
        add_program(archive, f"/tools/{program}", need(program, "e2fsprogs"))
    order = kernel.load_order([*MODULES, *modules])
    for name in order:
        archive.file(f"/modules/{name}", kernel.read(name))
    archive.file("/modules/order", "\n".join(order).encode())
    for number, (name, script) in enumerate(steps.items()):
        archive.file(f"/steps/{number:03}.{name}", script.encode())
    for path, data in files.items():
        if path not in archive.names:                           # a library of the programs, say
            archive.file(path, data)
    return archive.pack()


def add_program(archive: Archive, name: str, path: str) -> None:
    """Add a program of the host's, and the shared libraries that ldd names for it."""
    archive.file(name, Path(path).read_bytes())
    # ldd ends with status 1 for a static program, which has none to name.
    listed = subprocess.run([need("ldd", "libc-bin"), path], capture_output=True, text=True,
                            check=False)
    for library in re.findall(r"(/\S+) \(0x", listed.stdout):
        if library not in archive.names:
            archive.file(library, Path(library).read_bytes())
