"""vhostrt.env.shared at the C level: the lock of a record, as killed processes leave it."""
import os
import threading
import time

from libc.stdint cimport uint32_t
from vhostrt.base.atomics cimport load_acquire_u32, store_release_u32
from vhostrt.env.shared cimport (config_create, config_lock, config_unlock, config_unmap,
                                 env_config_t)

WAITERS = 1 << 31               # FUTEX_WAITERS of <linux/futex.h>


cdef env_config_t *new_record() except NULL:
    cdef int rc = 0
    cdef env_config_t *c = config_create(-1, NULL, 0, &rc)
    assert rc == 0
    return c


def test_a_waiter_whose_wake_up_is_lost_gets_the_lock_of_a_record():
    # As when the process that was woken is killed before it has the mutex, and another one that
    # has taken it meanwhile, without knowing of anybody who waits, gives it back.
    cdef env_config_t *c = new_record()
    cdef uint32_t *word = <uint32_t *>&c.mutex
    cdef uint32_t held
    taken = []

    def wait():
        cdef int rc
        with nogil:
            rc = config_lock(c, False)
        taken.append(rc)
        config_unlock(c)

    assert config_lock(c, False) == 0
    held = load_acquire_u32(word)
    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    while not load_acquire_u32(word) & <uint32_t>WAITERS:
        os.sched_yield()
    path = f"/proc/self/task/{waiter.native_id}/wchan"
    while "futex" not in open(path).read():
        time.sleep(0.001)
    store_release_u32(word, held)
    config_unlock(c)
    waiter.join(30)
    assert taken == [0]
    config_unmap(c)
