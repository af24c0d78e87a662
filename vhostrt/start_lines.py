"""What the start prints on stdout: the two lines that scripts look for, in their form."""
import sys

from vhostrt import __version__
from vhostrt.env import arguments
from vhostrt.env.options import EnvOptions
from vhostrt.stdio import say


def starting_line() -> str:
    """Say which program starts, on what."""
    python = ".".join(map(str, sys.version_info[:3]))
    return f"Starting vhostrt v{__version__} / Python {python} initialization..."


def print_start_lines(options: EnvOptions) -> None:
    """Print both lines, and the version between them where --env-context asks for it."""
    say(starting_line())
    if {"-v", "--version"} & set(options.ignored):
        say(f"RTE Version: 'vhostrt {__version__}'")
    say(arguments.line(arguments.build(options)))
