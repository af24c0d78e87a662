"""From the command line of the program to the options of its environment.

Threads: the control thread.
Fails:   ValueError with a sentence.
"""
from vhostrt.cores import choose_lcores
from vhostrt.env import arguments
from vhostrt.env.options import EnvOptions
from vhostrt.options import RuntimeOptions
from vhostrt.values import MIB


def said_by(options: RuntimeOptions) -> EnvOptions:
    """Return what all options but --env-context ask for."""
    asked = EnvOptions(
        name=options.name, lcores=choose_lcores(options), main_lcore=options.main_core,
        mem_size=None if options.mem_size is None else options.mem_size * MIB,
        no_huge=options.no_huge, legacy_mem=options.legacy_mem, in_memory=options.in_memory,
        huge_dir=options.huge_dir, huge_unlink=options.huge_unlink,
        single_file_segments=options.single_file_segments, mem_file_dir=options.mem_file_dir,
        mem_files=options.mem_files, base_virtaddr=options.base_virtaddr,
        enforce_numa=options.enforce_numa, channels=options.mem_channels,
        no_pci=options.no_pci, pci_allowed=options.pci_allowed, pci_blocked=options.pci_blocked,
        iova_mode=options.iova_mode, vfio_vf_token=options.vfio_vf_token,
        # As SPDK has it: what --env-context says of a prefix makes no private run a shared one.
        shm_id=options.shm_id, no_shconf=options.private,
        proc_type="primary" if options.private else "auto")
    arguments.check(asked)
    return asked


def options_of(options: RuntimeOptions) -> EnvOptions:
    """Return what the environment is asked to be, --env-context on top of the rest.

    Whether this machine has the CPUs is looked at when they are started.
    Fails: ValueError, HelpAsked.
    """
    asked = said_by(options)
    if options.env_context:
        asked = with_words(options, asked)
    return arguments.settle(asked)


def with_words(options: RuntimeOptions, under: EnvOptions, together: bool = True) -> EnvOptions:
    """Return the options with --env-context on top; together: refuse what does not go together.

    Fails: ValueError, HelpAsked.
    """
    from vhostrt.env import eal
    read = eal.apply if together else eal.read
    try:
        return read(list(options.env_context), under, check_cpus=False)
    except ValueError as error:
        raise ValueError(f"option --env-context: {error}") from None


def cores_asked(options: RuntimeOptions) -> bool:
    """True when somebody has said which cores to run on, be it in --env-context."""
    if options.cores is not None or options.lcore_map is not None:
        return True
    return bool(options.env_context) and \
        with_words(options, EnvOptions(), together=False).lcores is not None


def check(options: RuntimeOptions) -> None:
    """Refuse what the environment could not be; what a configuration file may yet change later.

    Fails: ValueError, HelpAsked.
    """
    if options.config is None:
        options_of(options)
    elif options.env_context:
        with_words(options, EnvOptions(), together=False)


def without_effect(options: RuntimeOptions, asked: EnvOptions) -> list[str]:
    """Return a sentence for each word of --env-context that means nothing here."""
    words = [word for word in asked.ignored if word not in ("-v", "--version")]
    words += [f"--vdev={device}" for device in asked.vdevs]
    words += [f"--vfio-intr={asked.vfio_intr}"] if asked.vfio_intr else []
    words += [f"-n {asked.channels}"] if asked.channels != options.mem_channels else []
    words += [f"-r {asked.ranks}"] if asked.ranks else []
    words += [f"--log-level={pattern}:{level}" for pattern, level in asked.log_levels]
    return [f"option --env-context: {word} has no effect here" for word in words]
