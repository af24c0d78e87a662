"""vhostrt.env.allocation: malloc, zalloc, realloc and free, as Python has them."""
import errno
import gc
import re
import signal
import subprocess
import sys

import pytest

from vhostrt.env import memory
from vhostrt.env.options import EnvOptions

MIB = 1 << 20

pytestmark = pytest.mark.usefixtures("heap")


def test_malloc_is_zero_as_in_dpdk():
    block = memory.malloc(5000, 256)
    address = block.address
    assert not any(memoryview(block)) and address % 256 == 0
    memoryview(block)[:] = b"x" * 5000
    memory.free(block)
    again = memory.malloc(5000, 256)
    assert again.address == address and not any(memoryview(again))


def test_realloc_keeps_what_is_there_and_adds_zeroes():
    block = memory.realloc(None, 100)
    memoryview(block)[:] = bytes(range(100))
    hindrance = memory.zalloc(64)
    for size in (1000, 50, 51, 3 * MIB, 20):
        before = bytes(memoryview(block))
        same = memory.realloc(block, size, 128)
        assert same is block and len(block) == size and block.address % 128 == 0
        assert memoryview(block) == before[:size] + bytes(size - len(before[:size]))
    assert memory.stats()["blocks"] == 2
    del block, same, hindrance
    gc.collect()
    assert memory.stats()["total"] == 0


def test_realloc_stays_on_its_node_and_where_it_has_room():
    block = memory.zalloc(1000)
    address = block.address
    block.resize(100_000)
    assert block.address == address, "there was room behind it"
    block.resize(10)
    assert block.address == address


def test_a_block_with_views_is_neither_moved_nor_freed():
    block = memory.zalloc(100)
    view = memoryview(block)
    for call in (lambda: block.resize(200), lambda: memory.realloc(block, 50),
                 lambda: memory.free(block)):
        with pytest.raises(BufferError, match="the block is in use: 1 views of it live"):
            call()
    view.release()
    memory.free(block)
    memory.free(block)
    memory.free(None)
    memory.free(0)
    with pytest.raises(ValueError, match="the block has been freed"):
        block.resize(10)


def test_a_block_that_cannot_grow_is_as_it_was():
    memory.fini()
    memory.init(EnvOptions(mem_size=4 * MIB, no_huge=True))
    block = memory.zalloc(MIB)
    memoryview(block)[:] = b"y" * MIB
    for size, align, code in ((8 * MIB, 64, errno.ENOMEM), (0, 64, errno.EINVAL),
                              (-1, 64, errno.EINVAL), (64, 3, errno.EINVAL),
                              (2**63, 64, errno.EINVAL)):
        with pytest.raises(OSError, match=f"block of {MIB} bytes to be of {size}") as refused:
            block.resize(size, align)
        assert refused.value.errno == code
        assert memoryview(block) == b"y" * MIB
    del block


@pytest.mark.parametrize("address", ["4096", "block.address + 64", "block.address"])
def test_an_address_where_no_block_is_is_refused_or_ends_a_debug_build(address):
    code = f"""if 1:
        from vhostrt.env import memory
        memory.init()
        block = memory.zalloc(256)
        memory.free(block.address)
        try: memory.free({address})
        except OSError as refused: print(refused)
        print(memory.stats()["blocks"], flush=True)
        import os; os._exit(0)                  # the block object would free it once more
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.count("vhostrt: memory is freed at 0x") == 1
    if run.returncode == -signal.SIGABRT:
        assert "check failed" in run.stderr
    else:
        assert re.fullmatch(r"\[Errno 22\] free of a block at 0x\w+: none is handed out there, it "
                            r"was freed before or never from this heap: Invalid argument\n0\n",
                            run.stdout)


def test_iova():
    assert memory.zalloc(64).iova is None
    memory.fini()
    memory.init(EnvOptions(no_huge=True, iova_mode="va"))
    block = memory.zalloc(64)
    assert block.iova == block.address == memory.virt2iova(block.address)
    assert memory.virt2iova(4096) is None
    del block
