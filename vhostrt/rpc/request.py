"""JSON-RPC 2.0: from the bytes of one request, or one batch, to the bytes of its answer.

Threads:  the control thread.
Fails:    never: what is wrong with a request is its answer.
"""
import asyncio
import re
from collections.abc import Callable
from typing import Any

import msgspec

from vhostrt.log import printable
from vhostrt.rpc.method import (
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    Dispatcher,
    Method,
    RpcError,
    internal,
    shown,
)

BATCH_MAX = 4096                        # requests in one batch
BATCH_REPLY_MAX = 32 << 20              # bytes; the rest of a batch is not called any more
ID_MAX = 128                            # characters of an id

Started = Callable[[Method | None], None]

NOT_ASCII = re.compile(r"[^\x00-\x7f]")


async def answer(dispatcher: Dispatcher, raw: bytes, started: Started) -> bytes | None:
    """Carry out the request or batch in raw and return its answer, or None where none is due.

    started: called with the Method before each call and with None after it.
    """
    try:
        request = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        return failure(None, RpcError(PARSE_ERROR, f"Parse error: {e}"))
    if isinstance(request, list):
        return await answer_batch(dispatcher, request, started)
    return await answer_one(dispatcher, request, started)


async def answer_batch(dispatcher: Dispatcher, batch: list, started: Started) -> bytes | None:
    """Carry out the requests of a batch one after another; None when none wants an answer."""
    if not 1 <= len(batch) <= BATCH_MAX:
        return failure(None, RpcError(INVALID_REQUEST, "Invalid request: a batch has 1 to "
                                      f"{BATCH_MAX} requests, not {len(batch)}"))
    answers: list[bytes] = []
    size = 0
    for request in batch:
        if size > BATCH_REPLY_MAX:
            answers.append(failure(None, RpcError(INVALID_REQUEST, "Invalid request: not called, "
                                                  "the answers before it are too large")))
            continue
        one = await answer_one(dispatcher, request, started)
        if one is not None:
            answers.append(one.rstrip())
            size += len(one)
        await asyncio.sleep(0)          # other clients have their turn between two requests
    return b"[" + b",".join(answers) + b"]\n" if answers else None


async def answer_one(dispatcher: Dispatcher, request: Any, started: Started) -> bytes | None:
    """Carry out one request; None for a notification, that is, one without id."""
    key = request.get("id") if isinstance(request, dict) else None
    if why := malformed(request):
        return failure(key if good_id(key) else None,
                       RpcError(INVALID_REQUEST, f"Invalid request: {why}"))
    name = request["method"]
    try:
        if not dispatcher.exposes(name):
            raise RpcError(METHOD_NOT_FOUND, f"Method not found: {shown(name)}")
        started(dispatcher.table[name])
        result = await dispatcher.serve(name, request.get("params"))
        text = encode({"jsonrpc": "2.0", "id": key, "result": result}, name)
    except RpcError as e:
        text = failure(key, e)
    finally:
        started(None)
    return text if "id" in request else None


def malformed(request: Any) -> str | None:
    """Say what keeps a JSON value from being a request; None when nothing does."""
    if not isinstance(request, dict):
        return f"it must be an object, not {shown(request)}"
    if request.get("jsonrpc", "2.0") != "2.0":
        return "'jsonrpc' must be \"2.0\""
    if not isinstance(request.get("method"), str):
        return "'method' must be a string" if "method" in request else "missing 'method'"
    if not good_id(request.get("id")):
        return f"'id' must be a number, null, or a string of at most {ID_MAX} characters"
    return None


def good_id(key: Any) -> bool:
    if isinstance(key, str):
        return len(key) <= ID_MAX
    if isinstance(key, int):
        return not isinstance(key, bool) and -2**63 <= key < 2**64
    return key is None or isinstance(key, float)


def failure(key: Any, error: RpcError) -> bytes:
    """Return the answer to the request with this id that an error is."""
    # A name may hold what is no character, or would make two lines of a sentence.
    return encode({"jsonrpc": "2.0", "id": key,
                   "error": {"code": error.code, "message": printable(error.message)}}, "an error")


def encode(reply: dict, what: str) -> bytes:
    """Return JSON with a line feed.  RpcError when it cannot be had, which the log explains.

    All of it is ASCII, because clients decode the pieces that they receive one by one.
    """
    try:
        text = msgspec.json.encode(reply)
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        raise internal(f"the answer of {what}", e) from e
    if not text.isascii():
        text = NOT_ASCII.sub(escaped, text.decode()).encode()
    return text + b"\n"


def escaped(found: re.Match) -> str:
    units = found.group().encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
