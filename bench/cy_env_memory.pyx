"""Loops over the environment's heap and zones, for bench_env_memory; they run on the caller."""
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from vhostrt.env.memory cimport env_free, env_iova, env_zalloc
from vhostrt.env.zone cimport zone_lookup

cdef enum:
    HELD = 256


def pairs(size_t size, uint64_t n):
    """Take and give one block of a size, n times; return how often there was none."""
    cdef uint64_t missed = 0
    cdef void *block
    with nogil:
        for _ in range(n):
            block = env_zalloc(size, 0, -1)
            missed += block is NULL
            env_free(block)
    return missed


def mixed(uint64_t n):
    """Take blocks of up to 16 KiB and give back the one taken 256 turns before."""
    cdef void *held[HELD]
    cdef uint64_t missed = 0, i
    cdef uint32_t seed = 1
    memset(held, 0, sizeof(held))
    with nogil:
        for i in range(n):
            seed = seed * 1664525 + 1013904223
            env_free(held[i % HELD])
            held[i % HELD] = env_zalloc(1 + (seed >> 18), 0, -1)
            missed += held[i % HELD] is NULL
        for i in range(<uint64_t>HELD):
            env_free(held[i])
    return missed


def lookups(bytes name, uint64_t n):
    """Look a zone up by name, n times."""
    cdef const char *c_name = name
    cdef uint64_t missed = 0
    with nogil:
        for _ in range(n):
            missed += zone_lookup(c_name) is NULL
    return missed


def addresses(uintptr_t at, uint64_t n):
    """Ask where a device sees a byte, n times."""
    cdef uint64_t total = 0
    with nogil:
        for _ in range(n):
            total += env_iova(<void *>at)
    return total
