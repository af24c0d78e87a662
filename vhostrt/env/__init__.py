"""The environment layer: lcores, memory, rings and devices, as a library that stands on its own.

    >>> from vhostrt import env
    >>> with env.init(name="example", mem_size=64 << 20, no_huge=True) as environment:
    ...     from vhostrt.env import lcore, memory, ring
    ...     lcore.enabled() == sorted(environment.lcores)   # a pinned thread for each CPU we have
    ...     block = memory.zalloc(4096)                     # zeroed, and in memory
    ...     words = block.array("uint64")                   # a NumPy array over the same bytes
    ...     words[0] = 42
    ...     numbers = ring.Ring(1024)                       # lock-free, between any threads
    ...     numbers.enqueue([1, 2, 3])
    ...     numbers.dequeue(8)
    ...     del block, words, numbers                       # all memory is home before the end
    True
    3
    [1, 2, 3]

init() starts it, fini() or the end of the `with` block gives everything back, and then it can be
started again. What it is asked to be is an EnvOptions, keyword arguments of the same names, or an
EAL argument vector read by vhostrt.env.eal.parse. Importing this module starts nothing, and takes
the compiled parts along only when init() needs them.

From Cython the same parts are `from vhostrt.env.ring cimport ring_t, ...`; give
vhostrt.get_include() to cythonize as an include path and to the compiler as an include directory,
and call env.init() from Python first. docs/env.md has an example of both.

Owner:    the process; there is one environment at a time.
Threads:  the control thread, which is whoever called init().
Fails:    ValueError for what cannot be asked, OSError for what the system refuses: one sentence
          that names the option or the thing, and the value. A failed init() leaves nothing behind.
"""
import errno
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Self

from vhostrt.env import arguments, cpus
from vhostrt.env.options import EnvOptions

__all__ = ["EnvOptions", "Environment", "current", "fini", "init"]

running: "Environment | None" = None    # written by init and fini
at_exit = False                         # whether the interpreter's end is told to us


class Environment:
    """A started environment, made by init(); a context manager that ends it.

    options         EnvOptions as they were followed, with what was not said made explicit
    memory          one sentence about where the memory comes from
    lcores          lcore -> its CPUs, ascending, without those that run services alone
    service_lcores  the ids of those, ascending
    main_lcore      one of lcores
    arguments       the options as an EAL argument vector
    pci             the PCI bus, looked at when it is first asked for
    """

    def __init__(self, options: EnvOptions) -> None:
        """Start it.  Fails: ValueError, OSError, MemoryError; then nothing has been started."""
        self.options = options
        self.memory = ""
        self.dma: tuple[str, ...] = ()
        self.bus: Any = None
        self.pid = os.getpid()
        self.ends: list[Callable[[], None]] = []    # of what has begun, in that order
        self.begin(self.start)

    def begin(self, start: Callable[[], None]) -> None:
        """Run a part of the start; when it fails, what it has begun is ended again."""
        before = len(self.ends)
        try:
            start()
        except BaseException:
            while len(self.ends) > before:
                self.ends.pop()()
            raise

    def start(self) -> None:
        """Start lcores, memory and services; what the machine has not got is told first."""
        from vhostrt.env import lcore, memory
        options = self.options
        lcore.init(options.lcores, options.main_lcore, service=options.service_lcores,
                   roots=options.roots)
        self.ends.append(lcore.fini)
        on_node = Counter(node for node in map(lcore.socket, options.lcores) if node >= 0)
        self.memory = memory.init(options, dict(on_node))
        self.ends.insert(0, memory.fini)            # lcores may use it to their end
        if options.service_lcores:
            from vhostrt.env import services
            services.init()
            self.ends.append(services.fini)

    def start_pci(self) -> None:
        """Scan the bus, and have addresses for its devices: not with --no-pci."""
        from vhostrt.env.pci import bus
        self.bus, self.dma = bus.start(self.options)
        self.ends.append(partial(bus.stop, self.bus))

    def end(self) -> None:
        """End what has begun, last first.  OSError: the rest stays, and end() may be repeated.

        A forked child only forgets: threads, memory and devices are its parent's.
        """
        if self.pid != os.getpid():
            from vhostrt.env import lcore, memory
            self.ends = [memory.fini, lcore.fini]
        for name in ("alarm", "interrupt"):         # they start by themselves, when they are used
            module = sys.modules.get(f"vhostrt.env.{name}")
            if module is not None:
                module.fini()
        while self.ends:
            self.ends[-1]()
            self.ends.pop()

    @property
    def lcores(self) -> dict[int, tuple[int, ...]]:
        return {lcore: of for lcore, of in self.options.lcores.items()
                if lcore not in self.options.service_lcores}

    @property
    def service_lcores(self) -> tuple[int, ...]:
        return self.options.service_lcores

    @property
    def main_lcore(self) -> int:
        return self.options.main_lcore

    @property
    def arguments(self) -> list[str]:
        return arguments.build(self.options)

    @property
    def pci(self) -> Any:
        """vhostrt.env.pci.bus.Bus.  Fails: OSError, ValueError; it may be asked for again."""
        if running is not self:
            raise OSError(errno.ESRCH, "the PCI bus: this environment has ended")
        if self.bus is None:
            self.begin(self.start_pci)
        return self.bus

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _frames: object) -> None:
        try:
            if running is self:
                fini()
        except OSError as why:
            # What has gone wrong inside is what is to be known; it may be what holds the memory.
            if error is None:
                raise
            error.add_note(f"the environment could not be ended: {why}")

    def __repr__(self) -> str:
        state = "running" if running is self else "ended"
        return f"<Environment {self.options.name}, {state}, lcores {cpus.cpu_list(self.lcores)}>"


def plain(name: str, value: Any) -> Any:
    """Return a keyword argument in the form that EnvOptions has: lists and ranges as tuples.

    lcores may be a list of ids, each on the CPU of its number, or text such as "0-1,4@(2-3)".
    """
    if name != "lcores":
        return tuple(value) if isinstance(value, list) else value
    if isinstance(value, str):
        from vhostrt.env.eal import read_lcores
        return arguments.said(name, read_lcores, value)
    if not isinstance(value, dict | list | tuple | range | set | frozenset):
        return value
    if len(value) > cpus.CPU_MAX:
        raise ValueError(f"lcores: {len(value)} of them are more than {cpus.CPU_MAX}")
    if not isinstance(value, dict):
        value = {lcore: (lcore,) for lcore in value}
    if any(type(lcore) is not int for lcore in value):
        return value                                    # which is refused as it is
    return {lcore: tuple(of) if isinstance(of, list | range | set | frozenset) else of
            for lcore, of in sorted(value.items())}


def init(options: EnvOptions | None = None, **keywords: Any) -> Environment:
    """Start the environment and return it.

    options: what it is to be; keywords: fields of EnvOptions to have instead. Without lcores there
    is one on each CPU that the process may run on. The calling thread keeps its own CPUs.
    Fails: OSError EALREADY when there is one, and as the module says.
    """
    global running, at_exit
    if current() is not None:
        raise OSError(errno.EALREADY, "already called initialization: vhostrt.env.fini() first")
    asked = replace(options or EnvOptions(),
                    **{name: plain(name, value) for name, value in keywords.items()})
    if asked.lcores is None:
        asked.lcores = {cpu: (cpu,) for cpu in sorted(os.sched_getaffinity(0))}
    asked = arguments.settle(asked)
    if asked.main_lcore is None:
        asked.main_lcore = min(set(asked.lcores) - set(asked.service_lcores))
    running = Environment(asked)
    if not at_exit:
        import atexit
        atexit.register(end_quietly)
        at_exit = True
    return running


def fini() -> None:
    """End the environment: devices, lcores, memory. Nothing is done when there is none.

    Fails: OSError EBUSY that names what is still in use, an lcore that runs or blocks of memory;
    what had to end before it has ended, and fini() may be called again.
    """
    global running
    if running is not None:
        running.end()
        running = None


def current() -> Environment | None:
    """Return the environment that runs; None without one, and in a forked child."""
    return running if running is not None and running.pid == os.getpid() else None


def end_quietly() -> None:
    """At the end of the interpreter: what is in use then goes with the process."""
    try:
        fini()
    except OSError:
        pass
