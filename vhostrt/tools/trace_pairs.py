"""Which entry ends what another one has begun.

Points say by their role whether they begin or end something: a request between "begin" and "end" is
told by its kind and its number; what a core is in between "enter" and "leave" is told by the core.
A "span" is one entry, written at its end.
"""
from vhostrt.tools.trace_file import Event

BEGINS, ENDS = ("begin", "enter"), ("end", "leave")
Key = tuple[str, str, int]


def key_of(event: Event) -> Key:
    """Return what the two entries of a pair have in common."""
    nested = event.point.role in ("enter", "leave")
    return event.point.group, event.point.object, event.lcore if nested else event.object


class Pairs:
    """Joins the entries of one trace, given in the order of their time.

    open: what has begun and not ended, by key.
    """

    def __init__(self) -> None:
        self.open: dict[Key, Event] = {}

    def begun_by(self, event: Event) -> Event | None:
        """Take the next entry; return the one that began what this one ends, if that is known."""
        if event.point.role in BEGINS:
            self.open[key_of(event)] = event
        elif event.point.role in ENDS:
            return self.open.pop(key_of(event), None)
        elif event.point.role == "span":
            return event._replace(tsc=event.tsc - event.words[0])
        return None
