"""Limits, lock and pid file, from the viewpoint of a second instance and of an administrator."""
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from vhostrt import process
from vhostrt.process import PidFile, StartError, take_lock

ROOT = Path(__file__).parent.parent


def run(code, **settings):
    """Run code in a fresh process; return what it printed."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=True,
                          capture_output=True, text=True, **settings).stdout


def held_by_other(path):
    """True when another process cannot take the lock at path."""
    code = ("from vhostrt.process import *\n"
            f"try: take_lock({str(path)!r}); print('free')\nexcept StartError as e: print(e)")
    return run(code).strip() != "free"


def test_second_taker_is_told_the_path_and_the_holder(tmp_path):
    path = tmp_path / "lock"
    lock = take_lock(str(path))
    with pytest.raises(StartError) as refusal:
        take_lock(str(path))
    assert str(path) in str(refusal.value) and f"process {os.getpid()}" in str(refusal.value)
    assert held_by_other(path)
    lock.release()
    assert not held_by_other(path)
    assert path.exists()
    lock.release()


def test_the_lock_goes_with_a_killed_holder(tmp_path):
    path = tmp_path / "lock"
    code = f"import time; from vhostrt.process import *; l = take_lock({str(path)!r}); print(1, " \
           "flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"1\n"
        with pytest.raises(StartError, match=f"process {holder.pid}"):
            take_lock(str(path))
        holder.kill()
    take_lock(str(path)).release()


def test_a_holder_that_left_no_number_is_still_refused(tmp_path):
    path = tmp_path / "lock"
    lock = take_lock(str(path))
    path.write_text("\x1b[2Jnobody")
    with pytest.raises(StartError, match="another vhostrt holds the lock"):
        take_lock(str(path))
    lock.release()


def test_lock_that_cannot_be_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    os.symlink(tmp_path / "aim", tmp_path / "link")
    for name in ("none/lock", "link", "."):
        with pytest.raises(StartError, match="cannot open the lock file"):
            take_lock(str(tmp_path / name))
    assert not (tmp_path / "aim").exists()


def test_the_lock_is_not_inherited(tmp_path):
    lock = take_lock(str(tmp_path / "lock"))
    assert not os.get_inheritable(lock.fd)
    lock.release()


@pytest.fixture
def user_places(tmp_path, monkeypatch):
    """Default places as an ordinary user sees them: none in /run, then these two."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folders = process.default_folders()[1:]
    monkeypatch.setattr(process, "default_folders", lambda: folders)
    return tmp_path


def test_default_places_in_their_order(user_places, monkeypatch):
    in_tmp = take_lock(None)
    assert in_tmp.path == str(user_places / f"vhostrt-{os.geteuid()}" / "vhostrt.lock")
    assert (user_places / f"vhostrt-{os.geteuid()}").stat().st_mode & 0o777 == 0o700
    (user_places / "run").mkdir()
    in_run = take_lock(None)
    assert in_run.path == str(user_places / "run" / "vhostrt" / "vhostrt.lock")
    with pytest.raises(StartError, match="another vhostrt"):
        take_lock(None)
    in_tmp.release()
    in_run.release()


def test_the_first_default_is_in_run():
    assert process.default_folders()[0] == ("/run/vhostrt", False)


def test_relative_directories_in_the_environment_are_not_followed(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "here")
    monkeypatch.setenv("TMPDIR", "there")
    assert [folder for folder, _ in process.default_folders()] == [
        "/run/vhostrt", f"/tmp/vhostrt-{os.geteuid()}"]


def test_a_directory_others_can_enter_is_refused(user_places):
    folder = user_places / f"vhostrt-{os.geteuid()}"
    folder.mkdir(mode=0o755)
    with pytest.raises(StartError, match="not this user's alone"):
        take_lock(None)


def test_a_planted_link_is_not_followed(user_places):
    aim = user_places / "aim"
    aim.mkdir(mode=0o700)
    (user_places / f"vhostrt-{os.geteuid()}").symlink_to(aim)
    with pytest.raises(StartError, match="no place for the lock file"):
        take_lock(None)
    assert not list(aim.iterdir())


def test_pid_file_is_written_and_removed(tmp_path):
    path = tmp_path / "pid"
    path.write_text("something longer than a number")
    file = PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    file.remove()
    assert not path.exists()


def test_pid_file_of_a_later_instance_stays(tmp_path):
    path = tmp_path / "pid"
    file = PidFile(str(path))
    path.write_text("1\n")
    file.remove()
    assert path.read_text() == "1\n"


def test_pid_file_stays_when_a_forked_child_ends(tmp_path):
    path = tmp_path / "pid"
    code = ("import os; from vhostrt.process import PidFile\n"
            f"f = PidFile({str(path)!r})\n"
            "if os.fork() == 0: f.remove(); os._exit(0)\n"
            "os.wait(); print(os.path.exists(f.path))")
    assert run(code) == "True\n"


def test_pid_file_in_a_relative_directory_is_found_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = PidFile("pid")
    os.chdir("/")
    file.remove()
    assert not (tmp_path / "pid").exists()


def test_missing_pid_file_is_a_warning(tmp_path, capsys):
    file = PidFile(str(tmp_path / "pid"))
    (tmp_path / "pid").unlink()
    file.remove()
    assert "*WARNING*: the pid file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["none/pid", ".", "fifo"])
def test_pid_file_that_cannot_be_written(tmp_path, name):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StartError, match="Couldn't create pid file"):
        PidFile(str(tmp_path / name))


def test_open_files_limit_is_raised_to_the_hard_one():
    limit = run("import resource as r; from vhostrt import process as p\n"
                "hard = min(4096, r.getrlimit(r.RLIMIT_NOFILE)[1])\n"
                "r.setrlimit(r.RLIMIT_NOFILE, (64, hard))\n"
                "p.raise_open_files(); print(*r.getrlimit(r.RLIMIT_NOFILE), hard)").split()
    soft, hard, before = map(int, limit)
    assert soft == hard >= before > 64


def test_limits_are_not_lowered():
    code = ("import resource as r; from vhostrt import process as p\n"
            "p.raise_limit(r.RLIMIT_NOFILE, 8); print(*r.getrlimit(r.RLIMIT_NOFILE))")
    assert tuple(map(int, run(code).split())) == resource.getrlimit(resource.RLIMIT_NOFILE)


def test_core_limit_is_five_gib_where_it_was_less():
    code = ("import resource as r; from vhostrt import process as p\n"
            "hard = r.getrlimit(r.RLIMIT_CORE)[1]; r.setrlimit(r.RLIMIT_CORE, (0, hard))\n"
            "p.raise_core_limit(); print(r.getrlimit(r.RLIMIT_CORE)[0], hard)")
    soft, hard = map(int, run(code).split())
    assert soft == 5 << 30 or soft == hard


def test_few_open_files_are_a_warning(capsys, monkeypatch):
    def refuse(which, limits):
        raise ValueError("not allowed to raise maximum limit")
    monkeypatch.setattr(resource, "setrlimit", refuse)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (4096, 4096))
    process.raise_open_files()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(resource, "getrlimit", lambda which: (4095, 4095))
    process.raise_open_files()
    assert "*WARNING*: at most 4095 files can be open" in capsys.readouterr().err
    monkeypatch.setattr(resource, "getrlimit", lambda which: (63, 63))
    with pytest.raises(StartError, match="at most 63 files can be open, and 64 are needed"):
        process.raise_open_files()
