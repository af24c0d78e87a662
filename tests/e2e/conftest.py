"""What the guest tests share. A thing that is missing fails them, and the text says what to do."""
import pytest

from tests.e2e.guest import Guest
from tests.e2e.kernel import Kernel, get_kernel
from tests.e2e.tools import GuestError


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """The guest's kernel, fetched where it is not in the cache yet."""
    try:
        return get_kernel()
    except GuestError as e:
        raise pytest.fail.Exception(str(e), pytrace=False) from None


@pytest.fixture
def boot(kernel, tmp_path_factory):
    """A function that makes a Guest; see there for its arguments."""
    def boot(**what) -> Guest:
        try:
            return Guest(kernel, tmp_path_factory.mktemp("guest"), **what)
        except GuestError as e:
            raise pytest.fail.Exception(str(e), pytrace=False) from None
    return boot
