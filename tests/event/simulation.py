"""Random programs for reactors, a model that runs them, and what has to hold where none can say.

The model is one thread that follows the rules as docs/compatibility.md and the modules state them:
in each turn a batch of events, then the threads, of each a batch of messages and every active
poller once, then what was deferred.
"""
import itertools
from collections import Counter

THREADS, POLLERS, RUNS = 4, 12, 16
EVENT, MESSAGE, DEFERRED, POLLER, CRITICAL = range(5)
(SEND, CRITICAL_TO, REGISTER, UNREGISTER, PAUSE, RESUME, PERIOD, ATTACH, DETACH,
 MOVE) = range(10)
BATCH = 8
TURNS = 40                              # that are compared with the model
CONTROL = 3                             # the sender that is no reactor


class Program:
    """items: (kind, to, pooled, actions).  pollers: (thread, actions of each run).

    start: what is done first, on reactor 0.  roots: the items that are sent from outside.
    An action is (what, on, value).
    """

    def __init__(self, reactors):
        self.reactors = reactors
        self.items, self.pollers, self.start, self.roots = [], [], [], []

    def action_count(self):
        scripts = [item[3] for item in self.items]
        scripts += [actions for _, runs in self.pollers for actions in runs]
        return sum(map(len, scripts)) + len(self.start)


def grow(rng, program, count, kinds, choose):
    """Add items, each sent by one that is there already, by a poller's run, or from outside.

    choose(rng) makes another action, for some place to do it.
    """
    places = [program.start] + [run for _, runs in program.pollers for run in runs]
    for number in range(count):
        kind = rng.choice(kinds)
        to = rng.randrange(program.reactors if kind == EVENT else THREADS)
        item = (kind, 0 if kind == DEFERRED else to, rng.random() < 0.5, [])
        program.items.append(item)
        outside = kind != DEFERRED and rng.random() < 0.15
        if outside:
            program.roots.append(number)
        else:
            rng.choice(places).append((SEND, number, 0))
        if kind != DEFERRED:
            places.append(item[3])
    for _ in range(count // 2):
        rng.choice(places).append(choose(rng))


def with_pollers(rng, program, periods):
    for _ in range(POLLERS):
        runs = [[] for _ in range(rng.randrange(RUNS))]
        program.pollers.append((rng.randrange(THREADS), runs))
    for number in range(POLLERS):
        if rng.random() < 0.7:
            program.start.append((REGISTER, number, rng.choice(periods)))


def exact_program(rng):
    """Return a program for one reactor in which nothing depends on the clock."""
    program = Program(1)
    program.start += [(ATTACH, number, 0) for number in range(THREADS) if rng.random() < 0.8]
    with_pollers(rng, program, [0])

    def choose(rng):
        what = rng.choice((CRITICAL_TO, REGISTER, UNREGISTER, PAUSE, PAUSE, RESUME, RESUME, ATTACH,
                           ATTACH, DETACH))
        number = THREADS if what in (CRITICAL_TO, ATTACH, DETACH) else POLLERS
        return what, rng.randrange(number), 0
    grow(rng, program, rng.choice((5, 60, 250)), (EVENT, EVENT, MESSAGE, MESSAGE, DEFERRED), choose)
    return program


def free_program(rng):
    """Return a program for two or three reactors, with timers and moves."""
    program = Program(rng.choice((2, 3)))
    program.start += [(ATTACH, number, 0) for number in range(THREADS)]
    program.start += [(MOVE, number, rng.randrange(program.reactors)) for number in range(THREADS)]
    with_pollers(rng, program, [0, 0, 1, 50, 50, 300, 1000, 2000, 3000])
    grow(rng, program, rng.choice((60, 400, 1500)), (EVENT, EVENT, MESSAGE, MESSAGE, DEFERRED),
         lambda rng: (MOVE, rng.randrange(THREADS), rng.randrange(program.reactors)))
    for thread, runs in program.pollers:
        # A poller may be touched by its own thread alone.
        own = [n for n, (other, _) in enumerate(program.pollers) if other == thread]
        for run in runs:
            if rng.random() < 0.4:
                run.append((rng.choice((REGISTER, UNREGISTER, PAUSE, RESUME, PERIOD)),
                            rng.choice(own), rng.choice((0, 1, 50, 300, 1000))))
    # What was to be done first would be done where the threads are no more.
    program.start = keep_order(program.start)
    return program


def keep_order(start):
    """Return the actions with the moves last: what is registered is registered before."""
    return [a for a in start if a[0] != MOVE] + [a for a in start if a[0] == MOVE]


class ModelPoller:
    """state: "off", "waiting", "running", "paused", "pausing" or "gone"."""

    def __init__(self):
        self.state, self.order, self.runs = "off", 0, 0


class ModelThread:
    """A light thread; its pollers are numbers."""

    def __init__(self, pollers):
        self.pollers, self.messages, self.critical, self.number = pollers, [], False, 0


class Model:
    """One reactor."""

    def __init__(self, program):
        self.program = program
        self.own, self.sent, self.deferred, self.attached = [], [], [], []
        self.pollers = [ModelPoller() for _ in range(POLLERS)]
        self.threads = [ModelThread([n for n, (t, _) in enumerate(program.pollers) if t == number])
                        for number in range(THREADS)]
        self.log, self.turn, self.running = [], 0, None
        self.gone = set()               # items that were sent

    def run(self):
        """Return the log of the first turns."""
        for root in self.program.roots:
            self.send(root, outside=True)
        self.act(self.program.start)
        self.rest_of_turn()
        while self.turn < TURNS:
            self.events()
            self.rest_of_turn()
        return self.log

    def rest_of_turn(self):
        for number in list(self.attached):
            self.poll(number)
        while self.deferred:
            self.run_item(self.deferred.pop())
        self.turn += 1

    def events(self):
        """Half a batch for each where both wait; what is sent meanwhile waits for the next one."""
        own = len(self.own)
        most = BATCH // 2 if own else BATCH
        batch, self.sent = self.sent[:most], self.sent[most:]
        for number in batch:
            self.run_item(number)
        for _ in range(min(own, BATCH - len(batch))):
            self.run_item(self.own.pop(0))

    def poll(self, number):
        self.running = number
        thread = self.threads[number]
        if thread.critical:
            thread.critical = False
            self.log.append((CRITICAL, number, self.turn))
        for _ in range(BATCH):
            if thread.messages:
                self.run_item(thread.messages.pop(0))
        last, done = thread.number, 0
        while True:
            turn = [(p.order, n) for n in thread.pollers
                    if (p := self.pollers[n]).state == "waiting" and done < p.order <= last]
            if not turn:
                break
            done, poller = min(turn)
            self.run_poller(thread, poller)
        self.running = None

    def run_item(self, number):
        self.log.append((self.program.items[number][0], number, self.turn))
        self.act(self.program.items[number][3])

    def run_poller(self, thread, number):
        poller, runs = self.pollers[number], self.program.pollers[number][1]
        self.log.append((POLLER, number, self.turn))
        poller.state = "running"
        poller.runs += 1
        if poller.runs <= len(runs):
            self.act(runs[poller.runs - 1])
        poller.state = {"gone": "off", "pausing": "paused", "running": "waiting"}[poller.state]

    def send(self, number, outside=False):
        if number in self.gone:
            return
        self.gone.add(number)
        kind, to, *_ = self.program.items[number]
        if kind == EVENT:
            (self.sent if outside else self.own).append(number)
        elif kind == MESSAGE:
            self.threads[to].messages.append(number)
        else:
            self.deferred.append(number)

    def act(self, actions):
        for what, on, _ in actions:
            if what == SEND:
                self.send(on)
            elif what == CRITICAL_TO:
                self.threads[on].critical = True
            elif what in (ATTACH, DETACH):
                if self.running is None and (on in self.attached) == (what == DETACH):
                    (self.attached.append if what == ATTACH else self.attached.remove)(on)
            else:
                self.set_poller(what, on)

    def set_poller(self, what, on):
        poller, thread = self.pollers[on], self.threads[self.program.pollers[on][0]]
        state = poller.state
        if what == REGISTER and state == "off" or what == RESUME and state == "paused":
            thread.number += 1
            poller.state, poller.order = "waiting", thread.number
        elif what == RESUME and state == "pausing":
            poller.state = "running"
        elif what == PAUSE and state in ("waiting", "running"):
            poller.state = "paused" if state == "waiting" else "pausing"
        elif what == UNREGISTER:
            poller.state = "gone" if state in ("running", "pausing", "gone") else "off"


def first_difference(found, expected):
    """Return where a reactor's log and the model's part, as (turn, found, expected), or None.

    In what order the deferrals of a turn run is nobody's business.
    """
    found = [(kind, number, turn) for kind, number, *_, turn in found]
    for turn in range(TURNS):
        ours, model = ([e for e in log if e[2] == turn] for log in (found, expected))
        for log in (ours, model):
            late = sorted(e for e in log if e[0] == DEFERRED)
            log[:] = [e for e in log if e[0] != DEFERRED] + late
        if ours != model:
            return turn, ours, model
    return None


# What holds in any order of things

PHASES = {EVENT: 0, MESSAGE: 1, CRITICAL: 1, POLLER: 1, DEFERRED: 2}


def wrong_in(logs, runs):
    """Return what is wrong in the logs of reactors that ran beside one another.

    runs: how often each item ran.
    """
    wrong = []
    for log in logs:
        for turn, entries in itertools.groupby(log, key=lambda entry: entry[6]):
            wrong += [f"turn {turn}: {what}" for what in wrong_in_turn(list(entries))]
        wrong += late([e for e in log if e[0] == EVENT])
    for thread in range(THREADS):
        own = [e for log in logs for e in log if e[0] == MESSAGE and e[2] == thread]
        wrong += late(sorted(own, key=lambda entry: entry[5]))
    seen = Counter(e[1] for log in logs for e in log if e[0] in (EVENT, MESSAGE, DEFERRED))
    if seen != Counter({n: times for n, times in enumerate(runs) if times}) or max(runs) > 1:
        wrong.append("an item was lost, or ran twice")
    return wrong


def wrong_in_turn(entries):
    """Yield what is wrong with what one reactor did in one turn."""
    phases = [PHASES[e[0]] for e in entries]
    if phases != sorted(phases):
        yield "not events, then threads, then deferrals"
    messages = Counter(e[2] for e in entries if e[0] == MESSAGE)
    timers = Counter(e[2] for e in entries if e[0] == POLLER and e[3])
    if max([phases.count(0), *messages.values(), *timers.values()]) > BATCH:
        yield "a batch is too large"
    if max(Counter(e[1] for e in entries if e[0] == POLLER and not e[3]).values(), default=0) > 1:
        yield "an active poller ran twice"
    polled = [e for e in entries if PHASES[e[0]] == 1]
    threads = [number for number, _ in itertools.groupby(e[2] for e in polled)]
    if len(threads) != len(set(threads)):
        yield "a thread was polled twice"
    for number in set(threads):
        kinds = [e[0] == POLLER for e in polled if e[2] == number]
        if kinds != sorted(kinds):
            yield "a poller ran before messages of its thread"


def late(entries):
    """Return what arrived behind something that its sender has sent later."""
    last: dict[int, int] = {}
    found = []
    for _, number, _, sender, sent, *_ in entries:
        if last.get(sender, -1) >= sent:
            found.append(f"item {number} of sender {sender} is late")
        last[sender] = sent
    return found
