"""C functions that Python has run on reactors and light threads, and waits for.

A function is the capsule in which Cython exports it, a ctypes function, or an address.  Python
code cannot be one: a reactor never takes the GIL.

Threads:  the control thread, in its asyncio loop.
Fails:    TypeError, ValueError and OSError with one sentence.
"""
import asyncio
import re
import sys

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.pycapsule cimport PyCapsule_CheckExact, PyCapsule_GetName, PyCapsule_GetPointer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EIO
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from vhostrt.base.errors cimport os_error
from vhostrt.event.events cimport event_send
from vhostrt.event.message cimport thread_send_node
from vhostrt.event.post cimport control_node_t, control_post
from vhostrt.event.reactor cimport event_t, msg_t
from vhostrt.event.thread cimport Thread

from vhostrt.event import reactor

cdef enum:
    RESULT_VOID = 0
    RESULT_I32 = 1
    RESULT_U32 = 2
    RESULT_I64 = 3
    RESULT_U64 = 4

RESULTS = {
    "void": RESULT_VOID, "int": RESULT_I32, "int32_t": RESULT_I32, "unsigned int": RESULT_U32,
    "uint32_t": RESULT_U32, "long": RESULT_I64, "PY_LONG_LONG": RESULT_I64, "int64_t": RESULT_I64,
    "Py_ssize_t": RESULT_I64, "ssize_t": RESULT_I64, "unsigned long": RESULT_U64,
    "unsigned PY_LONG_LONG": RESULT_U64, "uint64_t": RESULT_U64, "size_t": RESULT_U64,
}
SIGNATURE = re.compile(r"(?P<result>[\w ]+) \((?!PyObject)[\w ]+\*\)")
FORM = "int (void *)"
NO_PYTHON = ("a reactor never takes the GIL: give it the capsule of a compiled function "
             "(module.__pyx_capi__[...] of Cython), a ctypes function or an address")

ctypedef int32_t (*i32_fn)(void *arg) noexcept nogil
ctypedef uint32_t (*u32_fn)(void *arg) noexcept nogil
ctypedef int64_t (*i64_fn)(void *arg) noexcept nogil
ctypedef uint64_t (*u64_fn)(void *arg) noexcept nogil
ctypedef void (*void_fn)(void *arg) noexcept nogil

cdef struct run_t:
    # What the reactor sees of a call.
    control_node_t node
    event_t event
    msg_t msg
    void *fn
    void *arg
    uint32_t result             # RESULT_*
    int64_t value


cdef void run(void *ctx) noexcept nogil:
    """On the reactor: call the function, and tell the control thread."""
    cdef run_t *r = <run_t *>ctx
    if r.fn is NULL:
        pass
    elif r.result == RESULT_VOID:
        (<void_fn>r.fn)(r.arg)
    elif r.result == RESULT_I32:
        r.value = (<i32_fn>r.fn)(r.arg)
    elif r.result == RESULT_U32:
        r.value = (<u32_fn>r.fn)(r.arg)
    elif r.result == RESULT_I64:
        r.value = (<i64_fn>r.fn)(r.arg)
    else:
        r.value = <int64_t>(<u64_fn>r.fn)(r.arg)
    control_post(&r.node)


cdef void run_event(void *arg1, void *arg2) noexcept nogil:
    run(arg1)


cdef class Call:
    """One call: it keeps what function and argument live in, and itself until it is answered."""
    cdef run_t r
    cdef Py_buffer buffer
    cdef bint has_buffer
    cdef object fn
    cdef object arg
    cdef object thread          # that a message is on its way to
    cdef object future

    def __cinit__(self, fn, arg):
        self.fn = fn
        self.arg = arg
        if fn is not None:
            self.take_function(fn)
        self.take_argument(arg)
        self.r.node.run = answer
        self.r.node.arg = <void *>self
        self.future = asyncio.get_running_loop().create_future()

    def __dealloc__(self):
        if self.has_buffer:
            PyBuffer_Release(&self.buffer)

    cdef int take_function(self, fn) except -1:
        cdef const char *name
        if PyCapsule_CheckExact(fn):
            name = PyCapsule_GetName(fn)
            self.r.result = result_of(FORM if name is NULL else name.decode("ascii", "replace"))
            self.r.fn = PyCapsule_GetPointer(fn, name)
        elif is_ctypes(fn, "_CFuncPtr"):
            self.r.result, address = of_ctypes(fn)
            self.r.fn = <void *><size_t>address
        elif isinstance(fn, int) and not isinstance(fn, bool):
            self.r.result = RESULT_I32
            self.r.fn = <void *><size_t>code_at(fn)
        else:
            raise TypeError(f"{fn!r} cannot run there, as {NO_PYTHON}")
        return 0

    cdef int take_argument(self, arg) except -1:
        cdef const char *name
        if arg is None:
            return 0
        if isinstance(arg, int):
            if not -2**63 <= arg < 2**64:
                raise ValueError(f"the argument {arg} does not fit into a pointer")
            self.r.arg = <void *><uint64_t>(arg & (2**64 - 1))
        elif PyCapsule_CheckExact(arg):
            name = PyCapsule_GetName(arg)
            self.r.arg = PyCapsule_GetPointer(arg, name)
        elif is_ctypes(arg, "_Pointer", "c_void_p", "c_char_p"):
            ctypes = sys.modules["ctypes"]
            self.r.arg = <void *><size_t>(ctypes.cast(arg, ctypes.c_void_p).value or 0)
        else:
            self.take_buffer(arg)
        return 0

    cdef int take_buffer(self, arg) except -1:
        try:
            PyObject_GetBuffer(arg, &self.buffer, PyBUF_SIMPLE)
        except (TypeError, BufferError):
            raise TypeError(f"the argument {arg!r} is neither None, a number, a capsule nor an "
                            "object with memory of its own, such as a bytearray, a ctypes "
                            "structure or an array") from None
        self.has_buffer = True
        self.r.arg = self.buffer.buf
        return 0

    cdef object value(self):
        if self.r.fn is NULL or self.r.result == RESULT_VOID:
            return None
        if self.r.result == RESULT_U64:
            return <uint64_t>self.r.value
        return self.r.value


cdef void answer(void *arg) noexcept:
    """On the control thread.  A wait that was cancelled no longer wants it."""
    cdef Call call = <Call>arg
    Py_DECREF(call)
    if not call.future.done():
        call.future.set_result(call.value())


def check(fn) -> None:
    """Refuse what on_reactor could not run.  TypeError, ValueError."""
    Call(fn, None)


# What Python names

cdef bint is_ctypes(value, str name, str name2="", str name3=""):
    """Whether a value is of one of these types of ctypes, which is not imported for that."""
    ctypes = sys.modules.get("ctypes")
    if ctypes is None:
        return False
    return isinstance(value, tuple(getattr(ctypes, each) for each in (name, name2, name3) if each))


cdef uint32_t result_of(str signature) except? 99:
    """Return what a function with the signature that Cython writes on a capsule returns."""
    found = SIGNATURE.fullmatch(signature)
    if found is None or found["result"] not in RESULTS:
        raise TypeError(f"the capsule holds a function {signature!r}: it must take one pointer and "
                        "return void or an integer")
    return RESULTS[found["result"]]


def of_ctypes(fn) -> tuple:
    """Return the kind of result and the address of a ctypes function."""
    ctypes = sys.modules["ctypes"]
    if calls_python(fn) or fn._flags_ & 4:       # 4: ctypes.pythonapi, whose functions need the GIL
        raise TypeError(f"{fn!r} runs Python, and {NO_PYTHON}")
    kind = fn.restype
    if kind is None:
        result = RESULT_VOID
    elif isinstance(kind, type) and issubclass(kind, ctypes._SimpleCData) \
            and kind._type_ in "iIlLqQ":
        wide = ctypes.sizeof(kind) == 8
        signed = kind._type_ in "ilq"
        result = {(0, 1): RESULT_I32, (0, 0): RESULT_U32, (1, 1): RESULT_I64,
                  (1, 0): RESULT_U64}[wide, signed]
    else:
        raise TypeError(f"the restype of {fn!r} must be None or an integer, not {kind!r}")
    return result, code_at(ctypes.cast(fn, ctypes.c_void_p).value)


def calls_python(fn) -> bool:
    """Return whether a ctypes function is a Python callable in disguise, also behind casts."""
    kept = list((fn._objects or {}).values())
    return any(type(each).__name__ == "CThunkObject"
               or is_ctypes(each, "_CFuncPtr") and each is not fn and calls_python(each)
               for each in kept)


def code_at(address) -> int:
    """Return an address in which this process has code; ValueError."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            span, rights = line.split(maxsplit=2)[:2]
            first, _, end = span.partition("-")
            if int(first, 16) <= (address or 0) < int(end, 16) and "x" in rights:
                return address
    raise ValueError(f"{address!r} is no address of a function: there is no code of this process")


# Calls

def on_reactor(lcore, fn=None, arg=None) -> asyncio.Future:
    """Run fn(arg) on the reactor of an lcore, and return a future of its result (int or None).

    fn: None for nothing, to wait until what was sent there before has run.  arg: None, an address
    or number (int), a capsule, a ctypes pointer, or an object whose memory it points to: that is
    kept until the answer.  ValueError when no reactor is there, OSError when it takes no event.
    """
    cdef Call call = Call(fn, arg)
    cdef int rc
    call.r.event.fn = run_event
    call.r.event.arg1 = &call.r
    if isinstance(lcore, bool) or not isinstance(lcore, int):
        raise TypeError(f"a core is told by its number (int), not by {lcore!r}")
    if lcore not in reactor.lcores():
        raise ValueError(f"no reactor is on core {lcore}, but on {cores() or 'none'}")
    Py_INCREF(call)
    rc = event_send(<uint32_t>lcore, &call.r.event)
    if rc < 0:
        Py_DECREF(call)
        raise os_error(rc, f"event to the reactor on core {lcore}")
    return call.future


def on_thread(Thread light not None, fn=None, arg=None) -> asyncio.Future:
    """Run fn(arg) on a light thread, wherever that is then; the rest as on_reactor.

    OSError(EIO) when the thread does not run, or is ending.
    """
    cdef Call call = Call(fn, arg)
    cdef int rc
    call.thread = light
    call.r.msg.fn = run
    call.r.msg.ctx = &call.r
    Py_INCREF(call)
    rc = thread_send_node(light.t, &call.r.msg) if light.running else -EIO
    if rc < 0:
        Py_DECREF(call)
        raise os_error(rc, f"message to the thread {light.name}")
    return call.future


def cores() -> str:
    """Return the cores with a reactor, for a sentence."""
    return ", ".join(map(str, reactor.lcores()))
