"""One virtqueue on one reactor: its requests, its life, and what every device does with it.

Owner:    a Queue owns the queue_t with its requests; from start to stop the reactor owns it all,
          kick, call and err descriptors included.
Threads:  the C functions run on the queue's reactor; the class belongs to the control thread.
Fails:    a ring that a driver spoilt is marked broken, signalled and told to the control thread.
"""
from cython cimport unlikely
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from vhostrt.base.atomics cimport load_relaxed_u32, store_relaxed_u32
from vhostrt.bdev.core cimport Channel, bdev_channel_t, bdev_io_t, iovec
from vhostrt.event.control cimport call_t, control_node_t
from vhostrt.event.reactor cimport deferred_t, poller_t, reactor_defer, reactor_t
from vhostrt.event.thread cimport Thread
from vhostrt.vhost.queue_stats cimport Kicks, QueueStats, queue_stats_t
from vhostrt.vhost.view cimport View
from vhostrt.virtio.chain cimport chain_t
from vhostrt.virtio.regions cimport regions_t
from vhostrt.virtio.split cimport split_push, split_t

cdef enum:
    REQUEST_IOVS = 8            # in the request itself
    QUEUE_STOPPED = 0
    QUEUE_STARTED = 1
    QUEUE_DRAINING = 2          # pops nothing more; stops when the last request is done
    QUEUE_BROKEN = 3            # pops nothing more; waits for the control thread to stop it
    QUEUE_MOVING = 4            # pops nothing; goes to another reactor after the last request

cdef struct lease_t:
    # A queue's hold on one view, until the last request that uses it is done.
    control_node_t note         # first: tells the control thread that it has ended
    regions_t *regions          # of the view
    uint32_t inflight           # requests that use it
    bint retired                # the queue has another one now
    void *view                  # owned reference, dropped by the note

cdef struct request_t:
    bdev_io_t io                # first: the bdev gives it back
    queue_t *queue
    lease_t *lease
    uint8_t *status             # where the answer goes, in guest memory
    iovec *big                  # taken from the queue's for a long chain, else NULL
    request_t *next             # in the free list
    uint64_t since              # ticks, when the bdev took it; 0: it has none.  Read relaxed
    uint32_t written            # bytes that the device writes, the status not counted
    uint16_t head
    uint8_t lane                # LANE_..., of its time
    iovec iovs[REQUEST_IOVS]

cdef struct big_iovs_t:
    big_iovs_t *next            # in the free list; the iovs lie in the same memory

cdef struct coalesce_t:
    uint32_t mode               # COALESCE_...
    uint32_t called             # q.answered at the last interrupt
    bint waiting                # the driver wants one, and will get it later
    bint timed                  # the timer is registered
    uint64_t due                # ticks: when it is called, if it waits, at the latest ...
    uint64_t delay              # ... and how long after the last one; COALESCE_RATE
    uint64_t base               # ticks; the delay at twice the threshold
    uint64_t threshold          # requests of a window above which there is a delay
    uint64_t window             # ticks; when the present one began
    uint32_t answered           # q.answered then
    uint32_t period_us          # of the timer
    poller_t timer

cdef struct queue_t:
    split_t ring
    uint32_t state
    uint32_t inflight           # popped and not yet given back; read relaxed by others
    lease_t *lease              # the view in use
    uint32_t hint               # of regions_translate
    bint indirect
    bint traced                 # points of the device's group are on, as of the last poll
    request_t *free             # the one used last first: it is still in the cache
    bdev_channel_t *channel     # NULL: the device is gone, everything answers with an error
    reactor_t *reactor
    uint32_t answered           # requests given back since the start; runs through 2^32
    coalesce_t when             # the driver is interrupted for them; see coalesce
    deferred_t publish          # for what completes outside the queue's own poller
    int call_fd                 # -1: the driver polls
    int err_fd
    int kick_fd
    queue_stats_t *stats
    uint64_t polled             # ticks, when the last poll that found requests began
    uint64_t at_once            # answered by it: 16 bits for each lane
    # Seldom used.
    big_iovs_t *big_free
    uint32_t chain_limit        # iovs and steps of one chain
    int broken_rc               # why, once state is QUEUE_BROKEN
    poller_t poller
    control_node_t broken_note
    call_t *stopping            # the call to answer when drained
    call_t *moving              # likewise, once it has come to another reactor
    uint32_t block_shift        # of the bdev
    char serial[20]             # for GET_ID, NUL padded

cdef void queue_break(queue_t *q, int rc) noexcept nogil
cdef void queue_call(queue_t *q) noexcept nogil
cdef void queue_publish(queue_t *q) noexcept nogil
cdef void lease_returned(queue_t *q, lease_t *lease) noexcept nogil
cdef int queue_read_long(queue_t *q, chain_t *c, request_t *request, uint16_t head) noexcept nogil
cdef void request_return_big(queue_t *q, request_t *request) noexcept nogil


cdef inline void request_free(queue_t *q, request_t *request) noexcept nogil:
    """Put a request back, and let go of the view that it used."""
    cdef lease_t *lease = request.lease
    if request.big is not NULL:
        request_return_big(q, request)
    request.next = q.free
    q.free = request
    store_relaxed_u32(&q.inflight, q.inflight - 1)
    q.answered += 1
    lease.inflight -= 1
    if unlikely(lease.retired):
        lease_returned(q, lease)


cdef inline void request_finish(queue_t *q, request_t *request, uint8_t status,
                                uint32_t written) noexcept nogil:
    """Answer a request: the status, and the used element; queue_publish shows it to the driver.

    `written`: bytes of data that were written, the status not counted.
    """
    request.status[0] = status
    split_push(&q.ring, request.head, written + 1)
    request_free(q, request)

cdef class Queue:
    cdef queue_t *q                     # owned; 64-aligned
    cdef void *requests                 # owned: request_t for every slot of the ring
    cdef void *big                      # owned: the iovs of long chains
    cdef readonly Thread thread
    cdef readonly Channel channel       # kept alive while q.channel points into it
    cdef readonly View view
    cdef readonly QueueStats counters   # kept alive: q.stats is its
    cdef Kicks kicks
    cdef readonly int index             # of the ring in its session
    cdef object on_broken               # called with the queue and an errno
    cdef object stopped                 # the answer of stop, once it is asked for; else None
    cdef bint running                   # from start to the answer of stop
    cdef bint on_the_way                # from one reactor to another
    cdef int make_big(self, uint32_t size) except -1
    cdef int resolve(self, View view, split_t *ring, tuple addresses) except -1
