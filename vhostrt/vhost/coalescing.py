"""When the drivers of a controller are interrupted, as people say it.

Threads: any.
Fails:   ValueError with one sentence.
Source:  SPDK's vhost_controller_set_coalescing.
"""
from dataclasses import dataclass
from typing import Any

DELAY_US_MAX = 1_000_000
IOPS_MIN = 100                          # one in each look at the rate
IOPS_MAX = 2**32 - 1
IOPS_DEFAULT = 60_000                   # what SPDK tells of a controller that nobody has set


@dataclass(slots=True, frozen=True)
class Coalescing:
    """delay_base_us: microseconds that an interrupt waits at twice the threshold; 0: none do.
    iops_threshold: requests a second of a queue above which they wait.
    automatic: instead of both, by what is in flight.
    """

    delay_base_us: int = 0
    iops_threshold: int = IOPS_DEFAULT
    automatic: bool = False

    def check(self) -> "Coalescing":
        """Return it when it can be. Fails: ValueError."""
        if not 0 <= self.delay_base_us <= DELAY_US_MAX:
            raise ValueError(f"'delay_base_us' is {self.delay_base_us}, and may be 0 to "
                             f"{DELAY_US_MAX}")
        if not IOPS_MIN <= self.iops_threshold <= IOPS_MAX:
            raise ValueError(f"'iops_threshold' is {self.iops_threshold}, and may be {IOPS_MIN} to "
                             f"{IOPS_MAX}")
        if self.automatic and self.delay_base_us:
            raise ValueError("'delay_base_us' has no effect with 'automatic': give one of them")
        return self

    def arguments(self) -> tuple[str, int, int]:
        """Return what Queue.set_coalescing takes."""
        mode = "auto" if self.automatic else "rate" if self.delay_base_us else "off"
        return mode, self.delay_base_us, self.iops_threshold

    def params(self) -> dict[str, Any]:
        """Return it in the words of vhost_controller_set_coalescing."""
        return {"delay_base_us": self.delay_base_us, "iops_threshold": self.iops_threshold,
                "automatic": self.automatic}
