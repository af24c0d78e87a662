"""vhostrt.log_limit: what hostile clients may have logged."""
import asyncio
import re

import pytest

from vhostrt import log, log_limit
from vhostrt.log_limit import BURST, BURST_ALL, TOKEN_ALL_S, TOKEN_S, Limit


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(autouse=True)
def plain():
    log.settings.timestamps = False
    yield
    log.settings.timestamps = True


def said(capsys):
    """Return the texts printed since the last time."""
    return [line.split("*: ", 1)[1] for line in capsys.readouterr().err.splitlines()]


async def say(limit, count, kind="refused"):
    for i in range(count):
        limit.warning(kind, f"{kind} {i}")


def test_a_session_says_a_few_and_the_rest_is_counted(capsys, clock):
    async def main():
        limit = Limit("Disk0", clock)
        await say(limit.part(), 1000)
        limit.tell()
    asyncio.run(main())
    assert said(capsys) == [f"refused {i}" for i in range(BURST)] + [
        f"Disk0: {1000 - BURST} messages like this were suppressed: refused 999"]


def test_each_kind_and_each_session_has_a_bucket_of_its_own(capsys, clock):
    async def main():
        limit = Limit("Disk0", clock)
        for part in (limit.part(), limit.part()):
            await say(part, BURST)
            await say(part, BURST, "broken")
        assert limit.suppressed == {}
    asyncio.run(main())
    assert len(said(capsys)) == 4 * BURST


def test_new_sessions_do_not_bring_more(capsys, clock):
    """A client that connects again and again is one of its controller's."""
    async def main():
        limit = Limit("Disk0", clock)
        for _ in range(500):
            await say(limit.part(), 1, "ended")
        limit.tell()
    asyncio.run(main())
    *lines, last = said(capsys)
    assert len(lines) == BURST_ALL
    assert last == f"Disk0: {500 - BURST_ALL} messages like this were suppressed: ended 0"


def test_tokens_come_back(capsys, clock):
    async def main():
        limit = Limit("Disk0", clock)
        part = limit.part()
        await say(part, 10)
        clock.now += TOKEN_S * 2
        await say(part, 10)
        clock.now += 1e6
        await say(part, 10)
        await say(limit, 100)
        clock.now += TOKEN_ALL_S
        await say(limit, 3)
        limit.tell()
    asyncio.run(main())
    lines = said(capsys)
    assert len(lines) == BURST + 2 + BURST + (BURST_ALL - BURST) + 1 + 1


def test_what_was_suppressed_is_told_by_itself(capsys, clock, monkeypatch):
    monkeypatch.setattr(log_limit, "TELL_S", 0.01)

    async def main():
        limit = Limit("Disk0", clock)
        part = limit.part()
        for _ in range(2):
            part.error("internal", "x")
            await say(part, BURST + 7)
            assert limit.timer is not None
            while limit.timer is not None:
                await asyncio.sleep(0.01)
        limit.tell()
    asyncio.run(main())
    counts = [int(n) for line in said(capsys)
              for n in re.findall(r"Disk0: (\d+) messages like this were suppressed", line)]
    assert counts == [7, BURST + 7]


def test_a_line_names_the_place_that_said_it(capsys, clock):
    limit = Limit("Disk0", clock)
    limit.error("x", "whole")
    limit.part().warning("x", "part")
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("test_log_limit.py:")
               and ":test_a_line_names_the_place_that_said_it: " in line for line in lines)
    assert "*ERROR*: whole" in lines[0] and "*WARNING*: part" in lines[1]
