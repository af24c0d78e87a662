/* SPDX-License-Identifier: BSD-3-Clause */
/* What a reactor that goes to sleep needs of the system. */
#ifndef VHOSTRT_EVENT_WATCH_H
#define VHOSTRT_EVENT_WATCH_H
#include <errno.h>
#include <linux/membarrier.h>
#include <poll.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define VH_WATCH_EVENTS 64

static inline int vh_watch_open(void)
{
    int fd = epoll_create1(EPOLL_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

/* By edges: what is readable already counts as one when it is added. */
static inline int vh_watch_add(int epoll_fd, int fd)
{
    struct epoll_event e = {.events = EPOLLIN | EPOLLET, .data = {.fd = fd}};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e) < 0 && errno != EEXIST ? -errno : 0;
}

static inline void vh_watch_remove(int epoll_fd, int fd)
{
    (void)epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

/* Until a descriptor is readable, the time (UINT64_MAX: none) is over, or a signal comes.  poll
 * counts nanoseconds, where epoll_wait counts milliseconds; the second call takes the edges. */
static inline void vh_watch_wait(int epoll_fd, uint64_t ns)
{
    struct epoll_event events[VH_WATCH_EVENTS];
    struct pollfd p = {.fd = epoll_fd, .events = POLLIN};
    struct timespec t = {.tv_sec = ns / 1000000000u, .tv_nsec = ns % 1000000000u};
    if (ppoll(&p, 1, ns == UINT64_MAX ? NULL : &t, NULL) > 0)
        while (epoll_wait(epoll_fd, events, VH_WATCH_EVENTS, 0) == VH_WATCH_EVENTS)
            ;
}

/* A full barrier on every thread of the process that runs; 0 or -errno. */
static inline int vh_barrier(void)
{
    return syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) < 0 ? -errno : 0;
}

static inline int vh_barrier_register(void)
{
    return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) < 0 ? -errno
                                                                                        : 0;
}
#endif
