"""Fetching the guest's kernel, from an apt archive of this test's own that looks like Ubuntu's."""
import hashlib

import pytest

from tests.e2e.kernel import get_kernel
from tests.e2e.tools import GuestError, need, run

IMAGE, MODULES = "linux-image-6.8.0-7-generic", "linux-modules-6.8.0-7-generic"


def package(folder, name, depends, files):
    """Build a package and return its paragraph of the archive's index."""
    tree = folder / name
    control = (f"Package: {name}\nVersion: 6.8.0-7.7\nArchitecture: all\nDepends: {depends}\n"
               "Maintainer: none <none@localhost>\nDescription: test\n")
    for path, text in {"DEBIAN/control": control, **files}.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    deb = folder / f"{name}.deb"
    run(need("dpkg-deb", "dpkg"), "--build", str(tree), str(deb))
    data = deb.read_bytes()
    return (f"{control}Filename: ./{deb.name}\nSize: {len(data)}\n"
            f"SHA256: {hashlib.sha256(data).hexdigest()}\n")


@pytest.fixture
def ubuntu(tmp_path, monkeypatch):
    """Point apt at an archive with the packages that Ubuntu has, and at no other."""
    archive = tmp_path / "archive"
    tree = "lib/modules/6.8.0-7-generic"
    index = [package(archive, "linux-image-virtual", IMAGE, {}),
             package(archive, IMAGE, f"{MODULES}, base-files",
                     {"boot/vmlinuz-6.8.0-7-generic": "image"}),
             package(archive, MODULES, "base-files",
                     {f"{tree}/modules.builtin": "kernel/fs/ext4/ext4.ko\n",
                      f"{tree}/kernel/virtio_blk.ko": "\0depends=virtio\0",
                      f"{tree}/kernel/virtio.ko": "\0depends=\0"})]
    (archive / "Packages").write_text("\n".join(index))
    root = tmp_path / "apt"
    for folder in ("etc/sources.list.d", "etc/preferences.d", "state/lists/partial",
                   "cache/archives/partial"):
        (root / folder).mkdir(parents=True)
    (root / "status").touch()
    (root / "etc/sources.list").write_text(f"deb [trusted=yes] file:{archive} ./\n")
    (root / "conf").write_text(
        f'Dir::Etc "{root}/etc"; Dir::State "{root}/state"; Dir::State::status "{root}/status";\n'
        f'Dir::Cache "{root}/cache"; APT::Architecture "amd64"; APT::Sandbox::User "";\n')
    monkeypatch.setenv("APT_CONFIG", str(root / "conf"))
    monkeypatch.setenv("VHOSTRT_GUEST_CACHE", str(tmp_path / "kept"))
    return archive


def test_image_and_modules_are_fetched_once(ubuntu, tmp_path):
    run("apt-get", "update")
    kernel = get_kernel()
    assert kernel.image.read_text() == "image"
    assert kernel.load_order(["virtio_blk", "ext4"]) == ["virtio", "virtio_blk"]
    for deb in ubuntu.glob("*.deb"):
        deb.unlink()
    assert get_kernel().image == kernel.image
    assert [p.name for p in (tmp_path / "kept").iterdir()] == [IMAGE]


def test_unknown_package_says_to_update_the_lists(ubuntu):
    with pytest.raises(GuestError, match="apt knows no kernel.*run 'apt-get update'"):
        get_kernel()


def test_package_that_is_gone_says_to_update_the_lists(ubuntu, tmp_path):
    run("apt-get", "update")
    (ubuntu / f"{MODULES}.deb").unlink()
    with pytest.raises(GuestError, match=f"run 'apt-get update'.*{MODULES}"):
        get_kernel()
    assert not list((tmp_path / "kept").iterdir())
