"""How a reactor goes to sleep (vhostrt.event.watch) while others send to it and kick it: a model of
it in which every order of steps is tried, to see that none leaves it asleep with work to do.

Each thread keeps its stores back in a buffer of its own, as x86 does, and they come to the memory
in their order, at any time.  A fence and a system call wait until they have.  What the reactor does
is an iteration without timers, and reactor_sleep() with a poller that is armed as source_arm() of
cy_interrupt.pyx and the queues of vhost are; the others are the kick of a client, and an event with
reactor_wake() behind it.
"""
import pytest

REACTOR = """
poll:   load work
        same work work.seen next
        see work
next:   load msg
        same msg msg.seen quiet
        see msg
        jump poll
quiet:  store sleeping 1
        barrier
        load msg
        same msg msg.seen idle
        jump woken
idle:   store armed 1
        fence
        load work
        same work work.seen asleep
        jump disarm
asleep: wait
        take kick
        take wake
disarm: store armed 0
woken:  store sleeping 0
        jump poll
"""
KICKER = """
        store work {n}
        fence
        load armed
        same armed 0 {end}
        write kick
{end}:
"""
SENDER = """
        store msg {n}
        load sleeping
        same sleeping 0 {end}
        write wake
{end}:
"""


def assembled(text):
    """Return the steps of a program; labels become numbers of steps."""
    steps, labels = [], {}
    for line in text.splitlines():
        label, colon, rest = line.rpartition(":")
        if colon:
            labels[label.strip()] = len(steps)
        if rest.split():
            steps.append(rest.split())
    return [[labels.get(word, word) if i else word for i, word in enumerate(step)]
            for step in steps]


def repeated(text, times):
    return assembled("".join(text.format(n=n + 1, end=f"end{n}") for n in range(times)))


def moved(state, me, pc, **changes):
    """Return a state with a thread at another step."""
    memory, buffers, registers, edges, pcs = state
    made = {"memory": memory, "buffers": buffers, "registers": registers, "edges": edges} | changes
    return (made["memory"], made["buffers"], made["registers"], made["edges"],
            (*pcs[:me], pc, *pcs[me + 1:]))


def put(pairs, name, value):
    """Return a dict, kept as a frozenset of pairs, with another value."""
    return frozenset({**dict(pairs), name: value}.items())


def drained(state):
    """Yield the states in which one store more has come to the memory."""
    memory, buffers, *rest = state
    for me, buffer in enumerate(buffers):
        if buffer:
            yield (put(memory, *buffer[0]), (*buffers[:me], buffer[1:], *buffers[me + 1:]), *rest)


def run(state, me, program):
    """Yield the state after a thread's next step, unless it has to wait."""
    memory, buffers, registers, edges, pcs = state
    pc = pcs[me]
    if pc >= len(program):
        return
    what, *words = program[pc]
    seen, own = dict(memory), dict(registers[me])
    if what in ("fence", "write", "wait", "take") and buffers[me]:
        return
    if what == "barrier" and any(buffers):
        return

    def note(name, value):
        return (*registers[:me], put(registers[me], name, value), *registers[me + 1:])
    if what == "store":
        name, value = words
        yield moved(state, me, pc + 1, buffers=(
            *buffers[:me], (*buffers[me], (name, int(value))), *buffers[me + 1:]))
    elif what == "load":
        mine = [value for name, value in buffers[me] if name == words[0]]
        value = mine[-1] if mine else seen[words[0]]
        yield moved(state, me, pc + 1, registers=note(words[0], value))
    elif what == "same":
        name, other, there = words
        equal = own[name] == (own[other] if other in own else int(other))
        yield moved(state, me, there if equal else pc + 1)
    elif what == "see":
        yield moved(state, me, pc + 1, registers=note(f"{words[0]}.seen", own[words[0]]))
    elif what == "write":
        yield moved(state, me, pc + 1, edges=edges | {words[0]})
    elif what == "wait" and edges or what in ("fence", "barrier"):
        yield moved(state, me, pc + 1)
    elif what == "take":
        yield moved(state, me, pc + 1, edges=edges - {words[0]})
    elif what == "jump":
        yield moved(state, me, words[0])


def lost(state, programs):
    """Whether nothing more can happen, and the reactor sleeps although there is work."""
    memory, buffers, registers, edges, pcs = state
    over = all(pcs[i] >= len(programs[i]) for i in (1, 2)) and not any(buffers)
    asleep = programs[0][pcs[0]][0] == "wait" and not edges
    values, own = dict(memory), dict(registers[0])
    return over and asleep and any(values[name] != own[f"{name}.seen"] for name in ("work", "msg"))


def explore(reactor, kicker, sender, kicks=2):
    """Try every order of some kicks and a message; return how many states there are, and how many
    of them are lost ones."""
    programs = [assembled(reactor), repeated(kicker, kicks), repeated(sender, 1)]
    memory = frozenset(dict.fromkeys(("work", "msg", "armed", "sleeping"), 0).items())
    own = frozenset({("work.seen", 0), ("msg.seen", 0)})
    start = (memory, ((), (), ()), (own, frozenset(), frozenset()), frozenset(), (0, 0, 0))
    known, left, wrong = {start}, [start], 0
    while left:
        state = left.pop()
        wrong += bool(lost(state, programs))
        following = list(drained(state))
        for me, program in enumerate(programs):
            following += run(state, me, program)
        for each in following:
            if each not in known:
                known.add(each)
                left.append(each)
    return len(known), wrong


FENCED = REACTOR.replace("barrier", "fence"), KICKER, SENDER.replace("load", "fence\nload")


@pytest.mark.parametrize("programs", [(REACTOR, KICKER, SENDER), FENCED],
                         ids=["membarrier", "fences"])
def test_it_never_sleeps_with_work_to_do(programs):
    states, wrong = explore(*programs)
    assert wrong == 0 and states > 1000


WITHOUT = {
    "the kick's fence": (REACTOR, KICKER.replace("fence", ""), SENDER),
    "the barrier": (REACTOR.replace("barrier", "fence"), KICKER, SENDER),
    "the look behind it": (REACTOR.replace("jump woken", "jump idle"), KICKER, SENDER),
    "the look when armed": (REACTOR.replace("jump disarm", "jump asleep"), KICKER, SENDER),
    "the fence when armed": (REACTOR.replace("fence", ""), KICKER, SENDER),
    "edges that stay until the wait": (
        REACTOR.replace("asleep: wait\n        take kick\n        take wake",
                        "asleep: take kick\n        take wake\n        wait"), KICKER, SENDER),
}


@pytest.mark.parametrize("programs", WITHOUT.values(), ids=WITHOUT)
def test_nothing_of_it_can_be_left_out(programs):
    assert explore(*programs)[1] > 0
