"""vhostrt.virtio.driver.latency: which bucket a time belongs to."""
from itertools import pairwise

from vhostrt.virtio.driver import latency


def test_every_time_has_one_bucket():
    edges = [latency.bounds(bucket) for bucket in range(latency.buckets())]
    assert edges[0][0] == 0 and edges[-1][1] == 2**64
    assert all(a[1] == b[0] for a, b in pairwise(edges))
    for bucket, (first, end) in enumerate(edges):
        assert latency.index(first) == latency.index(end - 1) == bucket


def test_a_bucket_is_one_part_in_64_at_most():
    assert all(end - first == 1 or (end - first) * 64 <= first
               for first, end in map(latency.bounds, range(latency.buckets())))
