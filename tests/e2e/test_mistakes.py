"""What a user sees who starts QEMU wrongly: a sentence that says what to do, and a target that
goes on. The firmware drives the disk here; no guest is booted."""
import contextlib
import subprocess
import time

import pytest

from tests.e2e.target import Target
from tests.e2e.tools import need

PATIENCE_S = 60
MIB = 256


@contextlib.contextmanager
def qemu(folder, sock, memory, queues=1):
    """A QEMU whose firmware boots from the disk at a socket; yields what it has said so far."""
    errors = folder / "qemu.err"
    words = [need("qemu-system-x86_64", "qemu-system-x86"), "-accel", "tcg", "-nodefaults",
             "-no-user-config", "-nographic", "-machine", "q35", "-m", f"{MIB}M", *memory,
             "-chardev", f"socket,id=disk,path={sock}", "-device",
             f"vhost-user-blk-pci,chardev=disk,num-queues={queues},bootindex=0"]
    with errors.open("wb") as output:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield lambda: errors.read_text(errors="replace")
    finally:
        process.kill()
        process.wait()


def backend(words):
    return ["-object", f"memory-backend-{words},id=memory,size={MIB}M",
            "-machine", "memory-backend=memory"]


def wait_for(said, text):
    """Wait until a text has been said; return its line."""
    end = time.monotonic() + PATIENCE_S
    while text not in said():
        assert time.monotonic() < end, f"waited in vain for {text!r}: {said()}"
        time.sleep(0.02)
    return next(line for line in said().splitlines() if text in line)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    with Target(folder, ["--disk", f"malloc:8M,socket={folder}/disk", "-m", "0x1"]) as running:
        running.disk = folder / "disk"
        yield running
        assert running.stop() == 0, running.said()


# What the machine's memory is, and what the target sees of it.
NOT_SHARED = {
    "no backend": ([], "the client left without telling where its memory is"),
    "not shared": (backend("ram,share=off"), "the client left without telling where its memory is"),
    "a private copy": (backend("memfd,share=off"),
                       "ring 0 is kicked, but nothing that the driver writes can be seen"),
}


@pytest.mark.parametrize("memory, sentence", NOT_SHARED.values(), ids=NOT_SHARED)
def test_memory_that_is_not_shared(target, tmp_path, memory, sentence):
    before = len(target.said())
    with qemu(tmp_path, target.disk, memory):
        line = wait_for(lambda: target.said()[before:], sentence)
    assert "*WARNING*: disks" in line
    assert line.endswith("start QEMU with memory that is shared (-object memory-backend-memfd,"
                         "id=mem,size=1G,share=on -numa node,memdev=mem)")


def test_memory_that_is_shared_is_not_complained_of(target, tmp_path):
    before = len(target.said())
    with qemu(tmp_path, target.disk, backend("memfd,share=on")):
        end = time.monotonic() + PATIENCE_S
        while not any(queue["index"] == 0 for controller in target.call("vhost_get_controllers")
                      for session in controller["sessions"] for queue in session["queues"]):
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(2)                   # longer than the target waits before it complains
    assert "WARNING" not in target.said()[before:]


def test_more_queues_than_there_are(target, tmp_path):
    """QEMU itself asks how many there are, and says it."""
    with qemu(tmp_path, target.disk, backend("memfd,share=on"), queues=300) as said:
        wait_for(said, "The maximum number of queues supported by the backend is 256")
    assert target.call("vhost_get_controllers")[0]["ctrlr"] == "disk"
