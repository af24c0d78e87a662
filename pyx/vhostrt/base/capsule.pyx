"""C functions handed over from Python, in capsules that are named after their signature.

Such capsules are what Cython puts into the __pyx_capi__ of a module for each function that its .pxd
declares, and what PyCapsule_New makes of any other C function.
"""
from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer, PyCapsule_IsValid


cdef void *function_of(object capsule, const char *signature, str what) except NULL:
    """Return the C function in a capsule of that name; TypeError says what it was to be."""
    if type(capsule).__name__ != "PyCapsule":
        raise TypeError(f"{what} is a {type(capsule).__name__}, not a capsule of a C function "
                        f"{signature.decode()}")
    if not PyCapsule_IsValid(capsule, signature):
        name = PyCapsule_GetName(capsule)
        raise TypeError(f"{what} is a C function {'' if name is NULL else name.decode()}, not "
                        f"{signature.decode()}")
    return PyCapsule_GetPointer(capsule, signature)
