"""An RPC server with methods of the tests' own, on a loop in a thread, and a plain client."""
import asyncio
import json
import socket
import threading

from vhostrt.rpc.method import ANY_STATE, Dispatcher, Parameters, Positive, RpcError, State, method
from vhostrt.rpc.server import Server

TIMEOUT_S = 30


class EchoParams(Parameters):
    value: str | int = ""


class SleepParams(Parameters):
    gate: str


class FillParams(Parameters):
    size: Positive


def methods(events, gates):
    """Return a table of methods.  events: list of what they did.  gates: dict of asyncio.Event."""
    table = {}

    @method("echo", states=ANY_STATE, aliases=("old_echo",), table=table)
    async def echo(rpc, params: EchoParams):
        events.append(params.value)
        return params.value

    @method("wait_gate", waits=True, table=table)
    async def wait_gate(rpc, params: SleepParams):
        return await pass_gate(params.gate)

    @method("work_behind_gate", table=table)
    async def work_behind_gate(rpc, params: SleepParams):
        return await pass_gate(params.gate)

    async def pass_gate(name):
        events.append(f"enter {name}")
        try:
            await gates.setdefault(name, asyncio.Event()).wait()
        except asyncio.CancelledError:
            events.append(f"cancelled {name}")
            raise
        events.append(f"leave {name}")
        return name

    @method("fill", table=table)
    async def fill(rpc, params: FillParams):
        return "x" * params.size

    @method("fail_errno", table=table)
    async def fail_errno(rpc):
        open("/nonexistent/file")

    @method("fail_rpc", table=table)
    async def fail_rpc(rpc):
        raise RpcError(-17, "bdev \u20ac\udc80 exists")

    @method("fail_bug", table=table)
    async def fail_bug(rpc):
        return {}["secret\nline"]

    @method("fail_encode", table=table)
    async def fail_encode(rpc):
        return object()

    @method("only_startup", states=State.STARTUP, table=table)
    async def only_startup(rpc):
        return True

    return table


class RunningServer:
    """A Server in a thread of its own.

    run() gives a coroutine to its loop and returns the result; events and gates are those of the
    methods above.
    """

    def __init__(self, address, *, mode=0o600, owner=(-1, -1), allowed=None,
                 state=State.RUNTIME, **settings):
        self.address = address
        self.events, self.gates = [], {}
        self.dispatcher = Dispatcher(table=methods(self.events, self.gates), allowed=allowed)
        if state == State.RUNTIME:
            self.dispatcher.enter_runtime()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="rpc-server",
                                       daemon=True)
        self.thread.start()
        self.unhandled = []
        self.loop.set_exception_handler(lambda loop, context: self.unhandled.append(context))
        try:
            self.run(self._start(mode, owner, settings))
        except BaseException:
            self._end_loop()
            raise

    async def _start(self, mode, owner, settings):
        self.server = Server(self.dispatcher, **settings)
        self.listener = await self.server.listen(self.address, mode, owner)

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(TIMEOUT_S)

    def call(self, function, *arguments):
        """Call a plain function on the loop's thread."""
        async def run():
            return function(*arguments)
        return self.run(run())

    def open_gate(self, name):
        self.call(self.gates[name].set)

    def wait_for(self, condition):
        """Return when condition() is true on the loop's thread."""
        async def poll():
            async with asyncio.timeout(TIMEOUT_S):
                while not condition():
                    await asyncio.sleep(0.005)
        self.run(poll())

    def _end_loop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(TIMEOUT_S)
        self.loop.close()

    def close(self, grace_s=1.0):
        self.run(self.server.close(grace_s))
        left = self.call(lambda: asyncio.all_tasks() - {asyncio.current_task()})
        self._end_loop()
        assert not left and not self.unhandled, (left, self.unhandled)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


class Client:
    """A blocking connection that sends bytes and takes JSON values out of what comes."""

    def __init__(self, address):
        if "/" in address:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.connect(address)
        else:
            host, port = address.rsplit(":", 1)
            self.sock = socket.create_connection((host.strip("[]"), int(port)))
        self.sock.settimeout(TIMEOUT_S)
        self.received = ""
        self.decoder = json.JSONDecoder()

    def send(self, *requests):
        for request in requests:
            raw = request if isinstance(request, bytes) else json.dumps(request).encode()
            self.sock.sendall(raw)

    def reply(self):
        """Return the next JSON value; ConnectionError when the server ends before it."""
        while True:
            text = self.received.lstrip()
            try:
                value, end = self.decoder.raw_decode(text)
            except ValueError:
                more = self.sock.recv(65536)
                if not more:
                    raise ConnectionError(f"the connection ended at {text!r}") from None
                self.received = text + more.decode("ascii")
            else:
                self.received = text[end:]
                return value

    def call(self, name, params=None, key=1):
        self.send(request(name, params, key))
        return self.reply()

    def at_end(self):
        """Return whether the server ends the connection with nothing more sent."""
        assert not self.received.strip()
        return self.sock.recv(1) == b""

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def request(name, params=None, key=1):
    made = {"jsonrpc": "2.0", "method": name, "id": key}
    if params is not None:
        made["params"] = params
    return made
