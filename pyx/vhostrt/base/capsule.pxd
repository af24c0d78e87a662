"""C functions handed over from Python, in capsules that are named after their signature."""

cdef void *function_of(object capsule, const char *signature, str what) except NULL
