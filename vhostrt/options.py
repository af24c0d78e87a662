"""The command line: what can be said, and the record it becomes.

Fails: UsageError with one sentence that names the option and its value.

The letters are those of SPDK's vhost v18.04, the long names those of v26.05.
"""
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from vhostrt import log, values
from vhostrt.disks import Disk, name_disks, read_disk
from vhostrt.rpc.address import RPC_ADDR
from vhostrt.values import shown
from vhostrt.words import HelpAsked, UsageError, split_words

SLEEP_US = 100                          # longest sleep without --max-delay-us
DELAY_US_MAX = 1_000_000


@dataclass(slots=True)
class RuntimeOptions:
    """What any application on reactors may be asked to be. None: not said, the default is chosen
    where it is used.

    Owner: the control thread; written by who makes it and the [Global] section, read by the rest.
    """

    name: str = "vhostrt"                           # of the program
    # Cores
    cores: tuple[int, ...] | None = None            # CPU numbers, ascending; one lcore each
    lcore_map: tuple[tuple[int, tuple[int, ...]], ...] | None = None    # (lcore, its CPUs)
    main_core: int | None = None                    # lcore; the lowest one if None
    core_locks: bool = True                         # claim each core against other instances
    idle: str | None = None                         # None: yield, or spin on isolated cores
    max_delay_us: int | None = None                 # microseconds an idle reactor may sleep
    # Memory
    mem_size: int | None = None                     # MiB of the environment's heap
    mem_channels: int | None = None                 # channels of the memory controller
    mem_file_dir: str | None = None                 # hugetlbfs directory of reserved files (-F)
    mem_files: tuple[str, ...] = ()                 # reserved files by name, one a NUMA node
    huge_dir: str | None = None                     # hugetlbfs mount point
    huge_unlink: bool = False
    no_huge: bool = False
    single_file_segments: bool = False
    legacy_mem: bool = False                        # all pages at the start
    in_memory: bool = False                         # no file in a file system
    enforce_numa: bool = False
    base_virtaddr: int | None = None                # address
    iova_mode: str | None = None                    # pa or va
    shm_id: int | None = None                       # None or negative: a private run
    msg_mempool_size: int | None = None             # messages
    env_context: tuple[str, ...] = ()               # further words for the environment
    # PCI
    no_pci: bool = False
    pci_allowed: tuple[str, ...] = ()               # dddd:bb:dd.f
    pci_blocked: tuple[str, ...] = ()
    vfio_vf_token: str | None = None                # UUID
    # Configuration and RPC
    config: str | None = None                       # path; JSON or INI
    ignore_init_errors: bool = False                # go on after failing entries of the file
    state: str | None = None                        # path of the file that keeps what RPC changes
    rpc_addr: tuple[str, ...] = ()                  # paths of unix sockets, host[:port]; or none
    rpc_socket_mode: int = 0o600                    # permissions of the unix sockets
    rpc_socket_owner: tuple[int, int] = (-1, -1)    # user and group; -1: the process's own
    rpc_server: bool = True
    wait_for_rpc: bool = False
    rpcs_allowed: tuple[str, ...] | None = None     # method names; None: all
    # Diagnosis
    print_level: int = log.INFO
    log_flags: tuple[str, ...] = ()
    log_format: str = "text"                        # or json
    tpoint_groups: str | None = None
    trace_entries: int | None = None                # per core; 0: no tracing at all

    @property
    def private(self) -> bool:
        """True when no other process may attach to this one's memory."""
        return self.shm_id is None or self.shm_id < 0


@dataclass(slots=True)
class Options(RuntimeOptions):
    """What the program was asked to do."""

    show: str = ""                  # "help", "version" or "eal-help": print that and leave
    rpc_addr: tuple[str, ...] = (RPC_ADDR,)
    # Process
    pid_file: str | None = None
    lock_file: str | None = None
    metrics: str | None = None                      # path of a unix socket, or host:port; or none
    limit_coredump: bool = False                    # leave the core dump limit alone
    # Disks
    socket_dir: str = ""                            # ends in a slash, or "": current directory
    disks: tuple[Disk, ...] = ()
    no_effect: tuple[str, ...] = ()                 # options given whose feature is not there yet


@dataclass(slots=True, frozen=True)
class Option:
    """One line of the table below.

    names    as typed, "-m --cpumask"
    argument what the help calls the value; "" when the option takes none
    field    the field of Options it sets
    value    reads the text into the field's value; for an option without argument, the value
    help     for --help
    many     values add up in a tuple; otherwise the last one counts
    later    the feature it belongs to, while that is not there
    """

    names: str
    argument: str
    field: str
    value: Any
    help: str
    many: bool = False
    later: str = ""


def one_of(*words: str) -> Callable[[str], str]:
    """Make a reader that takes only these words."""
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"{shown(text)} is none of {', '.join(words)}")
        return text
    return read


def number_between(low: int, high: int) -> Callable[[str], int]:
    """Make a reader of a whole number in these bounds."""
    return lambda text: values.read_number(text, low, high)


def read_log_flag(text: str) -> str:
    if text not in log.FLAGS:
        raise ValueError(f"unknown flag {shown(text)}; there are {', '.join(sorted(log.FLAGS))}")
    return text


INT_MAX = 2**31 - 1

TABLE = (
    Option("-h --help", "", "show", "help", "print this text and exit"),
    Option("-v --version", "", "show", "version", "print the version and exit"),
    Option("--disk", "SPEC", "disks", read_disk,
           "serve a disk: malloc:SIZE (MiB, or with k, M, G) or a file's path, with ,name=NAME "
           ",socket=NAME ,ro behind it where wanted, and for the socket ,mode=0660 ,owner=USER "
           ",group=GROUP ,peers=USER:USER (who may connect); repeatable", many=True),
    Option("-S", "DIR", "socket_dir", values.read_socket_dir,
           "directory of the vhost sockets (default: current directory)"),
    Option("-c --config --json", "FILE", "config", values.read_path, "configuration, JSON or INI"),
    Option("--json-ignore-init-errors", "", "ignore_init_errors", True,
           "go on when an entry of the configuration fails"),
    Option("--state", "FILE", "state", values.read_path,
           "keep every change made by RPC in this file, and begin with what it has"),
    Option("-m --cpumask", "MASK", "cores", values.read_cpus,
           "cores to run on: a mask, 0x3, or a list, [0,2-3] (default: the first CPU allowed)"),
    Option("--lcores", "MAP", "lcore_map", values.read_lcore_map,
           "lcores and the CPUs of each, 0@(2-3),1@4, instead of -m"),
    Option("-p --main-core", "N", "main_core", number_between(0, 65535),
           "main core (default: the lowest)"),
    Option("--disable-cpumask-locks", "", "core_locks", False,
           "do not claim the cores of -m or --lcores against other programs"),
    Option("--idle", "POLICY", "idle", one_of("spin", "yield", "sleep", "interrupt"),
           "what a core without work does: spin, yield, sleep, or interrupt, which waits for the "
           "next request in the kernel (default: yield, or spin when all cores of -m are "
           "isolated)"),
    Option("--max-delay-us", "N", "max_delay_us", number_between(1, DELAY_US_MAX),
           "longest sleep of an idle core while something has to be polled, in microseconds "
           f"(default: {SLEEP_US})"),
    Option("--interrupt-mode", "", "idle", "interrupt", "the same as --idle interrupt"),
    Option("-s --mem-size", "SIZE", "mem_size", values.read_mib,
           "memory of the environment in MiB, or with k, M, G (default: as needed)"),
    Option("-F", "DIR", "mem_file_dir", values.read_path,
           "hugetlbfs directory whose reserved files are the memory"),
    Option("--mem-file", "FILES", "mem_files", values.read_paths,
           "comma list of reserved files that are the memory, one a NUMA node"),
    Option("--huge-dir", "DIR", "huge_dir", values.read_path,
           "hugetlbfs mount to take pages from"),
    Option("-R --huge-unlink", "", "huge_unlink", True, "unlink hugepage files after mapping"),
    Option("--no-huge", "", "no_huge", True, "use no hugepages (needs -s)"),
    Option("-g --single-file-segments", "", "single_file_segments", True,
           "one file for each page size and node"),
    Option("--legacy-mem", "", "legacy_mem", True,
           "take all pages at the start, in the order of their addresses"),
    Option("--in-memory", "", "in_memory", True, "make no files in any file system"),
    Option("--enforce-numa", "", "enforce_numa", True, "never take memory of another node"),
    Option("-n --mem-channels", "N", "mem_channels", number_between(1, INT_MAX),
           "memory channels", later="placing of objects by memory channel"),
    Option("--base-virtaddr", "ADDR", "base_virtaddr", values.read_address,
           "where memory is mapped"),
    Option("--iova-mode", "MODE", "iova_mode", one_of("pa", "va"), "device addresses: pa or va"),
    Option("-i --shm-id", "ID", "shm_id", number_between(-INT_MAX, INT_MAX),
           "shared memory id; negative: private (default)"),
    Option("--msg-mempool-size", "N", "msg_mempool_size", number_between(1, INT_MAX),
           "messages in the pool", later="a message pool of fixed size"),
    Option("--env-context", "WORDS", "env_context", lambda text: tuple(text.split()),
           "further words for the environment, as DPDK takes them: --legacy-mem -r 2 (-h lists "
           "them)"),
    Option("-u --no-pci", "", "no_pci", True, "do not look at the PCI bus"),
    Option("-A --pci-allowed", "ADDR", "pci_allowed", values.read_pci_address,
           "use only this PCI device; repeatable", many=True),
    Option("-B --pci-blocked", "ADDR", "pci_blocked", values.read_pci_address,
           "leave this PCI device alone; repeatable", many=True),
    Option("--vfio-vf-token", "UUID", "vfio_vf_token", values.read_uuid,
           "token of a virtual function"),
    Option("-r --rpc-socket", "ADDR", "rpc_addr", values.read_rpc_address,
           f"RPC address: a socket's path, or host[:port]; repeatable (default: {RPC_ADDR})",
           many=True),
    Option("--rpc-socket-mode", "MODE", "rpc_socket_mode", values.read_mode,
           "permissions of the RPC sockets, octal (default: 0600)"),
    Option("--rpc-socket-owner", "OWNER", "rpc_socket_owner", values.read_owner,
           "whose the RPC sockets are: user, user:group or :group (default: the process's own)"),
    Option("--no-rpc-server", "", "rpc_server", False, "start no RPC server"),
    Option("--wait-for-rpc", "", "wait_for_rpc", True,
           "start the subsystems only on framework_start_init"),
    Option("--rpcs-allowed", "NAMES", "rpcs_allowed", values.read_names,
           "comma list of the RPC methods to answer"),
    Option("--metrics", "ADDR", "metrics", values.read_metrics_address,
           "tell Prometheus what there is to count: at host:port, or a socket's path"),
    Option("-f", "FILE", "pid_file", values.read_path, "write the process id to this file"),
    Option("--lock-file", "FILE", "lock_file", values.read_path,
           "lock against a second instance (default: vhostrt.lock in /run/vhostrt or, without the "
           "right to that, in a folder of the user's)"),
    Option("-d --limit-coredump", "", "limit_coredump", True, "do not raise the core dump limit"),
    Option("-q --silence-noticelog", "", "print_level", log.WARNING,
           "print warnings and errors only"),
    Option("-L -t --logflag", "FLAG", "log_flags", read_log_flag,
           "print the debug lines of a component, or of all; repeatable", many=True),
    Option("--log-format", "FORM", "log_format", one_of(*log.FORMATS),
           "form of the lines on stderr: text, or json, an object a line (default: text)"),
    Option("-e --tpoint-group", "GROUPS", "tpoint_groups", values.read_tpoint_groups,
           "trace these groups, by name or mask, with :mask or :name+name behind for some of their "
           "points; a comma list, or all"),
    Option("--num-trace-entries", "N", "trace_entries", values.read_trace_entries,
           "entries of the trace of each core, a power of two; 0: no tracing (default: 32768)"),
)
BY_NAME = {name: option for option in TABLE for name in option.names.split()}
DEFAULTS = {field.name: field.default for field in fields(Options)}


def apply(options: Options, name: str, option: Option, text: str) -> None:
    """Set what one option says. Fails: UsageError."""
    value = option.value
    if callable(value):
        try:
            value = value(text)
        except ValueError as error:
            raise UsageError(f"option {name}: {error}") from None
    if option.many:
        before = getattr(options, option.field)
        # What is said takes the place of what holds when nothing is said.
        value = (value,) if before is DEFAULTS[option.field] else (*before, value)
    setattr(options, option.field, value)
    if option.field == "log_flags":
        options.print_level = log.DEBUG
    if option.later:
        options.no_effect += (f"option {name} has no effect: {option.later} is not there yet",)


def check_together(options: RuntimeOptions) -> None:
    """Refuse what does not go together. Fails: UsageError."""
    refusals = (
        (options.cores and options.lcore_map, "options -m and --lcores exclude each other"),
        (options.pci_allowed and options.pci_blocked, "options -A and -B exclude each other"),
        (options.wait_for_rpc and not options.rpc_server,
         "option --wait-for-rpc needs the server that --no-rpc-server leaves out"),
        (options.state and getattr(options, "disks", ()),
         "option --state keeps disks that RPC or -c has made: make them there, without --disk"),
        (options.state and options.ignore_init_errors,
         "option --json-ignore-init-errors would have --state forget what fails: give that file "
         "with -c instead, for once"),
        (options.max_delay_us and options.idle not in (None, "sleep", "interrupt"),
         "option --max-delay-us belongs to --idle sleep and interrupt, not to --idle "
         f"{options.idle}"),
        (len(set(options.rpc_addr)) < len(options.rpc_addr), "option -r names an address twice: "
         f"{', '.join(options.rpc_addr)}"),
        (options.no_huge and options.mem_size is None, "option --no-huge needs -s"),
        (options.no_huge and (options.single_file_segments or options.huge_unlink
                              or options.huge_dir or options.mem_file_dir or options.mem_files),
         "option --no-huge excludes -g, -R, --huge-dir, -F and --mem-file"),
        (options.no_huge and options.iova_mode == "pa", "option --no-huge excludes --iova-mode pa"),
    )
    for wrong, sentence in refusals:
        if wrong:
            raise UsageError(sentence)
    check_main_core(options)


def check_main_core(options: RuntimeOptions) -> None:
    lcores = options.cores or tuple(lcore for lcore, _ in options.lcore_map or ())
    if lcores and options.main_core is not None and options.main_core not in lcores:
        raise UsageError(f"option -p: main core {options.main_core} is not among the cores "
                         f"{','.join(map(str, lcores))}")


def check_environment(options: RuntimeOptions) -> None:
    """Refuse what the environment would. Fails: UsageError, HelpAsked."""
    from vhostrt import environment
    try:
        environment.check(options)
    except ValueError as error:
        raise UsageError(str(error)) from None


def parse_args(words: list[str]) -> Options:
    """Read the words after the program's name.

    -h and -v end the reading at once: what stands behind them is not looked at.
    Fails: UsageError.
    """
    options = Options()
    for name, option, text in split_words(words, BY_NAME):
        apply(options, name, option, text)
        if options.show:
            return options
    check_together(options)
    try:
        check_environment(options)
    except HelpAsked:
        options.show = "eal-help"
        return options
    if options.max_delay_us and options.idle is None:
        options.idle = "sleep"
    try:
        options.disks = name_disks(options.disks, options.socket_dir)
    except ValueError as error:
        raise UsageError(f"option --disk: {error}") from None
    return options


def help_text() -> str:
    """Make the text of --help from the table."""
    from textwrap import fill
    lines = ["vhostrt: a polled-mode vhost-user storage target", "", "usage: vhostrt [options]", ""]
    indent = " " * 30
    for option in TABLE:
        head = "  " + ", ".join(option.names.split()) + (" " + option.argument).rstrip()
        said = option.help + (" (no effect yet)" if option.later else "")
        text = fill(said, 96, initial_indent=indent, subsequent_indent=indent)
        if len(head) < len(indent) - 1:
            lines.append(head.ljust(len(indent)) + text[len(indent):])
        else:
            lines += [head, text]
    return "\n".join(lines)
