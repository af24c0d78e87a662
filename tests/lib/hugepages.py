"""Huge pages of a test's own: really reserved, and a hugetlbfs to put files in.

Who changes the pages of the machine holds the lock of /proc/sys/vm/nr_hugepages meanwhile, so that
tests that run at once do not take each other's. Where the machine does not let us, the test is told
so and checks what happens then; with VHOSTRT_HUGE_PAGES=needed that is a failure.
"""
import contextlib
import fcntl
import os
import subprocess
import time

from vhostrt.env import hugepages

MIB, GIB = 1 << 20, 1 << 30
RESERVED = "/proc/sys/vm/nr_hugepages"
depth, lock = 0, -1                     # of this process, which has one thread here


def refused(why):
    """Note that the machine does not let us."""
    needed = os.environ.get("VHOSTRT_HUGE_PAGES") == "needed"
    assert not needed, f"this has to run on huge pages: {why}"


def of_size(size):
    """Return what the kernel has of a page size."""
    return next((page for page in hugepages.scan() if page.size == size), None)


def available():
    """Return the bytes of free huge pages of all sizes."""
    return sum(page.size * page.available for page in hugepages.scan())


def set_total(size, total):
    """Have so many pages in all; return how many there are. OSError without the right."""
    there = hugepages.set_reserved(size, total)
    for _ in range(5):
        if there >= total:
            break
        with contextlib.suppress(OSError), open("/proc/sys/vm/compact_memory", "w") as file:
            file.write("1")
        there = hugepages.set_reserved(size, total)
    return there


@contextlib.contextmanager
def alone():
    """Hold the machine's huge pages against other tests; this one may do so more than once."""
    global depth, lock
    if depth == 0:
        lock = os.open(RESERVED, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
    depth += 1
    try:
        yield
    finally:
        depth -= 1
        if depth == 0:
            os.close(lock)


@contextlib.contextmanager
def reserved(count, size=2 * MIB):
    """Reserve `count` pages more than there are; yields whether there are so many free ones."""
    with alone():
        before = of_size(size)
        if before is None:
            yield False
            return
        try:
            set_total(size, before.total + count)
        except OSError as error:
            refused(error)
        there = of_size(size).available >= count
        if not there and size == 2 * MIB:       # larger ones are a matter of luck
            refused(f"{of_size(size).available} of {count} pages are free")
        try:
            yield there
        finally:
            give_back(size, before.total)


def give_back(size, total):
    """Have as many pages as before; those that a process has just left may take a moment."""
    deadline = time.monotonic() + 5
    with contextlib.suppress(OSError):
        while hugepages.set_reserved(size, total) > total and time.monotonic() < deadline:
            time.sleep(0.01)
    assert of_size(size).total <= total or not os.access(RESERVED, os.W_OK)


@contextlib.contextmanager
def mounted(path, size=2 * MIB, more=""):
    """Mount a hugetlbfs, with more options where wanted; yields whether that is allowed."""
    done = subprocess.run(["mount", "-t", "hugetlbfs", "-o", f"pagesize={size >> 10}K{more}",
                           "none", str(path)], capture_output=True, text=True)
    if done.returncode:
        refused(done.stderr)
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", str(path)], check=True)


@contextlib.contextmanager
def limited(pages, size=2 * MIB):
    """A control group of at most so many huge pages, all of one size; yields its cgroup.procs.

    A process that has joined it has to leave it, or end, before it goes.
    """
    top = next(top for top in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified") if has_hugetlb(top))
    control, group = f"{top}/cgroup.subtree_control", f"{top}/vhostrt-test-{os.getpid()}"
    had = read(control).split()
    write(control, "+hugetlb")
    os.mkdir(group)
    try:
        for page in hugepages.scan():
            name = hugepages.size_text(page.size).replace(" MiB", "MB").replace(" GiB", "GB")
            write(f"{group}/hugetlb.{name}.max", str(pages * size if page.size == size else 0))
        yield f"{group}/cgroup.procs"
    finally:
        os.rmdir(group)
        if "hugetlb" not in had:
            write(control, "-hugetlb")


def has_hugetlb(top):
    """Whether control groups below a directory can limit huge pages."""
    try:
        return "hugetlb" in read(f"{top}/cgroup.controllers").split()
    except OSError:
        return False


def can_limit():
    """Whether a test may limit huge pages."""
    there = any(has_hugetlb(top) for top in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"))
    return there and os.geteuid() == 0


def read(path):
    with open(path) as file:
        return file.read()


def write(path, text):
    with open(path, "w") as file:
        file.write(text)
