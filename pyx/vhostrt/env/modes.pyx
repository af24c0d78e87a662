"""The start of the memory, by mode: where it comes from, what is taken at once, who may attach.

Owner:    memory.init calls start; what it makes is the heap's, and goes with memory.fini.
Threads:  the control thread.
Fails:    OSError or ValueError with a sentence; then nothing is left.
Source:   eal_memory.c and eal_hugepage_info.c of DPDK; legacy_mem is what 17.11 does always.
"""
import atexit
import os
import time
from collections import Counter

from libc.errno cimport EEXIST, EINVAL, ENODATA, ENODEV, ENOENT, ENOMEM, EOPNOTSUPP, EPROTO
from libc.stdint cimport SIZE_MAX, uint64_t, uintptr_t
from libc.string cimport memset, strcpy
from vhostrt.base.errors cimport ok
from vhostrt.env.growth cimport growth_supply
from vhostrt.env.heap cimport (REGION_FILE, WHOLE_WANTED, heap_add, heap_close, heap_drop,
                               heap_init, region_t)
from vhostrt.env.memory cimport env_begin
from vhostrt.env.pages cimport Pages, new_pages, reserved_pages
from vhostrt.env.region cimport region_break, region_next
from vhostrt.env.segment cimport (PAGE, SEGMENT_HUGE_FILE, SEGMENT_SHM, pages_available, segment_t,
                                  segment_unmap)
from vhostrt.env.shared cimport (config_attach, config_create, config_ready, config_unmap,
                                 env_config_t)
from vhostrt.env.supply cimport (HEAP_NODES, SUPPLY_NAME, SUPPLY_SIZES, pages_of_t, supply_segment,
                                 supply_t)
from vhostrt.env.tailq cimport new_list

from vhostrt.env import hugepages, memory_plan
from vhostrt.env.cpus import cpu_list
from vhostrt.env.memory_plan import MIB
from vhostrt.env.segment import hugepage_size
from vhostrt.env.shared import files_of, pid_of

ATTACH_S = 60                   # seconds that a secondary process waits for its primary to start
BASE_UNIT = 16 << 20            # --base-virtaddr is rounded up to it
RANGE_MIN = 64 << 30            # bytes of addresses kept for the segments of a shared environment
TAILQS = (b"RTE_RING", b"RTE_MEMPOOL")     # lists that are there from the start
FILES_MAX = 8                   # names of --mem-file, one a node


def is_private(options) -> bool:
    """True when no other process may attach: memory without files has nothing to attach to."""
    return options.private or options.in_memory


def check_options(options) -> None:
    """Raise OSError EINVAL for options that exclude each other, and for sizes that cannot be."""
    size = options.mem_size
    if size is not None and not 0 <= size <= SIZE_MAX // 4:
        ok(-EINVAL, f"memory of {size} bytes")
    if any(not 0 <= each <= SIZE_MAX // 4 for each in options.socket_mem):
        ok(-EINVAL, f"memory of {', '.join(map(str, options.socket_mem))} bytes on the NUMA nodes")
    pairs = (
        (options.mem_file_dir, options.mem_files, "a directory of reserved files and --mem-file"),
        (options.mem_file_dir or options.mem_files, options.no_huge,
         "reserved files and ordinary pages (--no-huge)"),
        (size, options.socket_mem, "a size of memory in all and one for each NUMA node"),
        (options.huge_dir, options.no_huge, "--huge-dir and --no-huge"),
        (options.huge_unlink, options.no_huge, "--huge-unlink and --no-huge"),
        (options.huge_dir, options.in_memory, "--huge-dir and --in-memory"),
        (options.mem_file_dir or options.mem_files, options.in_memory,
         "reserved files and --in-memory"),
    )
    for one, other, what in pairs:
        if one and other:
            ok(-EINVAL, f"{what} exclude each other")
    if len(options.mem_files) > FILES_MAX:
        ok(-EINVAL, f"memory file {options.mem_files[FILES_MAX]} is the "
                    f"{FILES_MAX + 1}th of --mem-file, and {FILES_MAX} are taken, one a NUMA node")
    if not all(options.mem_files):
        at = options.mem_files.index("")
        ok(-EINVAL, f"the name of the memory file of NUMA node {at} (--mem-file) is empty")
    for path in (*options.mem_files, options.mem_file_dir or "", options.huge_dir or ""):
        if "\0" in path:
            ok(-EINVAL, f"path {path!a:.61} has a NUL in it")
    twice = [path for path, n in Counter(map(os.path.realpath, options.mem_files)).items() if n > 1]
    if twice:
        ok(-EINVAL, f"memory file {twice[0]} is named more than once")
    if is_private(options) and options.proc_type == "secondary":
        ok(-EINVAL, "a secondary process needs a primary one to attach to, and this environment "
                    "is private: give both the same id (-i) or --file-prefix")


def start(options, lcores_on_node: dict | None) -> str:
    """Start the memory, or attach to that of another process; return the sentence about it."""
    check_options(options)
    if is_private(options):
        return start_primary(options, lcores_on_node, None)
    from vhostrt.env import runtime_dir
    prefix = options.file_prefix or f"spdk{options.shm_id}"
    claim = runtime_dir.claim(prefix, options.proc_type, pid_of)
    try:
        return start_primary(options, lcores_on_node, claim) if claim.primary else attach(claim)
    except BaseException:
        claim.release()
        raise


# The primary process.

cdef env_config_t *new_config(options, claim) except NULL:
    """Make the record, at the address that is asked for or where there is room."""
    cdef int rc = 0
    cdef env_config_t *c
    cdef char *at = NULL
    cdef uint64_t range_size = 0
    cdef int fd = -1 if claim is None else claim.fd
    if options.base_virtaddr:
        at = <char *><uintptr_t>(-(-options.base_virtaddr // BASE_UNIT) * BASE_UNIT)
    if claim is not None or options.base_virtaddr:
        range_size = max(RANGE_MIN, 4 * memory_plan.physical_memory(options.roots))
    c = config_create(fd, at, range_size, &rc)
    if rc == -EEXIST:
        ok(rc, f"--base-virtaddr {options.base_virtaddr:#x}: something else is mapped there or in "
               f"the {range_size >> 30} GiB behind it")
    ok(rc, "the record of the environment")
    return c


def start_primary(options, lcores_on_node, claim) -> str:
    """Make a record and fill its heap with what is to be there from the start."""
    cdef Start work = Start(options, lcores_on_node, claim)
    work.c = new_config(options, claim)
    try:
        for name in TAILQS:
            ok(new_list(work.c, name), "a tail queue")
        sentence = work.fill()
        env_begin(work.c, True, claim is not None, End(claim))
    except BaseException:
        work.undo()
        raise
    finally:
        work.unlock()
    if claim is None:
        return sentence
    claim.forget_dead()
    config_ready(work.c)
    if work.c.head.nameless:
        return f"{sentence}; no other process can attach, as its files are unlinked"
    return f"{sentence}; other processes attach as {claim.prefix}"


class End:
    """What is done when a primary process has given its memory back, or ends without that."""

    def __init__(self, claim) -> None:
        self.claim = claim
        if claim is not None:
            from vhostrt.env import memory
            atexit.register(memory.leave)

    def __call__(self, files: list) -> None:
        """Remove the files, then the record. Again: nothing."""
        if self.claim is not None:
            from vhostrt.env import memory
            atexit.unregister(memory.leave)
            remove(files)
            self.claim.release()
            self.claim = None


def remove(files: list) -> None:
    """Remove files, those that are there."""
    for path in dict.fromkeys(files):
        try:
            os.unlink(path)
        except OSError:
            pass


def remove_dead(path: str) -> None:
    """Remove the memory file of a dead process, unless somebody has its lock."""
    name = os.path.basename(path)
    try:
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return                          # what it was in is gone
    try:
        if "map_" in name:
            hugepages.remove_unlocked(name, folder)
    finally:
        os.close(folder)


cdef class Start:
    """The start of one primary process."""
    cdef env_config_t *c
    cdef supply_t *supply
    cdef object options
    cdef object claim           # None: private
    cdef list nodes             # NUMA nodes of the machine
    cdef object given           # NUMA node -> lcores, or None
    cdef dict locks             # (device, inode) of a hugetlbfs directory -> its locked descriptor
    cdef str refusal            # why huge pages that are free cannot be had, or None
    cdef bint unmounted         # there are huge pages that no hugetlbfs is mounted for

    def __init__(self, options, lcores_on_node, claim):
        self.supply = growth_supply()
        self.options = options
        self.claim = claim
        self.nodes = hugepages.nodes(options.roots)
        self.given = lcores_on_node
        self.locks = {}

    cdef dict lcores(self):
        """Return NUMA node -> lcores, or CPUs where nobody said."""
        if self.given is None:
            from vhostrt.env.cpus import detect
            self.given = Counter(cpu.node for cpu in
                                 detect(within_affinity=True, roots=self.options.roots))
        return dict(self.given)

    cdef int lock(self, str directory) except -1:
        """Wait for the lock of a hugetlbfs directory, kept to the end of the start, and clear it.
        """
        try:
            about = os.stat(directory)
        except OSError as error:
            raise hugepages.failure(error, f"hugepage directory {directory}") from None
        # By whatever name: it would wait for itself.
        itself = (about.st_dev, about.st_ino)
        if itself not in self.locks:
            self.locks[itself] = hugepages.lock_directory(directory)
            hugepages.clear_directory(directory)
        return 0

    cdef int unlock(self) except -1:
        while self.locks:
            os.close(self.locks.popitem()[1])
        return 0

    cdef int undo(self) except -1:
        """Give back what a start that fails has made."""
        cdef region_t *region = region_next(&self.c.heap, NULL)
        files = []
        while region is not NULL:
            if region.segment.kind == SEGMENT_HUGE_FILE or region.segment.kind == SEGMENT_SHM:
                files.append(region.file.decode("utf-8", "surrogateescape"))
            region = region_next(&self.c.heap, region)
        heap_close(&self.c.heap)
        config_unmap(self.c)
        remove([path for path in files if path])
        return 0

    # What there is to take from.

    cdef int set_supply(self) except -1:
        """Fill in where segments come from."""
        cdef int i
        options = self.options
        memset(self.supply, 0, sizeof(supply_t))
        self.supply.unlink = self.claim is None or options.huge_unlink
        self.supply.single = options.single_file_segments
        self.supply.enforce = options.enforce_numa
        self.supply.node_count = min(len(self.nodes), <int>HEAP_NODES)
        for i in range(self.supply.node_count):
            self.supply.nodes[i] = self.nodes[i]
        prefix = f"spdk_pid{os.getpid()}" if self.claim is None else self.claim.prefix
        strcpy(self.supply.prefix, os.fsencode(prefix))
        set_pages(&self.supply.ordinary, PAGE,
                  None if self.claim is None else self.options.roots.in_dev("shm"), True)
        return 0 if options.no_huge else self.set_huge()

    cdef int set_huge(self) except -1:
        """Fill in the sizes of huge pages, the one that is taken without being asked for first."""
        sizes = [page for page in hugepages.scan(self.options.roots) if page.size > PAGE]
        directory = self.options.huge_dir
        if directory is not None:
            size = hugepage_size(directory)
            if not size:
                ok(-EOPNOTSUPP, f"--huge-dir {directory!a:.61}: no hugetlbfs is mounted there, "
                   "mount one (vhostrt-hugepages mount) or name another")
            sizes = [page for page in sizes if page.size == size]
        default = hugepages.default_size(self.options.roots) if sizes else 0
        sizes.sort(key=lambda page: (page.size != default, page.size))
        for page in sizes[:SUPPLY_SIZES]:
            # Where nobody reserves pages of the default size, those that are reserved are meant.
            unasked = page is sizes[0] or not sizes[0].total and page.total
            where = directory
            if where is None and self.claim is not None:
                where = page.mounts[0] if page.mounts else None
                if where is None:
                    self.unmounted = self.unmounted or page.available > 0
                    continue            # nobody else could map its memory
            set_pages(&self.supply.huge[self.supply.huge_count], page.size, where, unasked)
            self.supply.huge_count += 1
            if where is not None:
                self.lock(where)
        return 0

    cdef int clear_shared(self) except -1:
        """Remove the files that a dead primary process of this prefix has left."""
        if self.claim is None:
            return 0
        dead = files_of(self.claim.dead) if self.claim.dead >= 0 else []
        shm = self.options.roots.in_dev("shm")
        try:
            dead += [os.path.join(shm, name) for name in os.listdir(shm)
                     if name.startswith(f"{self.claim.prefix}map_")]
        except OSError:
            pass
        for path in dict.fromkeys(dead):
            remove_dead(path)
        return 0

    cdef object available(self):
        """Return page size -> NUMA node -> huge pages that can be had without asking for a size."""
        cdef int i
        pages = {}
        for i in range(self.supply.huge_count):
            size = self.supply.huge[i].size
            if self.supply.huge[i].unasked:
                counts = hugepages.node_counts(size, self.options.roots)
                free = {node: counts.get(node, (0, 0))[1] for node in self.nodes}
                if len(self.nodes) == 1:
                    free = {self.nodes[0]: pages_available(size)}
                pages[size] = free
        return pages

    # The modes.

    cdef str fill(self):
        """Take what is to be there from the start; return the sentence about it."""
        options = self.options
        for node, size in enumerate(options.socket_mem):
            if size and node not in self.nodes:
                ok(-ENODEV, f"memory of {size // MIB} MiB on NUMA node {node}: this machine has "
                            f"the nodes {cpu_list(self.nodes)}")
        heap_init(&self.c.heap, SIZE_MAX // 2)
        self.c.heap.iova_is_va = options.iova_mode == "va"
        self.c.head.nameless = self.claim is not None and options.huge_unlink
        self.clear_shared()
        if options.mem_file_dir or options.mem_files:
            sentence = self.fill_from_files()
        elif options.legacy_mem and not options.no_huge:
            sentence = self.fill_sorted()
        else:
            sentence = self.fill_as_needed()
        if self.c.heap.total:
            self.c.heap.limit = self.c.heap.total
        return sentence

    cdef str fill_from_files(self):
        """Map files that keep their pages: one for each node in a directory, or those named."""
        cdef Pages pages
        options = self.options
        self.set_supply()
        self.supply.fixed = True
        if options.mem_files:
            files = {path: (0, node) for node, path in enumerate(options.mem_files)}
        else:
            files = memory_plan.shares(options.mem_size or None, options.mem_file_dir, self.nodes,
                                       options.socket_mem)
        for path in files:
            directory = os.path.dirname(path) or "."
            if os.path.isdir(directory) and hugepage_size(directory):
                self.lock(directory)
        told = True
        for path, (size, node) in files.items():
            pages = reserved_pages(path, size, node if node in self.nodes else -1,
                                   self.claim is not None)
            pages.learn(not self.c.heap.iova_is_va, True)
            pages.label(node)
            pages.map_into(self.c)
            told = told and pages.physical
        return (f"Memory: {self.c.heap.total // MIB} MiB of huge pages in {', '.join(files)}"
                f"{self.pieces(told)}")

    cdef str pieces(self, told):
        """Say into how many pieces the memory falls for a device."""
        cdef region_t *region = region_next(&self.c.heap, NULL)
        cdef size_t start
        cdef int n = 0
        if self.c.heap.iova_is_va:
            return ""
        if not told:
            return ", no physical addresses"
        while region is not NULL:
            start = region_break(&self.c.heap, region, 0, region.segment.size, WHOLE_WANTED)
            n += 1
            while start:
                n += 1
                start = region_break(&self.c.heap, region, start, region.segment.size - start,
                                     WHOLE_WANTED)
            region = region_next(&self.c.heap, region)
        return f", {n} contiguous segment{'s' * (n != 1)}"

    cdef str fill_sorted(self):
        """Map every free huge page, sort them by address, and keep as many as are asked for."""
        cdef Pages pages
        options = self.options
        self.set_supply()
        self.supply.fixed = True
        wanted = options.mem_size or sum(options.socket_mem) or None
        taken = {}
        looked = []
        for at in sorted(range(self.supply.huge_count),
                         key=lambda i: -self.supply.huge[i].size):
            size = self.supply.huge[at].size
            count = had = pages_available(size)
            if count:
                pages = new_pages(self.supply, &self.supply.huge[at], count)
                pages.learn(not self.c.heap.iova_is_va, len(self.nodes) == 1)
                taken[size] = pages
                had = len(pages)
            looked.append(f"{had} of {count} free ones of {hugepages.size_text(size)}")
        had = ", ".join(looked) or "no hugetlbfs is mounted that others could map"
        if not any(len(pages) for pages in taken.values()):
            ok(-ENOMEM, f"Cannot get hugepage information: there are no free huge pages ({had}); "
                        "reserve some, with vhostrt-hugepages, or leave --legacy-mem")
        try:
            kept = memory_plan.plan({size: pages.by_node() for size, pages in taken.items()},
                                    self.lcores(), wanted, options.socket_mem)
        except OSError as error:
            raise OSError(error.errno,
                          f"{error.strerror} (pages that could be had: {had})") from None
        told = True
        for size, pages in taken.items():
            pages.keep(kept[size])
            pages.map_into(self.c)
            told = told and pages.physical
        return f"Memory: {self.total_text()}{self.pieces(told)}"

    cdef str total_text(self):
        """Say how much of what pages the heap has."""
        cdef region_t *region = region_next(&self.c.heap, NULL)
        sizes = Counter()
        while region is not NULL:
            sizes[region.segment.page_size] += region.segment.size
            region = region_next(&self.c.heap, region)
        return " and ".join(f"{total // MIB} MiB of huge pages of {hugepages.size_text(size)}"
                            for size, total in sizes.items())

    cdef str fill_as_needed(self):
        """Take nothing, or promise the heap all of its limit; untouched in either case."""
        options = self.options
        limit = options.mem_size or sum(options.socket_mem) or None
        self.set_supply()
        free = sum(size * sum(on.values()) for size, on in self.available().items())
        if limit is None and free:
            sizes = [hugepages.size_text(size) for size in self.available()]
            return (f"Memory: huge pages of {' and '.join(sizes)} as long as there are any, taken "
                    "when needed")
        if limit is not None and self.promise_huge(limit):
            return f"Memory: {self.total_text()}, reserved"
        self.supply.anywhere = ((limit is not None or options.no_huge)
                                and not options.enforce_numa)
        if limit is not None:
            self.promise_ordinary(limit)
        reason = f"{free // MIB} MiB of huge pages are free"
        if options.no_huge:
            reason = "as asked"
        elif self.refusal:
            reason = self.refusal
        elif self.unmounted:
            reason = "no hugetlbfs is mounted that other processes could map files of"
        return f"Memory: ordinary pages, transparent huge pages asked for ({reason})"

    cdef bint promise_huge(self, limit) except -1:
        """Map all of a limit on huge pages; False when there are not so many."""
        cdef int i, rc
        try:
            kept = memory_plan.plan(self.available(), self.lcores(), limit,
                                    self.options.socket_mem)
        except OSError:
            return False
        for i in range(self.supply.huge_count):
            for node, count in kept.get(self.supply.huge[i].size, {}).items():
                rc = self.promise(&self.supply.huge[i], count * self.supply.huge[i].size, node)
                if rc < 0:
                    # Somebody has taken them meanwhile, or they cannot be had in this directory.
                    if self.supply.huge[i].directory[0]:
                        where = os.fsdecode(self.supply.huge[i].directory)
                        self.refusal = f"huge pages in {where!a:.61}: {os.strerror(-rc)}"
                    self.undo_promises()
                    return False
        self.supply.fixed = True
        return True

    cdef int promise_ordinary(self, limit) except -1:
        """Map all of a limit on ordinary pages."""
        there = memory_plan.available(self.options.roots)
        if limit > there:
            ok(-ENOMEM, f"memory of {limit // MIB} MiB: {there // MIB} MiB can be had, "
                "ask for no more (-s)")
        anything = {PAGE: dict.fromkeys(self.nodes, limit)}
        wanted = (dict(enumerate(self.options.socket_mem)) or
                  memory_plan.share_out(limit, anything, self.lcores()))
        for node, size in wanted.items():
            if size:
                ok(self.promise(&self.supply.ordinary, size, node),
                   f"memory of {size // MIB} MiB on NUMA node {node}")
        self.supply.fixed = True
        return 0

    cdef int promise(self, pages_of_t *pages, size_t size, int node) except? -1:
        """Map untouched memory of a node as a part of the heap that stays; 0 or -errno."""
        cdef segment_t segment
        cdef char file[REGION_FILE]
        cdef region_t *region
        cdef int rc = supply_segment(self.supply, self.c, pages, size, node, NULL, &segment, file)
        if rc < 0:
            return rc
        region = heap_add(&self.c.heap, &segment, True, &rc)
        if region is NULL:
            segment_unmap(&segment)
        elif not self.supply.unlink:
            strcpy(region.file, file)
        return rc

    cdef int undo_promises(self) except -1:
        """Give back what has been mapped so far."""
        cdef region_t *region = region_next(&self.c.heap, NULL)
        while region is not NULL:
            remove([region.file.decode("utf-8", "surrogateescape")] if region.file[0] else [])
            heap_drop(&self.c.heap, region)
            region = region_next(&self.c.heap, NULL)
        return 0


cdef int set_pages(pages_of_t *pages, size_t size, directory, bint unasked) except -1:
    """Fill in one size of pages, and the directory of its files: None for memfds."""
    pages.size = size
    pages.unasked = unasked
    name = os.fsencode(directory or "")
    if len(name) >= SUPPLY_NAME:
        raise ValueError(f"directory of memory files {directory!a}: {SUPPLY_NAME - 1} bytes at "
                         "most")
    strcpy(pages.directory, name)
    return 0


# A secondary process.

def attach(claim) -> str:
    """Map the record of the primary process, and all of its memory."""
    from vhostrt.env import memory, runtime_dir
    cdef int rc = 0
    cdef env_config_t *c = config_attach(claim.fd, &rc)
    end = time.monotonic() + ATTACH_S
    while rc == -ENODATA:
        if not claim.alive():
            raise runtime_dir.nobody(claim.prefix)
        if time.monotonic() > end:
            ok(rc, f"process {pid_of(claim.fd)} is the primary process of {claim.prefix}, and has "
                   f"not started in {ATTACH_S} seconds")
        time.sleep(0.005)
        c = config_attach(claim.fd, &rc)
    what = f"attaching to process {pid_of(claim.fd)} ({claim.path})"
    if rc == -EEXIST:
        ok(rc, f"{what}: its addresses are in use here; give the primary process others, with "
               "--base-virtaddr")
    if rc == -ENOENT:
        ok(rc, f"{what}: its memory has no files, as it was started with --huge-unlink")
    if rc == -EPROTO:
        ok(rc, f"{what}: it is of another version")
    ok(rc, what)
    env_begin(c, False, True, lambda files: claim.release())
    try:
        now = memory.stats()
    except OSError:
        memory.fini()
        raise
    return (f"Memory: that of process {c.head.pid}, {now['total'] // MIB} MiB in "
            f"{now['segments']} segments")
