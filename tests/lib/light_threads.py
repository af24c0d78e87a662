"""Light threads for a test, on reactors of this process."""
import asyncio
import contextlib
import functools

from tests.lib.reactors import reactors
from vhostrt import log
from vhostrt.event.thread import Thread


async def until(condition):
    """Wait until condition() holds."""
    for _ in range(120_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came")


def run(cores=2, idle="yield"):
    """Make ordinary tests of coroutine functions: they run with so many reactors."""
    def make(test):
        @functools.wraps(test)
        def wrapped(*arguments, **named):
            async def main():
                async with reactors(cores, idle):
                    await asyncio.wait_for(test(*arguments, **named), 600)
            asyncio.run(main())
        return wrapped
    return make


@contextlib.contextmanager
def warnings():
    """The warnings and errors that are logged meanwhile (a list of str)."""
    seen, before = [], log.record

    def record(level, file, line, function, text, *flag):
        if level <= log.WARNING:
            seen.append(text)
        before(level, file, line, function, text, *flag)

    log.record = record
    try:
        yield seen
    finally:
        log.record = before


async def attached(*cores):
    """Return a thread on each of these cores."""
    made = []
    for i, core in enumerate(cores):
        light = Thread(f"t{i}")
        await light.attach(core)
        made.append(light)
    return made


async def end(*threads):
    for light in threads:
        await light.exit()
