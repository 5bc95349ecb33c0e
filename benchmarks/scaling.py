"""How a search scales: measured here with one and two workers, simulated past this machine.

    python benchmarks/scaling.py measure     # searches on Ray, 1 and 2 workers; some 20 minutes
    python benchmarks/scaling.py simulate    # 1 to 2,000 workers, from what was measured
    python benchmarks/scaling.py labels      # per-label training, one and two labels at a time

``measure`` runs one search in rounds and freely, each child on one core, and keeps: candidates an
hour, utilisation (the workers' time in children over all of their time), how long each child took,
how long the head is busy with each one (by itself, and for each that was tried before), what it
costs Ray to carry an empty task, and how large a pair's files are.

``simulate`` plays events by these figures. The head, its link and each worker serve one at a time.
What a single machine cannot tell is assumed, and said: the link, the failures, workers a machine.
Its predictions for one and two workers stand beside the measurements.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import growgan as gg
from growgan.config import make_settings
from growgan.growth.cluster import Cluster, RayExecutor
from growgan.growth.search import Search
from growgan.training.runtime import machine

RESULTS = Path(__file__).parent / "results" / "scaling.json"
OUT = Path("runs/scaling")
TRIES = 3  # growths a round, beside the unchanged child, where the measured searches go in rounds
WORKERS = (1, 2, 8, 64, 512, 2000)
SEARCH = {
    "policy": "dynamic",
    "threads": 1,
    "growth": {
        "anew": False,
        "tries": TRIES,
        "trial": 0.03,
        "search": 1.0,
        "threshold": 100.0,
        "images": 1,
        "shown": 1e-6,
        "calm": 0.0,
    },
}


@dataclass(frozen=True)
class Figures:
    """What a simulation is fed with.

    Attributes:
        tasks: seconds that children took in their workers.
        falls: by what factor scores changed from parent to child.
        head: seconds that the head is busy with a child, and ``older`` more for each one before it.
        begin: seconds that the head takes to begin a task.
        carry: seconds from the call of an empty task to its result.
        size: bytes of a pair's files.
        link: bytes a second that the head sends and receives; assumed.
        node: workers a machine, which gets a parent's files once; assumed.
        failures: of a worker in an hour; assumed.
    """

    tasks: tuple[float, ...]
    falls: tuple[float, ...]
    head: float
    older: float
    begin: float
    carry: float
    size: float
    link: float = 10e9 / 8
    node: int = 8
    failures: float = 0.001


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

    def child(self, begun: float, fetched: bool) -> tuple[float, float]:
        """Return when a child that the head begins at ``begun`` is back, and how long it took.

        Time that dead workers lost comes on top.
        """
        f, start = self.figures, self.head.serve(begun, self.figures.begin)
        if not fetched:
            start = self.link.serve(start, f.size / f.link)
        start += f.carry
        while True:
            seconds = self.rng.choice(f.tasks)
            dies = self.rng.expovariate(f.failures / 3600) if f.failures else math.inf
            if dies > seconds:
                break
            start += dies
        return start + seconds, seconds

    def record(self, back: float, seconds: float) -> float:
        """Return when the head is done with a child that came back."""
        f = self.figures
        self.worked += seconds
        arrived = self.link.serve(back, f.size / f.link)
        self.done += 1
        return self.head.serve(arrived, f.head + f.older * self.done)

    def lower(self, score: float, at: float) -> None:
        """Take a child's score, known since ``at``."""
        self.score = min(self.score, score)
        if self.score <= 0.1:
            self.reached = min(self.reached, at)

    def rounds(self, seconds: float, children: int) -> None:
        """Play in rounds: the next begins when all children of the last are written down."""
        while self.now < seconds:
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
        """Play without rounds: who is done takes the next proposal."""
        # Of each worker's child: its end, how long it takes, and the score of its parent.
        flying = [(*self.child(0.0, fetched=False), 1.0) for _ in range(self.workers)]
        heapq.heapify(flying)
        while self.now < seconds:
            end, took, parent = heapq.heappop(flying)
            self.now = self.record(end, took)
            self.lower(parent * self.rng.choice(self.figures.falls), self.now)
            heapq.heappush(flying, (*self.child(self.now, fetched=False), self.score))

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


@contextmanager
def clocked(times: dict[str, list[float]]) -> Iterator[None]:
    """Note how long the head takes for each child."""

    def watch(owner: Any, name: str) -> Any:
        plain = getattr(owner, name)

        def timed(*args: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return plain(*args, **named)
            finally:
                times.setdefault(name, []).append(time.perf_counter() - begun)

        return mock.patch.object(owner, name, timed)

    with (
        watch(Search, "_record"),
        watch(Search, "_select"),
        watch(RayExecutor, "_begin"),
    ):
        yield


def searched(ray: Any, workers: int, free: bool, images: int) -> dict[str, Any]:
    """Run a search on so many workers; return its figures."""
    out = OUT / f"{workers}-{'free' if free else 'rounds'}"
    shutil.rmtree(out, ignore_errors=True)
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    times: dict[str, list[float]] = {}
    try:
        data = gg.load_images("fashion-mnist", resolution=32)
        with clocked(times):
            run = gg.grow(
                data,
                out=out,
                images=images,
                settings=make_settings({**SEARCH, "seed": 0}),
                cluster=Cluster(cpus=1, free=free),
            )
        carry, size = carried(ray, run)
    finally:
        ray.shutdown()
    tried = [event for event in run.events if event["event"] == "candidate"]
    scores = {event["id"]: event["score"] for event in tried}
    # The first child waits for its worker to start and to read what all of them need.
    wall = run.events[-1]["elapsed"] - tried[0]["elapsed"]
    rest = tried[1:]
    # What the head adds to a child's time is its saving; the worker's is the rest.
    saves = run.events[-1]["cost"]["save"] / len(tried)
    tasks = [event["seconds"] - saves for event in rest]
    count = len(tried)
    selects = np.array(times["_select"])
    # Freely there is a choice for each child; what it takes may grow with what was tried.
    slope = float(np.polyfit(np.arange(len(selects)), selects, 1)[0]) if free else 0.0
    return {
        "workers": workers,
        "free": free,
        "candidates": count,
        "rate": 3600 * len(rest) / wall,
        "utilisation": sum(tasks) / (workers * wall),
        "tasks": tasks,
        "falls": [e["score"] / scores[e["parent"]] for e in rest if e["score"] and e["parent"]],
        "head": (sum(times["_record"]) + sum(selects)) / count,
        "older": max(0.0, slope),
        "begin": statistics.mean(times["_begin"]),
        "carry": carry,
        "size": size,
    }


def carried(ray: Any, run: gg.Run) -> tuple[float, float]:
    """Return what an empty task takes, in seconds, and the bytes of the best pair's files."""
    call = ray.remote(num_cpus=1)(lambda: None)
    ray.get(call.remote())
    begun = time.perf_counter()
    for _ in range(50):
        ray.get(call.remote())
    seconds = (time.perf_counter() - begun) / 50
    folder = run.path / "candidates" / run.best_id
    return seconds, float(sum(f.stat().st_size for f in folder.glob("*.safetensors")))


def measure(images: int) -> dict[str, Any]:
    """Run all searches that this machine has workers for."""
    import ray

    most = min(2, os.cpu_count() or 1)
    rows = [
        searched(ray, workers, free, images * workers)
        for workers in range(1, most + 1)
        for free in (False, True)
    ]
    return {"machine": machine(), "searches": rows}


def labels() -> dict[str, Any]:
    """Train pairs of ten labels, one and two at a time; return labels an hour."""
    rows = []
    for jobs in (1, 2):
        out = OUT / f"labels-{jobs}"
        shutil.rmtree(out, ignore_errors=True)
        begun = time.perf_counter()
        words = ["per-label", "pggan", "digits", "--out", str(out), "--images", "20k"]
        command = [sys.executable, "-m", "growgan", *words, "--jobs", str(jobs)]
        subprocess.run([*command, "--set", "threads=1"], check=True)
        rows.append({"jobs": jobs, "rate": 10 * 3600 / (time.perf_counter() - begun)})
    return {"labels": rows}


def figures_of(kept: dict[str, Any]) -> Figures:
    """Return what the searches of one worker have shown."""
    alone = [row for row in kept["searches"] if row["workers"] == 1]
    free = next(row for row in alone if row["free"])

    def mean(name: str) -> float:
        return statistics.mean(row[name] for row in alone)

    return Figures(
        tasks=tuple(t for row in alone for t in row["tasks"]),
        falls=tuple(f for row in alone for f in row["falls"]),
        head=mean("head"),
        older=free["older"],
        begin=mean("begin"),
        carry=mean("carry"),
        size=mean("size"),
    )


def show(kept: dict[str, Any], hours: float) -> None:
    """Print what was measured, and what is predicted."""
    figures = figures_of(kept)
    print(
        f"{kept['machine']}; a child {statistics.mean(figures.tasks):.1f} s, the head "
        f"{1e3 * (figures.head + figures.begin):.0f} ms, {figures.size / 1e6:.1f} MB"
    )
    print("| workers | | candidates an hour | of them predicted | utilisation | predicted |")
    print("|---|---|---|---|---|---|")
    for row in kept["searches"]:
        length = row["candidates"] / row["rate"]
        seen = play(figures, row["workers"], row["free"], length, TRIES + 1)
        kind = "free" if row["free"] else "rounds"
        print(
            f"| {row['workers']} | {kind} | {row['rate']:.0f} | {seen.rate:.0f} "
            f"| {row['utilisation']:.0%} | {seen.utilisation:.0%} |"
        )
    print("\n| workers | | candidates an hour | utilisation | head | link | hours to a tenth |")
    print("|---|---|---|---|---|---|---|")
    for workers in WORKERS:
        for free in (False, True):
            seen = play(figures, workers, free, hours, max(workers, TRIES + 1))
            print(
                f"| {workers:,} | {'free' if free else 'rounds'} | {seen.rate:,.0f} "
                f"| {seen.utilisation:.0%} | {seen.head:.0%} | {seen.link:.0%} "
                f"| {seen.reached:.2f} |"
            )


def main() -> None:
    """Read the command line, measure or simulate, keep and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("measure", "simulate", "labels"))
    parser.add_argument("--images", type=int, default=150_000, help="a worker, of each search")
    parser.add_argument("--hours", type=float, default=2.0, help="that simulated searches take")
    given = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "measure": lambda: measure(given.images),
        "labels": labels,
        "simulate": dict,
    }
    kept |= made[given.what]()
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    if "searches" in kept:
        show(kept, given.hours)


if __name__ == "__main__":
    main()
