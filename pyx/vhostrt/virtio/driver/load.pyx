"""The loop of a load generator, and the class that Python drives it with."""
from libc.errno cimport EBUSY
from libc.stdint cimport UINT32_MAX, UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from posix.unistd cimport read, write
from vhostrt.base.atomics cimport (cpu_pause, load_relaxed_u32, load_relaxed_u64, read_once_u8,
                                   store_relaxed_u32)
from vhostrt.base.check cimport check, static_check
from vhostrt.base.errors cimport ok
from vhostrt.base.ticks cimport ticks_hz, ticks_now
from vhostrt.virtio.driver.latency cimport (LATENCY_BUCKETS, latency_add, latency_reset)
from vhostrt.virtio.driver.pattern cimport (PATTERN_OK, PATTERN_SECTOR, mix64, pattern_check,
                                            pattern_fault_t, pattern_fill, pattern_t)
from vhostrt.virtio.driver.split cimport (driver_add, driver_add_indirect, driver_buffer_t,
                                          driver_calls_off, driver_calls_on, driver_done,
                                          driver_fini, driver_init, driver_publish,
                                          driver_ring_bytes, driver_take)

cdef extern from *:
    """
    #include <errno.h>
    #include <poll.h>
    #include <sched.h>
    #include <time.h>

    #define vh_scaled(a, b) ((uint64_t)(((unsigned __int128)(a) * (b)) >> 64))

    /* Wait until fd can be read, or some nanoseconds, less than a second. */
    static inline void vh_wait_readable(int fd, long ns)
    {
        struct pollfd one = { .fd = fd, .events = POLLIN };
        struct timespec most = { .tv_nsec = ns };
        ppoll(&one, 1, &most, NULL);
    }
    """
    uint64_t scaled "vh_scaled"(uint64_t a, uint64_t b) nogil       # a * b / 2^64
    void wait_readable "vh_wait_readable"(int fd, long ns) nogil
    int sched_yield() nogil

cdef enum:
    STATUS_UNTOUCHED = 0xff
    TRIES = 8                           # to find a place that no request in flight is at
    IDLE_YIELD = 256                    # idle turns, then others may have the CPU
    CLOCK_TURNS = 31                    # idle turns between two looks at the clock: a mask
    WAIT_NS = 50000000                  # longest sleep in interrupt mode
    BUSY = 1 << 31                      # of a generation: a request in flight is there
    GENERATION_MASK = 0x7fffffff


cdef inline uint64_t random64(load_t *l) noexcept nogil:
    l.random_state += <uint64_t>0x9e3779b97f4a7c15
    return mix64(l.random_state)


# What a verified area holds.

cdef inline bint units_busy(const load_t *l, const slot_t *s) noexcept nogil:
    cdef uint64_t first = (s.offset - l.base) // l.unit
    cdef uint64_t i
    for i in range(first, first + s.length // l.unit):
        if l.generation[i] & BUSY:
            return True
    return False


cdef void units_take(load_t *l, slot_t *s, uint64_t data) noexcept nogil:
    """Mark where a request goes, and write what it writes."""
    cdef uint64_t first = (s.offset - l.base) // l.unit
    cdef uint64_t words = data
    cdef uint64_t i
    cdef uint32_t _
    cdef pattern_t p
    p.seed = l.seed
    p.offset = s.offset
    for i in range(first, first + s.length // l.unit):
        if s.op == OP_WRITE:
            # 0 is left out when it wraps: it means that nothing is known.
            l.generation[i] = max(<uint32_t>1, (l.generation[i] + 1) & GENERATION_MASK)
            p.generation = l.generation[i]
            for _ in range(l.unit // PATTERN_SECTOR):
                pattern_fill(<uint64_t *>words, &p)
                words += PATTERN_SECTOR
                p.offset += PATTERN_SECTOR
        l.generation[i] |= BUSY


cdef void units_check(load_t *l, const pattern_t *p, uint64_t words) noexcept nogil:
    """Check one unit that was read."""
    cdef pattern_t sector = p[0]
    cdef pattern_fault_t fault
    cdef uint32_t _
    for _ in range(l.unit // PATTERN_SECTOR):
        l.checked += 1
        if pattern_check(<const uint64_t *>words, &sector, &fault) != PATTERN_OK:
            l.fault_count += 1
            if l.faults_kept < FAULTS_MAX:
                l.faults[l.faults_kept] = fault
                l.faults_kept += 1
        words += PATTERN_SECTOR
        sector.offset += PATTERN_SECTOR


cdef void units_give(load_t *l, const slot_t *s, uint64_t data, bint done) noexcept nogil:
    """A request is over: check what it read.  What a failed write left is not known."""
    cdef uint64_t first = (s.offset - l.base) // l.unit
    cdef uint64_t i
    cdef pattern_t p
    p.seed = l.seed
    p.any_run = l.check_all
    for i in range(first, first + s.length // l.unit):
        l.generation[i] &= GENERATION_MASK
        if s.op == OP_WRITE and not done:
            l.generation[i] = 0
        if s.op == OP_READ and done and (l.check_all or l.generation[i]):
            p.offset = l.base + i * l.unit
            p.generation = l.generation[i]
            units_check(l, &p, data + (i - first) * l.unit)


cdef bint next_written(load_t *l, slot_t *s) noexcept nogil:
    """Find the next piece that was written, no longer than a request; False at the end."""
    cdef uint64_t i = l.position // l.unit
    cdef uint64_t most = l.data_stride // l.unit
    cdef uint64_t n = 0
    while i < l.units and l.generation[i] == 0:
        i += 1
    while i + n < l.units and n < most and l.generation[i + n] != 0:
        n += 1
    l.position = (i + n) * l.unit
    s.op = OP_READ
    s.offset = l.base + i * l.unit
    s.length = <uint32_t>(n * l.unit)
    return n != 0


# Requests.

cdef inline void place(load_t *l, slot_t *s) noexcept nogil:
    """Choose length and offset of a read, write or trim."""
    cdef block_size_t *size = &l.sizes[0]
    cdef uint64_t draw
    if l.size_count > 1:
        draw = random64(l) >> 32
        while draw >= size.below:       # ends: of the last it is 2^32
            size += 1
    s.length = size.length
    if l.random:
        s.offset = l.base + scaled(random64(l), size.blocks) * size.length
        return
    if l.position + size.length > l.area:
        l.position = 0
    s.offset = l.base + l.position


cdef inline bint choose(load_t *l, slot_t *s) noexcept nogil:
    """Choose what to send next; False: nothing now, as it would touch what is in flight."""
    cdef uint32_t tries = TRIES
    if l.phase == PHASE_CHECK:
        if not next_written(l, s):
            l.closing = True
            return False
        return True
    if l.flush_every and l.unflushed >= l.flush_every:
        l.unflushed = 0
        s.op = OP_FLUSH
        s.offset = 0
        s.length = 0
        return True
    if l.read_below == 0 or l.read_below > UINT32_MAX:
        s.op = OP_READ if l.read_below else l.other
    else:
        s.op = OP_READ if random64(l) >> 32 < l.read_below else l.other
    place(l, s)
    while l.unit and units_busy(l, s):
        tries -= 1
        if tries == 0 or not l.random:
            return False
        place(l, s)
    if not l.random:
        l.position += s.length
    if s.op == OP_WRITE:
        l.unflushed += 1
    return True


cdef inline void send(load_t *l, uint16_t index) noexcept nogil:
    """Put the request of a slot on the ring."""
    cdef driver_buffer_t buffers[3]
    cdef slot_t *s = &l.slots[index]
    cdef line_t *line = &l.lines[index]
    cdef uint64_t guest = l.lines_guest + index * sizeof(line_t)
    cdef uint16_t n = 1
    cdef int head
    line.header.type = VIRTIO_BLK_T_FLUSH
    line.header.reserved = 0
    line.header.sector = s.offset // PATTERN_SECTOR
    line.status = STATUS_UNTOUCHED
    buffers[0].guest = guest
    buffers[0].length = sizeof(blk_request_t)
    buffers[0].writable = False
    if s.op != OP_FLUSH:
        buffers[1].guest = l.data_guest + index * l.data_stride
        buffers[1].length = s.length
        buffers[1].writable = s.op == OP_READ
        line.header.type = VIRTIO_BLK_T_IN if s.op == OP_READ else VIRTIO_BLK_T_OUT
        n = 2
    if s.op == OP_TRIM:
        line.header.type = VIRTIO_BLK_T_DISCARD
        line.header.sector = 0
        line.segment.sector = s.offset // PATTERN_SECTOR
        line.segment.num_sectors = s.length // PATTERN_SECTOR
        line.segment.flags = 0
        buffers[1].guest = guest + <uint64_t>((<char *>&line.segment) - <char *>line)
        buffers[1].length = sizeof(blk_segment_t)
    buffers[n].guest = guest + sizeof(blk_request_t)
    buffers[n].length = 1
    buffers[n].writable = True
    if l.indirect:
        head = driver_add_indirect(&l.driver, line.table,
                                   guest + <uint64_t>((<char *>line.table) - <char *>line),
                                   buffers, n + 1)
    else:
        head = driver_add(&l.driver, buffers, n + 1)
    check(head >= 0)                    # the ring has room for `depth` chains
    l.slot_of[head] = index


cdef void ramp_over(load_t *l) noexcept nogil:
    """Count from now on."""
    cdef int i
    l.ramping = False
    l.started = l.now
    l.left = l.ios
    for i in range(OPS):
        latency_reset(&l.ops[i])
    memset(l.errors, 0, sizeof(l.errors))


cdef inline void paced(load_t *l, uint32_t length) noexcept nogil:
    """Move the time of the next request; what was missed is made good for 10 ms at most."""
    if l.due < l.now - ticks_hz() / 100.0:
        l.due = l.now - ticks_hz() / 100.0
    l.due += l.pace * (length if l.pace_bytes else 1)


cdef uint32_t fill(load_t *l) noexcept nogil:
    """Send what may be sent now; return how many that were."""
    cdef uint32_t sent = 0
    cdef uint64_t one = 1
    cdef uint16_t index
    cdef slot_t *s
    if load_relaxed_u32(&l.stop) != STOP_NO or l.now >= l.end:
        l.closing = True
    if l.ramping and l.now >= l.ramp_end:
        ramp_over(l)
    while not l.closing and l.inflight < l.depth:
        if l.left == 0:
            l.closing = True
            break
        if l.pace > 0 and l.due > l.now:
            break
        index = l.free_slots[l.depth - l.inflight - 1]
        s = &l.slots[index]
        if not choose(l, s):
            break
        if l.unit and s.length:
            units_take(l, s, <uint64_t>(l.data + index * l.data_stride))
        s.start = l.now
        send(l, index)
        l.inflight += 1
        l.left -= 1
        sent += 1
        if l.pace > 0:
            paced(l, s.length)
    if sent and driver_publish(&l.driver):
        write(l.kick_fd, &one, sizeof(one))
    return sent


cdef inline void finished(load_t *l, uint16_t index) noexcept nogil:
    """Take note of one request that has come back."""
    cdef slot_t *s = &l.slots[index]
    cdef uint8_t status = read_once_u8(&l.lines[index].status)
    if status == VIRTIO_BLK_S_OK:
        latency_add(&l.ops[s.op], l.now - s.start, s.length)
    else:
        l.errors[status] += 1
    if l.unit and s.length:
        units_give(l, s, <uint64_t>(l.data + index * l.data_stride), status == VIRTIO_BLK_S_OK)
    l.free_slots[l.depth - l.inflight] = index
    l.inflight -= 1


cdef int load_turn(load_t *l) noexcept nogil:
    """Take back what has been done and send what may be sent; return 1, 0 when nothing was to do,
    -EPROTO when the device gave back what it never had."""
    cdef uint16_t n = driver_done(&l.driver)
    cdef uint16_t left = n
    cdef uint32_t written
    cdef int head
    l.turns += 1
    if n or l.pace > 0 or l.turns & CLOCK_TURNS == 0:
        # One look at the clock for all that came back together, and for what takes their places.
        l.now = ticks_now()
    while left:
        head = driver_take(&l.driver, &written)
        if head < 0:
            return head
        finished(l, l.slot_of[head])
        left -= 1
    return fill(l) != 0 or n != 0


cdef void sleep(load_t *l) noexcept nogil:
    """Wait for the device's call, or until there is something to send."""
    cdef uint64_t until = l.end
    cdef uint64_t ticks
    cdef uint64_t count
    cdef double ns = WAIT_NS
    if l.pace > 0 and not l.closing and l.inflight < l.depth:
        until = min(until, <uint64_t>max(l.due, 0.0))
    ticks = ticks_now()
    if until <= ticks and not l.closing:
        return
    if not l.closing:
        ns = min(ns, (until - ticks) * 1e9 / ticks_hz())
    if not driver_calls_on(&l.driver):
        wait_readable(l.call_fd, <long>ns)
        read(l.call_fd, &count, sizeof(count))
    driver_calls_off(&l.driver)
    l.now = ticks_now()


cdef void load_run(load_t *l) noexcept nogil:
    """Go on until the time or the number is over and everything has come back, or stop says so."""
    cdef uint32_t idle = 0
    cdef int rc
    driver_calls_off(&l.driver)
    # Bounded by end, left and stop.
    while not (l.closing and l.inflight == 0) and load_relaxed_u32(&l.stop) != STOP_NOW:
        rc = load_turn(l)
        if rc < 0:
            l.broken = rc
            break
        if rc > 0:
            idle = 0
            continue
        idle += 1
        if l.call_fd >= 0:
            sleep(l)
        elif idle % IDLE_YIELD == 0:
            sched_yield()
        else:
            cpu_pause()
    l.ended = ticks_now()


def ring_bytes(uint16_t size) -> int:
    """Return the bytes of a ring of so many descriptors."""
    return driver_ring_bytes(size)


def line_bytes() -> int:
    """Return the bytes that a request has in shared memory beside its data."""
    return sizeof(line_t)


cdef class Load:
    """One queue's load, over memory that is shared with the device.

    memory: a writable buffer (an mmap), which starts at guest address `guest`.
    ring_at, lines_at, data_at: offsets in it; of depth times line_bytes() and depth times `most`.
    size: descriptors of the ring.  depth: requests in flight.  most: bytes of the longest.
    kick_fd, call_fd: eventfds of the caller's, non-blocking; call_fd -1 polls.
    """

    def __cinit__(self, uint8_t[::1] memory, *, uint64_t guest, uint64_t ring_at,
                  uint64_t lines_at, uint64_t data_at, uint16_t size, uint16_t depth,
                  uint32_t most, int kick_fd, int call_fd=-1, bint indirect=False,
                  bint event_idx=False):
        cdef uint16_t i
        static_check(sizeof(line_t) == 128)
        self.memory = memory
        if depth == 0 or depth * (1 if indirect else 3) > size:
            raise ValueError(f"a depth of {depth} does not fit into a ring of {size} descriptors")
        if max(ring_at + driver_ring_bytes(size), lines_at + depth * sizeof(line_t),
               data_at + <uint64_t>depth * most) > <uint64_t>memory.shape[0]:
            raise ValueError("the memory is too short")
        self.t = <load_t *>calloc(1, sizeof(load_t))
        if self.t is NULL:
            raise MemoryError
        ok(driver_init(&self.t.driver, &memory[ring_at], size, event_idx), f"ring of {size}")
        self.t.free_slots = <uint16_t *>calloc(depth, sizeof(uint16_t))
        self.t.slot_of = <uint16_t *>calloc(size, sizeof(uint16_t))
        self.t.slots = <slot_t *>calloc(depth, sizeof(slot_t))
        if self.t.free_slots is NULL or self.t.slot_of is NULL or self.t.slots is NULL:
            raise MemoryError
        for i in range(depth):
            self.t.free_slots[i] = depth - 1 - i
        self.t.depth = depth
        self.t.lines = <line_t *>&memory[lines_at]
        self.t.lines_guest = guest + lines_at
        self.t.data = &memory[data_at]
        self.t.data_guest = guest + data_at
        self.t.data_stride = most
        self.t.indirect = indirect
        self.t.kick_fd = kick_fd
        self.t.call_fd = call_fd
        self.t.other = OP_WRITE
        for i in range(OPS):
            latency_reset(&self.t.ops[i])

    def __dealloc__(self):
        if self.t is not NULL:
            driver_fini(&self.t.driver)
            free(self.t.free_slots)
            free(self.t.slot_of)
            free(self.t.slots)
            free(self.t.generation)
            free(self.t)

    @property
    def ring(self) -> tuple:
        """Offsets in the memory of (descriptors, available ring, used ring)."""
        cdef uint8_t[::1] memory = self.memory
        cdef char *start = <char *>&memory[0]
        return (<char *>self.t.driver.desc - start, <char *>self.t.driver.avail - start,
                <char *>self.t.driver.used - start)

    def job(self, *, uint64_t base, uint64_t area, sizes, reads, int other=OP_WRITE,
            bint random=True, uint32_t flush_every=0, uint32_t unit=0, uint64_t seed=0,
            bint check_all=False):
        """Say what to do: in `area` bytes from `base` on.

        sizes: pairs of bytes and weight.  reads: the share of reads, 0 to 1; the rest is `other`.
        random: else one after the other.  flush_every: a flush behind so many writes; 0: none.
        unit: bytes of which the content is tracked and verified; 0: not.  check_all: what is read
        was written by an earlier run.
        """
        cdef load_t *t = self.t
        cdef uint32_t i
        whole = sum(weight for _, weight in sizes)
        if not 0 < len(sizes) <= SIZES_MAX or whole <= 0:
            raise ValueError(f"from 1 to {SIZES_MAX} block sizes, with weights")
        below = 0
        for i, (length, weight) in enumerate(sizes):
            if not 0 < length <= min(t.data_stride, area) or length % (unit or 1):
                raise ValueError(f"a block of {length} bytes does not fit")
            below += weight
            t.sizes[i].length = length
            t.sizes[i].blocks = area // <uint64_t>length
            t.sizes[i].below = (below << 32) // whole
        t.size_count = len(sizes)
        t.base = base
        t.area = area
        t.read_below = round(reads * (1 << 32))
        t.other = other
        t.random = random
        t.flush_every = flush_every
        t.random_state = mix64(seed)
        t.seed = <uint32_t>seed
        t.check_all = check_all
        free(t.generation)
        t.generation = NULL
        t.unit = unit
        t.units = area // unit if unit else 0
        if unit:
            t.generation = <uint32_t *>calloc(t.units, sizeof(uint32_t))
            if t.generation is NULL:
                raise MemoryError

    def fill(self, uint64_t seed):
        """Put bytes that are hard to compress into the data of every request."""
        cdef uint64_t *words = <uint64_t *>self.t.data
        cdef uint64_t i
        with nogil:
            for i in range(self.t.depth * self.t.data_stride // sizeof(uint64_t)):
                words[i] = mix64(seed + i)

    def prepare(self, *, double seconds, double ramp=0, ios=None, double pace_s=0,
                bint pace_bytes=False, bint recheck=False):
        """Begin the count anew, before run().

        seconds: until no more is sent, from now on.  ramp: of them, seconds that are not counted.
        ios: requests behind the ramp; None: any number.  pace_s: seconds of a request, or of a
        byte; 0: as fast as can be.  recheck: read once what was written.
        """
        cdef load_t *t = self.t
        cdef uint64_t hz = ticks_hz()
        cdef int i
        if self.running or t.inflight:
            ok(-EBUSY, "a load that runs")
        t.phase = PHASE_CHECK if recheck else PHASE_RUN
        t.position = 0
        t.unflushed = 0
        t.closing = False
        store_relaxed_u32(&t.stop, STOP_NO)
        t.now = t.started = t.ended = ticks_now()
        t.end = t.now + <uint64_t>(seconds * hz)
        t.ramping = ramp > 0
        t.ramp_end = t.now + <uint64_t>(ramp * hz)
        t.ios = UINT64_MAX if ios is None else ios
        t.left = UINT64_MAX if t.ramping else t.ios
        t.pace = pace_s * hz
        t.pace_bytes = pace_bytes
        t.due = t.now
        memset(t.errors, 0, sizeof(t.errors))
        for i in range(OPS):
            latency_reset(&t.ops[i])

    def run(self) -> None:
        """Do it; returns when it is over.  On a thread of its own."""
        self.running = True
        with nogil:
            load_run(self.t)
        self.running = False

    def stop(self, bint at_once=False) -> None:
        """Have it send no more, or end without waiting for what is in flight."""
        store_relaxed_u32(&self.t.stop, STOP_NOW if at_once else STOP_DRAIN)

    # Figures, also while it runs.

    def counts(self) -> tuple:
        """Return (requests, bytes) of each kind, and at last how many failed."""
        cdef uint64_t failed = 0
        cdef int i
        for i in range(STATUSES):
            failed += load_relaxed_u64(&self.t.errors[i])
        return (*[(load_relaxed_u64(&self.t.ops[i].count), load_relaxed_u64(&self.t.ops[i].bytes))
                  for i in range(OPS)], failed)

    def latency(self, uint32_t op) -> tuple:
        """Return (requests, bytes, sum, least, most in ticks, list of the buckets) of a kind."""
        cdef int i
        if op >= OPS:
            raise ValueError(f"there is no kind {op}")
        o = &self.t.ops[op]
        return (load_relaxed_u64(&o.count), load_relaxed_u64(&o.bytes),
                load_relaxed_u64(&o.ticks), load_relaxed_u64(&o.least),
                load_relaxed_u64(&o.most),
                [load_relaxed_u64(&o.bucket[i]) for i in range(LATENCY_BUCKETS)])

    def errors(self) -> dict:
        """Return how many requests came back with each status that is not OK."""
        cdef int i
        return {i: self.t.errors[i] for i in range(STATUSES) if self.t.errors[i]}

    def verified(self) -> tuple:
        """Return (sectors checked, sectors found wrong, the first of these as (offset, kind,
        generation wanted, generation found, offset that it tells))."""
        cdef uint32_t i
        cdef pattern_fault_t *f = self.t.faults
        return (self.t.checked, self.t.fault_count,
                [(f[i].offset, f[i].kind, f[i].wanted, f[i].found, f[i].belongs)
                 for i in range(self.t.faults_kept)])

    @property
    def inflight(self) -> int:
        return load_relaxed_u32(&self.t.inflight)

    @property
    def broken(self) -> int:
        """-errno when the device broke the ring, else 0."""
        return self.t.broken

    @property
    def span(self) -> tuple:
        """(first, last) tick of what was counted."""
        return self.t.started, self.t.ended
