"""Fixtures of the vhost-user tests: one running target for each test file."""
import pytest

from tests.lib.target import Target

MAIN, READ_ONLY, FILE, THREADS = range(4)
FILE_SIZE = 32 << 20


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A target with a RAM disk of 64 MiB, a read-only one and two on files of 32 MiB.

    The last of them is served by helper threads, so that its requests stay in flight for a while.
    """
    paths = [tmp_path_factory.mktemp("disk") / name for name in ("disk.img", "threads.img")]
    for path in paths:
        with open(path, "wb") as f:
            f.truncate(FILE_SIZE)
    disks = ["malloc:64M", "malloc:16M,ro", str(paths[0])]
    with Target(disks=disks, mask="0x3") as running:
        running.add_disk("bdev_aio_create", "Threads", filename=str(paths[1]), block_size=512)
        yield running
        assert running.alive(), f"the target ended by itself: {running.stderr()}"


@pytest.fixture
def disk(target):
    """The socket of the RAM disk."""
    return target.socket(MAIN)


@pytest.fixture
def read_only_disk(target):
    """The socket of the read-only disk."""
    return target.socket(READ_ONLY)


@pytest.fixture
def file_disk(target):
    """The socket of the disk on a file."""
    return target.socket(FILE)


@pytest.fixture
def thread_disk(target):
    """The socket of the disk on a file that helper threads serve."""
    return target.socket(THREADS)
