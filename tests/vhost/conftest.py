"""Fixtures of the vhost-user tests: one running target for each test file."""
import pytest

from tests.lib.target import Target

MAIN, READ_ONLY, FILE = 0, 1, 2
FILE_SIZE = 32 << 20


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A target with a RAM disk of 64 MiB, a read-only one and one on a file of 32 MiB."""
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    with open(path, "wb") as f:
        f.truncate(FILE_SIZE)
    with Target(disks=["malloc:64M", "malloc:16M,ro", str(path)], mask="0x3") as running:
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
