"""Log lines that a client or a guest can bring about: so many that they are of use, and no more.

Each kind of message has a bucket of tokens for each session, and one for its controller, so that
neither one session nor one new session after another fills the disk. What was left out is counted,
and said: "N messages like this were suppressed", with the last of them.

Owner:   a controller has a Limit, each of its sessions a part() of that.
Threads: the control thread; the sum is told in its asyncio loop.
"""
import asyncio
import sys
import time

from vhostrt import log

BURST, TOKEN_S = 5, 10.0                # of a session: at once, and the seconds for one more
BURST_ALL, TOKEN_ALL_S = 20, 5.0        # of all sessions of a controller together
TELL_S = 10.0                           # between two sentences about what was suppressed


class Bucket:
    """Up to `burst` tokens, and one more every `token_s` seconds."""

    def __init__(self, burst: int, token_s: float, now: float) -> None:
        self.burst, self.token_s = burst, token_s
        self.tokens, self.since = float(burst), now

    def take(self, now: float) -> bool:
        """Take a token; False when there is none."""
        self.tokens = min(self.burst, self.tokens + (now - self.since) / self.token_s)
        self.since = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Limit:
    """The messages of the clients of one controller.

    name: what they are about, for people.  clock: seconds, for tests.
    """

    def __init__(self, name: str, clock=time.monotonic) -> None:
        self.name, self.clock = name, clock
        self.buckets: dict[str, Bucket] = {}
        self.suppressed: dict[str, tuple[int, int, str]] = {}   # kind -> how many, level, the last
        self.timer: asyncio.TimerHandle | None = None

    def part(self) -> "Part":
        """Return the limit of one session."""
        return Part(self)

    def take(self, kind: str) -> bool:
        now = self.clock()
        if kind not in self.buckets:
            self.buckets[kind] = Bucket(BURST_ALL, TOKEN_ALL_S, now)
        return self.buckets[kind].take(now)

    def warning(self, kind: str, text: str) -> None:
        """Say what is not as it should be, and goes on. kind: one of few, of the program's own."""
        self.say(log.WARNING, kind, text, self.take(kind))

    def error(self, kind: str, text: str) -> None:
        """Say what failed."""
        self.say(log.ERROR, kind, text, self.take(kind))

    def say(self, level: int, kind: str, text: str, allowed: bool) -> None:
        """Print the message of the caller's caller, or count it."""
        if allowed:
            frame = sys._getframe(2)
            log.record(level, frame.f_code.co_filename.rpartition("/")[2], frame.f_lineno,
                       frame.f_code.co_name, text)
            return
        count = self.suppressed.get(kind, (0, level, ""))[0]
        self.suppressed[kind] = (count + 1, level, text)
        if self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(TELL_S, self.tell)

    def tell(self) -> None:
        """Say what was left out since the last time."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        suppressed, self.suppressed = self.suppressed, {}
        for count, level, text in suppressed.values():
            log.record(level, "log_limit.py", sys._getframe().f_lineno, "tell",
                       f"{self.name}: {count} messages like this were suppressed: {text}")


class Part:
    """The messages of one session: what it may say, and all sessions together may."""

    def __init__(self, whole: Limit) -> None:
        self.whole = whole
        self.buckets: dict[str, Bucket] = {}

    def take(self, kind: str) -> bool:
        now = self.whole.clock()
        if kind not in self.buckets:
            self.buckets[kind] = Bucket(BURST, TOKEN_S, now)
        return self.buckets[kind].take(now) and self.whole.take(kind)

    def warning(self, kind: str, text: str) -> None:
        """As Limit.warning."""
        self.whole.say(log.WARNING, kind, text, self.take(kind))

    def error(self, kind: str, text: str) -> None:
        """As Limit.error."""
        self.whole.say(log.ERROR, kind, text, self.take(kind))
