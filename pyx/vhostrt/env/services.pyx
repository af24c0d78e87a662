"""Services from Python: C functions that lcores of services call over and over.

    >>> services.init()                                 # after lcore.init(..., service=[1])
    >>> poll = services.register("poll", module.__pyx_capi__["poll"])
    >>> poll.component(True)                            # it is able to run
    >>> services.start_with_defaults()                  # and is to, on lcore 1

Threads:  the control thread.
Fails:    OSError, or TypeError for what is no C function: a sentence that names the service.
"""
import os

from libc.errno cimport EINVAL, ENAMETOOLONG
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from vhostrt.base.capsule cimport function_of
from vhostrt.base.errors cimport ok
from vhostrt.env.lcore cimport LCORE_NONE
from vhostrt.env.service cimport (
    SERVICE_MT_SAFE, SERVICE_NAME_MAX, service_component_runstate_set, service_fn,
    service_map_get, service_map_set, service_mapped_check_set, service_register,
    service_run_iter, service_runstate_get, service_runstate_set, service_stats_get,
    service_stats_reset, service_stats_set, service_stats_t, service_unregister)
from vhostrt.env.service_lcore cimport (
    service_fini, service_init, service_lcore_add, service_lcore_del, service_lcore_loops,
    service_lcore_start, service_lcore_stop, service_start_with_defaults)

from vhostrt.env import lcore as lcores_of

cdef const char *FUNCTION = b"int (void *)"
IDLE = ("yield", "spin")
cdef dict g_services = {}       # id -> Service


cdef class Service:
    """A registered service, made by register."""
    cdef readonly str name
    cdef uint32_t id_
    cdef object keep            # the capsule: its module stays

    @property
    def id(self) -> int:
        """Its number, 0 to 63."""
        return self.id_

    cdef int check(self, int rc, str what) except -1:
        return ok(rc, f"service {self.name}{what}")

    def component(self, on: bool) -> None:
        """Say, as the component, whether it is able to run."""
        self.check(service_component_runstate_set(self.id_, on), "")

    def run(self, on: bool) -> None:
        """Say, as the application, whether it is to run."""
        self.check(service_runstate_set(self.id_, on), "")

    @property
    def runs(self) -> bool:
        """True when both say so and it has an lcore, or needs none."""
        return bool(self.check(service_runstate_get(self.id_), ""))

    def mapped_check(self, on: bool) -> None:
        """Say whether `runs` asks for an lcore too, as it does at first."""
        self.check(service_mapped_check_set(self.id_, on), "")

    def map(self, lcore: int, on: bool = True) -> None:
        """Have it run on a service lcore, or no more; then it is out of it on return."""
        cdef uint32_t c_lcore = lcore, id_ = self.id_
        cdef bint c_on = on
        cdef int rc
        with nogil:
            rc = service_map_set(id_, c_lcore, c_on)
        self.check(rc, f" on lcore {lcore}, which runs no services")

    def lcores(self) -> list:
        """Return the service lcores it is mapped to."""
        return [n for n in lcores_of.services() if self.check(service_map_get(self.id_, n), "")]

    def run_iter(self, *, serialize: bool = True) -> None:
        """Call it once, here.  OSError EBUSY: it is running elsewhere; ENOEXEC: it is not to run.

        Without serialize the caller sees to it that one that is not MT-safe runs nowhere else.
        """
        cdef uint32_t id_ = self.id_
        cdef bint c_serialize = serialize
        cdef int rc
        with nogil:
            rc = service_run_iter(id_, c_serialize)
        self.check(rc, " is not run here")

    def count(self, on: bool) -> None:
        """Count its calls and their ticks from now on, or no more."""
        self.check(service_stats_set(self.id_, on), "")

    def counted(self, lcore: int | None = None) -> dict:
        """Return calls and cycles (ticks), on one lcore or everywhere."""
        cdef service_stats_t stats
        cdef uint32_t where = LCORE_NONE if lcore is None else lcore
        self.check(service_stats_get(self.id_, where, &stats), f" on lcore {lcore}")
        return {"calls": stats.calls, "cycles": stats.cycles}

    def reset(self) -> None:
        """Begin to count from 0."""
        self.check(service_stats_reset(self.id_), "")

    def unregister(self) -> None:
        """Take it off its lcores and forget it; it is in use no more on return.  Again: nothing.

        OSError EBUSY while a thread is in run_iter of it.
        """
        cdef uint32_t id_ = self.id_
        cdef int rc
        if g_services.get(self.id_) is self:
            with nogil:
                rc = service_unregister(id_)
            self.check(rc, " is running in another thread")
            del g_services[self.id_]


def register(name: str, function, arg: int = 0, *, mt_safe: bool = False) -> Service:
    """Register a service, which runs nowhere yet.

    name: of 1 to 31 bytes.  function: a capsule of a C function `int (void *)`, noexcept nogil,
    that returns more than 0 when it found work; arg: the address it is given.  mt_safe: several
    lcores may be in it at once.  OSError ENOSPC when there are 64.
    """
    cdef Service service = Service.__new__(Service)
    cdef service_fn fn = <service_fn>function_of(function, FUNCTION, f"function of service {name}")
    text = os.fsencode(name)
    if b"\0" in text or not text:
        ok(-EINVAL, f"service {name!r}: a name of 1 to {SERVICE_NAME_MAX} bytes")
    if len(text) > SERVICE_NAME_MAX:
        ok(-ENAMETOOLONG, f"service {name}: a name of 1 to {SERVICE_NAME_MAX} bytes")
    ok(service_register(text, fn, <void *><uintptr_t>arg, SERVICE_MT_SAFE if mt_safe else 0,
                        &service.id_), f"service {name}: {len(g_services)} are registered")
    service.name = name
    service.keep = function
    g_services[service.id_] = service
    return service


def registered() -> list:
    """Return the services that were registered here, by their numbers."""
    return [service for _, service in sorted(g_services.items())]


# Service lcores.

def lcore_add(lcore: int) -> None:
    """Make a waiting lcore of the application, not the main one, one of services."""
    ok(service_lcore_add(lcore), f"lcore {lcore} as one of services")


def lcore_del(lcore: int) -> None:
    """Make a service lcore that is stopped one of the application; its services are taken off."""
    ok(service_lcore_del(lcore), f"service lcore {lcore} back to the application")


def lcore_start(lcore: int) -> None:
    """Have a service lcore run what is mapped to it."""
    ok(service_lcore_start(lcore), f"start of service lcore {lcore}")


def lcore_stop(lcore: int) -> None:
    """Have a service lcore end its loop.  OSError EBUSY: a service would have no lcore."""
    cdef uint32_t c_lcore = lcore
    cdef int rc
    with nogil:
        rc = service_lcore_stop(c_lcore)
    ok(rc, f"stop of service lcore {lcore}")


def loops(lcore: int) -> int:
    """Return how often a service lcore has been through its services."""
    cdef uint64_t n = 0
    ok(service_lcore_loops(lcore, &n), f"loops of lcore {lcore}, which runs no services")
    return n


def start_with_defaults() -> None:
    """Map each service to one service lcore, in turn, let it run, and start the lcores.

    OSError ENOTSUP when there are no service lcores.
    """
    ok(service_start_with_defaults(), "start of the services")


def dump() -> str:
    """Return a table for people: one line for each service, one for each service lcore."""
    lines = []
    for service in registered():
        counted = service.counted()
        lines.append(f"service {service.id} {service.name}: {'runs' if service.runs else 'stopped'}"
                     f", lcores {service.lcores()}, {counted['calls']} calls, "
                     f"{counted['cycles']} cycles")
    lines += [f"service lcore {n}: {lcores_of.state(n)}, {loops(n)} loops"
              for n in lcores_of.services()]
    return "\n".join(lines)


def init(idle: str = "yield") -> None:
    """Know the lcores there are; after lcore.init.  OSError EALREADY before fini.

    idle: what service lcores do that find no work: "yield" their CPU at times, or "spin".
    """
    if idle not in IDLE:
        raise ValueError(f"idle policy {idle!r} of services: {', '.join(IDLE)}")
    ok(service_init(idle == "spin"), "services")


def fini() -> None:
    """Stop the service lcores, whatever runs there, and forget all services; before lcore.fini.

    A forked child only forgets.  Again: nothing.
    """
    with nogil:
        service_fini()
    g_services.clear()
