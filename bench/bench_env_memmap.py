"""vhostrt.env.memmap and vtophys: one address translated, and one piece of 128 KiB, in ns.

`big` is memory in entries of 2 MiB, `pages` in ones of 4 KiB.  Also what it costs to register and
to learn, off the data path.
"""
import pytest
from vhostrt.env import memmap, memory, vtophys
from vhostrt.env.memmap import Map
from vhostrt.env.options import EnvOptions

from bench import cy_env_memmap

MIB, GIB = 1 << 20, 1 << 30
SIZE = 64 * MIB
PIECE = 128 << 10


@pytest.mark.parametrize("pages", [False, True], ids=["big", "pages"])
def bench_memmap_translate(per_op, pages):
    values = cy_env_memmap.Values(GIB - SIZE // 2, SIZE, pages)
    per_op(lambda n: cy_env_memmap.translate(values, n), 5_000_000)


@pytest.mark.parametrize("pages", [False, True], ids=["big", "pages"])
def bench_memmap_run(per_op, pages):
    values = cy_env_memmap.Values(GIB - SIZE // 2, SIZE, pages)
    per_op(lambda n: cy_env_memmap.run(values, PIECE, n), 1_000_000)


@pytest.fixture
def block():
    """Memory of the heap that devices know."""
    memory.init(EnvOptions(no_huge=True))
    memmap.init()
    vtophys.init("va")
    block = memory.zalloc(SIZE, 2 * MIB)
    yield block
    block.free()
    vtophys.fini()
    memmap.fini()
    memory.fini()


def bench_vtophys(per_op, block):
    per_op(lambda n: cy_env_memmap.addresses(block.address, SIZE, n), 5_000_000)


def bench_vtophys_run(per_op, block):
    per_op(lambda n: cy_env_memmap.pieces(block.address, SIZE, PIECE, n), 1_000_000)


@pytest.mark.parametrize("size", [2 * MIB, GIB], ids=["2 MiB", "1 GiB"])
def bench_memmap_register(per_op, size):
    """Register and unregister, with a map that is told and keeps a value for each page."""
    def on_change(address, size, added):
        if added:
            values.set(address, size, address)
        else:
            values.clear(address, size)
    values = Map(linear=True)
    told = Map(notify=on_change)

    def loop(n):
        for _ in range(n):
            memmap.register(1 << 40, size)
            memmap.unregister(1 << 40, size)
    per_op(loop, 200)
    told.free()


def bench_vtophys_learn(per_op):
    """Look up 64 MiB of ordinary pages in the page map, for each of them."""
    memory.init(EnvOptions(no_huge=True))
    memmap.init()
    vtophys.init()
    block = memory.zalloc(SIZE, 2 * MIB)
    if vtophys.why():
        per_op(lambda n: [vtophys.translate(block.address + at * 4096) for at in range(n)],
               SIZE // 4096)
    else:
        def loop(n):
            memmap.fini()
            memmap.init()
            vtophys.learn(block.address, n * 4096)
        per_op(loop, SIZE // 4096)
    block.free()
    vtophys.fini()
    memmap.fini()
    memory.fini()
