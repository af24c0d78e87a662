"""The guest itself: what its steps tell, and what is said when it fails, hangs or never starts."""
import pytest

from tests.e2e.tools import GuestError


def test_guest_runs_steps_in_order_and_stops_at_the_first_bad_one(boot):
    steps = {"tell": "value cpus $(nproc); value words one two", "second": "cat /data",
             "bad": "echo the reason; exit 7", "never": "true"}
    with boot(steps=steps, files={"/data": b"what is in the file"}) as guest:
        guest.wait_step("tell")
        with pytest.raises(GuestError, match=r"step bad \(7\) failed") as caught:
            guest.wait()
        assert guest.results() == {"tell": 0, "second": 0, "bad": 7}
        assert guest.value("cpus") == "2"
        assert guest.value("words") == "one two"
        with pytest.raises(GuestError, match="told no value fruit"):
            guest.value("fruit")
    assert "the reason" in str(caught.value)
    assert "what is in the file" in str(caught.value)


def test_guest_that_hangs_is_ended(boot):
    with boot(steps={"up": "true", "hang": "echo asleep now; sleep 1000"}) as guest:
        guest.wait_step("up")
        with pytest.raises(GuestError, match="took more than 2 s to power off") as caught:
            guest.wait(seconds=2)
    assert "asleep now" in str(caught.value)
    assert guest.qemu.poll() is not None


def test_guest_that_panics_is_an_error(boot):
    with (boot(steps={"panic": "echo c > /proc/sysrq-trigger"}) as guest,
          pytest.raises(GuestError, match="died before its steps were done") as caught):
        guest.wait()
    # Only a panic prints either line; two processors may garble one of them.
    assert any(line in str(caught.value) for line in ("Kernel panic", "Kernel Offset"))


def test_qemu_that_cannot_start_says_why(boot, tmp_path):
    with (boot(steps={}, disks=[tmp_path / "none.sock"]) as guest,
          pytest.raises(GuestError, match="none.sock")):
        guest.wait()
