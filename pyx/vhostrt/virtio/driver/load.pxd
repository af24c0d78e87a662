"""The loop of a load generator: one queue of a vhost-user block device, kept busy by one thread.

Owner:    a Load owns its load_t; the shared memory is its caller's and outlives it.
Threads:  load_run on one thread; others may call stop() and read the figures meanwhile, relaxed.
Fails:    a device that gives back what it never had ends the loop with -EPROTO.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from vhostrt.virtio.driver.latency cimport latency_t
from vhostrt.virtio.driver.pattern cimport pattern_fault_t
from vhostrt.virtio.driver.split cimport driver_t
from vhostrt.virtio.split cimport vring_desc

cdef enum:
    OP_READ = 0
    OP_WRITE
    OP_FLUSH
    OP_TRIM
    OPS

    SIZES_MAX = 16              # block sizes of one load
    STATUSES = 256
    FAULTS_MAX = 16             # that are kept; all are counted

    STOP_NO = 0
    STOP_DRAIN                  # send no more, end when all have come back
    STOP_NOW                    # end at once

    PHASE_RUN = 0
    PHASE_CHECK                 # read once what was written

cdef extern from "<linux/virtio_blk.h>" nogil:
    enum:
        VIRTIO_BLK_T_IN
        VIRTIO_BLK_T_OUT
        VIRTIO_BLK_T_FLUSH
        VIRTIO_BLK_T_DISCARD
        VIRTIO_BLK_S_OK

cdef struct blk_request_t:
    uint32_t type
    uint32_t reserved
    uint64_t sector

cdef struct blk_segment_t:
    uint64_t sector
    uint32_t num_sectors
    uint32_t flags

# What the device sees of a request, apart from its data: header and status in one cache line.
cdef struct line_t:
    blk_request_t header
    uint8_t status
    uint8_t pad[15]
    blk_segment_t segment
    uint8_t pad2[16]
    vring_desc table[3]
    uint8_t pad3[16]

# What only we see of it.
cdef struct slot_t:
    uint64_t start              # ticks
    uint64_t offset             # bytes
    uint32_t length             # bytes; 0 for a flush
    uint32_t op

cdef struct block_size_t:
    uint32_t length             # bytes
    uint64_t blocks             # of that length in the area
    uint64_t below              # taken when 32 random bits are below this

cdef struct load_t:
    driver_t driver
    uint32_t depth              # requests that may be in flight
    uint32_t inflight
    uint16_t *free_slots        # owned: a stack of depth - inflight of them
    uint16_t *slot_of           # owned: of the chain with each head
    slot_t *slots               # owned
    line_t *lines               # shared with the device, as data is
    uint8_t *data               # data_stride bytes for each slot
    uint64_t lines_guest
    uint64_t data_guest
    uint64_t data_stride
    bint indirect
    int kick_fd
    int call_fd                 # -1: poll
    uint32_t turns
    # What to do.
    uint64_t base               # of the area, bytes
    uint64_t area               # bytes
    uint64_t position           # of the next sequential request, within the area
    uint64_t random_state
    uint64_t read_below         # a read when 32 random bits are below this
    uint32_t other              # OP_WRITE or OP_TRIM, where it is no read
    bint random
    uint32_t size_count
    block_size_t sizes[SIZES_MAX]
    uint32_t flush_every        # writes; 0: never
    uint32_t unflushed
    uint32_t phase
    # When.
    uint64_t now                # ticks
    uint64_t started
    uint64_t ended
    uint64_t end                # send no more from here on
    uint64_t ramp_end           # count from here on
    bint ramping
    bint closing
    uint32_t stop               # STOP_NO ...; written by other threads
    uint64_t left               # requests to send
    uint64_t ios                # of them, when the ramp ends
    double pace                 # ticks of a byte, or of a request; 0: as fast as can be
    bint pace_bytes
    double due                  # tick of the next request
    # What is in the area, when it is verified.
    uint32_t unit               # bytes; 0: not verified
    uint64_t units
    uint32_t *generation        # owned: of each unit; 0: not known
    uint32_t seed
    bint check_all              # every read is of what an earlier run wrote
    # What came of it.
    int broken                  # -errno
    uint64_t errors[STATUSES]   # by status; OK has none
    uint64_t checked            # sectors
    uint64_t fault_count
    uint32_t faults_kept
    pattern_fault_t faults[FAULTS_MAX]
    latency_t ops[OPS]

cdef int load_turn(load_t *l) noexcept nogil
cdef void load_run(load_t *l) noexcept nogil


cdef class Load:
    cdef load_t *t                      # owned
    cdef object memory                  # keeps the shared memory alive
    cdef bint running
