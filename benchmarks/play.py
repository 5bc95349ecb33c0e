"""A search on many workers, played by events: what scaling.py predicts with.

The head, its link and each worker serve one at a time. No more is tried at once than a pair has
growths: a round has those that are drawn for its parents, freely all of them may be under way.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from dataclasses import dataclass

GROWTHS = 53  # of a pggan pair at 32x32, as the space of the measured searches counts them
PARENTS, KEEP = 3, 0.25  # of a round, and how many of their growths are drawn
PAUSE = 2  # slices after a growth, before the next trials open
DRAWN, THERE = 1 + round(PARENTS * KEEP * GROWTHS), 1 + PARENTS * GROWTHS


@dataclass(frozen=True)
class Figures:
    """What a simulation is fed with.

    Attributes:
        tasks: seconds that children took in their workers.
        lone: seconds of those that had none beside them, since one was all that was proposed.
        lonely: how many of these there are for a round, or freely, for each of the others.
        early: how many of these come before all others.
        falls: by what factor scores changed from parent to child.
        head: seconds that the head is busy with a child, and ``older`` more for each one before it.
        watch: share of its time in which the head looks at what workers tell.
        begin: seconds that the head takes to begin a task.
        carry: seconds from the call of an empty task to its result.
        start: seconds until a new worker, in the place of a dead one, begins a task.
        size: bytes of a pair's files.
        link: bytes a second that the head sends and receives; assumed.
        node: workers a machine, which gets a parent's files once; assumed.
        failures: of a worker in an hour; assumed.
        drawn: children that a round has at most.
        there: children that may be under way at most, freely.
    """

    tasks: tuple[float, ...]
    lone: tuple[float, ...]
    lonely: float
    early: int
    falls: tuple[float, ...]
    head: float
    older: float
    watch: float
    begin: float
    carry: float
    start: float
    size: float
    link: float = 10e9 / 8
    node: int = 8
    failures: float = 0.001
    drawn: int = DRAWN
    there: int = THERE


@dataclass
class Server:
    """Serves one at a time, in the order in which they come."""

    free: float = 0.0
    busy: float = 0.0

    def serve(self, at: float, seconds: float) -> float:
        """Return when what came at ``at`` is served."""
        self.free = max(self.free, at) + seconds
        self.busy += seconds
        return self.free


@dataclass(frozen=True)
class Played:
    """What a simulated search came to.

    Attributes:
        rate: candidates an hour.
        utilisation: share of the workers' time that is spent in children.
        head, link: share of the time in which these are busy.
        reached: hours until the score has fallen to a tenth.
    """

    rate: float
    utilisation: float
    head: float
    link: float
    reached: float


class Play:
    """One simulated search on so many workers."""

    def __init__(self, figures: Figures, workers: int, seed: int) -> None:
        self.figures, self.workers = figures, workers
        self.rng = random.Random(seed)
        self.head, self.link = Server(), Server()
        self.done, self.worked, self.now = 0, 0.0, 0.0
        self.score, self.reached = 1.0, math.inf

    def child(
        self, begun: float, fetched: bool, tasks: tuple[float, ...] = ()
    ) -> tuple[float, float]:
        """Return when a child that the head begins at ``begun`` is back, and how long it took.

        Time that dead workers lost comes on top. It takes as long as one of ``tasks``.
        """
        f, start = self.figures, self.busy(begun, self.figures.begin)
        if not fetched:
            start = self.link.serve(start, f.size / f.link)
        start += f.carry
        while True:
            seconds = self.rng.choice(tasks or f.tasks)
            dies = self.rng.expovariate(f.failures / 3600) if f.failures else math.inf
            if dies > seconds:
                break
            start += dies + f.start
        return start + seconds, seconds

    def record(self, back: float, seconds: float) -> float:
        """Return when the head is done with a child that came back."""
        f = self.figures
        self.worked += seconds
        arrived = self.link.serve(back, f.size / f.link)
        self.done += 1
        return self.busy(arrived, f.head + f.older * self.done)

    def busy(self, at: float, seconds: float) -> float:
        """Return when the head is done with what came at ``at``, looking at words meanwhile."""
        return self.head.serve(at, seconds / (1 - self.figures.watch))

    def lower(self, score: float, at: float) -> None:
        """Take a child's score, known since ``at``."""
        self.score = min(self.score, score)
        if self.score <= 0.1:
            self.reached = min(self.reached, at)

    def rounds(self, seconds: float, children: int) -> None:
        """Play in rounds: the next begins when all children of the last are written down."""
        children, due = min(children, self.figures.drawn), 0.0
        while self.now < seconds:
            due = self.alone(due + self.figures.lonely)
            parent, waiting = self.score, [self.now] * self.workers
            heapq.heapify(waiting)
            back = []
            for i in range(children):
                free = heapq.heappop(waiting)
                done = self.child(free, fetched=i >= -(-self.workers // self.figures.node))
                heapq.heappush(waiting, done[0])
                back.append(done)
            for end, took in sorted(back):
                self.now = self.record(end, took)
                self.lower(parent * self.rng.choice(self.figures.falls), self.now)

    def freely(self, seconds: float) -> None:
        """Play without rounds: who is done takes the next proposal.

        After a growth that is taken the leader trains on alone for ``PAUSE`` slices, and who is
        done meanwhile waits.
        """
        self.alone(self.figures.early)
        f, idle, left = self.figures, 0, 0
        # Of each child: its end, how long it takes, its parent's score, and whether it is alone.
        flying: list[tuple[float, float, float, bool]] = []

        def begin(alone: bool) -> None:
            child = self.child(self.now, fetched=False, tasks=f.lone if alone else ())
            heapq.heappush(flying, (*child, self.score, alone))

        for _ in range(min(self.workers, f.there)):
            begin(False)
        while self.now < seconds:
            end, took, parent, alone = heapq.heappop(flying)
            self.now = self.record(end, took)
            self.lower(parent * self.rng.choice(f.falls), self.now)
            if left and not alone:
                idle += 1
                continue
            left = left - 1 if alone else PAUSE * (self.rng.random() < f.lonely / PAUSE)
            if left:
                begin(True)
            else:
                for _ in range(idle + 1):
                    begin(False)
                idle = 0

    def alone(self, due: float) -> float:
        """Play children one by one while a whole one is ``due``; return what is left of it."""
        while due >= 1:
            self.now = self.record(*self.child(self.now, fetched=False, tasks=self.figures.lone))
            self.lower(self.score * self.rng.choice(self.figures.falls), self.now)
            due -= 1
        return due

    def played(self) -> Played:
        """Return the figures."""
        return Played(
            rate=3600 * self.done / self.now,
            utilisation=self.worked / (self.workers * self.now),
            head=self.head.busy / self.now,
            link=self.link.busy / self.now,
            reached=self.reached / 3600,
        )


def play(figures: Figures, workers: int, free: bool, hours: float, children: int) -> Played:
    """Simulate one search, three times, and return the means."""
    games = []
    for seed in range(3):
        game = Play(figures, workers, seed)
        if free:
            game.freely(3600 * hours)
        else:
            game.rounds(3600 * hours, children)
        games.append(game.played())
    names = Played.__dataclass_fields__
    return Played(**{n: statistics.mean(getattr(g, n) for g in games) for n in names})
