/* SPDX-License-Identifier: BSD-3-Clause */
/* What a trace file looks like; vhostrt/tools/trace_file.py reads the same. */
#ifndef VHOSTRT_EVENT_TRACE_H
#define VHOSTRT_EVENT_TRACE_H
#include <stdint.h>

#define VH_TRACE_MAGIC "VHTRACE"
#define VH_TRACE_VERSION 1
#define VH_TRACE_ARGS 4
#define VH_TRACE_GROUPS 32
#define VH_TRACE_OWNERS 4096        /* names of light threads that are kept, by id modulo this */
#define VH_TRACE_TEXT (1u << 20)    /* bytes of one copy of the description */
#define VH_TRACE_PAGE 4096u

/* One line of the cache.  `stamp` is 0 while the rest is being written, else the lap of the ring
 * plus 1: who copies an entry and finds the same stamp in it before and after has it whole. */
struct vh_trace_entry {
    uint32_t stamp;
    uint16_t tpoint;    /* 64 * group + number in the group */
    uint16_t unused;
    uint64_t tsc;
    uint64_t object;
    uint32_t owner;     /* id of the light thread; 0: none, the reactor itself */
    uint32_t size;
    uint64_t args[VH_TRACE_ARGS];
};

/* At the beginning of the page in front of a ring's entries. */
struct vh_trace_ring {
    uint32_t lcore;     /* UINT32_MAX: the control thread's */
    uint32_t unused;
    uint64_t cleared;   /* entries before this one do not count; by the control thread */
    uint64_t unused2[6];
    uint64_t next;      /* of the entry to be written next; on a line of its own, by the writer */
};

struct vh_trace_owner {
    uint64_t id;        /* 0 while the name is being written */
    char name[56];      /* UTF-8, ends with NUL */
};

/* At the beginning of the file.  Behind it, each on a page: owners, two copies of the description
 * (JSON), and for every ring its page and its entries. */
struct vh_trace_header {
    char magic[8];
    uint32_t version;
    uint32_t header_bytes;
    uint32_t pid;
    uint32_t rings;
    uint32_t entries;           /* of a ring; a power of two */
    uint32_t entry_bytes;
    uint64_t tsc_hz;
    uint64_t start_tsc;
    uint64_t start_unix_ns;     /* the same moment by the wall clock */
    uint64_t owners_at;
    uint64_t text_at;
    uint64_t rings_at;
    uint32_t text_copy;         /* which of the two counts */
    uint32_t text_bytes[2];
    uint32_t unused;
    char program[32];
    uint64_t masks[VH_TRACE_GROUPS];    /* points that are on */
};

_Static_assert(sizeof(struct vh_trace_entry) == 64, "an entry is one line of the cache");
_Static_assert(sizeof(struct vh_trace_owner) == 64, "the owner that the reader knows");
_Static_assert(sizeof(struct vh_trace_ring) == 72, "the ring that the reader knows");
_Static_assert(sizeof(struct vh_trace_header) == 384, "the header that the reader knows");
#endif
