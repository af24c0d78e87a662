"""The virtio block device on a virtqueue: requests of the ring become requests of a bdev."""
from vhostrt.vhost.queue cimport Queue

cdef class BlkQueue(Queue):
    pass
