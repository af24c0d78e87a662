"""The command vhostrt-hugepages: show, reserve and release huge pages, mount and unmount them.

What dpdk-hugepages does, for every size of pages and for each NUMA node.

Exit status: 0 done, 1 not or not wholly done, with one sentence why on stderr; 2 bad usage.
"""
import argparse
import errno
import json
import os
import sys
from typing import Any

from vhostrt import stdio, values
from vhostrt.env import hugepages
from vhostrt.env.hugepages import PageSize, size_text
from vhostrt.env.roots import Roots
from vhostrt.values import GIB, KIB, MIB

NAME = "vhostrt-hugepages"
# Flags of mount(2); the standard library does not have them.
MS_NOSUID, MS_NODEV = 2, 4
COLUMNS = ("PAGE SIZE", "NODE", "PAGES", "FREE", "PROMISED", "SURPLUS", "MEMORY", "MOUNTED AT")
EXAMPLES = f"""examples:
  {NAME}                              what there is
  {NAME} setup 2G                     1024 pages of 2 MiB, mounted at /dev/hugepages
  {NAME} setup 4G --page-size 1G      four pages of 1 GiB, mounted at /dev/hugepages-1G
  {NAME} reserve 512M --node 1        256 pages of 2 MiB on NUMA node 1
  {NAME} release                      give the free pages of the default size back

SIZE is in MiB, or with k, M, G or T behind it. Changing anything needs root."""


def main(words: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    stdio.prepare()
    arguments = parser().parse_args(words)
    try:
        return arguments.run(arguments)
    except (OSError, ValueError) as error:
        return failed(getattr(error, "strerror", None) or str(error))
    finally:
        stdio.settle()


def failed(why: str) -> int:
    print(f"{NAME}: {why}", file=sys.stderr)
    return 1


def say(text: str) -> int:
    """Print on stdout; return the exit status."""
    why = stdio.say(text)
    return failed(f"cannot print on stdout: {why}") if why else 0


# The command line.

def of(read: Any, what: str) -> Any:
    """Make a reader of argparse from one of vhostrt.values."""
    def reader(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    reader.__name__ = what
    return reader


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        NAME, description="Show, reserve, mount and release huge pages.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--root", metavar="DIR", default="/", help="look at sys, proc and dev in DIR "
                     "instead of the system's own")
    top.set_defaults(run=show, json=False)
    commands = top.add_subparsers(title="commands", metavar="COMMAND",
                                  description="without one: show")
    command = commands.add_parser("show", help="list sizes, counts, NUMA nodes and mounts")
    command.add_argument("--json", action="store_true", help="as JSON, sizes in bytes")
    command.set_defaults(run=show)
    for name, run, text in (("reserve", reserve, "have so much memory in huge pages"),
                            ("setup", setup, "reserve and mount")):
        command = commands.add_parser(name, help=text, description=f"{text}.".capitalize())
        amount = command.add_mutually_exclusive_group(required=True)
        amount.add_argument("size", metavar="SIZE", nargs="?", type=of(values.read_bytes, "size"),
                            help="memory in all, in MiB or with k, M, G or T; a whole number of "
                            "pages")
        amount.add_argument("--pages", metavar="N", type=of(values.read_number, "number"),
                            help="pages in all, instead of SIZE")
        add_which(command)
        if name == "setup":
            add_mount(command, "--directory")
        command.set_defaults(run=run)
    command = commands.add_parser("release", help="give pages back to the system")
    add_which(command)
    command.set_defaults(run=release)
    command = commands.add_parser("mount", help="mount a hugetlbfs, where programs take pages from")
    add_size(command)
    add_mount(command, "directory", nargs="?")
    command.set_defaults(run=mount)
    command = commands.add_parser("unmount", help="unmount a hugetlbfs")
    add_size(command)
    command.add_argument("directory", metavar="DIR", nargs="?",
                         help="the mount point (default: as of mount)")
    command.set_defaults(run=unmount)
    return top


def add_size(command: argparse.ArgumentParser) -> None:
    command.add_argument("--page-size", metavar="SIZE", type=of(values.read_bytes, "size"),
                         help="size of the pages, such as 2M or 1G (default: the system's default)")


def add_which(command: argparse.ArgumentParser) -> None:
    add_size(command)
    command.add_argument("--node", metavar="N", type=of(values.read_number, "number"),
                         help="NUMA node (default: wherever the kernel finds room)")


def add_mount(command: argparse.ArgumentParser, name: str, **more: Any) -> None:
    command.add_argument(name, metavar="DIR", **more, help="where to mount, made when missing "
                         "(default: /dev/hugepages, or /dev/hugepages-1G and the like for another "
                         "size than the default)")
    command.add_argument("--user", type=of(values.read_user_id, "user"), help="owner of the mount")
    command.add_argument("--group", type=of(values.read_group_id, "group"),
                         help="group of the mount")
    command.add_argument("--mode", type=of(values.read_mode, "mode"),
                         help="permissions of the mount, octal (default: 0755)")


def roots_of(arguments: argparse.Namespace) -> Roots:
    return Roots(*(os.path.join(arguments.root, name) for name in ("sys", "proc", "dev")))


def page_size(arguments: argparse.Namespace) -> PageSize:
    """Return the size that is meant.  Fails: OSError when the kernel has not got it."""
    roots = roots_of(arguments)
    size = arguments.page_size or hugepages.default_size(roots)
    for page in hugepages.scan(roots):
        if page.size == size:
            return page
    there = ", ".join(size_text(page.size) for page in hugepages.scan(roots)) or "none at all"
    raise OSError(errno.ENOENT, f"the kernel has no huge pages of {size_text(size)}; it has "
                                f"{there}")


# show

def memory_text(size: int) -> str:
    """Write an amount of memory in whole units."""
    return size_text(size) if size else "0"


def rows_of(page: PageSize, roots: Roots) -> list[tuple[str, ...]]:
    """Return the lines of the table about one size: all, then each node where there are several."""
    nodes = hugepages.node_counts(page.size, roots)
    usual = " (default)" if page.size == hugepages.default_size(roots) else ""
    node = "all" if len(nodes) > 1 else str(min(nodes))
    rows = [(size_text(page.size) + usual, node, str(page.total), str(page.free),
             str(page.reserved), str(page.surplus), memory_text(page.total * page.size),
             " ".join(page.mounts) or "-")]
    if len(nodes) > 1:
        rows += [("", str(node), str(total), str(free), "", "", memory_text(total * page.size), "")
                 for node, (total, free) in nodes.items()]
    return rows


def table(rows: list[tuple[str, ...]]) -> str:
    """Lay rows out in columns, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = (0, len(COLUMNS) - 1)
    return "\n".join("  ".join(
        text.ljust(width) if at in left else text.rjust(width)
        for at, (text, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows)


def as_json(pages: list[PageSize], roots: Roots) -> str:
    return json.dumps({
        "default_size": hugepages.default_size(roots) if pages else None,
        "sizes": [page._asdict() | {"nodes": [
            {"node": node, "total": total, "free": free}
            for node, (total, free) in hugepages.node_counts(page.size, roots).items()]}
            for page in pages]}, indent=2)


def show(arguments: argparse.Namespace) -> int:
    roots = roots_of(arguments)
    pages = hugepages.scan(roots)
    if arguments.json:
        return say(as_json(pages, roots))
    if not pages:
        return failed("the kernel has no huge pages")
    return say(table([COLUMNS, *(row for page in pages for row in rows_of(page, roots))]))


# reserve, release

def pages_asked(arguments: argparse.Namespace, page: PageSize) -> int:
    if arguments.pages is not None:
        return arguments.pages
    count, rest = divmod(arguments.size, page.size)
    if rest:
        raise ValueError(f"{size_text(arguments.size)} is not a whole number of pages of "
                         f"{size_text(page.size)}")
    return count


def set_count(arguments: argparse.Namespace, page: PageSize, count: int) -> int:
    """Ask for pages; return how many there are.  Fails: OSError, which tells who may."""
    try:
        return hugepages.set_reserved(page.size, count, arguments.node, roots_of(arguments))
    except OSError as error:
        raise for_root(error) from None


def for_root(error: OSError) -> OSError:
    """Return an error with the hint that it takes root, where that is the reason."""
    denied = error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() != 0
    return OSError(error.errno, error.strerror + "; this needs root" * denied)


def where(arguments: argparse.Namespace) -> str:
    return "" if arguments.node is None else f" on NUMA node {arguments.node}"


def reserve(arguments: argparse.Namespace) -> int:
    page = page_size(arguments)
    asked = pages_asked(arguments, page)
    had = set_count(arguments, page, asked)
    place, size = where(arguments), size_text(page.size)
    if had < asked:
        return failed(f"{had} of {asked} pages of {size}{place} could be had, and are kept: memory "
                      "is short or in pieces; soon after a boot there is more")
    if had > asked:
        return failed(f"{had} pages of {size}{place} are in use, more than the {asked} asked for; "
                      "they go when their users end")
    return say(f"{had} pages of {size}{place}: {memory_text(had * page.size)}")


def release(arguments: argparse.Namespace) -> int:
    page = page_size(arguments)
    left = set_count(arguments, page, 0)
    place, size = where(arguments), size_text(page.size)
    if left:
        return failed(f"{left} pages of {size}{place} are in use; they go when their users end")
    return say(f"no pages of {size}{place} are reserved any more")


# mount, unmount

def short(size: int) -> str:
    """Write a page size as a mount option or a name has it: 2M."""
    unit, letter = next((unit, letter) for unit, letter in ((GIB, "G"), (MIB, "M"), (KIB, "K"))
                        if size % unit == 0)
    return f"{size // unit}{letter}"


def directory_of(arguments: argparse.Namespace, page: PageSize) -> str:
    """Return where a size is mounted: as told, else in its place in /dev."""
    if arguments.directory is not None:
        return os.path.abspath(arguments.directory)
    roots = roots_of(arguments)
    usual = page.size == hugepages.default_size(roots)
    return roots.in_dev("hugepages" if usual else f"hugepages-{short(page.size)}")


def system_call(name: str, *arguments: Any) -> None:
    """Call mount(2) or umount2(2).  Fails: OSError with the system's words."""
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def mount_options(arguments: argparse.Namespace, page: PageSize) -> str:
    words = [f"pagesize={short(page.size)}"]
    words += [] if arguments.mode is None else [f"mode={arguments.mode:o}"]
    words += [] if arguments.user is None else [f"uid={arguments.user}"]
    words += [] if arguments.group is None else [f"gid={arguments.group}"]
    return ",".join(words)


def mount(arguments: argparse.Namespace) -> int:
    page = page_size(arguments)
    path = directory_of(arguments, page)
    size = size_text(page.size)
    # Of several mounts on one path the last is seen.
    mounted = dict(hugepages.mount_sizes(roots_of(arguments)))
    if mounted.get(path) == page.size:
        return say(f"pages of {size} are mounted at {path} already")
    if path in mounted:
        return failed(f"pages of {size_text(mounted[path])} are mounted at {path} already; name "
                      "another directory, or unmount that first")
    made = not os.path.exists(path)
    try:
        os.makedirs(path, exist_ok=True)
        system_call("mount", b"hugetlbfs", os.fsencode(path), b"hugetlbfs", MS_NOSUID | MS_NODEV,
                    mount_options(arguments, page).encode())
    except OSError as error:
        if made and os.path.isdir(path):
            os.rmdir(path)
        what = OSError(error.errno, f"pages of {size} cannot be mounted at {path}: "
                                    f"{error.strerror}")
        raise for_root(what) from None
    return say(f"pages of {size} are mounted at {path}")


def unmount(arguments: argparse.Namespace) -> int:
    path = directory_of(arguments, page_size(arguments))
    if path not in dict(hugepages.mount_sizes(roots_of(arguments))):
        return failed(f"no hugetlbfs is mounted at {path}")
    try:
        system_call("umount2", os.fsencode(path), 0)
    except OSError as error:
        what = OSError(error.errno, f"{path} cannot be unmounted: {error.strerror}")
        raise for_root(what) from None
    return say(f"{path} is unmounted")


def setup(arguments: argparse.Namespace) -> int:
    """Reserve and mount; what could be had of the one does not keep from the other."""
    reserved = reserve(arguments)
    return mount(arguments) or reserved


if __name__ == "__main__":
    sys.exit(main())
