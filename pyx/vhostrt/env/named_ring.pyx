"""Rings with a name, which every process of the environment finds: each in a zone of its own.

The zone of the ring x is RG_x; the tail queue RTE_RING lists it under x.

Owner:    a named ring is there until it is freed, in the primary process.
Threads:  set-up time; the ring itself as ring.pxd says.
Fails:    -errno below, OSError with a sentence above.
"""
from libc.errno cimport EBUSY, EEXIST, EINVAL, ENAMETOOLONG, ENOMEM
from libc.stdint cimport uint32_t, uintptr_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, strlen
from posix.unistd cimport getpid
from vhostrt.base.atomics cimport fetch_add_u32
from vhostrt.base.errors cimport ok
from vhostrt.env.memory cimport env_sentence
from vhostrt.env.ring cimport (Ring, check_count, checked_kind, ring_init, ring_size,
                               ring_slots_for, ring_t)
from vhostrt.env.shared cimport zone_t
from vhostrt.env.tailq cimport tailq_add, tailq_find, tailq_remove
from vhostrt.env.zone cimport zone_free_name, zone_reserve

from vhostrt.env import tailq, zone

cdef enum:
    CACHE_LINE = 64
    NAME_MAX = 28               # characters: those of the zone's name, without its prefix

cdef const char *LIST = b"RTE_RING"
cdef uint32_t g_next = 0        # of the rings that are named here


cdef void zone_name(char *into, const char *name) noexcept nogil:
    """Write the name of a ring's zone, of at most 31 characters."""
    snprintf(into, 32, b"RG_%.28s", name)


cdef ring_t *ring_create_named(const char *name, uint32_t count, uint32_t kind, int node,
                               int *rc) noexcept nogil:
    """Return a new ring that every process finds by its name, or NULL and why.

    name: of 1 to 28 characters; NULL: ring_<n>_<pid>, as spdk_ring_create names its own.  count
    and kind as ring_init; node: a NUMA node, and then no other; -1 for any.
    -EINVAL        ring_init refuses count or kind; no name; no such node
    -ENAMETOOLONG  the name has more than 28 characters
    -EEXIST        there is one of that name
    -ENOMEM, -ENOSPC, -errno   as zone_reserve and tailq_add
    """
    cdef char own[32]
    cdef char in_zone[32]
    cdef zone_t *memory
    cdef ring_t *r
    cdef uint32_t slots = ring_slots_for(count, kind)
    if name is NULL:
        snprintf(own, sizeof(own), b"ring_%u_%d", fetch_add_u32(&g_next, 1), <int>getpid())
        name = own
    rc[0] = -EINVAL
    if slots == 0 or not name[0]:
        return NULL
    rc[0] = -ENAMETOOLONG
    if strlen(name) > NAME_MAX:
        return NULL
    zone_name(in_zone, name)
    memory = zone_reserve(in_zone, ring_size(slots), node, 0, CACHE_LINE, 0, rc)
    if memory is NULL:
        return NULL
    r = <ring_t *>memory.addr
    ring_init(r, count, kind)
    memcpy(r.name, name, strlen(name) + 1)
    rc[0] = tailq_add(LIST, name, r)                            # from here on others find it
    if rc[0] < 0:
        zone_free_name(in_zone)
        return NULL
    return r


cdef ring_t *ring_lookup(const char *name) noexcept nogil:
    """Return the ring of a name, whichever process has made it, or NULL."""
    return <ring_t *>tailq_find(LIST, name)


cdef int named_ring_free(ring_t *r) noexcept nogil:
    """Give a ring of ring_create_named back; no thread of any process is in it any more.

    0
    -EINVAL  NULL, or no named ring
    -EBUSY   Python has handles of it
    -errno   as zone_free: not initialised, or a secondary process
    """
    cdef char in_zone[32]
    cdef char name[32]
    cdef int rc
    if r is NULL or not r.name[0]:
        return -EINVAL
    memcpy(name, r.name, sizeof(name))
    zone_name(in_zone, name)
    rc = tailq_remove(LIST, name)
    if rc == 0:
        rc = zone_free_name(in_zone)
        if rc < 0:
            tailq_add(LIST, name, r)
    return rc


# The Python face.

cdef str refusal(int rc, str name):
    """Say why there is no such ring."""
    if rc == -EEXIST:
        return "there is one of that name"
    if rc == -ENAMETOOLONG:
        return f"its name has more than {NAME_MAX} characters"
    if rc == -ENOMEM:
        return "Cannot reserve memory"
    if rc == -EINVAL:
        return "no such name, or no such NUMA node"
    return env_sentence(rc)


cdef class NamedRing(Ring):
    """A ring that every process of the environment finds by its name; it moves integers.

    name: of 1 to 28 characters; "": ring_<n>_<pid>.  count, kind, node and exact as for Ring.  It
    is there until free(), with or without this.  OSError EEXIST, ENAMETOOLONG, EINVAL, ENOMEM,
    ENOSPC, and EPERM in a secondary process.
    """
    cdef object view            # of its zone: keeps it while this lives
    cdef readonly str name

    def __init__(self, name: str, count: int, kind: str = "mp_sc", node: int = -1, *,
                 exact: bool = False):
        cdef uint32_t c_count, c_kind = checked_kind(kind, exact)
        cdef int rc = 0
        cdef int c_node = node
        cdef ring_t *r
        check_count(count, c_kind)
        if self.r is not NULL:
            raise TypeError("a ring is made once")
        c_count = count
        text = name.encode()
        if b"\0" in text:
            ok(-EINVAL, f"ring {name!a}: {refusal(-EINVAL, name)}")
        r = ring_create_named(<const char *>text if text else NULL, c_count, c_kind, c_node, &rc)
        if r is NULL:
            ok(rc, f"ring {name!a} of {count} slots: {refusal(rc, name)}")
        self.hold(r, r.name.decode(errors="replace"))

    def __dealloc__(self):
        self.r = NULL                                           # the zone's, not ours to free

    cdef int hold(self, ring_t *r, str name) except -1:
        """Be a handle of this ring, which is nobody's before its zone says that it is there."""
        found = zone.lookup(f"RG_{name}")
        if found is None or found.address != <uintptr_t>r:
            raise ValueError(f"ring {name!a} has been freed")
        self.view = memoryview(found)
        self.r = r
        self.name = name
        self.shape = r.mask + 1
        return 0

    @staticmethod
    def lookup(name: str) -> NamedRing | None:
        """Return a handle of the ring of a name, whichever process has made it, or None."""
        cdef NamedRing made
        text = name.encode()
        cdef ring_t *r = ring_lookup(text) if b"\0" not in text else NULL
        if r is NULL:
            return None
        made = NamedRing.__new__(NamedRing)
        made.hold(r, name)
        return made

    def free(self) -> None:
        """Give the ring back; again: nothing.  No thread of any process may be in it any more.

        BufferError while another handle or a view of it lives; OSError EPERM in a secondary
        process.
        """
        cdef ring_t *r = self.r
        cdef int rc
        if r is NULL:
            return
        if not self.exports:
            self.view.release()
        rc = -EBUSY if self.exports else named_ring_free(r)
        if rc < 0:
            self.hold(r, self.name)
        if rc == -EBUSY:
            raise BufferError(f"ring {self.name!a} is in use: other handles or views of it live")
        if rc < 0:
            ok(rc, f"ring {self.name!a}: {env_sentence(rc)}")
        self.r = NULL


def rings() -> list:
    """Return the names of the rings there are, those of other processes too."""
    return tailq.dump()[LIST.decode()]
