"""A list of address ranges, each with a count: how often memory is registered, say."""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset


cdef void append(runs_t *list_, uintptr_t at, uintptr_t end, uint64_t count) noexcept nogil:
    """Add a run behind the others, or to the last of them; nothing when it is empty."""
    cdef run_t *last = &list_.r[list_.n - 1] if list_.n else NULL
    if at >= end or count == 0:
        return
    if last is not NULL and last.end == at and last.count == count:
        last.end = end
        return
    list_.r[list_.n] = run_t(at, end, count)
    list_.n += 1


cdef void sweep(runs_t *old, uintptr_t at, uintptr_t end, int delta, runs_t *after,
                runs_t *news) noexcept nogil:
    """Write the runs as they are after a change of a range, and those that come or go by it."""
    cdef uintptr_t seen = at            # up to here the range has been dealt with
    cdef uintptr_t low, high
    cdef run_t *r
    cdef size_t i
    for i in range(old.n):
        r = &old.r[i]
        low = min(max(r.at, at), end)
        high = max(min(r.end, end), low)
        append(after, r.at, min(r.end, at), r.count)
        if delta > 0 and r.end > at:
            append(after, seen, low, 1)
            append(news, seen, low, 1)
            seen = max(seen, high)
        append(after, low, high, r.count + delta)
        if r.count + delta == 0:
            append(news, low, high, 1)
        append(after, max(r.at, end), r.end, r.count)
    if delta > 0:
        append(after, seen, end, 1)
        append(news, seen, end, 1)


cdef int runs_change(runs_t *old, uintptr_t at, uintptr_t end, int delta, runs_t *after,
                     runs_t *news) noexcept nogil:
    """Make the list as it is once a range counts one more or less, and what comes or goes by it.

    delta: 1, or -1 for a range that runs_cover.  *after and *news: new lists, the caller's; of
    *news the counts mean nothing.  0, or -ENOMEM: both are empty.
    """
    memset(after, 0, sizeof(runs_t))
    memset(news, 0, sizeof(runs_t))
    # The two ends of the range cut a run each, and every gap in it may become a run.
    after.r = <run_t *>malloc((2 * old.n + 3) * sizeof(run_t))
    news.r = <run_t *>malloc((old.n + 1) * sizeof(run_t))
    if after.r is NULL or news.r is NULL:
        free(after.r)
        free(news.r)
        after.r = news.r = NULL
        return -ENOMEM
    sweep(old, at, end, delta, after, news)
    return 0


cdef int runs_copy(runs_t *source, runs_t *to) noexcept nogil:
    """Make a list like another; 0 or -ENOMEM."""
    to.r = <run_t *>malloc((source.n + 1) * sizeof(run_t))
    if to.r is NULL:
        return -ENOMEM
    to.n = source.n
    if to.n:
        memcpy(to.r, source.r, to.n * sizeof(run_t))
    return 0


cdef bint runs_cover(runs_t *list_, uintptr_t at, uintptr_t end) noexcept nogil:
    """True when every address of a range lies in one of the runs."""
    cdef size_t i
    for i in range(list_.n):
        if list_.r[i].at <= at < list_.r[i].end:
            at = list_.r[i].end
    return at >= end


cdef size_t runs_whole(runs_t *list_, size_t i, uintptr_t *at, uintptr_t *end) noexcept nogil:
    """Return the index behind the runs without a gap that begin with number i, and their ends."""
    at[0] = list_.r[i].at
    end[0] = list_.r[i].end
    i += 1
    while i < list_.n and list_.r[i].at == end[0]:
        end[0] = list_.r[i].end
        i += 1
    return i
