"""The floors of the compiled core: each cimports and includes only from itself and from below.

The list runs from the ground up; the Python shell (everything else in vhostrt) is above them all.
"""
import re
from pathlib import Path

from tests.source.cysource import logical_lines

FLOORS = ["base", "env", "event", "bdev", "virtio", "scsi", "vhost"]

_MODULE = re.compile(r"(?:from|cimport|import)\s+vhostrt\.(\w+)")
_MEMBER = re.compile(r"from\s+vhostrt\s+c?import\s+(.+)")
_SEVERAL = re.compile(r"c?import\s+(vhostrt\.\w+.*)")
_INCLUDE = re.compile(r'^\s*#\s*include\s+["<]vhostrt/(\w+)/', re.M)
_RELATIVE = re.compile(r"from\s+\.|import\s+\.")


def used_floors(source: str) -> list[tuple[int, str]]:
    """Return (line, floor) for what a .pyx, .pxd or .h takes from vhostrt."""
    used = []
    for line in logical_lines(source):
        if _RELATIVE.match(line.text):
            used.append((line.at, "."))
        elif found := _MEMBER.match(line.text):
            used += [(line.at, name.split()[0]) for name in found[1].strip("()").split(",") if name]
        elif found := _SEVERAL.match(line.text):
            used += [(line.at, name) for name in re.findall(r"vhostrt\.(\w+)", found[1])]
        elif found := _MODULE.match(line.text):
            used.append((line.at, found[1]))
    # Includes of C stand in strings here, and in .h.
    for found in _INCLUDE.finditer(source):
        used.append((source.count("\n", 0, found.start()) + 1, found[1]))
    return used


def violations(path: Path, root: Path, source: str) -> list[str]:
    """Return "LINE: what is wrong" for the file at `path` of the tree pyx/ at `root`."""
    floor = path.relative_to(root).parts[1]
    if floor not in FLOORS:
        return [f"{floor} is no floor of the compiled core"]
    below = FLOORS[:FLOORS.index(floor) + 1]
    return [f"{at}: {floor} takes from {used}" for at, used in used_floors(source)
            if used not in below]
