"""vhostrt/rpc/method.py: parameters are checked by their declaration, and refused in words."""
import asyncio
import errno
from typing import Literal

import pytest

from vhostrt.rpc.method import (
    ANY_STATE,
    INVALID_PARAMS,
    Count,
    Dispatcher,
    Name,
    Parameters,
    Path,
    Positive,
    RpcError,
    State,
    method,
    refusing,
)

TABLE = {}


class Inner(Parameters):
    depth: int = 0


class Everything(Parameters):
    num_blocks: Positive
    name: Name | None = None
    path: Path = "/"
    count: Count | None = None
    choice: Literal[0, 1, 2] = 0
    word: Literal["a", "b"] | None = None
    flag: bool = False
    either: int | str = 0
    items: list[int] = []
    inner: Inner | None = None


@method("everything", table=TABLE, states=ANY_STATE, aliases=("all",))
async def everything(rpc, params: Everything):
    return params


@method("bare", table=TABLE)
async def bare(rpc):
    return "bare"


@method("raises", table=TABLE, states=ANY_STATE)
async def raises(rpc, params: Everything):
    raise {"value": ValueError("odd"), "memory": MemoryError(), "errno": OSError(errno.EBUSY, "in u"
           "se"), "bare": OSError("no number"), "file": FileNotFoundError(2, "none", "x")
           }[params.name]


def call(name, params=None, state=State.RUNTIME):
    dispatcher = Dispatcher(table=TABLE)
    dispatcher.state = state
    return asyncio.run(dispatcher.call(name, params))


def refused(name, params, **state):
    with pytest.raises(RpcError) as caught:
        call(name, params, **state)
    return caught.value.code, caught.value.message


def test_good_parameters_reach_the_method():
    given = {"num_blocks": 2**63 - 1, "name": "n", "path": "p", "count": 0, "choice": 2,
             "word": "b", "flag": True, "either": "s", "items": [1], "inner": {"depth": 3}}
    got = call("everything", given)
    assert got == Everything(**{**given, "inner": Inner(depth=3)})
    assert call("all", {"num_blocks": 4.0, "name": None}) == Everything(num_blocks=4)
    assert call("bare") == call("bare", []) == call("bare", {}) == "bare"


@pytest.mark.parametrize("change, sentence", [
    ({"num_blocks": ...}, "missing 'num_blocks'"),
    ({"num_blocks": 0}, "'num_blocks' must be a positive integer, not 0"),
    ({"num_blocks": 2**70}, "'num_blocks' must be a positive integer, not 1180591620717411303424"),
    ({"num_blocks": "8"}, "'num_blocks' must be a positive integer, not \"8\""),
    ({"num_blocks": 1.5}, "'num_blocks' must be a positive integer, not 1.5"),
    ({"num_blocks": True}, "'num_blocks' must be a positive integer, not true"),
    ({"num_blocks": None}, "'num_blocks' must be a positive integer, not null"),
    ({"num_blocks": [1]}, "'num_blocks' must be a positive integer, not an array"),
    ({"name": ""}, "'name' must be a string of 1 to 255 characters, not \"\""),
    ({"name": "x" * 256}, f"'name' must be a string of 1 to 255 characters, not \"{'x' * 56}..."),
    ({"path": "a\0b"}, "'path' must be a path of 1 to 4095 characters without NUL, not "
                       '"a\\u0000b"'),
    ({"count": -1}, "'count' must be an integer that is not negative, not -1"),
    ({"choice": 3}, "'choice' must be one of 0, 1, 2, not 3"),
    ({"word": "c"}, "'word' must be one of a, b, not \"c\""),
    ({"flag": 1}, "'flag' must be true or false, not 1"),
    ({"either": None}, "'either' must be an integer or a string, not null"),
    ({"items": {}}, "'items' must be an array, not an object"),
    ({"items": [1, "x"]}, "'items' must be an array, not an array (Expected `int`, got `str` at "
                          "items[1])"),
    ({"inner": {"deep": 1}}, "'inner' must be an object, not an object (Object contains "
                             "unknown field `deep` at inner)"),
    ({"bogus": 1}, 'everything has no parameter "bogus"'),
])
def test_bad_parameters_are_refused_by_name(change, sentence):
    given = {"num_blocks": 1, **change}
    given = {key: value for key, value in given.items() if value is not ...}
    assert refused("everything", given) == (INVALID_PARAMS, f"Invalid parameters: {sentence}")


def test_parameters_of_the_wrong_form():
    for params in (3, "x", [1], True):
        assert refused("everything", params) == (
            INVALID_PARAMS, "Invalid parameters: they must be an object, that is, given by name")
    assert refused("bare", {"x": 1}) == (
        INVALID_PARAMS, 'Invalid parameters: bare takes no parameters, not "x"')


def test_states():
    assert refused("bare", None, state=State.STARTUP) == (
        -1, "bare can be called only after the subsystems are initialised (framework_start_init, "
            "framework_wait_init)")
    assert call("everything", {"num_blocks": 1}, state=State.STARTUP).num_blocks == 1
    assert Dispatcher(table=TABLE).states_of("bare") == State.RUNTIME
    assert Dispatcher(table=TABLE).states_of("none") is None


def test_exceptions_become_codes(capfd):
    def raised(name):
        return refused("raises", {"num_blocks": 1, "name": name})

    assert raised("errno") == (-errno.EBUSY, "in use")
    assert raised("file") == (-errno.ENOENT, "x: none")
    assert raised("memory") == (-errno.ENOMEM, "not enough memory for raises")
    assert raised("bare") == (-32603, "no number")
    assert capfd.readouterr().err == ""
    assert raised("value")[0] == -32603
    assert "ValueError('odd')" in capfd.readouterr().err
    with pytest.raises(RpcError, match="^Invalid parameters: odd$"), refusing():
        raise ValueError("odd")


def test_a_name_is_declared_once():
    with pytest.raises(ValueError, match="the RPC method all is declared twice"):
        method("all", table=TABLE)(bare)
