"""How a search scales: measured here with one and two workers, simulated past this machine.

    python benchmarks/scaling.py measure     # searches on Ray, 1 and 2 workers; some 25 minutes;
                                             # each search is kept, and not run again
    python benchmarks/scaling.py simulate    # 1 to 2,000 workers, from what was measured
    python benchmarks/scaling.py labels      # per-label training, one and two labels at a time:
                                             # ten labels in all, and as many as workers

``measure`` runs one search in rounds and, of two workers, freely (a single one goes in rounds
either way), each child on one core, and keeps: candidates an hour, utilisation (the workers' time
in children over all of their time), how long each child took, how long the head is busy with each
one (saving, choosing, proposing), and for each that was tried before (by head.py), for what share
of its time it looks at what workers tell, what it costs Ray to carry an empty task, how long a new
worker takes to begin, and how large a pair's files are.

``simulate`` plays events by these figures (play.py).
What a single machine cannot tell is assumed, and said: the link, the failures, workers a machine.
It is fed by the search of one worker; its predictions for those of two, given how long their own
children took, are its test: where one is off by more than 15 % the exit status is 1. No more is
tried at once than a pair has growths.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

from head import TRIED, costs, history_of
from play import Figures, Played, play

import growgan as gg
from growgan.config import make_settings
from growgan.growth.cluster import Cluster, RayExecutor
from growgan.growth.keeper import RunKeeper
from growgan.growth.search import Search
from growgan.training.runtime import machine

RESULTS = Path(__file__).parent / "results" / "scaling.json"
OUT = Path("runs/scaling")
OFF = 0.15  # that a prediction for two workers may be
TRIES = 3  # growths a round, beside the unchanged child, where the measured searches go in rounds
TRIAL = 0.03  # share of one worker's images that each child trains on
HEAD = ("_record", "_select", "_arrived", "_proposals")  # what the head does for each child
SEARCHES = ((1, False), (2, False), (2, True))  # workers, and whether freely
WORKERS = (1, 2, 8, 64, 512, 2000)
WIDTH = 32  # of a label's pair: as published, 512, it would take hours here
LONGER = (1, 20)  # times as long as measured, for simulated children
SEARCH: dict[str, Any] = {
    "policy": "dynamic",
    "threads": 1,
    "growth": {
        "anew": False,
        "tries": TRIES,
        "trial": TRIAL,
        "search": 1.0,
        "threshold": 100.0,
        "images": 1,
        "shown": 1e-6,
        "calm": 0.0,
    },
}


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
        ExitStack() as stack,
        watch(RayExecutor, "_begin"),
        watch(RayExecutor, "_words"),
        watch(RunKeeper, "report"),
    ):
        for name in HEAD:
            stack.enter_context(watch(Search, name))
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
                settings=make_settings(
                    SEARCH, {"seed": 0, "growth": {**SEARCH["growth"], "trial": TRIAL / workers}}
                ),
                cluster=Cluster(cpus=1, free=free),
            )
        beside = carried(ray, run)
    finally:
        ray.shutdown()
    tried = [event for event in run.events if event["event"] == "candidate"]
    scores = {event["id"]: event["score"] for event in tried}
    # The first child waits for its worker to start and to read what all of them need.
    wall = run.events[-1]["elapsed"] - tried[0]["elapsed"]
    rest = tried[1:]
    # What the head adds to a child's time is its saving; the worker's is the rest.
    saves = run.events[-1]["cost"]["save"] / len(tried)
    sizes = Counter(event["round"] for event in tried)
    single = [overlap(e, tried) < 0.5 if free else sizes[e["round"]] == 1 for e in rest]
    taken = [event["seconds"] - saves for event in rest]
    lone = [seconds for seconds, alone in zip(taken, single, strict=True) if alone]
    tasks = [seconds for seconds, alone in zip(taken, single, strict=True) if not alone]
    early = [*single, False].index(False)
    rounds = sum(size > 1 for size in sizes.values())
    lonely = (len(lone) - early) / len(tasks) if free else len(lone) / max(1, rounds)
    count = len(tried)
    head = sum(sum(times.get(name, [])) for name in HEAD)
    watch = sum(sum(times.get(name, [])) for name in ("_words", "report"))
    return {
        "workers": workers,
        "free": free,
        "candidates": count,
        "rate": 3600 * len(rest) / wall,
        "utilisation": sum(lone + tasks) / (workers * wall),
        "tasks": tasks,
        "lone": lone,
        "lonely": lonely,
        "early": early,
        "falls": [e["score"] / scores[e["parent"]] for e in rest if e["score"] and e["parent"]],
        "head": head / count,
        "watch": watch / run.events[-1]["elapsed"],
        "begin": statistics.mean(times["_begin"]),
        **beside,
    }


def overlap(child: dict[str, Any], tried: list[dict[str, Any]]) -> float:
    """Return for what share of its time a child had others beside it, summed over these."""
    begun, end = child["elapsed"] - child["seconds"], child["elapsed"]
    spans = ((each["elapsed"] - each["seconds"], each["elapsed"]) for each in tried)
    beside = sum(max(0.0, min(end, last) - max(begun, first)) for first, last in spans)
    return beside / child["seconds"] - 1  # itself


def carried(ray: Any, run: gg.Run) -> dict[str, float]:
    """Return what an empty task takes, and one of a new worker, in seconds, and a pair's bytes."""

    def mean(call: Any, times: int) -> float:
        ray.get(call.remote())
        begun = time.perf_counter()
        for _ in range(times):
            ray.get(call.remote())
        return (time.perf_counter() - begun) / times

    # A worker that takes but one call is followed by a new one, which imports growgan, too.
    new = ray.remote(num_cpus=1, max_calls=1)(lambda: import_module("growgan.growth.worker") and 0)
    carry = mean(ray.remote(num_cpus=1)(lambda: None), 50)
    folder = run.path / "candidates" / run.best_id
    size = float(sum(f.stat().st_size for f in folder.glob("*.safetensors")))
    return {"carry": carry, "start": mean(new, 3), "size": size}


def measure(kept: dict[str, Any], images: int) -> Iterator[dict[str, Any]]:
    """Run the searches that this machine has workers for; yield all rows so far after each.

    What was kept on the same machine with as many images is not run again.
    """
    import ray

    made = {"machine": machine(), "images": images}
    same = made.items() <= kept.items()
    rows = list(kept["searches"]) if same else []
    done = {(row["workers"], row["free"]) for row in rows}
    for workers, free in SEARCHES[: 1 if os.cpu_count() == 1 else None]:
        if (workers, free) not in done:
            rows.append(searched(ray, workers, free, images * workers))
            yield {**made, "searches": rows}
    yield {**made, "searches": rows, "older": older()}


def older() -> float:
    """Return how much longer the head takes with each child for one more that was tried before."""
    first, last = TRIED[0], TRIED[-1]
    taken = {tried: sum(costs(history_of(tried))[2:4]) for tried in (first, last)}
    return 1e-6 * (taken[last] - taken[first]) / (last - first)


def labels() -> Iterator[dict[str, Any]]:
    """Train one and two labels at a time; yield labels an hour.

    Once ten labels in all, once as many as workers, each a job of its own, as in a job array.
    """
    rows = []
    for jobs, weak in ((1, False), (2, False), (1, True), (2, True)):
        out = OUT / f"labels-{jobs}-{'weak' if weak else 'strong'}"
        shutil.rmtree(out, ignore_errors=True)
        words = ["per-label", "pggan", "digits", "--out", str(out), "--images", "5k"]
        changes = ["--set", "threads=1", "--set", f"stack.width={WIDTH}"]
        command = [sys.executable, "-m", "growgan", *words, *changes]
        own = [["--jobs", str(jobs)]]
        if weak:
            own = [["--only-label", str(label)] for label in range(jobs)]
        begun = time.perf_counter()
        running = [subprocess.Popen([*command, *each]) for each in own]
        ends = [process.wait() for process in running]
        if any(ends):
            raise RuntimeError(f"see '{out}/label-*.log'")
        count = jobs if weak else 10
        rate = 3600 * count / (time.perf_counter() - begun)
        rows.append({"jobs": jobs, "labels": count, "rate": rate})
    yield {"labels": rows}


def figures_of(kept: dict[str, Any], own: dict[str, Any], free: bool, longer: int = 1) -> Figures:
    """Return what the search of one worker has shown, and how long children took in ``own``.

    Workers that share a core slow each other down, and each search tries other growths. How often
    the leader trains on alone without rounds is what the search without rounds has shown. Children
    take so many times as long as these.
    """
    pauses = next(row for row in kept["searches"] if row["free"]) if free else own
    (alone,) = (row for row in kept["searches"] if row["workers"] == 1)
    shared = ("head", "watch", "begin", "carry", "start", "size")
    return Figures(
        tasks=tuple(longer * seconds for seconds in own["tasks"]),
        lone=tuple(longer * seconds for seconds in own["lone"]),
        lonely=pauses["lonely"],
        early=pauses["early"],
        falls=tuple(alone["falls"]),
        older=kept["older"],
        **{name: alone[name] for name in shared},
    )


def predicted(
    kept: dict[str, Any], longer: int, hours: float
) -> Iterator[tuple[int, bool, Played]]:
    """Yield workers, whether freely, and what a search of theirs comes to."""
    (alone,) = (row for row in kept["searches"] if row["workers"] == 1)
    for workers in WORKERS:
        for free in (False, True):
            figures = figures_of(kept, alone, free, longer)
            seen = play(figures, workers, free, longer * hours, max(workers, TRIES + 1))
            yield workers, free, seen


def draw(kept: dict[str, Any], hours: float, file: Path) -> None:
    """Write the curves as a picture: how busy workers, and the head, are by their number."""
    from matplotlib import pyplot

    _, panels = pyplot.subplots(1, len(LONGER), figsize=(9, 3.4), sharey=True, layout="tight")
    for panel, longer in zip(panels, LONGER, strict=True):
        rows = list(predicted(kept, longer, hours))
        for kind, colour in ((False, "tab:blue"), (True, "tab:orange")):
            mine = [(workers, seen) for workers, free, seen in rows if free == kind]
            xs, name = [workers for workers, _ in mine], "free" if kind else "rounds"
            busy, head = [s.utilisation for _, s in mine], [s.head for _, s in mine]
            panel.plot(xs, busy, "o-", color=colour, label=f"workers, {name}")
            panel.plot(xs, head, ":", color=colour, label=f"head, {name}")
        panel.set(xscale="log", xlabel="workers", title=f"children {longer} x as long", ylim=(0, 1))
    panels[0].set_ylabel("share of the time in use")
    panels[-1].legend(fontsize=8)
    pyplot.savefig(file, dpi=110)


def show(kept: dict[str, Any], hours: float) -> float:
    """Print what was measured, and what is predicted; return how far off that is for two workers.

    That is a share of what was measured, of candidates an hour or of utilisation.
    """
    worst = 0.0
    (alone,) = (row for row in kept["searches"] if row["workers"] == 1)
    figures = figures_of(kept, alone, False)
    print(
        f"{kept['machine']}; a child {statistics.mean(figures.tasks):.1f} s, the head "
        f"{1e3 * (figures.head + figures.begin):.0f} ms, {figures.size / 1e6:.1f} MB"
    )
    print("| workers | | candidates an hour | of them predicted | utilisation | predicted |")
    print("|---|---|---|---|---|---|")
    for row in kept["searches"]:
        length = row["candidates"] / row["rate"]
        own = figures_of(kept, row, row["free"])
        seen = play(own, row["workers"], row["free"], length, TRIES + 1)
        kind = "free" if row["free"] else "rounds"
        if row["workers"] == 2:
            pairs = (seen.rate, row["rate"]), (seen.utilisation, row["utilisation"])
            worst = max(worst, *(abs(guess / true - 1) for guess, true in pairs))
        print(
            f"| {row['workers']} | {kind} | {row['rate']:.0f} | {seen.rate:.0f} "
            f"| {row['utilisation']:.0%} | {seen.utilisation:.0%} |"
        )
    for longer in LONGER:
        print(f"\nEach child {longer} times as long:" if longer > 1 else "")
        print("| workers | | candidates an hour | utilisation | head | link | hours to a tenth |")
        print("|---|---|---|---|---|---|---|")
        for workers, free, seen in predicted(kept, longer, hours):
            print(
                f"| {workers:,} | {'free' if free else 'rounds'} | {seen.rate:,.0f} "
                f"| {seen.utilisation:.0%} | {seen.head:.0%} | {seen.link:.0%} "
                f"| {seen.reached:.2f} |"
            )
    return worst


def main() -> None:
    """Read the command line, measure or simulate, keep and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("measure", "simulate", "labels"))
    parser.add_argument("--images", type=int, default=40_000, help="a worker, of each search")
    parser.add_argument(
        "--hours", type=float, default=2.0, help="that simulated searches take, of such children"
    )
    parser.add_argument("--curves", type=Path, help="a picture of what is simulated")
    given = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    made: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "measure": lambda: measure(kept, given.images),
        "labels": labels,
        "simulate": lambda: iter(()),
    }
    for found in made[given.what]():
        kept |= found
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    if given.curves:
        draw(kept, given.hours, given.curves)
    if "older" in kept and (worst := show(kept, given.hours)) > OFF:
        sys.exit(f"the predictions for two workers are off by {worst:.0%}, more than {OFF:.0%}")


if __name__ == "__main__":
    main()
