"""The command vhostrt as its user runs it: the installed one, in an empty working directory."""
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from tests.lib.target import RpcError, rpc_call

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60                         # for what takes well under a second on a machine at rest
NOBODY = 65534


def command_words() -> list[str]:
    """Return the words that run the program: the console command beside this Python, or -m."""
    installed = shutil.which("vhostrt", path=os.path.dirname(sys.executable))
    return [installed] if installed else [sys.executable, "-m", "vhostrt"]


def unprivileged_words() -> list[str]:
    """Return what to put before a command so that it runs as an ordinary user.

    Where this Python lies in a directory of root's alone, that user may look into it: reading
    everywhere is the one capability it gets then.
    """
    if os.geteuid() != 0:
        return []
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
             "--no-new-privs"]
    if subprocess.run([*words, sys.executable, "-c", ""], cwd="/", capture_output=True).returncode:
        words += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    return words


class Place:
    """A folder for one or more runs of the command; a context manager that removes it.

    cwd        the directory they run in; empty, and its user's
    lock, rpc  paths that run() and start() give to the program, also pid and sockets (a folder)

    claims: let the program claim the cores that it is given, which other tests may be using.
    """

    def __init__(self, unprivileged: bool = False, claims: bool = False):
        self.shared = [] if claims else ["--disable-cpumask-locks"]
        self.folder = Path(tempfile.mkdtemp(prefix="vhostrt-"))
        self.cwd, self.sockets = self.folder / "cwd", self.folder / "sockets"
        self.rpc, self.lock, self.pid = (self.folder / name for name in ("rpc", "lock", "pid"))
        self.before = unprivileged_words() if unprivileged else []
        self.cwd.mkdir()
        self.sockets.mkdir()
        for path in (self.folder, self.cwd, self.sockets):
            if self.before:
                os.chown(path, NOBODY, NOBODY)
        # Nothing of the caller's own places may be what the program finds.
        places = dict.fromkeys(("HOME", "TMPDIR", "XDG_RUNTIME_DIR"), str(self.folder))
        ours = {name: value for name, value in os.environ.items() if name[:6] != "PYTHON"}
        self.environment = {**ours, **places, "PYTHONPATH": str(ROOT)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def words(self, *more: str) -> list[str]:
        """Return the whole command line; an option in `more` replaces what is said of places."""
        usual = {"-r": self.rpc, "--lock-file": self.lock, "-f": self.pid, "-S": self.sockets}
        given = [f"{name}={path}" if name.startswith("--") else f"{name}{path}"
                 for name, path in usual.items() if name not in more]
        return [*self.before, *command_words(), *given, *self.shared, *more]

    def run(self, *more: str, **settings) -> subprocess.CompletedProcess:
        """Run the command until it ends by itself; stdout and stderr are in what is returned."""
        return subprocess.run(self.words(*more), cwd=self.cwd, env=self.environment, text=True,
                              capture_output=True, timeout=PATIENCE_S, stdin=subprocess.DEVNULL,
                              **settings)

    def start(self, *more: str, ready: bool = True, **settings) -> "Running":
        """Run the command until it is stopped; return when it answers an RPC, if ready."""
        running = Running(self, self.words(*more), settings)
        if ready:
            try:
                running.await_rpc()
            except BaseException:
                running.__exit__(None)
                raise
        return running

    def left(self) -> set[str]:
        """Return what is in the folder, the sockets' folder and the working directory."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")
                if path not in (self.cwd, self.sockets) and path.name[:3] not in ("out", "err")}


class Running:
    """A vhostrt that runs; a context manager that ends it by SIGKILL where the test has not."""

    count = 0

    def __init__(self, place: Place, words: list[str], settings: dict):
        Running.count += 1
        self.place = place
        self.out, self.err = (place.folder / f"{name}{Running.count}" for name in ("out", "err"))
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            settings = {"stdout": out, "stderr": err, "stdin": subprocess.DEVNULL} | settings
            self.process = subprocess.Popen(words, cwd=place.cwd, env=place.environment, **settings)
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc) -> None:
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        """Return what was printed on stdout, then what was on stderr."""
        return self.out.read_text(errors="replace") + self.err.read_text(errors="replace")

    def await_that(self, condition, what: str):
        """Wait until condition() is true, and return that; AssertionError."""
        end = time.monotonic() + PATIENCE_S
        while True:
            value = condition()
            if value:
                return value
            assert self.process.poll() is None, f"ended with {self.process.returncode} before " \
                                                f"{what}: {self.said()}"
            assert time.monotonic() < end, f"waited in vain for {what}: {self.said()}"
            time.sleep(0.005)

    def await_rpc(self) -> None:
        """Wait until the program answers."""
        self.await_that(lambda: self.answers("spdk_get_version"), "an answer of the RPC")

    def await_line(self, text: str) -> None:
        """Wait until a text has been printed."""
        self.await_that(lambda: text in self.said(), repr(text))

    def answers(self, method: str) -> bool:
        try:
            return bool(self.rpc(method))
        except (OSError, RpcError):
            return False

    def rpc(self, method: str, **params):
        """Do one call on the RPC socket of the place."""
        return rpc_call(self.place.rpc, method, **params)

    def wait(self) -> int:
        """Wait for the end and return the exit status."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end: {self.said()}") from None

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop it by a signal, and check that it ended in order."""
        self.process.send_signal(number)
        status = self.wait()
        assert status == 0 and "Traceback" not in self.said(), f"{status}: {self.said()}"

    def file(self, name: str) -> str:
        """Return the text of one of its files in /proc."""
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def threads(self) -> dict[str, list[set[int]]]:
        """Return the names of its threads, and the CPUs that the threads of each name may use."""
        found: dict[str, list[set[int]]] = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            found.setdefault((task / "comm").read_text().strip(), []).append(
                os.sched_getaffinity(int(task.name)))
        return found
