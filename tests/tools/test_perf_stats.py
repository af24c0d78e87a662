"""The statistics of vhostrt-perf, on counts whose answers are known."""
import json
import math

import pytest

from vhostrt.tools import perf_json, perf_text
from vhostrt.tools.perf_options import Plan
from vhostrt.tools.perf_stats import (Latency, Moment, Result, between, fault_text, merged,
                                      status_name)
from vhostrt.vhost.client.blk import BlkFrontEnd
from vhostrt.virtio.driver import latency

HZ = 10**6                              # a tick is a microsecond


def of(*times, size=4096):
    """Return what was counted of these times."""
    buckets = [0] * latency.buckets()
    for ticks in times:
        buckets[latency.index(ticks)] += 1
    return Latency(HZ, len(times), size * len(times), sum(times), min(times), max(times), buckets)


def test_exact_figures():
    kind = of(10, 20, 60)
    assert (kind.mean_us, kind.min_us, kind.max_us) == (30, 10, 60)
    assert Latency(3 * HZ, 1, 512, 30, 30, 30).mean_us == 10


def test_percentiles_of_one_to_a_hundred():
    kind = of(*range(1, 101))
    # Up to 127 every time has a bucket of its own.
    assert [kind.percentile_us(p) for p in (1, 50, 90, 99, 99.9, 100)] == [1, 50, 90, 99, 100, 100]


@pytest.mark.parametrize("times", [[5000] * 99 + [10**6], [777777], list(range(1000, 90000, 7))])
@pytest.mark.parametrize("percent", [1, 50, 99, 99.9, 99.999])
def test_percentiles_are_one_part_in_64_precise(times, percent):
    times = sorted(times)
    exact = times[math.ceil(len(times) * percent / 100) - 1]
    assert of(*times).percentile_us(percent) == pytest.approx(exact, rel=1 / 64)


def test_percentiles_never_leave_what_was_seen():
    kind = of(1001)
    assert kind.percentile_us(50) == kind.percentile_us(99.999) == 1001


def test_nothing():
    kind = Latency(HZ)
    assert (kind.mean_us, kind.percentile_us(99), kind.histogram_us()) == (0, 0, [])
    assert merged(HZ, [kind, kind]).count == 0


def test_a_sum():
    both = merged(HZ, [of(1, 2), Latency(HZ), of(100, size=512)])
    assert (both.count, both.bytes, both.ticks, both.least, both.most) == (3, 8704, 103, 1, 100)
    assert both.percentile_us(100) == 100


def test_between_two_looks():
    earlier, later = of(10, 20), of(10, 20, 30, 40)
    part = between(later, earlier)
    assert (part.count, part.mean_us, part.min_us, part.max_us) == (2, 35, 30, 40)
    assert between(later, later).count == 0
    assert between(of(10, 20), Latency(HZ)).count == 2
    assert between(Latency(HZ), later).count == 0


@pytest.mark.parametrize("anew", [of(5), of(*[5] * 9)], ids=["fewer", "more"])
def test_a_count_that_began_anew(anew):
    assert between(anew, of(10, 20)) is anew


def result(**more):
    kinds = [of(*[10] * 900, *[100] * 100), of(50), Latency(HZ), Latency(HZ)]
    course = [Moment(1.0, 1.0, kinds)]
    return Result(2.0, kinds, course=course, **more)


def test_json():
    found = json.loads(perf_json.text(Plan("sock"), BlkFrontEnd(None), result(errors={1: 3})))
    assert found["schema"] == 1 and found["ok"] is False
    assert set(found["kinds"]) == {"read", "write"}
    read = found["kinds"]["read"]
    assert (read["ios"], read["iops"], read["bytes_per_second"]) == (1000, 500, 500 * 4096)
    assert read["latency_us"] == {"mean": 19, "min": 10, "max": 100, "percentiles": {
        "50": 10, "90": 10, "95": 100, "99": 100, "99.9": 100, "99.99": 100, "99.999": 100}}
    assert read["histogram_us"] == [[10, 11, 900], [100, 101, 100]]
    assert found["all"]["ios"] == 1001 and found["errors"] == {"IOERR": 3}
    assert found["course"][0]["iops"] == 1001


def test_report():
    lines = perf_text.report(Plan("sock", histogram=True), result(errors={1: 3, 7: 1}))
    assert lines[0] == "2.00 s"
    assert lines[2].split() == ["read", "1000", "500", "2.0", "19.0", "10.0", "10.0", "10.0",
                                "100.0", "100.0", "100.0", "100.0", "100.0", "100.0"]
    assert [line.split()[0] for line in lines[3:5]] == ["write", "all"]
    rows = [line.split() for line in lines[lines.index("read:") + 2:lines.index("write:") - 1]]
    assert [row[3:5] for row in rows] == [["900", "90.0000%"], ["100", "100.0000%"]]
    assert rows[0][-1] == "#" * 40 and float(rows[0][0]) <= 10 < float(rows[0][2])
    assert lines[-2:] == ["3 requests failed: IOERR", "1 requests failed: status 7"]


def test_report_of_a_verification():
    faults = [(4096, 2, 3, 3, 4096)] * 2
    lines = perf_text.report(Plan("sock", verify=True), result(checked=10, wrong=5, faults=faults))
    fault = "  byte 4096: the sector is damaged"
    assert lines[-4:] == ["verified: 10 sectors, 5 of them wrong", fault, fault, "  and 3 more"]


def test_a_report_of_nothing():
    nothing = Result(1.0, [Latency(HZ)] * 4, interrupted=True)
    assert perf_text.report(Plan("sock", histogram=True), nothing) == [
        "1.00 s, ended by a signal", "no request was answered"]
    assert nothing.ok


@pytest.mark.parametrize(("fault", "text"), [
    ((512, 1, 1, 0, 0), "byte 512: the sector is nothing but zeros"),
    ((512, 3, 1, 1, 1024), "byte 512: the sector is of another place: it belongs to byte 1024"),
    ((512, 4, 3, 2, 512), "byte 512: the sector is of another write: write 2 is there and not 3"),
    ((512, 5, 1, 1, 512), "byte 512: the sector is of another run")])
def test_faults_for_people(fault, text):
    assert fault_text(fault) == text


def test_names_of_statuses():
    assert [status_name(n) for n in (1, 2, 9, 255)] == ["IOERR", "UNSUPP", "status 9", "no status"]


@pytest.mark.parametrize(("count", "text"), [
    (0, "0"), (9999, "9999"), (12345, "12.3k"), (123456, "123k"), (999999, "1000k"),
    (1234567, "1.23M"), (2.5e9, "2.50G")])
def test_counts_for_people(count, text):
    assert perf_text.count_text(count) == text


@pytest.mark.parametrize(("size", "text"), [(512, "512 bytes"), (4096, "4 KiB"), (1 << 20, "1 MiB"),
                                            (5000, "5000 bytes"), (3 << 40, "3 TiB")])
def test_sizes_for_people(size, text):
    assert perf_text.size_text(size) == text
