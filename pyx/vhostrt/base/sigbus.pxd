"""Memory that may vanish: what to do when a client truncates the file behind its mapping."""
from libc.stdint cimport uint32_t

cdef int sigbus_add(void *start, size_t size, size_t page_size, uint32_t *flag) noexcept nogil
cdef void sigbus_remove(int slot) noexcept nogil
