"""Timed pollers in the order of their deadlines: an intrusive pairing heap.

Insert is one comparison; remove is O(log n) amortised; the earliest is the root.  In a heap,
`child` is a poller's first child, `next` its right sibling, and `prev` its left sibling or, for
a first child, its parent.
"""
from vhostrt.event.poller cimport earlier
from vhostrt.event.reactor cimport poller_t


cdef poller_t *merge(poller_t *a, poller_t *b) noexcept nogil:
    """Join two heaps; the later root becomes the first child of the earlier one."""
    if a is NULL:
        return b
    if b is NULL:
        return a
    if earlier(b, a):
        a, b = b, a
    b.prev = a
    b.next = a.child
    if b.next is not NULL:
        b.next.prev = b
    a.child = b
    a.next = NULL
    a.prev = NULL
    return a


cdef poller_t *merge_siblings(poller_t *first) noexcept nogil:
    """Join a list of siblings into one heap: in pairs from the left, then all from the right."""
    cdef poller_t *pairs = NULL         # joined pairs, the last one first, linked by next
    cdef poller_t *root = NULL
    cdef poller_t *second
    cdef poller_t *rest
    while first is not NULL:
        second = first.next
        rest = second.next if second is not NULL else NULL
        first.prev = NULL
        first.next = NULL
        if second is not NULL:
            second.prev = NULL
            second.next = NULL
        first = merge(first, second)
        first.next = pairs
        pairs = first
        first = rest
    while pairs is not NULL:
        rest = pairs.next
        pairs.next = NULL
        root = merge(root, pairs)
        pairs = rest
    return root


cdef void timers_insert(poller_t **root, poller_t *poller) noexcept nogil:
    """Put a poller, whose next_run and order are set, into the heap."""
    poller.prev = NULL
    poller.next = NULL
    poller.child = NULL
    root[0] = merge(root[0], poller)


cdef void timers_remove(poller_t **root, poller_t *poller) noexcept nogil:
    """Take a poller out of the heap that it lies in."""
    cdef poller_t *children = merge_siblings(poller.child)
    if root[0] is poller:
        root[0] = children
    else:
        if poller.prev.child is poller:
            poller.prev.child = poller.next
        else:
            poller.prev.next = poller.next
        if poller.next is not NULL:
            poller.next.prev = poller.prev
        root[0] = merge(root[0], children)
    poller.prev = NULL
    poller.next = NULL
    poller.child = NULL
