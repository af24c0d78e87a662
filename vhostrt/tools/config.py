"""The command vhostrt-config: convert old configuration files, and check any, without a target.

Exit status: 0 done, 1 something is wrong with the file, a line for each on stderr; 2 bad usage.
"""
import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from vhostrt import stdio
from vhostrt.config import ConfigError, is_json, read_file
from vhostrt.config.json_config import Call, Replay
from vhostrt.config.load import load_text
from vhostrt.options import Options

NAME = "vhostrt-config"
EXAMPLES = f"""examples:
  {NAME} convert vhost.conf -o vhost.json   the JSON form of an old file; then vhostrt -c vhost.json
  {NAME} check vhost.json                   what vhostrt -c would refuse, without starting anything

The old file is that of SPDK's vhost until v20.07, with [Global], [Malloc], [AIO], [Null], [Split],
[VhostBlk0] ... sections. What [Global] says belongs to the command line: convert prints the options
on stderr. The JSON form is what save_config, -c and --state have; SPDK reads it, too."""


def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    stdio.prepare()
    arguments = parser().parse_args(words)
    try:
        return arguments.run(arguments)
    except ConfigError as error:
        return failed(*error.lines)
    except OSError as error:
        return failed(f"{error.filename}: {error.strerror}")
    finally:
        stdio.settle()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=NAME, description="Convert and check configuration files of vhostrt.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    convert_words = commands.add_parser(
        "convert", help="print the JSON form of an INI file",
        description="Print the JSON form of an old configuration file (INI). The file is checked "
                    "first; nothing is printed when something is wrong with it.")
    convert_words.add_argument("file", metavar="FILE", help="the old file")
    convert_words.add_argument("-o", "--output", metavar="FILE",
                               help="write it there instead of to stdout")
    convert_words.set_defaults(run=convert)
    check_words = commands.add_parser(
        "check", help="name what is wrong with a file, JSON or INI",
        description="Name everything that vhostrt -c would refuse in a file, JSON or INI, that can "
                    "be known without a running target: its form, sections, methods, parameters.")
    check_words.add_argument("file", metavar="FILE", help="the file")
    check_words.set_defaults(run=check)
    return made


def tell(*sentences: str) -> None:
    for sentence in sentences:
        print(f"{NAME}: {sentence}", file=sys.stderr)


def failed(*sentences: str) -> int:
    tell(*sentences)
    return 1


def say(text: str) -> int:
    """Print on stdout; return the exit status."""
    why = stdio.say(text)
    return failed(f"cannot print on stdout: {why}") if why else 0


def convert(arguments: argparse.Namespace) -> int:
    """Print the JSON form of an INI file."""
    text = read_file(arguments.file)
    if is_json(text):
        return failed(f"{arguments.file} is JSON already")
    options = Options(config=arguments.file)
    warnings, calls = load_text(text, options)
    check_calls(calls, arguments.file)
    converted = json.dumps(as_json(calls), indent=2)
    tell(*warnings)
    if words := " ".join(global_words(options)):
        tell(f"[Global] belongs to the command line: vhostrt {words}")
    if arguments.output is None:
        return say(converted)
    with open(arguments.output, "w", encoding="utf-8") as file:
        file.write(converted + "\n")
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Name what is wrong with a file."""
    warnings, calls = load_text(read_file(arguments.file), Options(config=arguments.file))
    check_calls(calls, arguments.file)
    tell(*warnings)
    return say(f"{arguments.file}: nothing is wrong with its {len(calls)} calls")


def check_calls(calls: list[Call], path: str) -> None:
    """Refuse calls of methods that are not there, or with parameters that they do not take.

    Fails: ConfigError.
    """
    from vhostrt.rpc import method, methods

    def mask_of(name: str) -> int | None:
        known = methods.METHODS.get(name)
        return known.states if known else None

    async def nothing(name: str, params: Any) -> None:
        """Call no method: the file is only looked at."""

    wrong = []
    for call in Replay(calls, path, mask_of, nothing, False).known:
        try:
            method.check(methods.METHODS[call.method], call.params)
        except method.RpcError as error:
            wrong.append(f"{call.place(path)}: {call.method}: {error}")
    if wrong:
        raise ConfigError(wrong)


def as_json(calls: list[Call]) -> dict[str, Any]:
    """Return calls as the content of a JSON configuration, in their order."""
    configs: dict[str, list[dict[str, Any]]] = {}
    for call in calls:
        configs.setdefault(call.subsystem, []).append(
            {"method": call.method, "params": call.params})
    return {"subsystems": [{"subsystem": subsystem, "config": config}
                           for subsystem, config in configs.items()]}


def global_words(options: Options) -> Iterator[str]:
    """Yield the words of the command line that say what [Global] did."""
    if options.cores is not None:
        yield f"-m '[{','.join(map(str, options.cores))}]'"
    if options.shm_id is not None:
        yield f"-i {options.shm_id}"
    if options.no_pci:
        yield "-u"
    if options.tpoint_groups is not None:
        yield f"-e {options.tpoint_groups}"


if __name__ == "__main__":
    sys.exit(main())
