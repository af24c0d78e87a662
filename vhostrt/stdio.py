"""The standard descriptors, which may be closed, full, or read by nobody.

Threads: the control thread.
Fails:   never with an exception.
"""
import os
import sys

STANDARD = (0, 1, 2)


def prepare() -> None:
    """Open /dev/null where a standard descriptor is closed; let stdout take any file's name.

    Else a socket or an eventfd would get the number, and what a library prints would go there.
    """
    fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    while fd in STANDARD:
        os.set_inheritable(fd, True)
        fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.close(fd)
    if sys.stdout is not None:
        # A name that is not of the locale's encoding is printed as the bytes it is.
        sys.stdout.reconfigure(errors="surrogateescape")    # type: ignore[union-attr]


def say(text: str) -> str:
    """Print lines on stdout at once; return why that cannot be, or "" when it is done."""
    try:
        print(text, flush=True)
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def settle() -> None:
    """Drop what stdout and stderr do not take: at its end Python would make it the exit status."""
    for fd, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, fd)
            os.close(null)
