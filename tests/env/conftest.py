"""The environment's memory, for tests that use it."""
import gc
import sys

import pytest

from vhostrt.env import lcore, memory


@pytest.fixture
def heap():
    """The heap on ordinary pages; afterwards every block has to be home."""
    # What a failed test still holds is in its traceback.
    sys.last_type = sys.last_value = sys.last_traceback = None
    gc.collect()
    memory.fini()
    memory.init(no_huge=True)
    yield
    gc.collect()
    lcore.fini()
    memory.fini()
