"""The guest's Linux kernel: the distribution's own package, fetched and unpacked, not installed.

Fails:    GuestError, with the command or package that would help.
"""
import gzip
import lzma
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.e2e.tools import GuestError, need, run

ROOT = Path(__file__).resolve().parents[2]

# Debian's kernel for virtual machines, then Ubuntu's; each depends on the package of one version.
META_PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")


def cache_folder() -> Path:
    """Return where unpacked kernels are kept: VHOSTRT_GUEST_CACHE, else .cache/guest."""
    return Path(os.environ.get("VHOSTRT_GUEST_CACHE") or ROOT / ".cache" / "guest").absolute()


class Kernel:
    """An unpacked kernel package: its bootable image and its modules."""

    def __init__(self, tree: Path):
        """tree is the folder into which the packages were unpacked."""
        self.image = one(tree, "boot/vmlinuz-*")
        self.folder = one(tree, "lib/modules/*", "usr/lib/modules/*")
        self.builtin = {module_name(line) for line in
                        (self.folder / "modules.builtin").read_text().split()}
        self.files = {module_name(p): p for p in self.folder.rglob("*.ko*")}

    def load_order(self, wanted: Iterable[str]) -> list[str]:
        """Return the modules to load for the wanted ones, each after all that it depends on.

        Built-in ones are left out, as 'modprobe --show-depends' does; the packages carry no
        modules.dep (that is made when they are installed), so each module's own words count.
        """
        order: list[str] = []
        for name in wanted:
            self._visit(name.replace("-", "_"), order)
        return order

    def _visit(self, name: str, order: list[str]) -> None:
        if name in self.builtin or name in order:
            return
        if name not in self.files:
            raise GuestError(f"the kernel {self.folder.name} has no module {name}")
        for other in module_needs(self.read(name)):
            self._visit(other, order)
        order.append(name)

    def read(self, name: str) -> bytes:
        """Return a module as the kernel loads it, unpacked where the file is compressed."""
        return read_module(self.files[name])


def get_kernel() -> Kernel:
    """Return the kernel in the cache folder, after fetching one into it where there is none."""
    cache = cache_folder()
    have = sorted(cache.glob("linux-image-*"))
    return Kernel(have[-1] if have else fetch(cache))


def fetch(cache: Path) -> Path:
    """Download and unpack the distribution's kernel for virtual machines; return its folder."""
    if shutil.which("apt-get") is None:
        raise GuestError(f"the guest's kernel comes from apt, which is not here: unpack a kernel "
                         f"package (its boot and lib folders) into {cache}/linux-image-some")
    packages = kernel_packages()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        try:
            run("apt-get", "download", *packages, cwd=folder)
        except GuestError as e:
            raise GuestError(f"the guest's kernel could not be downloaded, perhaps as the lists "
                             f"of packages are old (run 'apt-get update'): {e}") from None
        for deb in Path(folder).glob("*.deb"):
            run(need("dpkg-deb", "dpkg"), "-x", str(deb), f"{folder}/tree")
        place = cache / packages[0]
        try:
            os.rename(f"{folder}/tree", place)                  # whole or not there at all
        except OSError:
            if not place.is_dir():                              # else another run was faster
                raise
    return place


def kernel_packages() -> list[str]:
    """Return the names of the packages with the image (first) and the modules."""
    for meta in META_PACKAGES:
        for image in depends_on(meta, "linux-image"):
            return [image, *depends_on(image, "linux-modules")]
    raise GuestError(f"apt knows no kernel for the guest ({' or '.join(META_PACKAGES)}): "
                     f"run 'apt-get update'")


def depends_on(package: str, prefix: str) -> list[str]:
    """Return the versioned packages called prefix-<digit>... on which a package depends."""
    try:
        text = run(need("apt-cache", "apt"), "depends", package).decode()
    except GuestError:
        return []                                               # apt does not know the package
    return re.findall(rf"^\s*\|?Depends: ({prefix}-\d\S*)$", text, re.MULTILINE)


def one(tree: Path, *patterns: str) -> Path:
    """Return what matches the first of the patterns that matches anything."""
    for pattern in patterns:
        for found in sorted(tree.glob(pattern)):
            return found
    raise GuestError(f"{tree} is not an unpacked kernel package (no {patterns[0]}): remove it")


def module_name(path: str | Path) -> str:
    """Return the name under which the kernel knows a module file."""
    return Path(path).name.partition(".ko")[0].replace("-", "_")


def module_needs(image: bytes) -> list[str]:
    """Return the modules that must be loaded before this one, as its .modinfo section says."""
    names: list[str] = []
    for text in re.findall(rb"\0depends=([^\0]+)\0", image):
        names += text.decode().split(",")
    return [name.replace("-", "_") for name in names]


def read_module(path: Path) -> bytes:
    """Return the contents of a .ko, .ko.xz, .ko.zst or .ko.gz file, unpacked."""
    match path.suffix:
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case ".zst":
            return run(need("zstd", "zstd"), "-dcq", str(path))
        case _:
            return path.read_bytes()
