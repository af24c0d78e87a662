"""How much memory each NUMA node gives, in pages of which size, and how much there is.

Threads: any; nothing is kept between calls.
Fails:   OSError ENOMEM with what was asked and what can be had.
Source:  calc_num_pages_per_socket of DPDK 17.11.
"""
import errno
import os
import re

from vhostrt.env.roots import SYSTEM, Roots

MIB = 1 << 20
FILE_DEFAULT = 1024 * MIB       # bytes a node of a reserved file that is new, when none are told

Pages = dict[int, dict[int, int]]       # page size in bytes -> NUMA node -> pages


def on_node(pages: Pages, node: int) -> int:
    """Return the bytes that all pages of a node make."""
    return sum(size * of.get(node, 0) for size, of in pages.items())


def nodes_in(pages: Pages) -> list[int]:
    """Return the nodes with pages, ascending."""
    return sorted({node for of in pages.values() for node, count in of.items() if count})


def share_out(memory: int, pages: Pages, lcores: dict[int, int]) -> dict[int, int]:
    """Return NUMA node -> bytes: by how many lcores each has, no more than it has memory.

    What is left over then is taken from the nodes in ascending order; it may not suffice.
    """
    whole = sum(lcores.values())
    wanted = {}
    left = memory
    for node in sorted(set(lcores) | set(nodes_in(pages))):
        share = memory * lcores.get(node, 0) // whole if whole else 0
        wanted[node] = min(share, on_node(pages, node), left)
        left -= wanted[node]
    for node in wanted:
        more = min(left, on_node(pages, node) - wanted[node])
        wanted[node] += more
        left -= more
    return wanted


def pages_for(memory: int, pages: Pages, node: int) -> dict[int, int]:
    """Return page size -> pages of a node that make so many bytes, from the largest size down.

    One page more than needed is taken of a size when the smaller ones together cannot supply the
    rest.  Where all there is does not suffice, that is the answer.
    """
    taken = {}
    sizes = sorted(pages, reverse=True)
    for at, size in enumerate(sizes):
        there = pages[size].get(node, 0)
        taken[size] = min(memory // size, there)
        memory -= taken[size] * size
        smaller = sum(less * pages[less].get(node, 0) for less in sizes[at + 1:])
        if memory > smaller and taken[size] < there:
            taken[size] += 1
            memory = 0
        if not memory:
            break
    return {size: count for size, count in taken.items() if count}


def plan(pages: Pages, lcores: dict[int, int], memory: int | None,
         on_each: tuple[int, ...] = ()) -> Pages:
    """Choose the pages to keep of those there are.

    lcores: NUMA node -> its lcores.  memory: bytes in all; None: everything.  on_each: bytes of
    node 0, 1, ... instead of memory.
    Fails: OSError ENOMEM, with documented sentences, when there are not so many.
    """
    if on_each:
        wanted = {node: size for node, size in enumerate(on_each) if size}
    elif memory is None:
        return pages
    else:
        wanted = share_out(memory, pages, lcores)
    for node, size in wanted.items():
        if size > on_node(pages, node):
            raise shortage(f" on socket {node}", size, on_node(pages, node))
    if not on_each and sum(wanted.values()) < memory:
        raise shortage("", memory, sum(wanted.values()))
    kept: Pages = {size: {} for size in pages}
    for node, size in wanted.items():
        for page, count in pages_for(size, pages, node).items():
            kept[page][node] = count
    return kept


def shortage(where: str, wanted: int, there: int) -> OSError:
    """Make the error of pages that are too few, in the words of DPDK."""
    return OSError(errno.ENOMEM, f"Not enough memory available{where}! Requested: "
                                 f"{-(-wanted // MIB)}MB, available: {there // MIB}MB")


def shares(limit: int | None, directory: str, on: list[int],
           on_each: tuple[int, ...] = ()) -> dict[str, tuple[int, int]]:
    """Return path -> (bytes, node) of the reserved files; 0 bytes is the whole of the file.

    A limit is split over the nodes in whole MiB, the remainder to the first of them.  on_each:
    bytes of node 0, 1, ... instead of a limit.
    """
    wanted = {}
    if on_each:
        on = [node for node, size in enumerate(on_each) if size]
    for n, node in enumerate(on):
        path = os.path.join(directory, f"vhost_spdk_reserved_{node}")
        if on_each:
            size = on_each[node]
        elif limit is not None:
            mib = -(-limit // MIB)
            size = (mib // len(on) + (n < mib % len(on))) * MIB
        else:
            size = 0 if os.path.exists(path) and os.path.getsize(path) else FILE_DEFAULT
        if size or limit is None:
            wanted[path] = (size, node)
    return wanted


# What ordinary memory there is.

def read_number(path: str) -> int | None:
    """Return the number in a file; None when there is none."""
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def available(roots: Roots = SYSTEM) -> int:
    """Return the bytes that ordinary memory has for us: what is free, within the control group."""
    with open(roots.in_proc("meminfo")) as file:
        least = int(re.search(r"^MemAvailable:\s*(\d+) kB", file.read(), re.M)[1]) * 1024
    try:
        with open(roots.in_proc("self", "cgroup")) as file:
            group = re.search(r"^0::(.*)$", file.read(), re.M)
    except OSError:
        group = None
    # Up to the root, which inside a container is a group with limits of its own.
    path = group[1] if group else ""
    while group:
        top = roots.in_sys("fs", "cgroup") + path
        most, used = read_number(f"{top}/memory.max"), read_number(f"{top}/memory.current")
        if most is not None and used is not None:
            least = min(least, max(most - used, 0))
        if path in ("", "/"):
            break
        path = path.rpartition("/")[0]
    return least


def physical_memory(roots: Roots = SYSTEM) -> int:
    """Return the bytes of memory that the machine has."""
    with open(roots.in_proc("meminfo")) as file:
        return int(re.search(r"^MemTotal:\s*(\d+) kB", file.read(), re.M)[1]) * 1024
