"""The file of --state: the configuration that RPC has made, kept over the end of the program.

It has the form of a JSON configuration, and a checksum that says whether it is as it was written.
A new one is written beside it and takes its name when it is on the disk, so that a crash at any
moment leaves the old one or the new one.

Owner:   the App owns the State, and with it a lock: one process has a state file.
Threads: the control thread; files are written on a helper thread.
Fails:   ConfigError for a file that cannot be used, StartError for a place that cannot be.
"""
import asyncio
import contextlib
import errno
import os
import zlib
from collections.abc import Callable
from typing import Any

from vhostrt import log
from vhostrt.config import ConfigError, json_config, read_file
from vhostrt.process import Lock, StartError, lock_at, reason

CHECKSUM = "checksum"
Snapshot = Callable[[], dict[str, Any]]


def checksum_of(subsystems: Any) -> str:
    """Return what guards a list of subsystems: of their values, whatever the blanks between."""
    import json
    text = json.dumps(subsystems, separators=(",", ":"), sort_keys=True)
    return f"crc32:{zlib.crc32(text.encode()):08x}"


def text_of(config: dict[str, Any]) -> str:
    """Return the text of a state file."""
    import json
    return json.dumps({CHECKSUM: checksum_of(config["subsystems"]), **config}, indent=1) + "\n"


def check(text: str, path: str) -> None:
    """Refuse a text that is not as it was written. Fails: ConfigError."""
    advice = "put a good one in its place, or remove it to begin with nothing"
    if not text.strip(" \t\r\n\0"):
        raise ConfigError([f"state file {path} is damaged: it is empty; {advice}"])
    try:
        root = json_config.read(text, path)
    except ConfigError as error:
        raise ConfigError([f"state file {path} is damaged: {error}; {advice}"]) from None
    given = root.get(CHECKSUM) if isinstance(root, dict) else None
    if given is not None and given != checksum_of(root.get("subsystems")):
        raise ConfigError([f"state file {path} is damaged: its checksum is another one; {advice} "
                           "(if you have changed it yourself, remove its line "
                           f'"{CHECKSUM}")'])


class State:
    """One state file.

    path  str, of the file itself, where a link leads to it
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)
        self.lock: Lock | None = None
        self.written = ""               # the text of the file; "" where it is not known
        self.snapshot: Snapshot | None = None
        self.restored = asyncio.Event()
        self.writing = asyncio.Lock()
        self.closed = False

    def open(self) -> list[json_config.Call] | None:
        """Take the lock and read the file; return its calls, None where there is no file yet.

        Fails: StartError, ConfigError.
        """
        folder = os.path.dirname(self.path)
        try:
            self.lock = lock_at(f"{self.path}.lock", option="--state")
        except OSError as error:
            make = "make the directory, or " if error.errno == errno.ENOENT else ""
            raise StartError(f"no state can be kept in {folder}: {reason(error)}; {make}give "
                             "--state another place") from None
        if not os.path.lexists(self.path):
            return None
        text = read_file(self.path)
        check(text, self.path)
        self.written = text
        return json_config.parse(text, self.path)

    async def begin(self, snapshot: Snapshot) -> None:
        """Keep what snapshot() returns, now and after every change: the state is restored.

        Fails: StartError when it cannot be written.
        """
        self.snapshot = snapshot
        try:
            await self.write()
        except OSError as error:
            raise StartError(self.cannot(error)) from None
        self.restored.set()

    async def keep(self, what: str) -> None:
        """Write what has changed, and return when it is on the disk.

        what: str, what may have changed it. Fails: OSError with a sentence; the program goes on as
        it is, and the next change writes this one, too.
        """
        await self.restored.wait()
        try:
            await self.write()
        except OSError as error:
            sentence = f"{what} was done, but {self.cannot(error)}"
            log.error(sentence)
            raise OSError(error.errno, sentence) from None

    def cannot(self, error: OSError) -> str:
        return (f"the state file {self.path} cannot be written: {reason(error)}; it has what was "
                "before")

    async def write(self) -> None:
        """Write the present state unless the file has it. Fails: OSError."""
        async with self.writing:        # who waits here finds that its change was written, too
            if self.closed:
                raise OSError(errno.ESHUTDOWN, "the program is stopping")
            text = text_of(self.snapshot()) if self.snapshot else self.written
            if text != self.written:
                self.written = ""
                await asyncio.to_thread(write_file, self.path, text)
                self.written = text

    async def close(self) -> None:
        """Write what could not be written before, and nothing more from now on."""
        try:
            if self.restored.is_set():
                await self.write()
        except OSError as error:
            log.error(self.cannot(error))
        finally:
            self.closed = True
            self.restored.set()         # who waits is told

    def release(self) -> None:
        """Give the lock back."""
        if self.lock is not None:
            self.lock.release()
            self.lock = None


def write_file(path: str, text: str) -> None:
    """Put a file with this text in the place of another, all of it or nothing. Fails: OSError."""
    beside = f"{path}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(beside, flags, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(fd)
        os.rename(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)                # the name is on the disk, too
    finally:
        os.close(folder)
