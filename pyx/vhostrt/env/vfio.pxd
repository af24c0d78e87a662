"""What devices behind an IOMMU may reach of our memory: the mappings of a VFIO container.

Owner:    who has the dma_space_t; the container's descriptor stays its opener's.
Threads:  one at a time.
Fails:    -errno, and then the mappings are as before.
"""
from libc.stdint cimport uint64_t, uintptr_t

# Ask the system; `container` is that of the dma_space_t.  0 or -errno.
ctypedef int (*dma_map_fn)(int container, uintptr_t at, uint64_t iova, size_t size) noexcept nogil
ctypedef int (*dma_unmap_fn)(int container, uint64_t iova, size_t size) noexcept nogil

cdef struct dma_t:
    uintptr_t at
    uint64_t iova               # where devices see it
    size_t size

cdef struct dma_space_t:
    int container
    dma_map_fn map
    dma_unmap_fn unmap
    dma_t *maps                 # owned; sorted by at
    size_t n
    size_t room

cdef void dma_open(dma_space_t *s, int container) noexcept nogil
cdef int dma_close(dma_space_t *s) noexcept nogil
cdef int dma_add(dma_space_t *s, uintptr_t at, uint64_t iova, size_t size) noexcept nogil
cdef int dma_remove(dma_space_t *s, uintptr_t at, size_t size) noexcept nogil
