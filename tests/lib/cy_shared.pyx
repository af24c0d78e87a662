"""The lock of the record, for processes that die while they hold it, and damage to its tables."""
from libc.stdint cimport uint32_t
from libc.string cimport memset
from vhostrt.env.heap cimport elem_t
from vhostrt.env.memory cimport env_lock, env_unlock
from vhostrt.env.shared cimport ZONE_NAME, env_config_t

cdef uint32_t MANY = 0xFFFFFFF0


def take_lock(change):
    """Take the lock and keep it; 0 or -errno."""
    cdef int rc = 0
    env_lock(change, &rc)
    return rc


def damage(what):
    """Write nonsense into a table of the record; in the primary process, which is as before."""
    cdef int rc = 0
    cdef env_config_t *c = env_lock(True, &rc)
    if what == "regions":
        c.heap.region_count = MANY
    elif what == "order":
        c.heap.order[0] = 0xFFFF
    elif what == "zones":
        c.zone_end = MANY
    elif what == "zone below":
        c.zones[0].addr = <void *>4096
    elif what == "zone beyond":
        c.zones[0].len = <size_t>1 << 60
    elif what == "zone name":
        memset(c.zones[0].name, 120, ZONE_NAME)
    elif what == "list":
        c.tailqs[0].first = MANY
    elif what == "circle":
        c.entries[0].next = 0
    elif what == "free space":
        c.heap.nodes[0].free[0] = <elem_t *>64
    env_unlock(c)
