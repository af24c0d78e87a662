"""vhostrt-rpc watch: notifications as they come.

Fails: as the client does; ends with Ctrl-C, after --count of them, or with the target.
"""
import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from vhostrt.tools.rpc_client import METHOD_NOT_FOUND, Client, RpcError

WAIT_S = 30                             # of one call that waits
POLL_S = 1.0                            # between two looks at a target that knows no waiting
HELP = """\
Print notifications as they come, one a line: a disk has been made or has gone, a client has
connected, a driver spoilt its ring. With --json each is a JSON object."""

Event = dict[str, Any]


def parser_of(prog: str) -> argparse.ArgumentParser:
    """Make the reader of the words behind `watch`."""
    parser = argparse.ArgumentParser(prog=f"{prog} watch", description=HELP, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print JSON, an object a line")
    parser.add_argument("--type", metavar="TYPE", action="append", dest="types",
                        help="only of this type (notify_get_types lists them); repeatable")
    parser.add_argument("--from", metavar="ID", type=int, dest="first",
                        help="begin with this id, 0 for all that are kept (default: what comes "
                        "from now on)")
    parser.add_argument("--count", metavar="N", type=int, help="end after so many")
    return parser


def watch(client: Client, asked: argparse.Namespace, say: Callable[[str], int]) -> int:
    """Print what comes, until there have been asked.count; return the exit status.

    say: prints a line, and returns a status other than 0 when it cannot. Fails: as Client.call.
    """
    left = asked.count
    status = 0
    for event in events(client, asked.types, asked.first):
        if asked.json:
            status = say(json.dumps(event))
        elif "lost" in event:
            print(f"{event['lost']} notifications are lost: more came than are kept",
                  file=sys.stderr)
        else:
            status = say(line_of(event))
        if left is not None and "lost" not in event:
            left -= 1
        if status or left is not None and left <= 0:
            break
    return status


def line_of(event: Event) -> str:
    """Return a notification as a line: when, what, to whom."""
    at = event.get("time")
    stamp = "" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) + \
        f".{int(at % 1 * 1000):03d}  "
    details = "  ".join(f"{key}={value}" for key, value in event.get("details", {}).items())
    return f"{stamp}{event['type']:24}  {event['ctx']}  {details}".rstrip()


def events(client: Client, types: list[str] | None, first: int | None) -> Iterator[Event]:
    """Yield notifications without end, and {"lost": n} where some are missing."""
    params: dict[str, Any] = {"timeout": WAIT_S * 1000}
    if types:
        params["types"] = types
    if first is not None:
        params["id"] = first
    while True:
        try:
            found = client.call("notify_wait_notifications", params, client.timeout + WAIT_S)
        except RpcError as error:
            if error.code != METHOD_NOT_FOUND:
                raise
            yield from polled(client, types, first)
        if found["lost"]:
            yield {"lost": found["lost"]}
        yield from found["notifications"]
        params["id"] = found["next_id"]


def polled(client: Client, types: list[str] | None, first: int | None) -> Iterator[Event]:
    """Yield as events() does, from a target that does not know waiting, SPDK for one."""
    past = client.call("notify_get_notifications")
    at = first if first is not None else past[-1]["id"] + 1 if past else 0
    while True:
        found = client.call("notify_get_notifications", {"id": at})
        if found and found[0]["id"] > at:
            yield {"lost": found[0]["id"] - at}
        for event in found:
            at = event["id"] + 1
            if not types or event["type"] in types:
                yield event
        time.sleep(POLL_S)
