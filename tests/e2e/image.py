"""A disk's backing file and what a guest does with it: the steps, and what must be in it then.

The layout: a partition table that this side writes and the guest must find, a pattern to be read
by the guest, a partition for its file system, and room for the patterns that it writes.
"""
import random
import struct
from pathlib import Path

from tests.e2e.tools import need, run

MIB = 1 << 20
BLOCK = 512
PATTERN = random.Random(2).randbytes(4 * MIB)

SIZE = 224 * MIB + 3 * 4096                                     # not round, so that none is guessed
GIVEN_AT = 4 * MIB
PART_AT, PART_SIZE = 16 * MIB, 128 * MIB
WRITTEN_AT = {
    "direct0": 160 * MIB,                                       # from CPU 0, so by queue 0
    "direct1": 176 * MIB + 4096,                                # from CPU 1, so by queue 1
    "cached": 192 * MIB,
    "end": SIZE - len(PATTERN),
}


def make(path: Path) -> None:
    """Make the backing file: sparse but for the partition table and the pattern."""
    with path.open("wb") as f:
        f.truncate(SIZE)
        f.seek(446)                                             # where a PC's table begins
        f.write(struct.pack("<8B2I48x2B", 0, 0, 0, 0, 0x83, 0, 0, 0, PART_AT // BLOCK,
                            PART_SIZE // BLOCK, 0x55, 0xAA))
        f.seek(GIVEN_AT)
        f.write(PATTERN)


def check(path: Path, before: Path) -> None:
    """Check that the file holds what the guest wrote and else what it held before, to the byte.

    before is a file as make() leaves it. What is in the partition is e2fsck's to judge.
    """
    expected = bytearray(before.read_bytes())
    for at in WRITTEN_AT.values():
        expected[at:at + len(PATTERN)] = PATTERN
    found = path.read_bytes()
    assert len(found) == SIZE
    for start, end in (0, PART_AT), (PART_AT + PART_SIZE, SIZE):
        for at in range(start, end, BLOCK):
            # Not all in one assert: a difference of megabytes would be shown.
            if found[at:at + BLOCK] != expected[at:at + BLOCK]:
                raise AssertionError(f"{path} does not hold what it should at byte {at}")
    run(need("e2fsck", "e2fsprogs"), "-fn", f"{path}?offset={PART_AT}")


FIND = """
for i in $(seq 100); do
    [ -b /dev/vda1 ] && break
    usleep 50000
done
value size $(cat /sys/block/vda/size)
value serial $(cat /sys/block/vda/serial)
value queues $(ls /sys/block/vda/mq | wc -l)
"""

READ_GIVEN = f"""
dd if=/dev/vda bs=4k skip={GIVEN_AT // 4096} count={len(PATTERN) // 4096} | cmp - /pattern
"""

# Both CPUs at once; each has its own queue.
WRITE = f"""
at() {{ echo bs=$1k seek=$(($2 / 1024 / $1)); }}
put() {{ cpu=$1; shift; taskset $cpu busybox dd if=/pattern of=/dev/vda "$@"; }}
put 1 $(at 128 {WRITTEN_AT["direct0"]}) conv=notrunc oflag=direct &
first=$!
put 2 $(at 4 {WRITTEN_AT["direct1"]}) conv=notrunc oflag=direct
wait $first
put 3 $(at 64 {WRITTEN_AT["cached"]}) conv=notrunc,fsync
put 3 $(at 4 {WRITTEN_AT["end"]}) conv=notrunc oflag=direct
sync
"""

# From CPU 0 through the cache, from CPU 1 past it.
READ_BACK = f"""
get() {{
    echo 3 > /proc/sys/vm/drop_caches
    cpu=$1
    shift
    taskset $cpu busybox dd if=/dev/vda bs=4k count={len(PATTERN) // 4096} "$@" > /tmp/read
    cmp /tmp/read /pattern
}}
for at in {" ".join(map(str, WRITTEN_AT.values()))}; do
    get 1 skip=$(($at / 4096))
    get 2 skip=$(($at / 4096)) iflag=direct
done
"""

FILE_SYSTEM = """
/tools/mke2fs -q -t ext4 -F /dev/vda1
mount -t ext4 /dev/vda1 /mnt
for i in $(seq 8); do
    mkdir /mnt/$i
    cp /pattern /mnt/$i/pattern
done
rm -r /mnt/3
sync
umount /mnt
"""

CHECK_FILES = """
echo 3 > /proc/sys/vm/drop_caches
/tools/e2fsck -fn /dev/vda1
mount -t ext4 -o ro /dev/vda1 /mnt
for i in 1 2 4 5 6 7 8; do
    cmp /mnt/$i/pattern /pattern
done
[ ! -e /mnt/3 ]
umount /mnt
"""

# How often each queue of vda has told the guest that a request is done, over both CPUs.
INTERRUPTS = """
for queue in $(seq 0 $(($(ls /sys/block/vda/mq | wc -l) - 1))); do
    value interrupts$queue $(awk -v q=virtio0-req.$queue '$NF == q { print $2 + $3 }' \
        /proc/interrupts)
done
"""

STEPS = {"find": FIND, "read-given": READ_GIVEN, "write": WRITE, "read-back": READ_BACK,
         "file-system": FILE_SYSTEM, "check-files": CHECK_FILES, "interrupts": INTERRUPTS}
FILES = {"/pattern": PATTERN}
