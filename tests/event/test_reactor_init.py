"""A start of the reactors that fails leaves nothing behind."""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

OUT_OF_DESCRIPTORS = """
import os, resource
from vhostrt.env import lcore, memory
from vhostrt.env.options import EnvOptions
from vhostrt.event import reactor
lcore.init([0, 1])
memory.init(EnvOptions(mem_size=64 << 20, no_huge=True))    # all at once: later no file is opened
before = memory.stats()["used"]
free = os.dup(0)
os.close(free)
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
for more in range(4):
    # So many descriptors may be opened, of the two that each reactor needs.
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, hard))
    try:
        reactor.init([0, 1])
    except OSError as error:
        print(error.errno, memory.stats()["used"] - before)
resource.setrlimit(resource.RLIMIT_NOFILE, (free + 4, hard))
reactor.init([0, 1])
reactor.start()
reactor.stop()
print(reactor.fini(), memory.stats()["used"] - before)
memory.fini()
lcore.fini()
"""


def test_no_descriptor_for_a_reactor():
    done = subprocess.run([sys.executable, "-c", OUT_OF_DESCRIPTORS], cwd=ROOT, timeout=60,
                          capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["24 0"] * 4 + ["0 0"], \
        done.stderr
