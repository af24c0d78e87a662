"""The guest's root file system, as busybox's own cpio unpacks it, and the modules in it."""
import gzip
import lzma
import subprocess

import pytest

from tests.e2e import initramfs
from tests.e2e.kernel import Kernel, cache_folder, module_needs, read_module
from tests.e2e.tools import GuestError, need, run


def filtered(command, data, folder=None):
    """Return what a command makes of its standard input."""
    done = subprocess.run(command, input=data, cwd=folder, check=True, stdout=subprocess.PIPE)
    return done.stdout


def unpack(data, folder):
    filtered([need("busybox", "busybox-static"), "cpio", "-idm"], data, folder)


def test_archive_unpacks_to_what_went_in(tmp_path):
    archive = initramfs.Archive()
    contents = {f"/a/b{n}/{'x' * n}": bytes(range(n)) for n in range(1, 9)}
    for name, data in contents.items():
        archive.file(name, data)
    archive.link("/a/link", "b3/xxx")
    unpack(archive.pack(), tmp_path)
    for name, data in contents.items():
        found = tmp_path / name[1:]
        assert found.read_bytes() == data
        assert found.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "a/link").readlink().as_posix() == "b3/xxx"


def test_archive_names_each_folder_once():
    archive = initramfs.Archive()
    archive.file("/a/b/one", b"1")
    archive.file("/a/b/two", b"2")
    assert archive.pack().count(b"a/b\0") == 1


def test_steps_are_numbered_in_their_order(kernel, tmp_path):
    steps = {"zebra": "true", "ant": "false"}
    unpack(initramfs.build(kernel, steps, {"/data": b"here"}), tmp_path)
    assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == ["000.zebra", "001.ant"]
    assert (tmp_path / "data").read_bytes() == b"here"


def test_programs_come_with_their_libraries(kernel, tmp_path):
    unpack(initramfs.build(kernel, {}, {}), tmp_path)
    listed = run("ldd", need("mke2fs", "e2fsprogs")).decode()
    libraries = [word for word in listed.split() if word.startswith("/")]
    assert len(libraries) > 1
    for library in libraries:
        assert (tmp_path / library[1:]).is_file()


def test_modules_come_after_those_they_need(kernel):
    order = kernel.load_order(initramfs.MODULES)
    assert len(set(order)) == len(order)
    for i, name in enumerate(order):
        assert set(module_needs(kernel.read(name))) - kernel.builtin <= set(order[:i])
    assert not kernel.builtin & set(order)
    for name in initramfs.MODULES:
        assert name in order or name in kernel.builtin


def test_module_the_kernel_lacks_is_named(kernel):
    with pytest.raises(GuestError, match="has no module virtio_fruit"):
        kernel.load_order(["virtio-fruit"])


@pytest.mark.parametrize("ending, pack", [
    (".ko", bytes), (".ko.gz", gzip.compress), (".ko.xz", lzma.compress),
    (".ko.zst", lambda data: filtered([need("zstd", "zstd"), "-c"], data))],
    ids=["plain", "gz", "xz", "zst"])
def test_modules_are_read_however_they_are_packed(tmp_path, ending, pack):
    image = b"\x7fELF\0license=GPL\0depends=one,two-three\0name=x\0"
    path = tmp_path / f"a-b{ending}"
    path.write_bytes(pack(image))
    assert read_module(path) == image
    assert module_needs(read_module(path)) == ["one", "two_three"]


def test_folder_without_kernel_is_named(tmp_path):
    with pytest.raises(GuestError, match=f"{tmp_path} is not an unpacked kernel package"):
        Kernel(tmp_path)


def test_missing_program_says_what_to_install():
    with pytest.raises(GuestError, match="apt-get install fruit-utils"):
        need("no-such-fruit", "fruit-utils")


def test_cache_folder_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("VHOSTRT_GUEST_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
