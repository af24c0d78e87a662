"""The command vhostrt: from its arguments to its exit status.

Exit status: 0 stopped in order, 2 bad arguments, 1 could not start, else what stopped it.
"""
import sys
from contextlib import ExitStack

from vhostrt import __version__, log, stdio
from vhostrt.options import Options, UsageError, help_text, parse_args


def main(words: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    stdio.prepare()
    try:
        return follow(sys.argv[1:] if words is None else words)
    finally:
        stdio.settle()


def follow(words: list[str]) -> int:
    """Do what the command line says."""
    try:
        options = parse_args(words)
    except UsageError as error:
        print(f"vhostrt: {error}\nTry 'vhostrt --help'.", file=sys.stderr)
        return 2
    if options.show:
        why = stdio.say(text_of(options.show))
        if why:
            print(f"vhostrt: cannot print on stdout: {why}", file=sys.stderr)
        return 1 if why else 0
    return run(options)


def text_of(show: str) -> str:
    """Return what -h, -v or the -h of --env-context prints."""
    if show == "version":
        return f"vhostrt v{__version__}"
    if show == "help":
        return help_text()
    from vhostrt.env import eal
    return eal.usage()


def run(options: Options) -> int:
    """Do what belongs to the process, and run the application in between."""
    from vhostrt import lean, process
    from vhostrt.base import ticks  # noqa: F401  # its import begins to measure the clock
    from vhostrt.stop_signals import StopSignals
    signals = StopSignals()
    signals.install()
    log.set_up(options.print_level, options.log_flags)
    log.set_form(options.log_format)
    log.open_system("vhostrt")
    if not options.limit_coredump:
        process.raise_core_limit()
    for sentence in options.no_effect:
        log.warning(sentence)
    with ExitStack() as at_exit:
        at_exit.callback(signals.ignore)
        try:
            process.raise_open_files()
            at_exit.callback(process.take_lock(options.lock_file).release)
            if options.pid_file is not None:
                at_exit.callback(process.PidFile(options.pid_file).remove)
        except process.StartError as error:
            print(f"vhostrt: {error}", file=sys.stderr)
            return 1
        lean.import_asyncio()
        from vhostrt import life
        return life.run(options, signals) & 0xff


if __name__ == "__main__":
    sys.exit(main())
