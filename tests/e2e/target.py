"""The vhostrt program as a subprocess, and JSON-RPC to it, with nothing of vhostrt imported.

Owner:    the 'with' block; the program is gone when it ends.
"""
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

POLL_S = 0.02


class Target:
    """A running 'python -m vhostrt'; folder is an empty one for its sockets and what it prints."""

    def __init__(self, folder: Path, options: Sequence[str]):
        self.rpc = folder / "rpc.sock"
        self.output = folder / "output"
        self.command = [sys.executable, "-m", "vhostrt", "--idle", "yield", "-r", str(self.rpc),
                        "--disable-cpumask-locks",
                        "-S", str(folder), "--lock-file", str(folder / "lock"), *options]

    def __enter__(self) -> Self:
        with self.output.open("wb") as output:
            self.program = subprocess.Popen(self.command, stdin=subprocess.DEVNULL,
                                            stdout=output, stderr=output)
        try:
            self._wait_ready(20)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.program.kill()
        self.program.wait()

    def stop(self, seconds: float = 20) -> int:
        """Ask the program to end, as Ctrl-C does, and return its exit status."""
        self.program.send_signal(signal.SIGINT)
        return self.program.wait(seconds)

    def call(self, method: str, **params: object) -> object:
        """Return the result of one RPC."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method}
        if params:
            request["params"] = params
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(10)
            s.connect(str(self.rpc))
            s.sendall(json.dumps(request).encode())
            reply = receive(s)
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']}")
        return reply["result"]

    def said(self) -> str:
        """Return all that the program has printed so far."""
        return self.output.read_text(errors="replace")

    def _wait_ready(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.program.poll() is None and time.monotonic() < end:
            try:
                self.call("spdk_get_version")
                return
            except OSError:
                time.sleep(POLL_S)
        status = self.program.poll()
        how = "gave no RPC reply" if status is None else f"ended with status {status}"
        raise RuntimeError(f"{' '.join(self.command)} {how}:\n{self.said()}")


def receive(s: socket.socket) -> dict:
    """Return the one JSON object that comes; the protocol has no frames but the objects."""
    data = b""
    while True:
        got = s.recv(65536)
        if not got:
            raise ConnectionError(f"the program closed the RPC connection after {data!r}")
        data += got
        try:
            return json.loads(data)
        except ValueError:
            continue
