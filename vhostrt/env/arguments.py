"""The options of the environment as words: checked, made explicit, and printed for people.

build() gives the EAL argument vector that SPDK would hand to DPDK, in its order; eal.parse() reads
it back.

Threads: any.
Fails:   ValueError with one sentence that names the option and the value.
"""
import os
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from types import UnionType
from typing import Any

from vhostrt.env.cpus import CPU_MAX, cpu_list
from vhostrt.env.options import EnvOptions
from vhostrt.values import MIB, read_pci_address, read_uuid, shown

ALIGN_VIRTADDR = 16 * MIB               # --base-virtaddr is rounded up to it
RESERVED = "vhost_spdk_reserved_"       # files of -F, one a NUMA node
IOVA_MODES = ("pa", "va")
PROC_TYPES = ("primary", "secondary", "auto")
VFIO_INTRS = ("legacy", "msi", "msix")
LEVELS = range(1, 9)
RANKS = range(1, 17)
VIRTADDRS = range(0, 2**47 - ALIGN_VIRTADDR + 1)        # so that the next multiple is one, too


# What cannot be.

def fits(value: Any, kind: Any) -> bool:
    """Tell whether a value is of the type that a field of EnvOptions is annotated with."""
    if isinstance(kind, UnionType):
        return any(fits(value, one) for one in kind.__args__)
    of = getattr(kind, "__args__", ())
    if of[1:] == (Ellipsis,):
        return type(value) is tuple and all(fits(one, of[0]) for one in value)
    if of and kind.__origin__ is tuple:
        return type(value) is tuple and len(value) == len(of) and all(map(fits, value, of))
    if of:
        return type(value) is dict and all(fits(pair, tuple[of]) for pair in value.items())
    return type(value) is kind


def check(options: EnvOptions) -> None:
    """Refuse values that make no sense, and options that exclude each other."""
    for field in fields(options):
        value = getattr(options, field.name)
        if not fits(value, field.type):
            kind = field.type.__name__ if type(field.type) is type else str(field.type)
            raise ValueError(f"{field.name}: {shown(str(value))} is not of the type {kind}")
    for name, wrong, why in wrong_values(options):
        if wrong:
            raise ValueError(f"{name}: {shown(str(getattr(options, name)))} {why}")
    if options.lcores is not None:
        check_ids(options.lcores)
    check_roles(options)
    for wrong, sentence in conflicts(options):
        if wrong:
            raise ValueError(sentence)


def wrong_values(o: EnvOptions) -> Iterator[tuple[str, bool, str]]:
    """Yield (option, whether its value is wrong, why that is)."""
    sizes = [*(o.socket_mem or ()), o.mem_size or 0]
    yield "name", not o.name, "is no name"
    yield "mem_size", not 0 <= sizes[-1] < 2**63, "is no number of bytes"
    yield "mem_size", sizes[-1] % MIB != 0, "is not a whole number of MiB"
    yield "socket_mem", bool(o.socket_mem) and not any(o.socket_mem), "asks for no memory at all"
    yield ("socket_mem", any(not 0 <= size < 2**63 or size % MIB for size in sizes),
           "are not whole MiB each")
    yield "huge_dir", o.huge_dir == "", "is no path"
    yield "mem_file_dir", o.mem_file_dir == "", "is no path"
    yield "mem_files", any(not path for path in o.mem_files), "has an empty path in it"
    yield "mem_files", any("," in path for path in o.mem_files), "has a comma in a path"
    yield "channels", o.channels is not None and o.channels < 1, "is an invalid channel number"
    yield ("ranks", o.ranks is not None and o.ranks not in RANKS,
           "is an invalid rank number: they are 1 to 16")
    yield ("base_virtaddr", o.base_virtaddr is not None and o.base_virtaddr not in VIRTADDRS,
           "is not in the user's half of the address space")
    yield ("iova_mode", o.iova_mode not in (None, *IOVA_MODES),
           f"is none of {', '.join(IOVA_MODES)}")
    yield ("proc_type", o.proc_type not in PROC_TYPES,
           f"is none of {', '.join(PROC_TYPES)}")
    yield ("vfio_intr", o.vfio_intr not in (None, *VFIO_INTRS),
           f"is none of {', '.join(VFIO_INTRS)}")
    prefix = "a" if o.file_prefix is None else o.file_prefix
    yield ("file_prefix", not prefix or not {"%", "/", "\0"}.isdisjoint(prefix),
           "is no beginning of file names: it is empty, or has %, / or NUL in it")
    yield ("log_levels", any(level not in LEVELS for _, level in o.log_levels),
           "has a level that is not 1 to 8")


def check_ids(lcores: dict[int, tuple[int, ...]]) -> None:
    """Refuse lcores that cannot be; whether there are such CPUs, the machine says."""
    if not lcores:
        raise ValueError("no lcore is asked for")
    for lcore, cpus in lcores.items():
        if not 0 <= lcore < CPU_MAX:
            raise ValueError(f"lcore {lcore}: the ids are 0 to {CPU_MAX - 1}")
        if not cpus:
            raise ValueError(f"lcore {lcore} is given no CPU")


def check_roles(options: EnvOptions) -> None:
    """Refuse a main lcore or service lcores that are not enabled, and one that is both."""
    enabled = tuple(options.lcores or sorted(os.sched_getaffinity(0)))
    main = options.main_lcore
    if main is not None and main not in enabled:
        raise ValueError(f"option --main-lcore: lcore {main} is not enabled: the lcores are "
                         f"{cpu_list(enabled)}")
    if set(enabled) <= set(options.service_lcores):
        raise ValueError(f"option -S: all lcores, {cpu_list(enabled)}, are to run services, and "
                         "none is left to be the main one")
    for lcore in options.service_lcores:
        if lcore not in enabled:
            raise ValueError(f"option -S: service lcore {lcore} is not enabled: the lcores are "
                             f"{cpu_list(enabled)}")
        if lcore == main:
            raise ValueError(f"option -S: lcore {lcore} is the main lcore, which runs no services")


def conflicts(o: EnvOptions) -> Iterator[tuple[bool, str]]:
    """Yield (whether it is so, the sentence about it)."""
    together = "cannot be specified at the same time"
    yield (o.mem_size is not None and bool(o.socket_mem),
           f"options -m and --socket-mem {together}")
    yield (bool(o.pci_allowed and o.pci_blocked),
           f"options --block (-b) and --allow (-a, -w) {together}")
    files = {"--socket-mem": o.socket_mem, "--huge-dir": o.huge_dir,
             "--huge-unlink": o.huge_unlink, "--single-file-segments": o.single_file_segments,
             "--mem-file": o.mem_files, "-F": o.mem_file_dir,
             "--iova-mode=pa": o.iova_mode == "pa"}
    for name, given in files.items():
        yield o.no_huge and bool(given), f"options --no-huge and {name} {together}"
    for name in ("--huge-dir", "--mem-file", "-F"):
        yield o.in_memory and bool(files[name]), f"options --in-memory and {name} {together}"
    yield o.in_memory and o.legacy_mem, f"options --in-memory and --legacy-mem {together}"
    yield (bool(o.mem_files and o.mem_file_dir), f"options --mem-file and -F {together}")
    yield (o.proc_type == "secondary" and (o.private or o.in_memory or o.no_huge),
           "--proc-type=secondary needs the --file-prefix of its primary, and no --no-shconf, "
           "--in-memory or --no-huge")


# What is meant when it is not said.

def said(name: str, read: Callable[[str], Any], text: str) -> Any:
    """Return what a reader makes of an option's text; its ValueError names the option."""
    try:
        return read(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def pci_device(text: str) -> str:
    """Return dddd:bb:dd.f of a PCI device, with the arguments behind its address as they are."""
    address, comma, arguments = text.partition(",")
    return read_pci_address(address.removeprefix("pci:")) + comma + arguments


def settle(options: EnvOptions) -> EnvOptions:
    """Return the same options with what follows from them made explicit.  Fails: ValueError.

    A private environment has no shared configuration, and its prefix has the process id;
    ordinary pages need no order and have no physical addresses; --base-virtaddr is rounded up.
    """
    check(options)
    prefix = f"spdk_pid{os.getpid()}" if options.private else f"spdk{options.shm_id}"
    address = options.base_virtaddr
    return replace(
        options,
        no_shconf=options.private or options.in_memory,
        file_prefix=options.file_prefix or prefix,
        legacy_mem=options.legacy_mem and not options.no_huge,
        iova_mode="va" if options.no_huge else options.iova_mode,
        base_virtaddr=None if not address else -(-address // ALIGN_VIRTADDR) * ALIGN_VIRTADDR,
        service_lcores=tuple(sorted(set(options.service_lcores))),
        pci_allowed=tuple(said("pci_allowed", pci_device, one) for one in options.pci_allowed),
        pci_blocked=tuple(said("pci_blocked", pci_device, one) for one in options.pci_blocked),
        vfio_vf_token=options.vfio_vf_token and said("vfio_vf_token", read_uuid,
                                                     options.vfio_vf_token))


# Words.

def core_words(options: EnvOptions) -> Iterator[str]:
    lcores = options.lcores
    if lcores is not None and all(cpus == (lcore,) for lcore, cpus in lcores.items()):
        yield f"-l {cpu_list(tuple(lcores))}"
    elif lcores is not None:
        yield "--lcores=" + ",".join(f"{n}@({cpu_list(lcores[n])})" for n in sorted(lcores))
    if options.service_lcores:
        yield f"-S {cpu_list(options.service_lcores)}"


def memory_files(options: EnvOptions) -> tuple[str, ...]:
    """Return the reserved files, one a NUMA node: those that are named, or those of -F."""
    if options.mem_file_dir is None:
        return options.mem_files
    from vhostrt.env import hugepages
    return tuple(os.path.join(options.mem_file_dir, f"{RESERVED}{node}")
                 for node in hugepages.nodes(options.roots))


def amount_words(options: EnvOptions) -> Iterator[str]:
    if options.channels is not None:
        yield f"-n {options.channels}"
    if options.ranks is not None:
        yield f"-r {options.ranks}"
    if options.mem_size is not None:
        yield f"-m {options.mem_size // MIB}"
    if options.socket_mem:
        yield "--socket-mem=" + ",".join(str(size // MIB) for size in options.socket_mem)
    files = memory_files(options)
    if files:
        yield "--mem-file"              # two elements, as in the original
        yield ",".join(files)


def memory_words(options: EnvOptions) -> Iterator[str]:
    if options.no_huge:
        yield from ("--no-huge", "--legacy-mem", "--iova-mode=va")
    elif options.legacy_mem:
        yield "--legacy-mem"
    if options.in_memory:
        yield "--in-memory"
    if options.single_file_segments:
        yield "--single-file-segments"
    if options.huge_unlink:
        yield "--huge-unlink"
    if options.huge_dir is not None:
        yield f"--huge-dir={options.huge_dir}"


def device_words(options: EnvOptions) -> Iterator[str]:
    yield from (f"--allow={device}" for device in options.pci_allowed)
    yield from (f"--block={device}" for device in options.pci_blocked)
    yield from (f"--vdev={device}" for device in options.vdevs)
    if options.vfio_intr is not None:
        yield f"--vfio-intr={options.vfio_intr}"


def sharing_words(options: EnvOptions) -> Iterator[str]:
    if options.base_virtaddr is not None:
        yield f"--base-virtaddr={options.base_virtaddr:#x}"
    yield f"--file-prefix={options.file_prefix}"
    if options.proc_type != "primary":
        yield f"--proc-type={options.proc_type}"
    if options.vfio_vf_token is not None:
        yield f"--vfio-vf-token={options.vfio_vf_token}"


def build(options: EnvOptions) -> list[str]:
    """Return the EAL argument vector, in the order of SPDK v26.05.  Fails: ValueError.

    What only v18.04 has (--mem-file) stands where it has it, what neither builds (-S, -r,
    --socket-mem and others) beside its kin; what means nothing here comes last. What SPDK adds
    for parts of DPDK that are not here (telemetry, log levels of libraries) is left out.
    """
    options = settle(options)
    words = [options.name]
    words += ["--no-shconf"] if options.no_shconf else []
    words += core_words(options)
    words += amount_words(options)
    words += [] if options.main_lcore is None else [f"--main-lcore={options.main_lcore}"]
    words += ["--no-pci"] if options.no_pci else []
    words += memory_words(options)
    words += device_words(options)
    words += [f"--log-level={pattern}:{level}" for pattern, level in options.log_levels]
    if options.iova_mode is not None and not options.no_huge:
        words.append(f"--iova-mode={options.iova_mode}")
    words += sharing_words(options)
    return words + list(options.ignored)


def line(words: list[str]) -> str:
    """Return the line that scripts look for."""
    return f"[ DPDK EAL parameters: {' '.join(words)} ]"
