"""What the sections of the old configuration file mean: options of the program, and RPC calls.

The sections are those of SPDK v18.04 to v20.07. Each becomes the calls of today that make the same
disks and controllers, whatever order the file has them in: bdevs first.

Fails: ConfigError with one line `file:line: why` for each thing that is wrong.
"""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

from vhostrt import values
from vhostrt.config import ConfigError
from vhostrt.config.ini import Item, Section
from vhostrt.config.json_config import Call
from vhostrt.options import Options, number_between
from vhostrt.values import shown

YES, NO = ("yes", "y", "true"), ("no", "n", "false")
MIB = 1 << 20
NUMBERED = ("vhostblk", "vhostscsi")    # sections that have a number each
DISKS_MAX = 1 << 16                     # of [Malloc]: nobody means more
REQUIRED = object()

Value = Callable[[str], Any]


def read_flag(text: str) -> bool:
    if text.lower() not in YES + NO:
        raise ValueError(f"{shown(text)} is neither Yes nor No")
    return text.lower() in YES


def read_mask(text: str) -> str:
    """Check a core mask; it goes to the RPC method as it is."""
    values.read_cpus(text)
    return text


count = number_between(1, values.INT_MAX)
block_size = number_between(512, 65536)

# Key of [Global], in lower case: the field of Options it sets, its reader, and what the field has
# when the command line did not say it; the command line wins.
GLOBAL_KEYS: dict[str, tuple[str, Value, tuple[Any, ...]]] = {
    "sharedmemoryid": ("shm_id", number_between(-values.INT_MAX, values.INT_MAX), (None, -1)),
    "reactormask": ("cores", values.read_cpus, (None,)),
    "nopci": ("no_pci", read_flag, (False,)),
    "tpointgroupmask": ("tpoint_groups", values.read_tpoint_groups, (None,)),
}


class Conversion:
    """One file on its way: what was found wrong, what is only said, and the calls."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.wrong: list[str] = []
        self.warnings: list[str] = []
        self.calls: list[Call] = []

    @contextmanager
    def line(self, number: int) -> Iterator[None]:
        """Around what reads one line: its ValueError is a thing that is wrong there."""
        try:
            yield
        except ValueError as error:
            self.wrong.append(f"{self.path}:{number}: {error}")

    def call(self, section: Section, line: int, method: str, params: dict[str, Any]) -> None:
        """Add a call, less the parameters that are None."""
        given = {name: value for name, value in params.items() if value is not None}
        subsystem = ("bdev" if method.startswith("bdev_")
                     else "vhost_blk" if "_blk_" in method else "vhost_scsi")
        self.calls.append(Call(subsystem, method, given, f"[{section.name}]", line))

    def check_keys(self, section: Section, *known: str) -> None:
        """Say of each key that nothing reads that it means nothing."""
        names = {name.lower() for name in (*known, "comment")}
        for item in section.items:
            if item.key.lower() not in names:
                self.warnings.append(f"{self.path}:{item.line}: [{section.name}] {shown(item.key)} "
                                     "means nothing to vhostrt")

    def one(self, section: Section, key: str, read: Value, default: Any = REQUIRED) -> Any:
        """Return what a key says that stands in a section once; None when that is wrong."""
        found = section.named(key)
        for item in found[1:]:
            self.wrong.append(f"{self.path}:{item.line}: {item.key} is given twice")
        if found:
            with self.line(found[0].line):
                return read_one(found[0], read)
        elif default is REQUIRED:
            self.wrong.append(f"{self.path}:{section.line}: [{section.name}] needs {key}")
        else:
            return default
        return None


def read_one(item: Item, read: Value) -> Any:
    """Return the one value of a key. Fails: ValueError."""
    if len(item.words) != 1:
        raise ValueError(f"{item.key} needs one value and has {len(item.words)}")
    try:
        return read(item.words[0])
    except ValueError as error:
        raise ValueError(f"{item.key}: {error}") from None


def read_row(item: Item, names: str, *readers: Value) -> list[Any]:
    """Return the values of a key that has several, None for those left out at the end.

    names: of the values, in words, those that may be left out in brackets. Fails: ValueError.
    """
    least = len([name for name in names.split() if not name.startswith("[")])
    if not least <= len(item.words) <= len(readers):
        raise ValueError(f"{item.key} needs {names}, and has {len(item.words)} values")
    try:
        row = [read(word) for read, word in zip(readers, item.words, strict=False)]
    except ValueError as error:
        raise ValueError(f"{item.key}: {error}") from None
    return row + [None] * (len(readers) - len(row))


def apply(sections: list[Section], options: Options, path: str) -> tuple[list[str], list[Call]]:
    """Take [Global] over into options, where the command line left room; convert the rest.

    Return warnings, and the calls. Fails: ConfigError.
    """
    file = Conversion(path)
    given = copy(options)
    for section in sections:
        if section.name.lower() == "global":
            apply_global(file, section, options, given)
    convert_all(file, sections)
    if file.wrong:
        raise ConfigError(file.wrong)
    return file.warnings, file.calls


def apply_global(file: Conversion, section: Section, options: Options, given: Options) -> None:
    """Set what [Global] says, save where given, the command line, has said it."""
    seen = set()
    file.check_keys(section, *GLOBAL_KEYS)
    for item in section.items:
        key = item.key.lower()
        if key not in GLOBAL_KEYS:
            continue
        with file.line(item.line):
            if key in seen:
                raise ValueError(f"{item.key} is given twice")
            seen.add(key)
            name, read, unsaid = GLOBAL_KEYS[key]
            value = read_one(item, read)
            if getattr(given, name) in unsaid and not (name == "cores" and given.lcore_map):
                setattr(options, name, value)


def convert_all(file: Conversion, sections: list[Section]) -> None:
    """Convert the sections of modules, in the order in which SPDK starts these."""
    kinds = {section.name: kind_of(section) for section in sections}
    for section in sections:
        kind, said = kinds[section.name], f"[{section.name}]"
        with file.line(section.line):
            if kind == "rpc":
                raise ValueError(f"{said} is not read since SPDK v18.04: remove it, and give the "
                                 "address with -r")
            if kind in NUMBERED and not section.name[len(kind):][:1].isdigit():
                raise ValueError(f"{said} needs a number behind its name, as [{section.name}0]")
            if kind not in (*MODULES, "global"):
                raise ValueError(f"the module of section {said} is not there yet")
    for kind, convert in MODULES.items():
        for section in sections:
            if kinds[section.name] == kind:
                convert(file, section)


def kind_of(section: Section) -> str:
    """Return the name of a section in lower case, less the number of a controller."""
    name = section.name.lower()
    return next((kind for kind in NUMBERED if name.startswith(kind)), name)


# The modules

def ioat(file: Conversion, section: Section) -> None:
    """DMA engines: blocks are copied by the CPU, so that there is nothing to turn off."""
    file.warnings.append(f"{file.path}:{section.line}: [{section.name}] means nothing to vhostrt: "
                         "it uses no copy engine")


def bdev(file: Conversion, section: Section) -> None:
    file.check_keys(section, "BdevIoPoolSize", "BdevIoCacheSize")
    number = number_between(0, values.INT_MAX)
    file.call(section, section.line, "bdev_set_options", {
        "bdev_io_pool_size": file.one(section, "BdevIoPoolSize", number, None),
        "bdev_io_cache_size": file.one(section, "BdevIoCacheSize", number, None)})


def malloc(file: Conversion, section: Section) -> None:
    """NumberOfLuns disks of LunSizeInMB each, Malloc0, Malloc1 ..."""
    file.check_keys(section, "NumberOfLuns", "LunSizeInMB", "BlockSize")
    number = file.one(section, "NumberOfLuns", number_between(1, DISKS_MAX))
    size = file.one(section, "LunSizeInMB", count)
    block = file.one(section, "BlockSize", block_size, 512)
    if None in (number, size, block):
        return
    for i in range(number):
        file.call(section, section.line, "bdev_malloc_create", {
            "name": f"Malloc{i}", "num_blocks": size * MIB // block, "block_size": block})


def aio(file: Conversion, section: Section) -> None:
    file.check_keys(section, "AIO")
    for item in section.named("AIO"):
        with file.line(item.line):
            filename, name, block = read_row(item, "file name [block_size]", str, str, block_size)
            file.call(section, item.line, "bdev_aio_create",
                      {"name": name, "filename": filename, "block_size": block})


def null(file: Conversion, section: Section) -> None:
    file.check_keys(section, "Dev")
    for item in section.named("Dev"):
        with file.line(item.line):
            name, size, block = read_row(item, "name size_in_MB [block_size]", str, count,
                                         block_size)
            block = block or 512
            file.call(section, item.line, "bdev_null_create",
                      {"name": name, "num_blocks": size * MIB // block, "block_size": block})


def split(file: Conversion, section: Section) -> None:
    file.check_keys(section, "Split")
    for item in section.named("Split"):
        with file.line(item.line):
            base, parts, size = read_row(item, "bdev count [size_in_MB]", str, count, count)
            file.call(section, item.line, "bdev_split_create",
                      {"base_bdev": base, "split_count": parts, "split_size_mb": size})


def vhost_blk(file: Conversion, section: Section) -> None:
    file.check_keys(section, "Name", "Dev", "ReadOnly", "Cpumask", "PackedRing")
    file.call(section, section.line, "vhost_create_blk_controller", {
        "ctrlr": file.one(section, "Name", str), "dev_name": file.one(section, "Dev", str),
        "cpumask": file.one(section, "Cpumask", read_mask, None),
        "readonly": file.one(section, "ReadOnly", read_flag, None),
        "packed_ring": file.one(section, "PackedRing", read_flag, None)})


def vhost_scsi(file: Conversion, section: Section) -> None:
    """A controller, and a target for each Dev (the name until v18.04) or Target."""
    file.check_keys(section, "Name", "Dev", "Target", "Cpumask")
    name = file.one(section, "Name", str)
    file.call(section, section.line, "vhost_create_scsi_controller",
              {"ctrlr": name, "cpumask": file.one(section, "Cpumask", read_mask, None)})
    targets, devices = section.named("Target"), section.named("Dev")
    if targets and devices:
        file.wrong.append(f"{file.path}:{devices[0].line}: [{section.name}] has both Dev and "
                          "Target: use Target alone")
    for item in targets or devices:
        with file.line(item.line):
            number, bdev_name = read_row(item, "number bdev", number_between(0, values.INT_MAX),
                                         str)
            file.call(section, item.line, "vhost_scsi_controller_add_target", {
                "ctrlr": name, "scsi_target_num": number, "bdev_name": bdev_name})


# By the name of the section, in the order in which they are converted.
MODULES: dict[str, Callable[[Conversion, Section], None]] = {
    "ioat": ioat, "bdev": bdev, "malloc": malloc, "aio": aio, "null": null, "split": split,
    "vhostblk": vhost_blk, "vhostscsi": vhost_scsi,
}
