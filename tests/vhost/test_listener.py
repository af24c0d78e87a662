"""vhostrt.vhost.listener: whose a socket's path is, and who may use it."""
import asyncio
import concurrent.futures
import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vhostrt import log
from vhostrt.vhost import access, listener
from vhostrt.vhost.access import Access

ROOT = Path(__file__).resolve().parents[2]
OWNER = 54321                           # a user that nobody has to know


def listen(path, who=None):
    """Open a socket at a path, and close nothing."""
    return asyncio.run(listener.listen(str(path), who or Access()))


def stale(path):
    """Leave the socket of a process that is gone."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()


def connects(path):
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return False
        return True


@pytest.mark.parametrize("before", [None, stale], ids=["nothing there", "a stale socket"])
def test_a_socket_is_made_and_removed(tmp_path, before):
    path = tmp_path / "disk"
    if before is not None:
        before(path)
    made = listen(path)
    assert connects(path) and os.listdir(tmp_path) == ["disk"]
    made.close()
    assert os.listdir(tmp_path) == [] and not connects(path)


def test_a_path_as_long_as_it_can_be(tmp_path):
    path = str(tmp_path / "d")
    path += "x" * (107 - len(path))
    made = listen(path)
    assert connects(path)
    made.close()
    with pytest.raises(OSError, match="longer than 107 bytes") as refused:
        listen(path + "x")
    assert refused.value.errno == errno.ENAMETOOLONG


def busy(path):
    """A socket whose queue of connections is full."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(0)
    clients = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex(str(path))
    return sock, *clients


def datagrams(path):
    """A socket of another kind."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    return (sock,)


def ours(path):
    return (listen(path).sock,)


@pytest.mark.parametrize("living", [busy, datagrams, ours])
def test_a_living_socket_is_never_replaced(tmp_path, living):
    path = tmp_path / "disk"
    kept = living(path)
    before = os.lstat(path)
    with pytest.raises(OSError, match=f"socket {path} is in use by a running program") as refused:
        listen(path)
    assert refused.value.errno == errno.EADDRINUSE
    assert os.path.samestat(before, os.lstat(path)) and os.listdir(tmp_path) == ["disk"]
    for sock in kept:
        sock.close()


@pytest.mark.parametrize("make", [
    lambda path: path.write_text("precious"), lambda path: path.mkdir(), os.mkfifo,
    lambda path: path.symlink_to("/nowhere"), lambda path: path.symlink_to("/dev/null"),
], ids=["file", "directory", "fifo", "dangling link", "link"])
def test_what_is_not_a_socket_stays(tmp_path, make):
    path = tmp_path / "disk"
    make(path)
    before = os.lstat(path)
    with pytest.raises(OSError, match="exists and is not a socket: remove it") as refused:
        listen(path)
    assert refused.value.errno == errno.EEXIST
    assert os.path.samestat(before, os.lstat(path)) and os.listdir(tmp_path) == ["disk"]


def test_somebody_elses_socket_is_not_removed_at_the_end(tmp_path):
    path = tmp_path / "disk"
    made = listen(path)
    os.unlink(path)
    other = listen(path)
    made.close()
    assert connects(path)
    other.close()
    made = listen(path)
    os.unlink(path)
    made.close()


# Many that start at once

RACE = """
import asyncio, os, sys
from vhostrt.vhost import listener
from vhostrt.vhost.access import Access

async def main():
    path = sys.argv[1]
    for line in sys.stdin:
        try:
            made = await listener.listen(path, Access())
        except OSError as error:
            print("no", error.errno, flush=True)
            made = None
        else:
            print("yes", os.lstat(path).st_ino == made.inode[1], flush=True)
        sys.stdin.readline()
        if made is not None and "leave" in line:
            made.sock.close()                   # as a process that is killed leaves it
        elif made is not None:
            made.close()
        print("done", flush=True)

asyncio.run(main())
"""


def test_of_many_that_start_at_once_one_has_the_path(tmp_path):
    """Over nothing and over a stale socket, again and again: one winner, and it is reachable."""
    path = tmp_path / "disk"
    racers = [subprocess.Popen([sys.executable, "-c", RACE, str(path)], cwd=ROOT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1)
              for _ in range(3)]
    try:
        for turn in range(60):
            for racer in racers:
                racer.stdin.write("leave\n" if turn % 2 else "remove\n")
                racer.stdin.flush()
            answers = [racer.stdout.readline().split() for racer in racers]
            assert sorted(answers) == [["no", str(errno.EADDRINUSE)]] * 2 + [["yes", "True"]]
            assert connects(path) and os.listdir(tmp_path) == ["disk"]
            for racer in racers:
                racer.stdin.write("end\n")
                racer.stdin.flush()
                assert racer.stdout.readline() == "done\n"
    finally:
        for racer in racers:
            racer.stdin.close()
            racer.stdout.close()
            racer.kill()
            racer.wait()


def test_nobody_takes_a_path_between_the_look_and_the_new_socket(tmp_path, monkeypatch):
    path = tmp_path / "disk"
    stale(path)
    looked, second_over = threading.Event(), threading.Event()
    look, first = listener.answers, []

    def look_and_dawdle(there):
        answer = look(there)
        if not first:
            first.append(there)
            looked.set()
            second_over.wait(0.3)
        return answer

    def one():
        try:
            return listen(path)
        except OSError as error:
            return error

    def two():
        looked.wait()
        try:
            return one()
        finally:
            second_over.set()

    monkeypatch.setattr(listener, "answers", look_and_dawdle)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = [pool.submit(one), pool.submit(two)]
        winner, loser = (each.result() for each in results)
    assert isinstance(loser, OSError) and loser.errno == errno.EADDRINUSE
    assert connects(path)
    winner.close()
    assert os.listdir(tmp_path) == []


def test_a_lock_of_the_directory_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(listener, "LOCK_S", 0.1)
    fd = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(OSError, match="has been locked by another process") as refused:
        listen(tmp_path / "disk")
    assert refused.value.errno == errno.EBUSY
    monkeypatch.setattr(listener, "LOCK_S", 60)

    async def both():
        waiting = asyncio.create_task(listener.listen(str(tmp_path / "disk"), Access()))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        fcntl.flock(fd, fcntl.LOCK_UN)
        (await waiting).close()
    asyncio.run(both())
    os.close(fd)


# Directories

def test_directories_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    for folder, why in ((tmp_path / "no", "is not there .No such file or directory.: create it"),
                        (tmp_path / "file", "is not a directory: choose another with -S"),
                        ("/proc", "no socket can be made in /proc|gives user")):
        with pytest.raises(OSError, match=why):
            listen(Path(folder) / "disk")


@pytest.mark.parametrize("mode, warned", [(0o777, 1), (0o1777, 0), (0o775, 0)])
def test_a_directory_that_everybody_may_write_to(tmp_path, capsys, mode, warned):
    tmp_path.chmod(mode)
    for _ in range(2):
        listen(tmp_path / "disk").close()
    assert capsys.readouterr().err.count("everybody may write to the directory") == warned


def test_at_the_start_a_directory_is_looked_at(tmp_path, capsys):
    log.settings.timestamps = False
    listener.look_at(str(tmp_path))
    assert capsys.readouterr().err == ""
    listener.look_at(str(tmp_path / "no"))
    assert "is not there (No such file or directory): create it" in capsys.readouterr().err
    log.settings.timestamps = True


# Who may use it

@pytest.mark.parametrize("mode", [0o600, 0o660, 0o777, 0])
def test_permissions_do_not_depend_on_the_umask(tmp_path, mode):
    before = os.umask(0o077)
    try:
        made = listen(tmp_path / "disk", Access(mode=mode))
        assert stat.S_IMODE(os.lstat(tmp_path / "disk").st_mode) == mode
        made.close()
        made = listen(tmp_path / "disk")
        assert stat.S_IMODE(os.lstat(tmp_path / "disk").st_mode) == 0o700
        made.close()
    finally:
        os.umask(before)


def test_owner_and_group(tmp_path):
    """As root any; else one's own."""
    path = tmp_path / "disk"
    who = access.make(owner=OWNER, group=OWNER)
    if os.geteuid() == 0:
        made = listen(path, who)
        status = os.lstat(path)
        assert (status.st_uid, status.st_gid) == (OWNER, OWNER)
        made.close()
    else:
        with pytest.raises(OSError, match=f"cannot be given to user {OWNER} and group {OWNER}"):
            listen(path, who)
    assert os.listdir(tmp_path) == []
    made = listen(path, access.make(owner=os.geteuid(), group=os.getegid()))
    assert os.lstat(path).st_uid == os.geteuid()
    made.close()
