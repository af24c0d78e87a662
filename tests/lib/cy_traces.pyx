"""Trace points of a group "sample" that tests pass from Python, on the calling thread."""
from libc.stdint cimport uint32_t, uint64_t
from vhostrt.event.trace cimport TRACE_POINTS, trace_on, trace_record

from vhostrt.event import trace as module

NUMBER = 29
NAMES = ["MOMENT", "IO_START", "IO_DONE", "NAP", "WAKE", "PASS"]

module.register("sample", NUMBER, [
    module.Point(0, "MOMENT", (("count", "int"), ("rc", "signed"), ("at", "hex"),
                               ("name", "text"))),
    module.Point(1, "IO_START", (("type", "READ|WRITE||FLUSH"),), "io", "begin", "blocks"),
    module.Point(2, "IO_DONE", (("rc", "signed"),), "io", "end"),
    module.Point(3, "NAP", (), "nap", "enter"),
    module.Point(4, "WAKE", (("events", "int"),), "nap", "leave"),
    module.Point(5, "PASS", (("took", "ticks"), ("polls", "int")), "pass", "span"),
])


def mark(str name, uint64_t object=0, uint32_t size=0, *words):
    """Pass a point: up to four words (int, unsigned)."""
    cdef uint32_t point = NUMBER * TRACE_POINTS + NAMES.index(name)
    cdef uint64_t a, b, c, d
    a, b, c, d = (*words, 0, 0, 0, 0)[:4]
    if trace_on(point):
        trace_record(point, object, size, a, b, c, d)
