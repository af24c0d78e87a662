"""Tail queues: lists of named objects, in the record of the environment, for all its processes."""
from libc.errno cimport EEXIST, EINVAL, ENAMETOOLONG, ENOENT, ENOSPC
from libc.stdint cimport uint32_t, uintptr_t
from libc.string cimport memset, strcmp, strcpy, strlen
from vhostrt.base.errors cimport ok
from vhostrt.env.memory cimport env_lock, env_look, env_looked, env_sentence, env_unlock


cdef int check_name(const char *name) noexcept nogil:
    """0, or why it cannot be a name."""
    if name is NULL or name[0] == 0:
        return -EINVAL
    return -ENAMETOOLONG if strlen(name) >= TAILQ_NAME else 0


cdef int find_list(env_config_t *c, const char *name) noexcept nogil:
    cdef int i
    for i in range(TAILQS):
        if strcmp(c.tailqs[i].name, name) == 0:
            return i
    return -ENOENT


cdef uint32_t find_entry(env_config_t *c, tailq_t *q, const char *name,
                         uint32_t *before) noexcept nogil:
    """Return an entry of a list and the one before it, or TAILQ_END."""
    cdef uint32_t i = q.first
    before[0] = TAILQ_END
    while i != TAILQ_END and strcmp(c.entries[i].name, name) != 0:
        before[0] = i
        i = c.entries[i].next
    return i


cdef int new_list(env_config_t *c, const char *name) noexcept nogil:
    """Register a list, under the lock or before there is anybody; its number, -EEXIST or -ENOSPC.
    """
    cdef int i = find_list(c, name)
    if i >= 0:
        return -EEXIST
    i = find_list(c, b"")
    if i < 0:
        return -ENOSPC
    strcpy(c.tailqs[i].name, name)
    c.tailqs[i].first = c.tailqs[i].last = TAILQ_END
    c.tailqs[i].count = 0
    return i


cdef int tailq_register(const char *name) noexcept nogil:
    """Make an empty list.

    its number
    -EEXIST        there is one of that name
    -ENOSPC        there are 32
    -ENAMETOOLONG  more than 31 characters;  -EINVAL: none
    -errno         as env_lock: not initialised, or a secondary process
    """
    cdef int rc = check_name(name)
    cdef env_config_t *c
    if rc < 0:
        return rc
    c = env_lock(True, &rc)
    if c is NULL:
        return rc
    rc = new_list(c, name)
    env_unlock(c)
    return rc


cdef int tailq_lookup(const char *name) noexcept nogil:
    """Return the number of a list, or -ENOENT, or as env_lock."""
    cdef int rc = check_name(name)
    cdef env_config_t *c
    if rc < 0:
        return -ENOENT
    c = env_lock(False, &rc)
    if c is NULL:
        return rc
    rc = find_list(c, name)
    env_unlock(c)
    return rc


cdef int new_entry(env_config_t *c, tailq_t *q, const char *name, void *object) noexcept nogil:
    """Add an entry at the end of a list, under the lock; 0, -EEXIST or -ENOSPC."""
    cdef uint32_t i = 0
    if find_entry(c, q, name, &i) != TAILQ_END:
        return -EEXIST
    i = 0
    while i < c.entry_end and c.entries[i].name[0]:
        i += 1
    if i == TAILQ_ENTRIES:
        return -ENOSPC
    c.entry_end = max(c.entry_end, i + 1)
    strcpy(c.entries[i].name, name)
    c.entries[i].object = object
    c.entries[i].next = TAILQ_END
    if q.last == TAILQ_END:
        q.first = i
    else:
        c.entries[q.last].next = i
    q.last = i
    q.count += 1
    return 0


cdef int tailq_add(const char *list_, const char *name, void *object) noexcept nogil:
    """Add an object to a list under a name; object is in the heap, where every process has it.

    0
    -ENOENT        no such list
    -EEXIST        there is an entry of that name in it
    -ENOSPC        there are 4096 entries in all lists
    -ENAMETOOLONG  more than 31 characters;  -EINVAL: none
    -errno         as env_lock: not initialised, or a secondary process
    """
    cdef int rc = check_name(name)
    cdef int i
    cdef env_config_t *c
    if rc < 0:
        return rc
    c = env_lock(True, &rc)
    if c is NULL:
        return rc
    i = find_list(c, list_) if list_[0] else -ENOENT
    rc = new_entry(c, &c.tailqs[i], name, object) if i >= 0 else i
    env_unlock(c)
    return rc


cdef void *tailq_find(const char *list_, const char *name) noexcept nogil:
    """Return the object of a name in a list; NULL: there is none, or as env_lock."""
    cdef int rc = 0
    cdef uint32_t before, i = TAILQ_END
    cdef void *object = NULL
    cdef env_config_t *c
    if list_[0] == 0 or name[0] == 0:
        return NULL
    c = env_lock(False, &rc)
    if c is NULL:
        return NULL
    rc = find_list(c, list_)
    if rc >= 0:
        i = find_entry(c, &c.tailqs[rc], name, &before)
    if i != TAILQ_END:
        object = c.entries[i].object
    env_unlock(c)
    return object


cdef int remove_entry(env_config_t *c, tailq_t *q, const char *name) noexcept nogil:
    """Take an entry out of a list, under the lock; 0 or -ENOENT."""
    cdef uint32_t before = TAILQ_END
    cdef uint32_t i = find_entry(c, q, name, &before)
    if i == TAILQ_END:
        return -ENOENT
    if before == TAILQ_END:
        q.first = c.entries[i].next
    else:
        c.entries[before].next = c.entries[i].next
    if q.last == i:
        q.last = before
    q.count -= 1
    memset(&c.entries[i], 0, sizeof(tailq_entry_t))
    return 0


cdef int tailq_remove(const char *list_, const char *name) noexcept nogil:
    """Take the object of a name out of a list; the object itself stays.

    0
    -ENOENT  no such list, or none of that name in it
    -errno   as env_lock: not initialised, or a secondary process
    """
    cdef int rc = 0
    cdef int i
    cdef env_config_t *c = env_lock(True, &rc)
    if c is NULL:
        return rc
    i = find_list(c, list_) if list_[0] and name[0] else -ENOENT
    rc = remove_entry(c, &c.tailqs[i], name) if i >= 0 else i
    env_unlock(c)
    return rc


# For Python.

cdef int crossed(int rc, str what) except -1:
    """Return rc, or raise OSError that says what it was about."""
    if rc == -EEXIST:
        ok(rc, f"{what}: the name is taken")
    if rc == -ENAMETOOLONG:
        ok(rc, f"{what}: {TAILQ_NAME - 1} characters at most")
    return ok(rc, what if rc in (-EINVAL, -ENOENT, -ENOSPC) else f"{what}: {env_sentence(rc)}")


cdef bytes c_name(str name):
    """Return a name as C has it; one with a NUL is none, as the empty one."""
    return b"" if "\0" in name else name.encode()


def register(name: str) -> int:
    """Make an empty list and return its number; OSError EEXIST, ENOSPC, ENAMETOOLONG, EPERM."""
    return crossed(tailq_register(c_name(name)), f"tail queue {name!a}")


def lookup(name: str) -> int | None:
    """Return the number of a list; None when there is none."""
    rc = tailq_lookup(c_name(name))
    return None if rc == -ENOENT else crossed(rc, f"tail queue {name!a}")


def add(list_: str, name: str, address: int) -> None:
    """Add what is at an address of the heap to a list; OSError as tailq_add says."""
    crossed(tailq_add(c_name(list_), c_name(name), <void *><uintptr_t>address),
            f"entry {name!a} of the tail queue {list_!a}")


def find(list_: str, name: str) -> int | None:
    """Return the address of what a list has under a name; None when there is nothing."""
    return <uintptr_t>tailq_find(c_name(list_), c_name(name)) or None


def remove(list_: str, name: str) -> None:
    """Take an entry out of a list; OSError ENOENT when it is not there."""
    crossed(tailq_remove(c_name(list_), c_name(name)),
            f"entry {name!a} of the tail queue {list_!a}")


def dump() -> dict:
    """Return the lists there are, in the order of their numbers: name -> names of entries."""
    cdef int rc = 0
    cdef int i
    cdef uint32_t at
    cdef env_config_t *c = env_look(&rc)
    if c is NULL:
        ok(rc, env_sentence(rc))
    lists = {}
    for i in range(TAILQS):
        names = []
        at = c.tailqs[i].first
        while c.tailqs[i].name[0] and at != TAILQ_END:
            names.append(c.entries[at].name.decode(errors="replace"))
            at = c.entries[at].next
        if c.tailqs[i].name[0]:
            lists[c.tailqs[i].name.decode(errors="replace")] = names
    env_looked(c)
    return lists
