"""One run of vhostrt-perf: set up, watched while its threads are busy, verified, taken down.

Threads: the main thread sets up and watches; each queue has one of its own, without the GIL.
Fails:   TargetError before it begins; what happens later is told in the result.
"""
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Self

from vhostrt.base import ticks
from vhostrt.tools.perf_options import KINDS, SECTOR, TRIM, Plan
from vhostrt.tools.perf_stats import Latency, Moment, Result, between, merged
from vhostrt.vhost.client.blk import F_DISCARD, F_FLUSH, F_RO, GUEST, BlkFrontEnd, Ring
from vhostrt.vhost.client.connection import Connection, TargetError, accept, connect
from vhostrt.vhost.client.memory import Area, SharedMemory
from vhostrt.vhost.messages import Feature
from vhostrt.virtio.driver import load

LOOK_S = 0.05                           # between two looks at the target and the threads
MOMENT_S = 1.0
FOREVER_S = 10.0**8
Show = Callable[[Moment], None]


class Signals:
    """Ctrl-C and SIGTERM: while it is running the first ends the run in order, a second at once;
    before and after that they are a KeyboardInterrupt."""

    def __init__(self) -> None:
        self.count = 0
        self.running = False
        self.before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._come)
        return self

    def __exit__(self, *_exc: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)      # type: ignore[arg-type]

    def _come(self, *_: object) -> None:
        if not self.running:
            raise KeyboardInterrupt
        self.count += 1


def refusal(plan: Plan, front: BlkFrontEnd) -> str:
    """Return why this target cannot do what the plan says, or ""."""
    device, name = front.device, plan.socket
    if not device.capacity and not plan.size:
        return f"{name}: the target does not tell how large its disk is: say it with --size"
    if plan.queues > device.queues:
        return f"{name}: the target has {device.queues} queues, and --queues says {plan.queues}"
    if plan.writes and front.has(F_RO):
        return f"{name}: the disk is read-only, and --rw {plan.rw} would write"
    if plan.flush and not front.has(F_FLUSH):
        return f"{name}: the target has no flush, which --flush asks for"
    if plan.other == TRIM and not front.has(F_DISCARD):
        return f"{name}: the target has no discard, which --rw {plan.rw} asks for"
    if plan.other == TRIM and device.discard_max and plan.longest > device.discard_max:
        return (f"{name}: the target discards {device.discard_max} bytes at a time, and --bs says "
                f"{plan.longest}")
    if plan.indirect and not front.has(Feature.INDIRECT_DESC):
        return f"{name}: the target has no indirect descriptors, which --indirect asks for"
    if plan.unit % device.block_size or plan.offset % device.block_size:
        return (f"{name}: blocks and offsets must be multiples of the disk's block of "
                f"{device.block_size} bytes")
    if device.size_max and plan.longest > device.size_max:
        return (f"{name}: the target takes {device.size_max} bytes in a piece, and --bs says "
                f"{plan.longest}")
    if device.capacity and plan.offset + (plan.size or SECTOR) > device.capacity:
        return f"{name}: the disk ends at byte {device.capacity}, before the area does"
    if share(plan, front) < plan.longest:
        return (f"{name}: an area of {area(plan, front)} bytes has no block of {plan.longest} for "
                f"each of {plan.queues} queues")
    return ""


def area(plan: Plan, front: BlkFrontEnd) -> int:
    """Return the bytes that the run may touch."""
    return plan.size or front.device.capacity - plan.offset


def share(plan: Plan, front: BlkFrontEnd) -> int:
    """Return the bytes of the area that each queue has for itself."""
    return area(plan, front) // plan.queues // plan.unit * plan.unit


class Run:
    """A plan on a target.  Use it as a context manager; go() returns the result.

    front: what was negotiated, once entered.
    """

    def __init__(self, plan: Plan, signals: Signals) -> None:
        self.plan = plan
        self.signals = signals
        self.hz = ticks.hz()
        self.loads: list[load.Load] = []
        self.course: list[Moment] = []
        self.failure = ""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            plan = self.plan
            begin = accept if plan.listen else connect
            self.connection: Connection = undo.enter_context(begin(plan.socket, plan.timeout))
            self.front = BlkFrontEnd(self.connection)
            self.front.negotiate()
            wrong = refusal(plan, self.front)
            if wrong:
                raise TargetError(wrong)
            self.rings = self._make_rings(undo)
            self.front.start(self.memory, self.rings)
            self.undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self.undo.close()

    def _make_rings(self, undo: contextlib.ExitStack) -> list[Ring]:
        """Lay out and take the memory of the queues; make their loads."""
        plan, size = self.plan, self.plan.descriptors
        plots = Area()
        places = [(plots.take(load.ring_bytes(size)), plots.take(load.line_bytes() * plan.depth),
                   plots.take(plan.longest * plan.depth)) for _ in range(plan.queues)]
        self.memory = undo.enter_context(SharedMemory(plots.size, plan.hugepages))
        undo.callback(self.loads.clear)             # they hold the memory
        rings = []
        for index, (ring_at, lines_at, data_at) in enumerate(places):
            # Polling, the device is asked not to call; some have to have the descriptor all the
            # same (libvhost-user fails at its first call without one).
            kick, call = self._eventfd(undo), self._eventfd(undo)
            one = load.Load(self.memory.map, guest=GUEST, ring_at=ring_at, lines_at=lines_at,
                            data_at=data_at, size=size, depth=plan.depth, most=plan.longest,
                            kick_fd=kick, call_fd=call if plan.interrupt else -1,
                            indirect=plan.indirect,
                            event_idx=self.front.has(Feature.EVENT_IDX))
            one.fill(plan.seed + index)
            self.loads.append(one)
            rings.append(Ring(index, size, *one.ring, kick, call))
        return rings

    def _eventfd(self, undo: contextlib.ExitStack) -> int:
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        undo.callback(os.close, fd)
        return fd

    # The work.

    def go(self, show: Show) -> Result:
        """Do what the plan says; show() gets every second."""
        self.signals.running = True
        try:
            return self._go(show)
        finally:
            self.signals.running = False

    def _go(self, show: Show) -> Result:
        plan = self.plan
        ours = share(plan, self.front)
        verifies = plan.verify and plan.writes
        for index, one in enumerate(self.loads):
            one.job(base=plan.offset + index * ours, area=ours, sizes=plan.bs, reads=plan.reads,
                    other=plan.other, random=plan.random, flush_every=plan.flush,
                    unit=plan.unit if plan.verify else 0, seed=plan.seed + (index << 40),
                    check_all=plan.verify and not verifies)
            per_queue = plan.ios and plan.ios // plan.queues + (index < plan.ios % plan.queues)
            pace = plan.rate or plan.rate_iops
            one.prepare(seconds=FOREVER_S if plan.time is None else plan.time, ramp=plan.ramp,
                        ios=per_queue, pace_s=plan.queues / pace if pace else 0,
                        pace_bytes=bool(plan.rate))
        self._work(show)
        result = self._result()
        if verifies and not self.failure and not self.signals.count:
            for one in self.loads:
                one.prepare(seconds=FOREVER_S, recheck=True)
            self._work(lambda moment: None)
            for status, count in self._errors().items():
                result.errors[status] = result.errors.get(status, 0) + count
        self._take_down()
        for one in self.loads:
            checked, wrong, faults = one.verified()
            result.checked += checked
            result.wrong += wrong
            result.faults += faults
        result.interrupted = bool(self.signals.count)
        result.failure = self.failure
        return result

    def _work(self, show: Show) -> None:
        """Let every load run on a thread of its own, and watch."""
        threads = [threading.Thread(target=self._one, args=(one, index), name=f"perf.vq{index}")
                   for index, one in enumerate(self.loads)]
        self.began = time.monotonic()
        try:
            for thread in threads:
                thread.start()
            self._watch(threads, show)
        finally:
            for one in self.loads:
                one.stop(at_once=True)
            for thread in threads:
                thread.join()
        for ring, one in zip(self.rings, self.loads, strict=True):
            if one.broken and not self.failure:
                self.failure = (f"{self.plan.socket}: the target gave back a request that it never "
                                f"had, in queue {ring.index}")

    def _one(self, one: load.Load, index: int) -> None:
        cores = self.plan.cores
        if cores is not None:
            os.sched_setaffinity(0, {cores[index % len(cores)]})
        one.run()

    def _watch(self, threads: list[threading.Thread], show: Show) -> None:
        """Return when all are done, or when the target cannot go on."""
        last, kinds = time.monotonic(), self._kinds()
        stalled = Stall(self.loads, self.plan.timeout)
        while any(thread.is_alive() for thread in threads):
            self._wait(threads)
            now = time.monotonic()
            self.failure = self.connection.lost() or stalled.look(now)
            if self.failure or self.signals.count > 1:
                return
            if self.signals.count or any(one.broken for one in self.loads):
                for one in self.loads:
                    one.stop()
            if now - last >= MOMENT_S:
                kinds = self._moment(now, now - last, kinds, show)
                last = now
        now = time.monotonic()
        if now - last >= MOMENT_S / 2 or not self.course:
            self._moment(now, max(now - last, 1e-6), kinds, show)

    def _wait(self, threads: list[threading.Thread]) -> None:
        """Wait a little, or until a thread has ended."""
        next((t for t in threads if t.is_alive()), threads[0]).join(LOOK_S)

    def _moment(self, now: float, seconds: float, before: list[Latency],
                show: Show) -> list[Latency]:
        kinds = self._kinds()
        moment = Moment(now - self.began, seconds,
                        [between(b, a) for a, b in zip(before, kinds, strict=True)])
        self.course.append(moment)
        show(moment)
        return kinds

    # Figures.

    def _kinds(self) -> list[Latency]:
        """Return the figures of each kind of request, of all queues."""
        return [merged(self.hz, (Latency(self.hz, *one.latency(kind)) for one in self.loads))
                for kind in range(len(KINDS))]

    def _errors(self) -> dict[int, int]:
        errors: dict[int, int] = {}
        for one in self.loads:
            for status, count in one.errors().items():
                errors[status] = errors.get(status, 0) + count
        return errors

    def _result(self) -> Result:
        spans = [one.span for one in self.loads]
        took = max(end for _, end in spans) - min(start for start, _ in spans)
        return Result(max(took, 1) / self.hz, self._kinds(), self._errors(), list(self.course))

    def _take_down(self) -> None:
        """Stop the rings, where there is still somebody to do it."""
        if self.failure:
            return
        try:
            self.front.stop()
        except TargetError as error:
            self.failure = str(error)


class Stall:
    """Finds a queue that has requests in flight and gets none back."""

    def __init__(self, loads: list[load.Load], timeout: float) -> None:
        self.loads = loads
        self.timeout = timeout
        self.seen = [(-1, 0.0)] * len(loads)

    def look(self, now: float) -> str:
        """Return what hangs, or ""."""
        for index, one in enumerate(self.loads):
            *kinds, failed = one.counts()
            done = failed + sum(count for count, _ in kinds)
            if one.broken or not one.inflight or done != self.seen[index][0]:
                self.seen[index] = done, now
            elif now - self.seen[index][1] > self.timeout:
                return (f"the target has not answered {one.inflight} requests of queue {index} "
                        f"within {self.timeout:g} s")
        return ""
