"""RPC methods of the configuration: what the program is now, as the calls that make it again."""
from typing import Any

from vhostrt.config import ConfigError
from vhostrt.config.json_config import Call, Reader, Replay, read_subsystems
from vhostrt.rpc.method import (
    ANY_STATE,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    Dispatcher,
    Name,
    Parameters,
    RpcError,
    State,
    method,
    refuse,
)
from vhostrt.subsystem import SubsystemError


SENTENCES_MAX = 10                      # of an error


class GetConfig(Parameters):
    """name: of the subsystem.  with_batches: taken for SPDK's clients; there are no batches."""

    name: Name
    with_batches: bool = False


class LoadConfig(Parameters, forbid_unknown_fields=False):
    """The content of a configuration file; other names at its top are ignored, as there.

    subsystems: [{"subsystem": name, "config": [{"method": name, "params": {}}]}].
    ignore_errors: go on after a call that fails.
    """

    subsystems: list[Any]
    ignore_errors: bool = False


@method("framework_get_config", aliases=("get_subsystem_config",))
async def framework_get_config(rpc: Dispatcher, params: GetConfig) -> list[dict]:
    """Return the calls that make the present state of a subsystem again."""
    try:
        return rpc.target.subsystems.config(params.name)
    except SubsystemError:
        raise RpcError(INVALID_PARAMS, f"Subsystem '{params.name}' not found") from None


@method("save_config")
async def save_config(rpc: Dispatcher) -> dict:
    """Return the whole configuration, in the form that -c and load_config take."""
    return rpc.target.subsystems.save()


@method("load_config", states=ANY_STATE)
async def load_config(rpc: Dispatcher, params: LoadConfig) -> bool:
    """Make the calls of a configuration, in order; with --wait-for-rpc, start the subsystems, too.

    A call that fails ends it, and what was made before stays. A call that no client may make, or
    not any more, keeps all the others from being made.
    """
    wrong: list[str] = []
    calls = list(read_subsystems(params.subsystems, Reader("", {}, wrong)))
    if wrong:
        raise refuse(told(wrong))
    try:
        replay = Replay(calls, "", lambda name: rpc.states_of(name) if rpc.exposes(name) else None,
                        rpc.call, params.ignore_errors)
        if rpc.state & State.STARTUP:
            await replay.run(State.STARTUP)
            await start_init(rpc)
            await replay.run(State.RUNTIME)
        else:
            replay.fail([f"{call.place('')}: {call.method} can be called only before the "
                         "subsystems are initialised: start with -c, or with --wait-for-rpc"
                         for call in too_late(rpc, replay)])
            for call in replay.known:
                await replay.make(call)
    except ConfigError as error:
        cause = error.__cause__
        raise RpcError(cause.code if isinstance(cause, RpcError) else INVALID_PARAMS,
                       told(error.lines)) from None
    return True


def told(sentences: list[str]) -> str:
    """Return sentences as one message, which does not grow with the request."""
    more = len(sentences) - SENTENCES_MAX
    return "; ".join(sentences[:SENTENCES_MAX]) + (f"; and {more} more" if more > 0 else "")


def too_late(rpc: Dispatcher, replay: Replay) -> list[Call]:
    """Return the calls that had to be made before the subsystems were initialised."""
    return [call for call in replay.known
            if not (rpc.states_of(call.method) or 0) & State.RUNTIME]


async def start_init(rpc: Dispatcher) -> None:
    try:
        await rpc.target.start_init()
    except SubsystemError as error:
        raise RpcError(INTERNAL_ERROR, str(error)) from error
