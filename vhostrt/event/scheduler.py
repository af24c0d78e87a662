"""Schedulers: which light thread runs on which core, and which cores sleep.

A scheduler is a plug-in (register). Every period it is told the load of cores and threads, and says
what is to move; threads move one after the other by Thread.move, and one that cannot stays where it
is. New threads are placed by the same load.

Threads: the control thread.
Fails:   ValueError with a sentence for what cannot be set.
Source:  framework_set_scheduler, scheduler_set_options, thread_set_cpumask.
"""
import asyncio
import contextlib
import errno
from collections.abc import Iterable
from typing import Any

from vhostrt import log
from vhostrt.env import lcore as lcore_module
from vhostrt.event import reactor, scheduler_trace, thread
from vhostrt.event.load import STEP, Core, Meter, running
from vhostrt.event.thread import Thread

PERIOD_US = 1_000_000                   # when nobody says another
PERIOD_LEAST_US = 1000                  # the control thread has other things to do, too
METER_S = 1.0                           # between two looks at the load without a period

Moves = list[tuple[Thread, int]]


class Scheduler:
    """What a scheduler does; subclasses have a name, and set `limits` or take more options.

    limits  options that are percentages, with their values
    """

    name = ""
    moves_threads = True                # it is asked every period

    def __init__(self, options: dict[str, Any]) -> None:
        """Take the options that were given. Fails: ValueError."""
        if options:
            raise ValueError(f"'{next(iter(options))}' is no option of the scheduler {self.name}")

    def options(self) -> dict[str, Any]:
        """Return the options that would make the same scheduler again."""
        return {}

    def first(self, scheduling: "Scheduling") -> Moves:
        """Return what moves when the scheduler takes over."""
        return []

    def balance(self, scheduling: "Scheduling", cores: dict[int, Core]) -> Moves:
        """Return what moves now; `cores` may be changed."""
        return []

    def wanted(self, name: str) -> int | None:
        """Return the lcore that a new thread of this name has to be on; None: any."""
        return None


SCHEDULERS: dict[str, type[Scheduler]] = {}


def register(kind: type[Scheduler]) -> type[Scheduler]:
    """Let a scheduler be chosen by its name."""
    SCHEDULERS[kind.name] = kind
    return kind


@register
class Static(Scheduler):
    """Every thread stays where it came first, or goes to where `mappings` says.

    mappings: str, "thread:core,..."; a thread's name, which may come later, or its id.
    """

    name = "static"
    moves_threads = False

    def __init__(self, options: dict[str, Any]) -> None:
        options = dict(options)
        text = options.pop("mappings", "")
        super().__init__(options)
        self.mappings = dict(read_mapping(part) for part in text.split(",") if part)

    def options(self) -> dict[str, Any]:
        """By name: an id is another thread's at the next start."""
        text = ",".join(f"{name}:{core}" for name, core in self.mappings.items())
        return {"mappings": text} if text else {}

    def first(self, scheduling: "Scheduling") -> Moves:
        """Back to the first cores, where another scheduler has been at work."""
        moves = []
        for light in running():
            lcore = self.mappings.get(light.name, light.first_lcore)
            if light.lcore != lcore and lcore in light.lcores():
                moves.append((light, lcore))
        return moves

    def wanted(self, name: str) -> int | None:
        return self.mappings.get(name)


def read_mapping(text: str) -> tuple[str, int]:
    """Read `thread:core`; return the thread's name and the core. Fails: ValueError."""
    name, colon, core = text.rpartition(":")
    if not colon or not core.isascii() or not core.isdigit():
        raise ValueError(f"'mappings': {text!r} is not thread:core")
    if int(core) not in reactor.lcores():
        raise ValueError(f"'mappings': core {core} of {text!r} has no reactor")
    if name.isascii() and name.isdigit() and not any(t.name == name for t in thread.threads()):
        try:
            name = thread.get(int(name)).name
        except KeyError:
            raise ValueError(f"'mappings': there is no thread {name}") from None
        if "," in name:
            raise ValueError(f"'mappings': thread {name!r} has a comma in its name, which cannot "
                             "be said there")
    return name, int(core)


@register
class Dynamic(Scheduler):
    """Idle threads share the scheduling core, busy ones spread as far as they need; cores without
    a thread sleep.

    load_limit  percent; a thread below it is idle
    core_limit  percent; what a core may have after a thread has come to it
    core_busy   percent; from it on a core with several threads gives one away
    """

    name = "dynamic"

    def __init__(self, options: dict[str, Any]) -> None:
        options = dict(options)
        self.load_limit = options.pop("load_limit", 20)
        self.core_limit = options.pop("core_limit", 80)
        self.core_busy = options.pop("core_busy", 95)
        super().__init__(options)
        for name, value in self.options().items():
            if not 0 <= value <= 100:
                raise ValueError(f"'{name}' must be a percentage from 0 to 100, not {value}")

    def options(self) -> dict[str, Any]:
        return {"load_limit": self.load_limit, "core_limit": self.core_limit,
                "core_busy": self.core_busy}

    def balance(self, scheduling: "Scheduling", cores: dict[int, Core]) -> Moves:
        """First the idle threads, then, with what that leaves on each core, the busy ones."""
        movable = [(light, load) for core in cores.values() for light, load in core.threads.items()
                   if not light.bound and core.lcore not in scheduling.isolated]
        movable.sort(key=lambda each: each[0].id)
        moves: Moves = []
        for idle in (True, False):
            for light, load in movable:
                if (load < self.load_limit) is not idle:
                    continue
                here = next(n for n, core in cores.items() if light in core.threads)
                allowed = sorted(light.lcores() - scheduling.isolated)
                if not allowed:
                    continue
                there = (self.place_idle(scheduling, allowed) if idle
                         else self.place_busy(scheduling, cores, allowed, here, load))
                if there != here:
                    moves.append((light, there))
                    del cores[here].threads[light]
                    cores[here].load -= load
                    cores[there].threads[light] = load
                    cores[there].load += load
        return moves

    def place_idle(self, scheduling: "Scheduling", allowed: list[int]) -> int:
        main = scheduling.scheduling_core
        return main if main in allowed else allowed[0]

    def place_busy(self, scheduling: "Scheduling", cores: dict[int, Core], allowed: list[int],
                   here: int, load: float) -> int:
        """The first core with room; off a core that has too much any, else only a lower one."""
        main = scheduling.scheduling_core
        order = sorted(allowed, key=lambda n: (n != main, n))
        mine = cores[here]
        # What is bound goes where the others are: to leave it alone is no relief.
        full = (mine.load >= self.core_busy
                and sum(not light.bound for light in mine.threads) > 1)
        for n in order:
            if n == here:
                if here in allowed and not full:
                    return here
            elif not cores[n].threads or cores[n].load + load <= self.core_limit:
                return n
        least = min((n for n in order if n != here), key=lambda n: cores[n].load, default=here)
        better = cores[least].load + STEP <= mine.load - load
        return least if better or here not in allowed else here


class Scheduling:
    """The scheduler in use, what it may do, and its clock."""

    def __init__(self) -> None:
        self.meter = Meter()
        self.task: asyncio.Task | None = None
        self.forget()

    def forget(self) -> None:
        """Be as at the start of the program."""
        self.meter = Meter()
        self.scheduler: Scheduler = Static({})
        self.period_us = 0              # 0: not asked
        self.isolated: frozenset[int] = frozenset()
        self.core: int | None = None    # for scheduling, when somebody has said which
        self.idle: dict[int, str] = {}  # what each core does without work, by itself
        self.asleep: set[int] = set()   # cores without a thread, which have interrupt mode instead

    @property
    def scheduling_core(self) -> int:
        """The core that idle threads go to: the main core, unless another one was chosen."""
        return lcore_module.main() if self.core is None else self.core

    # Settings

    def set(self, name: str, period_us: int = 0, options: dict[str, Any] | None = None) -> None:
        """Use another scheduler, or the same with other options.

        period_us: microseconds, 0 for what it was or 1 s.  options: those that were given, by name.
        Fails: ValueError.
        """
        if name not in SCHEDULERS:
            raise ValueError(f"there is no scheduler {name!r}: it is one of "
                             f"{', '.join(sorted(SCHEDULERS))}")
        if 0 < period_us < PERIOD_LEAST_US:
            raise ValueError(f"'period' must be at least {PERIOD_LEAST_US} microseconds, not "
                             f"{period_us}")
        self.scheduler = SCHEDULERS[name](options or {})
        if not self.scheduler.moves_threads:
            self.period_us = 0
        else:
            self.period_us = period_us or self.period_us or PERIOD_US
        if self.task is not None:
            self.start()

    def set_options(self, isolated: Iterable[int] | None, core: int | None) -> None:
        """Leave cores alone, and choose the one for idle threads; None: as it is.

        Fails: ValueError.
        """
        there = reactor.lcores()
        left_alone = self.isolated if isolated is None else frozenset(isolated)
        main = self.scheduling_core if core is None else core
        if main not in there:
            raise ValueError(f"'scheduling_core' must be a core with a reactor, of {there}, not "
                             f"{main}")
        if not left_alone <= frozenset(there):
            raise ValueError(f"'isolated_core_mask' has cores without a reactor: "
                             f"{sorted(left_alone - frozenset(there))}")
        if main in left_alone:
            raise ValueError(f"'isolated_core_mask' must not have the scheduling core, {main}")
        self.isolated, self.core = left_alone, main

    def describe(self) -> dict[str, Any]:
        """Return what framework_get_scheduler answers."""
        return {"scheduler_name": self.scheduler.name, "scheduler_period": self.period_us,
                "isolated_core_mask": f"{sum(1 << n for n in self.isolated):x}",
                "scheduling_core": self.scheduling_core,
                **(self.scheduler.options() if self.scheduler.moves_threads else {})}

    def config(self) -> list[dict[str, Any]]:
        """Return the calls that make these settings again; none where they are the default."""
        calls = []
        if self.isolated or self.core not in (None, lcore_module.main()):
            calls.append({"method": "scheduler_set_options", "params": {
                "isolated_core_mask": f"{sum(1 << n for n in self.isolated):#x}",
                "scheduling_core": self.scheduling_core}})
        params = {"name": self.scheduler.name, **self.scheduler.options()}
        if self.period_us:
            params["period"] = self.period_us
        if params != {"name": Static.name}:
            calls.append({"method": "framework_set_scheduler", "params": params})
        return calls

    # The clock

    def start(self) -> None:
        """Begin, or begin anew with another scheduler, in the running loop."""
        before = self.task
        if before is not None:
            before.cancel()             # now: the new task may be cancelled before it begins
        if not self.idle:
            self.idle = {n: reactor.idle_of(n) for n in reactor.lcores()}
        thread.choose = self.place
        self.task = asyncio.create_task(self.run(self.scheduler, before))

    async def stop(self) -> None:
        """Leave the threads where they are, have the cores do what they did, and forget."""
        task, self.task = self.task, None
        if task is not None:
            await ended(task)
        self.rouse(self.asleep)
        thread.choose = thread.fewest_threads
        self.forget()

    async def run(self, scheduler: Scheduler, before: asyncio.Task | None) -> None:
        """Move threads as one scheduler says, from the end of the one before to the end."""
        if before is not None:
            await ended(before)
        if not scheduler.moves_threads:
            self.rouse(self.asleep)
        try:
            await self.move(scheduler.first(self))
            while True:
                self.meter.look()
                await asyncio.sleep(self.period_us / 1e6 if scheduler.moves_threads else METER_S)
                if scheduler.moves_threads:
                    await self.round(scheduler)
        except Exception as error:      # a defect of a plug-in must not go unseen
            log.error(f"the scheduler {scheduler.name} ended by an internal error: {error!r}")

    async def round(self, scheduler: Scheduler) -> None:
        """Look, move, and let cores without a thread sleep."""
        self.meter.look()
        if scheduler_trace.wanted():
            self.trace()
        moves = scheduler.balance(self, self.meter.cores())
        self.rouse({lcore for _, lcore in moves})
        await self.move(moves)
        for lcore, core in self.meter.cores().items():
            if not core.threads and lcore not in self.isolated:
                self.let_sleep(lcore)
            else:
                self.rouse({lcore})

    def trace(self) -> None:
        """Leave entries of what the last look has found."""
        us = self.meter.period_us
        scheduler_trace.period(us)
        for lcore, core in self.meter.cores().items():
            scheduler_trace.core(lcore, *parts(core.load, us))
            for light, load in core.threads.items():
                scheduler_trace.light(light, *parts(load, us))

    async def move(self, moves: Moves) -> None:
        for light, lcore in moves:
            before, rc = light.lcore, 0
            try:
                await light.move(lcore)
                log.debug("thread", f"{light.name} runs on core {lcore} now")
            except OSError as error:
                rc = -(error.errno or errno.EIO)
                log.info("thread", f"{light.name} stays on core {light.lcore}: {error.strerror}")
            scheduler_trace.move(light, before, lcore, rc)

    def let_sleep(self, lcore: int) -> None:
        """Have a core without a thread wait in the kernel."""
        if lcore in self.asleep or self.idle.get(lcore) == "interrupt":
            return
        with contextlib.suppress(OSError):      # its ring is full: it has work
            reactor.set_idle(lcore, "interrupt")
            self.asleep.add(lcore)

    def rouse(self, lcores: Iterable[int]) -> None:
        """Have cores do again what they did before let_sleep."""
        for lcore in self.asleep.intersection(lcores):
            with contextlib.suppress(OSError):
                reactor.set_idle(lcore, self.idle[lcore])
                self.asleep.discard(lcore)

    # Places

    def place(self, lcores: Iterable[int], name: str = "") -> int:
        """Return the one of these lcores for a new thread: where the scheduler wants one of this
        name, else the least loaded; isolated cores only where there are no others."""
        allowed = frozenset(lcores)
        allowed = allowed - self.isolated or allowed
        wanted = self.scheduler.wanted(name)
        lcore = wanted if wanted in allowed else self.meter.least(allowed)
        self.rouse({lcore})
        return lcore


def parts(load: float, us: int) -> tuple[int, int]:
    """Return the busy and the idle microseconds of so many, for a load in percent."""
    busy = round(us * load / 100)
    return busy, us - busy


async def ended(task: asyncio.Task) -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    await asyncio.wait((task,))


scheduling = Scheduling()


async def set_cpumask(light: Thread, lcores: Iterable[int]) -> None:
    """Let a thread run on these lcores, and move it when the present one is not among them.

    Fails: ValueError when none of them has a reactor; OSError (EPERM: the thread is bound, and what
    its move raises: then nothing has changed).
    """
    allowed = frozenset(lcores) & frozenset(reactor.lcores())
    if not allowed:
        raise ValueError(f"cpumask {sorted(lcores)} has no core with a reactor, of "
                         f"{reactor.lcores()}")
    if not light.running:
        raise OSError(errno.ESRCH, f"the thread {light.name} does not run")
    before = light.cpumask
    light.set_lcores(allowed)
    if light.lcore in allowed:
        return
    try:
        await light.move(scheduling.place(allowed))
    except OSError:
        light.set_lcores(before)
        raise
