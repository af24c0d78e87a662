"""Run the real program for a test: started in a folder of its own, stopped and checked."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60
STOP_SECONDS = 30


class RpcError(Exception):
    """The target answered a JSON-RPC call with an error; `code` is its number."""

    def __init__(self, code: int, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code


def rpc_call(path, method: str, timeout: float = 30.0, **params):
    """Do one JSON-RPC call on the unix socket `path`; RpcError, OSError."""
    request = {"jsonrpc": "2.0", "id": 1, "method": method}
    if params:
        request["params"] = params
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect(str(path))
        sock.sendall(json.dumps(request).encode())
        text = b""
        while True:
            part = sock.recv(65536)
            text += part
            try:
                reply = json.loads(text)
                break
            except ValueError:
                if not part:
                    raise ConnectionError(f"no whole reply to {method}: {text[:200]!r}") from None
    if "error" in reply:
        raise RpcError(reply["error"]["code"], reply["error"]["message"])
    return reply["result"]


class Target:
    """A running `python -m vhostrt`; a context manager that stops it and checks how it ended.

    `disks` are values of --disk; name=DiskN and socket=... are added where they are missing, and
    socket(n) is the path of disk n's socket. `extra` are more arguments.
    """

    def __init__(self, disks=("malloc:64M",), mask: str = "0x1", idle: str = "yield", extra=(),
                 command=None):
        self.folder = Path(tempfile.mkdtemp(prefix="vhostrt-"))
        self.rpc_path = self.folder / "rpc.sock"
        self.stderr_path = self.folder / "stderr"
        self.sockets = []
        command = [sys.executable, "-m", "vhostrt"] if command is None else list(command)
        command += ["-m", mask, "--idle", idle, "-r", str(self.rpc_path), "-S", str(self.folder),
                    "--lock-file", str(self.folder / "lock"), "--disable-cpumask-locks"]
        for i, disk in enumerate(disks):
            command += ["--disk", self._disk(i, disk)]
        with open(self.stderr_path, "wb") as err:
            self.process = subprocess.Popen([*command, *extra], cwd=ROOT, stderr=err,
                                            stdout=err, stdin=subprocess.DEVNULL)
        try:
            self._await_rpc()
        except BaseException:
            self.kill()
            raise

    def _disk(self, i: int, disk: str) -> str:
        """Return the value of --disk number `i`, and remember its socket."""
        path = self.folder / f"disk{i}.sock"
        given = dict(p.split("=", 1) for p in disk.split(",")[1:] if "=" in p)
        self.sockets.append(Path(given.get("socket", path)))
        for key, value in (("name", f"Disk{i}"), ("socket", path)):
            if key not in given:
                disk += f",{key}={value}"
        return disk

    def _await_rpc(self) -> None:
        end = time.monotonic() + START_SECONDS
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"the target ended with {self.process.returncode} before it was "
                                   f"ready: {self.stderr()}")
            try:
                self.rpc("spdk_get_version")
                return
            except (OSError, RpcError):
                if time.monotonic() > end:
                    raise TimeoutError(f"the target is not ready: {self.stderr()}") from None
                time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind, *_exc) -> None:
        if kind is None:
            self.stop()
        else:
            self.kill()

    def rpc(self, method: str, **params):
        """Call a JSON-RPC method of the target."""
        return rpc_call(self.rpc_path, method, **params)

    def add_disk(self, create: str, name: str, **params) -> Path:
        """Make a bdev by the RPC method `create`, serve it, and return its socket."""
        assert self.rpc(create, name=name, **params) == name
        assert self.rpc("vhost_create_blk_controller", ctrlr=name, dev_name=name) is True
        self.sockets.append(self.folder / name)
        return self.sockets[-1]

    def socket(self, n: int = 0) -> Path:
        """Return the vhost-user socket of disk `n`."""
        return self.sockets[n]

    @property
    def pid(self) -> int:
        return self.process.pid

    def alive(self) -> bool:
        """Return whether the process runs."""
        return self.process.poll() is None

    def stderr(self) -> str:
        """Return what the target has printed so far."""
        return self.stderr_path.read_text(errors="replace")

    def fds(self) -> int:
        """Return how many file descriptors the target has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def fd_names(self) -> list[str]:
        """Return what the open descriptors are, for a message about a leak."""
        folder = Path(f"/proc/{self.pid}/fd")
        return sorted(os.readlink(p) for p in folder.iterdir() if p.is_symlink())

    def await_fds(self, want: int, timeout: float = 10.0) -> None:
        """Wait until no more than `want` descriptors are open; AssertionError."""
        end = time.monotonic() + timeout
        while self.fds() > want:
            assert time.monotonic() < end, f"more than {want} descriptors: {self.fd_names()}"
            time.sleep(0.01)

    def stop(self) -> None:
        """End the target by SIGTERM; check exit status 0 and that it printed no traceback."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            text = self.stderr()
            self.kill()
            raise AssertionError(f"no end {STOP_SECONDS} s after SIGTERM: {text}") from None
        text = self.stderr()
        shutil.rmtree(self.folder, ignore_errors=True)
        assert code == 0, f"exit status {code}: {text}"
        assert "Traceback" not in text, text

    def kill(self) -> None:
        """End the target at once, without any check."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
