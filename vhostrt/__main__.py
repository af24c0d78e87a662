"""The command vhostrt: from its arguments to its exit status.

Exit status: 0 stopped in order, 2 bad arguments, 1 could not start, else what stopped it.
"""
import sys

from vhostrt import __version__, log
from vhostrt.options import UsageError, help_text, parse_args


def main(words: list[str] | None = None) -> int:
    """Run the program; return its exit status."""
    try:
        options = parse_args(sys.argv[1:] if words is None else words)
    except UsageError as error:
        print(f"vhostrt: {error}\nTry 'vhostrt --help'.", file=sys.stderr)
        return 2
    if options.show:
        sys.stdout.write(help_text() if options.show == "help" else f"vhostrt v{__version__}\n")
        return 0
    log.set_up(options.print_level, options.log_flags)
    return 0


if __name__ == "__main__":
    sys.exit(main())
