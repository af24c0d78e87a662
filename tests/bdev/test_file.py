"""Files as bdevs: what is refused and how, what is chosen, and what is locked."""
import asyncio
import errno
import os
import socket
import stat

import pytest

from vhostrt import log
from vhostrt.bdev import file
from vhostrt.bdev.aio import AioBdev
from vhostrt.bdev.uring import UringBdev

CLASSES = pytest.mark.parametrize("cls", [AioBdev, UringBdev])


def make_file(size):
    def make(path):
        path.write_bytes(bytes(size))
        return path
    return make


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))
    return path


def make_fifo(path):
    os.mkfifo(path)
    return path


REFUSED = {
    "missing": (lambda path: path, 512, OSError, errno.ENOENT,
                "cannot be opened for reading and writing: No such file or directory"),
    "no directory": (lambda path: path / "x", 512, OSError, errno.ENOENT, "cannot be opened"),
    "directory": (lambda path: path.parent, 512, OSError, errno.EINVAL, "is a directory; a disk "
                  "must be a regular file or a block device"),
    "character device": (lambda path: "/dev/full", 512, OSError, errno.EINVAL,
                         "/dev/full is a character device"),
    "fifo": (make_fifo, 512, OSError, errno.EINVAL, "is a FIFO"),
    "socket": (make_socket, 512, OSError, errno.ENXIO, "cannot be opened"),
    "empty": (make_file(0), 512, OSError, errno.EINVAL, "is empty"),
    "odd size": (make_file(1000), 512, OSError, errno.EINVAL,
                 "1000 bytes, is not a whole number of 512-byte blocks"),
    "odd size of 4096": (make_file(6144), 4096, OSError, errno.EINVAL, "6144 bytes"),
    "block size": (make_file(6000), 600, ValueError, None, "block size 600 of .* power of two"),
    "small block": (make_file(4096), 256, ValueError, None, "block size 256"),
    "large block": (make_file(1 << 20), 1 << 17, ValueError, None, "block size 131072"),
    "no name": (lambda path: "", 512, ValueError, None, "'' is not the name of a file"),
    "null byte": (lambda path: "a\0b", 512, ValueError, None, "is not the name of a file"),
    "long name": (lambda path: "x" * 5000, 512, OSError, errno.ENAMETOOLONG, "File name too long"),
}


@CLASSES
@pytest.mark.parametrize("case", REFUSED)
def test_refusals(cls, case, tmp_path):
    make, block_size, kind, number, text = REFUSED[case]
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(kind, match=text) as caught:
        cls("disk", str(make(tmp_path / "f")), block_size)
    if number:
        assert caught.value.errno == number
    assert len(os.listdir("/proc/self/fd")) == before


UNPRIVILEGED = """
import os, sys
directory, module, name = sys.argv[1:]
cls = getattr(__import__(module, fromlist=["x"]), name)
os.chdir(directory)
if os.geteuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
for readonly in (False, True):
    try:
        bdev = cls("disk", "f", 512, readonly)
        print("opened", bdev.read_only)
    except PermissionError as error:
        print(error)
"""


@CLASSES
def test_file_that_may_only_be_read(cls, tmp_path, python):
    path = make_file(4096)(tmp_path / "f")
    path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    tmp_path.chmod(0o711)
    out = python(UNPRIVILEGED, tmp_path, cls.__module__, cls.__name__).splitlines()
    assert out == ["[Errno 13] f cannot be opened for reading and writing: Permission denied",
                   "opened True"]


@CLASSES
def test_one_writer_or_many_readers(cls, tmp_path):
    path = str(make_file(8192)(tmp_path / "f"))

    async def main():
        writer = await cls.create("w", path)
        for readonly in (False, True):
            with pytest.raises(OSError, match="is locked by a") as caught:
                await cls.create("x", path, 0, readonly)
            assert caught.value.errno == errno.EBUSY
        await writer.close()
        readers = [await cls.create(f"r{i}", path, 0, True) for i in range(2)]
        with pytest.raises(OSError, match="is locked by another reader or writer"):
            await cls.create("w", path)
        for reader in readers:
            await reader.close()
        writer = await cls.create("w", path)
        await writer.close()
        await writer.close()

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) == before


@CLASSES
def test_lock_goes_with_an_object_that_nobody_closed(cls, tmp_path):
    path = str(make_file(8192)(tmp_path / "f"))
    cls("w", path)
    cls("w", path)


@CLASSES
def test_what_a_file_says_of_itself(cls, tmp_path):
    path = str(make_file(1 << 20)(tmp_path / "f"))
    bdev = cls("disk", path)
    assert (bdev.block_size, bdev.num_blocks) == (512, 2048)
    assert bdev.write_cache and not bdev.read_only
    assert {"read", "write", "flush", "write_zeroes"} <= bdev.io_types
    kind = "aio" if cls is AioBdev else "uring"
    assert bdev.driver_specific[kind]["filename"] == path
    assert bdev.product_name == {"aio": "AIO disk", "uring": "URING bdev"}[kind]


def test_descriptors_are_closed_on_exec(tmp_path):
    bdevs = [cls("disk", str(make_file(512)(tmp_path / cls.__name__)))
             for cls in (AioBdev, UringBdev)]
    ours = [fd for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
            and os.readlink(f"/proc/self/fd/{fd}").startswith(str(tmp_path))]
    assert len(ours) == len(bdevs) == 2
    assert not any(os.get_inheritable(int(fd)) for fd in ours)


def test_uring_is_chosen_where_it_is_there_and_said_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(file, "said", set())
    monkeypatch.setattr(log.settings, "print_level", log.NOTICE)

    async def main():
        for name in "ab":
            bdev = await file.create_file_bdev(name, str(make_file(512)(tmp_path / name)))
            assert type(bdev) is UringBdev
            await bdev.close()

    asyncio.run(main())
    assert capsys.readouterr().err.count("Files are served through io_uring") == 1


# The kernel itself refuses io_uring_setup here, as the profile of a container does.
REFUSED_URING = """
import asyncio, ctypes, os, struct, sys
from pathlib import Path
program = [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (6, 0, 0, 0x00050000 | 1), (6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
class Filter(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("code", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Filter(4, ctypes.addressof(code))), 0, 0) == 0
from tests.lib.cy_bdev import run
from tests.lib.reactors import reactors
from vhostrt import log
from vhostrt.bdev import factory, registry
from vhostrt.bdev.uring import uring_available
async def main(path):
    print(uring_available())
    try:
        await factory.create_uring("u", path)
    except OSError as error:
        print(error)
    async with reactors():
        for name in ("a", "b"):
            await factory.create_file(name, path)
            bdev = registry.get(name)
            print(bdev.product_name)
            channel = await bdev.open_channel(0)
            print(await run(channel, [("write", 1, 1, [bytearray(name.encode() * 512)])]))
            await bdev.close_channel(channel)
            await factory.delete(name)
sys.stderr = sys.stdout
asyncio.run(main(sys.argv[1]))
print(Path(sys.argv[1]).read_bytes() == bytes(512) + b"b" * 512 + bytes(512))
"""


def test_helper_threads_serve_files_where_io_uring_is_refused(tmp_path, python):
    out = python(REFUSED_URING, make_file(1536)(tmp_path / "f"))
    why = "the kernel or a seccomp filter refuses io_uring: Operation not permitted"
    assert f"(False, '{why}')" in out
    assert f"[Errno 95] io_uring cannot be used: {why}" in out
    assert out.count("AIO disk") == 2
    assert out.count("[0]") == 2
    assert out.count("*NOTICE*: Files are served by helper threads") == 1
    assert out.endswith("True\n")
