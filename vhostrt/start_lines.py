"""What the start prints on stdout: the two lines that scripts look for, in their form."""
import os
import sys

from vhostrt import __version__
from vhostrt.cores import compact
from vhostrt.options import Options
from vhostrt.stdio import say


def starting_line() -> str:
    """Say which program starts, on what."""
    python = ".".join(map(str, sys.version_info[:3]))
    return f"Starting vhostrt v{__version__} / Python {python} initialization..."


def core_words(options: Options, lcores: dict[int, tuple[int, ...]]) -> str:
    if options.lcore_map is None:
        return f"-l {compact(tuple(lcores))}"
    return "--lcores=" + ",".join(f"{n}@({compact(cpus)})" for n, cpus in lcores.items())


def memory_words(options: Options) -> list[str]:
    if options.no_huge:
        return ["--no-huge", "--legacy-mem", "--iova-mode=va"]
    words = ["--single-file-segments"] if options.single_file_segments else []
    words += ["--huge-unlink"] if options.huge_unlink else []
    return words + ([f"--huge-dir={options.huge_dir}"] if options.huge_dir else [])


def parameters(options: Options, lcores: dict[int, tuple[int, ...]]) -> list[str]:
    """Return the environment's parameters as SPDK v26.05 would give them to DPDK, in its order.

    Those that only concern DPDK's own inner parts are left out: there is none here.
    """
    words = ["vhostrt"]
    words += ["--no-shconf"] if options.private else []
    words += [core_words(options, lcores)]
    words += [f"-n {options.mem_channels}"] if options.mem_channels else []
    words += [f"-m {options.mem_size}"] if options.mem_size is not None else []
    words += [f"--main-lcore={options.main_core}"] if options.main_core is not None else []
    words += ["--no-pci"] if options.no_pci else []
    words += memory_words(options)
    words += [f"--allow={address}" for address in options.pci_allowed]
    words += [f"--block={address}" for address in options.pci_blocked]
    words += [f"--iova-mode={options.iova_mode}"] if options.iova_mode else []
    words += [f"--base-virtaddr={options.base_virtaddr:#x}"] if options.base_virtaddr else []
    words += ([f"--file-prefix=spdk_pid{os.getpid()}"] if options.private else
              [f"--file-prefix=spdk{options.shm_id}", "--proc-type=auto"])
    words += [f"--vfio-vf-token={options.vfio_vf_token}"] if options.vfio_vf_token else []
    return words + list(options.env_context)


def print_start_lines(options: Options, lcores: dict[int, tuple[int, ...]]) -> None:
    """Print both lines."""
    say(starting_line())
    say(f"[ DPDK EAL parameters: {' '.join(parameters(options, lcores))} ]")
