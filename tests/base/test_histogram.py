"""vhostrt.base.histogram: where a time goes, and what is told of many."""
import random

import pytest

from vhostrt.base.histogram import Histogram

RANDOM = random.Random(5)
TIMES = [0, 1, 15, 16, 17, 31, 32, 2**40 - 1, 2**40, 2**63, 2**64 - 1,
         *(RANDOM.randrange(1 << RANDOM.randrange(1, 64)) for _ in range(2000))]


def filled(histogram):
    """Return (bucket, count) of those that are not empty."""
    return [(i, n) for i, n in enumerate(histogram.counts()) if n]


@pytest.mark.parametrize("granularity", [1, 4, 7, 10])
def test_a_time_lies_in_its_bucket_and_that_is_narrow(granularity):
    for time in TIMES:
        histogram = Histogram(granularity)
        histogram.count(time)
        ((bucket, n),) = filled(histogram)
        end = histogram.end(bucket)
        start = histogram.end(bucket - 1) if bucket else 0
        assert n == 1 and start <= time < end
        assert end - start <= max(1, start >> granularity)
        assert start <= histogram.middle(bucket) <= end


def test_buckets_follow_one_another_up_to_every_time():
    histogram = Histogram(7)
    count = len(histogram.counts())
    ends = [histogram.end(i) for i in range(count)]
    # As SPDK has them: 58 ranges of 128.
    assert count == 58 * 128 and (histogram.min_range, histogram.max_range) == (0, 57)
    assert ends == sorted(set(ends)) and ends[:256] == list(range(1, 257)) and ends[-1] == 2**64
    assert ends[256] == 258 and ends[2 * 128 + 127] == 512 and ends[3 * 128] == 516


def test_times_outside_go_to_the_first_and_last_bucket():
    histogram = Histogram(7, 1 << 9, 1 << 30)
    for time in (0, (1 << 9) - 1, 1 << 9, (1 << 30) - 1, 1 << 30, 2**64 - 1):
        histogram.count(time)
    last = len(histogram.counts()) - 1
    assert filled(histogram) == [(0, 3), (last, 3)]
    assert histogram.end(last) == 1 << 30 and histogram.end(0) == (1 << 9) + 4


@pytest.mark.parametrize("shares", [(0.5, 0.9, 0.99, 0.999, 1.0)])
def test_percentiles(shares):
    histogram, times = Histogram(4), sorted(RANDOM.randrange(1000, 10**7) for _ in range(5000))
    assert histogram.percentiles(shares) == [None] * 5
    for time in times:
        histogram.count(time)
    for share, found in zip(shares, histogram.percentiles(shares), strict=True):
        exact = times[max(int(share * len(times)) - 1, 0)]
        assert abs(found - exact) <= exact / 16
    histogram.count(1, 10**9)
    assert histogram.percentiles((0.5, 1.0))[0] == 1.5
    assert histogram.total() == 5000 + 10**9


def test_sums_and_bounds():
    histogram = Histogram(4)
    for time in (10, 100, 100, 1000, 10**6):
        histogram.count(time)
    assert abs(histogram.sum() - 1001210) < 1001210 / 16
    edges = histogram.edges([5, 50, 500, 5000, 10**7])
    assert histogram.cumulative(edges) == [0, 1, 3, 4, 5, 5]
    assert histogram.cumulative([]) == [5]


def test_those_of_the_same_buckets_are_added():
    one = Histogram(4, 64, 1 << 40)
    other = one.alike()
    assert one.is_like(other) and other.total() == 0
    one.count(100, 3)
    other.count(100, 4)
    other.count(10**6)
    one.add(other)
    assert one.total() == 8 and other.total() == 5
    for different in (Histogram(5, 64, 1 << 40), Histogram(4, 32, 1 << 40), Histogram(4, 64, 99)):
        assert not one.is_like(different)
        with pytest.raises(ValueError, match="same buckets"):
            one.add(different)


@pytest.mark.parametrize("arguments", [(0,), (-1,), (11,), (7, 5, 5), (7, 6, 5), (7, 0, 0),
                                       (7, -1, 5), (7, 0, 2**64)])
def test_histograms_that_cannot_be(arguments):
    with pytest.raises(ValueError, match="granularity|there is no time"):
        Histogram(*arguments)
