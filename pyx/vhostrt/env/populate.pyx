"""Memory made present before it is used, by several threads where there is much of it.

What a fault costs is the clearing of its page, which is bound by one CPU; several clear side by
side.  MADV_POPULATE_WRITE answers with an error where touching would be SIGBUS.
"""
from libc.errno cimport EFAULT, EINTR, EINVAL, ENOMEM, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from posix.signal cimport sigfillset, sigset_t
from vhostrt.base.atomics cimport (cas_u32, cas_u64, fetch_add_u64, load_relaxed_u32,
                                   load_relaxed_u64)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <fcntl.h>
    #include <pthread.h>
    #include <sched.h>
    #include <sys/mman.h>
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23
    #endif
    static int vh_cpus(void)
    {
        cpu_set_t set;
        return sched_getaffinity(0, sizeof(set), &set) ? 1 : CPU_COUNT(&set);
    }
    """
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_attr_t:
        pass
    enum:
        MADV_POPULATE_WRITE
        SIG_SETMASK
    int madvise(void *at, size_t size, int advice) nogil
    int fallocate(int fd, int mode, uint64_t offset, size_t size) nogil
    int pthread_attr_init(pthread_attr_t *attr) nogil
    int pthread_attr_destroy(pthread_attr_t *attr) nogil
    int pthread_attr_setstacksize(pthread_attr_t *attr, size_t size) nogil
    int pthread_create(pthread_t *thread, pthread_attr_t *attr, void *(*fn)(void *) noexcept nogil,
                       void *arg) nogil
    int pthread_join(pthread_t thread, void **result) nogil
    int pthread_sigmask(int how, const sigset_t *new, sigset_t *old) nogil
    int cpus_allowed "vh_cpus"() nogil

cdef enum:
    THREADS_MAX = 8
    SHARE = 16 << 20            # bytes below which another thread is not worth its start
    STEP = 4 << 20              # bytes that a thread takes at a time
    STACK = 256 << 10

cdef struct job_t:
    char *at
    size_t size
    size_t page_size
    size_t step
    int fd
    uint64_t offset             # of the range in the file
    uint64_t next               # bytes that have been taken by a thread
    uint64_t had                # bytes that are in memory
    uint64_t stop               # where the first gap is, as far as one is known
    uint32_t failed             # errno of the first failure


cdef int advise(job_t *job, size_t at, size_t size) noexcept nogil:
    """Have the pages of one step in memory; 0 or -errno."""
    cdef int rc = madvise(job.at + at, size, MADV_POPULATE_WRITE)
    while rc < 0 and errno == EINTR:
        rc = madvise(job.at + at, size, MADV_POPULATE_WRITE)
    # Kernels before 5.14 do not know the advice; there the file is given its pages instead.
    if rc < 0 and errno == EINVAL and job.fd >= 0:
        rc = fallocate(job.fd, 0, job.offset + at, size)
    if rc == 0:
        return 0
    # EFAULT is the SIGBUS that touching the page would have been.
    return -ENOMEM if errno == EFAULT else -errno


cdef size_t page_by_page(job_t *job, size_t at, size_t size) noexcept nogil:
    """Return how many bytes of a step that failed can be had."""
    cdef size_t had = 0
    while had < size and advise(job, at + had, min(job.page_size, size - had)) == 0:
        had += min(job.page_size, size - had)
    return had


cdef void note_gap(job_t *job, uint64_t at) noexcept nogil:
    cdef uint64_t stop = load_relaxed_u64(&job.stop)
    while at < stop and not cas_u64(&job.stop, stop, at):
        stop = load_relaxed_u64(&job.stop)


cdef void *work(void *arg) noexcept nogil:
    """Take step after step, until all are taken or one cannot be had."""
    cdef job_t *job = <job_t *>arg
    cdef size_t at, size, had
    cdef int rc
    while load_relaxed_u32(&job.failed) == 0:
        at = fetch_add_u64(&job.next, job.step)
        if at >= job.size:
            break
        size = min(job.step, job.size - at)
        rc = advise(job, at, size)
        had = size if rc == 0 else page_by_page(job, at, size)
        fetch_add_u64(&job.had, had)
        if had < size:
            note_gap(job, at + had)
            cas_u32(&job.failed, 0, -rc)
    return NULL


cdef void help_with(job_t *job, int helpers) noexcept nogil:
    """Do the job, with so many threads beside this one, or as many as the system gives."""
    cdef pthread_t threads[THREADS_MAX]
    cdef pthread_attr_t attr
    cdef sigset_t blocked, old
    cdef int started = 0
    pthread_attr_init(&attr)
    pthread_attr_setstacksize(&attr, STACK)
    # The threads inherit the mask, so that no signal of the process finds one of them.
    sigfillset(&blocked)
    pthread_sigmask(SIG_SETMASK, &blocked, &old)
    while started < helpers and pthread_create(&threads[started], &attr, work, job) == 0:
        started += 1
    pthread_sigmask(SIG_SETMASK, &old, NULL)
    pthread_attr_destroy(&attr)
    work(job)
    while started:
        started -= 1
        pthread_join(threads[started], NULL)


cdef int populate_with(int threads, char *at, size_t size, size_t page_size, int fd,
                       uint64_t offset, populated_t *done) noexcept nogil:
    """As populate, by so many threads, of which this is one."""
    cdef job_t job
    memset(&job, 0, sizeof(job_t))
    job.at = at
    job.size = job.stop = size
    job.page_size = page_size
    job.step = max(page_size, <size_t>STEP)
    job.fd = fd
    job.offset = offset
    if threads > 1:
        help_with(&job, min(threads, <int>THREADS_MAX) - 1)
    else:
        work(&job)
    done.had = job.had
    done.reached = min(job.stop, job.had)
    return -<int>job.failed


cdef int populate(char *at, size_t size, size_t page_size, int fd, uint64_t offset,
                  populated_t *done) noexcept nogil:
    """Have the whole pages of a mapping's range in memory, so that touching them is no fault.

    fd, offset: the file behind it and where the range begins there, for old kernels; -1 without.
    Large ranges are done by a thread for each CPU that this thread may use, 8 at most.
    0
    -ENOMEM   the system gives no more pages; *done says how many there are
    -errno    of madvise otherwise
    """
    cdef size_t threads = size // SHARE
    if threads > 1:
        threads = min(threads, <size_t>cpus_allowed())
    return populate_with(<int>min(threads, <size_t>THREADS_MAX), at, size, page_size, fd, offset,
                         done)
