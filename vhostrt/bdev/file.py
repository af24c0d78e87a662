"""The best way there is to serve a file: io_uring, else helper threads.

Threads:  the control thread.
Fails:    as UringBdev and AioBdev do.
"""
import errno

from vhostrt import log
from vhostrt.bdev.core import Bdev

said: set[str] = set()                  # notices that have been logged: one of each


def uring_missing() -> str:
    """Return why there is no io_uring here; "" when there is."""
    try:
        from vhostrt.bdev.uring import uring_available
    except ImportError:
        return "liburing was not there when vhostrt was built"
    return uring_available()[1]


def uring_class() -> type:
    """Return UringBdev, or raise OSError(ENOTSUP) with the reason why it cannot be had."""
    missing = uring_missing()
    if missing:
        raise OSError(errno.ENOTSUP, f"io_uring cannot be used: {missing}")
    from vhostrt.bdev.uring import UringBdev
    return UringBdev


def say_once(text: str) -> None:
    if text not in said:
        said.add(text)
        log.notice(text)


async def create_file_bdev(name: str, filename: str, block_size: int = 0, readonly: bool = False,
                           uuid: str | None = None) -> Bdev:
    """Open a regular file or block device as a bdev, not yet registered.

    block_size: bytes, 0 for the device's own (512 for a file).
    """
    missing = uring_missing()
    if missing:
        say_once(f"Files are served by helper threads: {missing}")
        from vhostrt.bdev.aio import AioBdev
        return await AioBdev.create(name, filename, block_size, readonly, uuid)
    say_once("Files are served through io_uring")
    return await uring_class().create(name, filename, block_size, readonly, uuid)
