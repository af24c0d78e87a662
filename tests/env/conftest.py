"""The environment's memory, for tests that use it."""
import contextlib
import gc
import sys

import pytest

from tests.lib import hugepages as pages_of_test
from vhostrt.env import lcore, memory
from vhostrt.env.options import EnvOptions

PAGES = 24                              # huge pages of 2 MiB that a test may have


def end():
    """End what a test has started; every block has to be home."""
    # What a failed test still holds is in its traceback.
    sys.last_type = sys.last_value = sys.last_traceback = None
    gc.collect()
    lcore.fini()
    memory.fini()


@pytest.fixture
def heap():
    """The heap on ordinary pages; afterwards every block has to be home."""
    end()
    memory.init(EnvOptions(no_huge=True))
    yield
    end()


@pytest.fixture
def clean():
    """No memory yet; whatever the test starts is ended."""
    end()
    yield
    end()


@pytest.fixture
def pages():
    """24 huge pages of 2 MiB more than there were; whether there are so many."""
    end()
    with pages_of_test.reserved(PAGES) as there:
        try:
            yield there
        finally:
            end()


@pytest.fixture
def directory(pages, tmp_path):
    """A hugetlbfs of our own with those pages, or None."""
    with contextlib.ExitStack() as stack:
        there = pages and stack.enter_context(pages_of_test.mounted(tmp_path))
        stack.callback(end)
        yield str(tmp_path) if there else None
