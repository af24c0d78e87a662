"""An EAL argument vector read: what rte_eal_init would be given, and what --env-context adds.

Threads: any.
Fails:   ValueError with one sentence that names the option and the value; HelpAsked with the usage
         for -h and --help.

The options are those of DPDK 17.11 and of 26.03. Those of parts that are not here are accepted and
kept in EnvOptions.ignored; any other word is refused.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vhostrt import values
from vhostrt.env import arguments, cpus
from vhostrt.env.options import EnvOptions
from vhostrt.env.roots import Roots
from vhostrt.values import MIB, shown
from vhostrt.words import HelpAsked, UsageError, split_words

MIB_MAX = 2**63 // MIB - 1
INT_MAX = 2**31 - 1
LEVEL_NAMES = ("emergency", "alert", "critical", "error", "warning", "notice", "info", "debug")


@dataclass(slots=True, frozen=True)
class EalOption:
    """One line of the table below.

    names, argument   as in vhostrt.words
    field             of EnvOptions; "" for an option that means nothing here
    read              reads the text into the value; for an option without argument, the value
    wrong             what DPDK says of a bad value
    help              for --help
    many              values add up; otherwise the last one counts
    """

    names: str
    argument: str = ""
    field: str = ""
    read: Any = True
    wrong: str = ""
    help: str = "accepted, without effect here"
    many: bool = False


# Readers.

def read_lcores(text: str) -> dict[int, tuple[int, ...]]:
    """Read a map `lcores[@cpus],...`, or a list."""
    if "@" in text or "(" in text:
        return dict(values.read_lcore_map(text))
    return same_cpus(values.read_list(text))


def read_mask(text: str) -> tuple[int, ...]:
    """Read a hexadecimal mask: the numbers of its bits."""
    values.read_hex(text)               # a list in brackets is none
    return values.read_cpus(text)


def same_cpus(lcores: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """Give each lcore the CPU of its own number."""
    return {lcore: (lcore,) for lcore in lcores}


def read_megabytes(text: str) -> int:
    return values.read_number(text, 0, MIB_MAX) * MIB


def read_node_sizes(text: str) -> tuple[int, ...]:
    return tuple(read_megabytes(part) for part in text.split(","))


def read_integer(text: str) -> int:
    """Read a number as C does: decimal, or hexadecimal behind 0x."""
    return values.read_hex(text) if text[:2] in ("0x", "0X") else values.read_number(text)


def read_virtaddr(text: str) -> int:
    address = values.read_hex(text)
    if address not in arguments.VIRTADDRS:
        raise ValueError(f"{shown(text)} is not in the user's half of the address space")
    return address


def read_prefix(text: str) -> str:
    for char in "%/":
        if char in text:
            raise ValueError(f"Invalid char, '{char}', in {shown(text)}")
    if not text:
        raise ValueError("the prefix is empty")
    return text


def one_of(*words: str) -> Callable[[str], str]:
    """Make a reader that takes only these words, in any case."""
    def read(text: str) -> str:
        if text.lower() not in words:
            raise ValueError(f"{shown(text)} is none of {', '.join(words)}")
        return text.lower()
    return read


def read_unlink(text: str) -> bool:
    """Read when files are unlinked; those of the dead always are."""
    return not text or one_of("existing", "always")(text) == "always"


def read_log_level(text: str) -> tuple[str, int]:
    """Read `level`, `pattern:level` or `regex,level`; the level is a name or 1 to 8."""
    cut = max(text.rfind(":"), text.rfind(","))
    pattern, level = (text[:cut], text[cut + 1:]) if cut >= 0 else ("*", text)
    if not pattern:
        raise ValueError(f"{shown(text)} names no component before its level")
    if level.lower() in LEVEL_NAMES:
        return pattern, LEVEL_NAMES.index(level.lower()) + 1
    if not level.isdigit():
        raise ValueError(f"{shown(level)} is no level: 1 to 8, or {', '.join(LEVEL_NAMES)}")
    return pattern, values.read_number(level, 1, 8)


def positive(text: str) -> int:
    return values.read_number(text, 1, INT_MAX)


# Fields whose text is taken as it is; others are read without the blanks around it.
TEXTS = frozenset(("huge_dir", "mem_files", "file_prefix", "vdevs", "log_levels"))
SERVICE, DEVICES = "service_lcores", "devices as [domain:]bus:device.function[,arguments]"
TABLE = (
    EalOption("-c --coremask", "MASK", "lcores", lambda text: same_cpus(read_mask(text)),
              "invalid coremask", "hexadecimal mask of cores"),
    EalOption("-l", "LIST", "lcores", read_lcores, "invalid core list",
              "cores, 0,2-3, or a map as --lcores has it"),
    EalOption("--lcores", "MAP", "lcores", read_lcores, "invalid parameter for --lcores",
              "lcores and the CPUs of each: 0@(2-3),1@4"),
    EalOption("--main-lcore --master-lcore", "N", "main_lcore", read_integer,
              "invalid main lcore", "main lcore"),
    EalOption("-s --service-coremask", "MASK", SERVICE, read_mask, "invalid service coremask",
              "mask of the lcores that run services"),
    EalOption("-S --service-corelist", "LIST", SERVICE, values.read_list,
              "invalid service core list", "lcores that run services"),
    EalOption("-m --memory-size", "MB", "mem_size", read_megabytes, "invalid memory size",
              "memory in MiB"),
    EalOption("--socket-mem --numa-mem", "MB,MB,...", "socket_mem", read_node_sizes,
              "invalid parameter for --socket-mem", "memory of each NUMA node in MiB"),
    EalOption("--mem-file", "FILE,FILE,...", "mem_files", values.read_paths,
              "invalid parameters for --mem-file", "reserved files of huge pages, one a NUMA node"),
    EalOption("-n --memory-channels", "N", "channels", positive, "invalid channel number",
              "memory channels"),
    EalOption("-r --memory-ranks", "N", "ranks", lambda text: values.read_number(text, 1, 16),
              "invalid rank number", "memory ranks"),
    EalOption("--huge-dir", "DIR", "huge_dir", values.read_path, "invalid hugepage directory",
              "hugetlbfs mount to take pages from"),
    EalOption("--huge-unlink", "[WHEN]", "huge_unlink", read_unlink,
              "invalid mode for --huge-unlink", "unlink hugepage files: existing or always"),
    EalOption("--no-huge", "", "no_huge", help="ordinary pages"),
    EalOption("--legacy-mem", "", "legacy_mem", help="all pages at the start, sorted by address"),
    EalOption("--in-memory", "", "in_memory", help="no files in any file system"),
    EalOption("--single-file-segments", "", "single_file_segments",
              help="one file for each page size and node"),
    EalOption("--base-virtaddr", "ADDR", "base_virtaddr", read_virtaddr,
              "invalid parameter for --base-virtaddr", "where memory is mapped, hexadecimal"),
    EalOption("--iova-mode", "MODE", "iova_mode", one_of(*arguments.IOVA_MODES),
              "invalid parameters for --iova-mode", "device addresses: pa or va"),
    EalOption("--no-pci", "", "no_pci", help="do not look at the PCI bus"),
    EalOption("-a -w --allow --pci-whitelist", "DEVICE", "pci_allowed", arguments.pci_device,
              "failed to parse device", f"use only these {DEVICES}; repeatable", many=True),
    EalOption("-b --block --pci-blacklist", "DEVICE", "pci_blocked", arguments.pci_device,
              "failed to parse device", f"leave alone these {DEVICES}; repeatable", many=True),
    EalOption("--vdev", "DEVICE", "vdevs", values.read_path, "failed to parse device",
              "virtual device; none is known here; repeatable", many=True),
    EalOption("--vfio-intr", "MODE", "vfio_intr", one_of(*arguments.VFIO_INTRS),
              "invalid parameters for --vfio-intr", "interrupts: legacy, msi or msix"),
    EalOption("--vfio-vf-token", "UUID", "vfio_vf_token", values.read_uuid,
              "invalid parameters for --vfio-vf-token", "token of a virtual function"),
    EalOption("--file-prefix", "PREFIX", "file_prefix", read_prefix, "invalid --file-prefix",
              "beginning of the names of shared files"),
    EalOption("--proc-type", "TYPE", "proc_type", one_of(*arguments.PROC_TYPES),
              "Invalid process type specified", "primary, secondary or auto"),
    EalOption("--no-shconf", "", "no_shconf", help="share nothing with other processes"),
    EalOption("--log-level", "LEVEL", "log_levels", read_log_level,
              "invalid parameters for --log-level", "component:level; repeatable", many=True),
    EalOption("-v --version", help="print the version"),
    EalOption("-h --help", "", "help", help="this text"),
    EalOption("-d --driver-path", "PATH"),
    EalOption("--syslog", "[FACILITY]"), EalOption("--mbuf-pool-ops-name", "NAME"),
    EalOption("--no-hpet"), EalOption("--create-uio-dev"), EalOption("--vmware-tsc-map"),
    EalOption("--match-allocations"), EalOption("--no-telemetry"), EalOption("--telemetry"),
    EalOption("--socket-limit --numa-limit", "MB,MB,..."), EalOption("--huge-worker-stack", "[KB]"),
    EalOption("--log-color", "[WHEN]"), EalOption("--log-timestamp", "[FORMAT]"),
    EalOption("--force-max-simd-bitwidth", "BITS"), EalOption("--trace", "REGEX"),
    EalOption("--trace-dir", "DIR"), EalOption("--trace-bufsz", "SIZE"),
    EalOption("--trace-mode", "MODE"),
)
BY_NAME = {name: option for option in TABLE for name in option.names.split()}


# Reading.

def check_present(lcores: dict[int, tuple[int, ...]], text: str, roots: Roots) -> None:
    """Refuse lcores that this machine has no CPU for.  Fails: ValueError."""
    there = {cpu.id for cpu in cpus.detect(roots=roots)}
    for lcore, of in lcores.items():
        for cpu in of:
            if cpu not in there:
                what = "lcore" if of == (lcore,) else "core"
                raise ValueError(f"{what} {cpu} unavailable in {shown(text.strip())}: this machine "
                                 f"has the CPUs {cpus.cpu_list(there)}")


def read_value(option: EalOption, text: str, roots: Roots | None) -> Any:
    """Return what one option says.  Fails: ValueError without the option's name."""
    if not option.argument:
        return option.read
    try:
        value = option.read(text if option.field in TEXTS else text.strip())
        if option.field == "lcores" and roots is not None:
            check_present(value, text, roots)
        if option.field == "lcores":
            arguments.check_ids(value)
        return value
    except ValueError as error:
        raise ValueError(f"{option.wrong}: {error}") from None


def ignored_word(name: str, option: EalOption, text: str) -> str:
    """Return an option that means nothing here as one word."""
    if not text:
        return name
    return f"{name}={text}" if name.startswith("--") else f"{name} {text.lstrip()}"


def take(options: EnvOptions, name: str, option: EalOption, text: str,
         roots: Roots | None) -> None:
    """Set what one option says.  Fails: ValueError, HelpAsked."""
    if option.field == "help":
        raise HelpAsked(usage())
    if not option.field:
        options.ignored += (ignored_word(name, option, text),)
        return
    try:
        value = read_value(option, text, roots)
    except ValueError as error:
        raise ValueError(f"option {name}: {error}") from None
    if option.many:
        value = (*getattr(options, option.field), value)
    setattr(options, option.field, value)


def read(words: list[str], options: EnvOptions, *, check_cpus: bool = True) -> EnvOptions:
    """Return a copy of the options on top of which the words are said; the later word wins.

    words: without the program's name in front.  check_cpus: refuse CPUs that options.roots has
    not; else the start of the lcores does.  What goes together is not looked at.
    Fails: ValueError, HelpAsked.
    """
    options = replace(options)
    try:
        for name, option, text in split_words(words, BY_NAME):
            take(options, name, option, text, options.roots if check_cpus else None)
    except UsageError as error:
        raise ValueError(str(error)) from None
    if options.no_huge:
        options.legacy_mem = False      # there is no other memory to choose
    return options


def apply(words: list[str], options: EnvOptions, *, check_cpus: bool = True) -> EnvOptions:
    """Do as read(), and refuse what does not go together.  Fails: ValueError, HelpAsked."""
    options = read(words, options, check_cpus=check_cpus)
    arguments.check(options)
    return options


def parse(vector: list[str], roots: Roots | None = None) -> EnvOptions:
    """Read a whole vector, the program's name in front.  Fails: ValueError, HelpAsked."""
    if not vector:
        raise ValueError("the argument vector has no program name in front")
    options = EnvOptions(name=vector[0]) if roots is None else EnvOptions(vector[0], roots=roots)
    return apply(vector[1:], options)


def usage() -> str:
    """Make the text of --help from the table."""
    from textwrap import fill
    lines = ["options of the environment, as DPDK has them:", ""]
    indent = " " * 36
    for option in TABLE:
        head = "  " + ", ".join(option.names.split()) + (" " + option.argument).rstrip()
        text = fill(option.help, 96, initial_indent=indent, subsequent_indent=indent)
        lines += [head.ljust(len(indent)) + text[len(indent):]] if len(head) < len(indent) - 1 \
            else [head, text]
    return "\n".join(lines)
