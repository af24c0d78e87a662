"""vhostrt.env.runtime_dir: where processes meet, and who is primary."""
import errno
import fcntl
import os
import stat
import threading
import time

import pytest

from vhostrt.env import runtime_dir


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Two places, the first of which anybody could have made."""
    found = [(str(tmp_path / "one"), True), (str(tmp_path / "two"), False)]
    monkeypatch.setattr(runtime_dir, "candidates", lambda: found)
    return tmp_path


def claim(proc_type="primary", prefix="test"):
    return runtime_dir.claim(prefix, proc_type, lambda fd: 4711)


def test_root_has_the_system_s_directory_and_others_their_own(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    assert runtime_dir.candidates() == [("/run/user/7/vhostrt", True), ("/var/tmp/vhostrt-7", True)]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert runtime_dir.candidates()[0] == ("/run/vhostrt", False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    monkeypatch.setenv("TMPDIR", "relative")
    assert runtime_dir.candidates() == [("/run/vhostrt", False), ("/tmp/vhostrt-0", True)]


def test_the_primary_process_has_a_record_of_its_own(places):
    mine = claim()
    assert mine.primary and mine.dead == -1 and os.fstat(mine.fd).st_size == 0
    assert mine.path == str(places / "one" / "test" / "config")
    for path in (places / "one", places / "one" / "test"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(os.stat(mine.path).st_mode) == 0o600
    assert os.listdir(places / "one" / "test") == ["config"]
    assert not os.get_inheritable(mine.fd)
    (places / "one" / "test" / "mine").touch()
    mine.release()
    mine.release()
    assert os.listdir(places / "one" / "test") == ["mine"]


def test_who_comes_second(places):
    first = claim()
    with pytest.raises(OSError, match="process 4711 is the primary process of test") as refused:
        claim()
    assert refused.value.errno == errno.EBUSY
    second, third = claim("secondary"), claim("auto")
    assert not second.primary and not third.primary
    assert os.path.sameopenfile(first.fd, second.fd)
    assert second.alive()
    second.release()
    third.release()
    assert os.path.exists(first.path), "a secondary process took the record away"
    third = claim("auto")
    first.release()
    assert not third.alive()
    third.release()
    first = claim("auto")
    assert first.primary
    first.release()


def test_a_primary_process_that_has_no_id_yet(places):
    first = claim()
    with pytest.raises(OSError, match="another process is the primary process of test"):
        runtime_dir.claim("test", "primary", lambda fd: 0)
    first.release()


def test_a_record_that_a_dead_process_has_left(places):
    first = claim()
    os.write(first.fd, b"old")
    fcntl.flock(first.fd, fcntl.LOCK_UN)
    with pytest.raises(OSError, match="there is no primary process of test") as refused:
        claim("secondary")
    assert refused.value.errno == errno.ESRCH
    second = claim()
    assert second.primary and os.pread(second.dead, 9, 0) == b"old"
    # Who still looks at the old record sees it as it was.
    assert os.pread(first.fd, 9, 0) == b"old" and os.fstat(second.fd).st_size == 0
    second.forget_dead()
    first.release()
    assert os.path.exists(second.path), "the record of another was taken away"
    second.release()


def test_nobody_to_attach_to(places):
    with pytest.raises(OSError, match="there is no primary process of test") as refused:
        claim("secondary")
    assert refused.value.errno == errno.ESRCH
    assert os.listdir(places) == [], "a directory was made for nothing"


def test_a_place_that_others_can_write_to_is_not_used(places):
    (places / "one").mkdir(mode=0o700)
    (places / "one").chmod(0o777)
    mine = claim()
    assert mine.path.startswith(str(places / "two"))
    mine.release()


def test_no_place_at_all(places):
    for name in ("one", "two"):
        (places / name).write_bytes(b"a file")
    with pytest.raises(OSError, match="no directory for the processes of test: ") as refused:
        claim()
    assert refused.value.errno == errno.ENOTDIR
    assert "one/test: Not a directory; " in str(refused.value)


def test_a_directory_that_was_taken_away_meanwhile(places):
    first = claim()
    waits = threading.Thread(target=lambda: found.append(claim("auto")))
    found = []
    fcntl.flock(first.folder, fcntl.LOCK_EX)
    waits.start()
    # It has the directory open and waits for its lock, or is about to; either has to do.
    time.sleep(0.05)
    first.release()
    waits.join()
    assert found[0].primary and os.path.exists(found[0].path)
    found[0].release()
    assert os.listdir(places / "one") == []


def test_no_descriptor_is_left(places):
    before = len(os.listdir("/proc/self/fd"))
    first = claim()
    for kind in ("primary", "secondary", "auto"):
        try:
            claim(kind).release()
        except OSError as refused:
            assert refused.errno == errno.EBUSY
    first.release()
    with pytest.raises(OSError):
        claim("secondary")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_forked_child_releases_nothing(places):
    mine = claim()
    child = os.fork()
    if child == 0:
        mine.release()
        os._exit(0 if os.path.exists(mine.path) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert mine.alive() is True or mine.primary
    mine.release()
