"""Log lines on stderr, in the form of SPDK's or as JSON, for Python and for compiled code, and in
the system's log. docs/logging.md describes both forms.

Threads: the control thread and its helpers; a reactor hands its records to the control thread.
Fails:   never; a line that stderr does not take is lost.
"""
import os
import sys
import time
from collections.abc import Iterable
from typing import Any

ERROR, WARNING, NOTICE, INFO, DEBUG = range(5)
NAMES = ("ERROR", "WARNING", "NOTICE", "INFO", "DEBUG")
SEVERITIES = (3, 4, 5, 6, 7)            # of syslog and of the journal, for each level
FORMATS = ("text", "json")
# Components whose INFO and DEBUG lines can be turned on one by one (-L, log_set_flag).
FLAGS = frozenset((
    "all", "app", "app_config", "bdev", "bdev_malloc", "bdev_null", "env", "reactor", "rpc",
    "thread", "uring", "vhost", "vhost_blk", "vhost_ring", "vhost_rpc",
))


class Settings:
    """What is printed. Written by the control thread alone."""

    def __init__(self) -> None:
        self.print_level = INFO             # lines above it are not printed
        self.level = NOTICE                 # lines above it do not go to the system's log
        self.system: Any = None             # vhostrt.syslog.Syslog, where there is one
        self.flags: set[str] = set()        # components whose INFO and DEBUG lines are on
        self.timestamps = True
        self.format = "text"
        self.priorities = False             # begin lines with <severity>, for the journal

    def wants(self, level: int) -> bool:
        """Return whether anybody wants lines of a level."""
        return level <= self.print_level or self.system is not None and level <= self.level


settings = Settings()
second = (0, "")                        # the last whole second and its text


def clock() -> str:
    """Return local time as [YYYY-MM-DD hh:mm:ss.us], formatting each second once."""
    global second
    now, nanoseconds = divmod(time.time_ns(), 10**9)
    if second[0] != now:
        second = (now, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)))
    return f"[{second[1]}.{nanoseconds // 1000:06d}] "


def printable(text: str) -> str:
    """Keep a line one line, whatever a client put into it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def rfc3339() -> str:
    """Return the time of JSON lines: UTC with microseconds, 2026-11-25T09:50:11.123456Z."""
    now, nanoseconds = divmod(time.time_ns(), 10**9)
    return (f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}"
            f".{nanoseconds // 1000:06d}Z")


def record(level: int, file: str, line: int, function: str, text: str, flag: str = "") -> None:
    """Print one record when its level is at or below the print level.

    flag: the component of an INFO or DEBUG line. Compiled code calls this on the control thread
    with the place the record was made at.
    """
    if not settings.wants(level):
        return
    text = printable(text)
    placed = f"{file}:{line:4d}:{function}: *{NAMES[level]}*: {text}"
    if settings.system is not None and level <= settings.level:
        settings.system.send(level, placed)
    if level > settings.print_level:
        return
    if settings.format == "json":
        print_line(level, as_json(level, file, line, function, text, flag))
    else:
        print_line(level, (clock() if settings.timestamps else "") + placed)


def as_json(level: int, file: str, line: int, function: str, text: str, flag: str) -> str:
    """Return a record as one JSON object."""
    from msgspec import json            # not before somebody wants it
    fields: dict[str, Any] = {"time": rfc3339()} if settings.timestamps else {}
    fields |= {"level": NAMES[level], "file": file, "line": line, "function": function,
               "message": text}
    if flag:
        fields["flag"] = flag
    return json.encode(fields).decode()


def print_line(level: int, text: str) -> None:
    priority = f"<{SEVERITIES[level]}>" if settings.priorities else ""
    try:
        sys.stderr.write(f"{priority}{text}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass                            # a closed stderr is no reason to stop serving disks


def single_flags(flags: Iterable[str] = ("all",)) -> set[str]:
    """Return the components that these flags stand for: "all" is every one of them."""
    return set(FLAGS - {"all"} if "all" in flags else flags)


def enabled(flag: str) -> bool:
    """True when the INFO and DEBUG lines of this component are on."""
    return flag in settings.flags or "all" in settings.flags


def from_caller(level: int, text: str, flag: str = "") -> None:
    """Print a record placed where the caller of error(), notice(), ... stands."""
    code = sys._getframe(2)
    record(level, code.f_code.co_filename.rpartition("/")[2], code.f_lineno,
           code.f_code.co_name, text, flag)


def error(text: str) -> None:
    """Say what failed."""
    from_caller(ERROR, text)


def warning(text: str) -> None:
    """Say what is not as it should be, and goes on."""
    if settings.wants(WARNING):
        from_caller(WARNING, text)


def notice(text: str) -> None:
    """Say what an administrator wants to see in every run."""
    if settings.wants(NOTICE):
        from_caller(NOTICE, text)


def info(flag: str, text: str) -> None:
    """Say what helps to follow one component; printed when its flag is on."""
    if settings.wants(INFO) and enabled(flag):
        from_caller(INFO, text, flag)


def debug(flag: str, text: str) -> None:
    """Say every step of one component; printed when its flag is on."""
    if settings.wants(DEBUG) and enabled(flag):
        from_caller(DEBUG, text, flag)


def set_up(print_level: int, flags: tuple[str, ...] = ()) -> None:
    """Take the print level and the component flags of the command line.

    Fails: ValueError for a flag that does not exist.
    """
    unknown = set(flags) - FLAGS
    if unknown:
        raise ValueError(f"unknown log flag {min(unknown)}")
    settings.print_level = print_level
    settings.flags = set(flags)


def stderr_is_journal() -> bool:
    """Return whether what is written on stderr goes to systemd's journal."""
    try:
        about = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"


def set_form(form: str) -> None:
    """Print lines as "text" or "json"; with priorities, and without the time, into the journal,
    which has a time of its own for each line."""
    settings.format = form
    settings.priorities = stderr_is_journal()
    settings.timestamps = not settings.priorities


def open_system(name: str) -> None:
    """Have lines go to the system's log, too, in this name."""
    if os.path.exists("/dev/log"):
        from vhostrt import syslog      # its sockets, only where there is something to send to
        settings.system = syslog.find(name)


def close_system() -> None:
    """Have them go there no more."""
    if settings.system is not None:
        settings.system.close()
        settings.system = None
