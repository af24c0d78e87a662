"""Traces for tests: the file of this process, and what the reader finds in it."""
import contextlib
import os

from vhostrt.event import trace
from vhostrt.tools.trace_file import open_trace


@contextlib.contextmanager
def tracing(folder, lcores=(), entries=64, owners=()):
    """This process has a trace, with rings for `lcores` and for the calling thread; its path."""
    path = os.path.join(folder, "trace")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        trace.create(fd, lcores, entries, owners)
        try:
            yield path
        finally:
            trace.close()
    finally:
        os.close(fd)


def events_of(path):
    """Return all events (Event) that the reader finds in a file."""
    with open_trace(path) as found:
        return found.events()
