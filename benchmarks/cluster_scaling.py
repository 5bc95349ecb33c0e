"""Measure how a search scales with one and two workers, and simulate it with many more.

    python benchmarks/cluster_scaling.py measure     # searches on Ray; some 25 minutes
    python benchmarks/cluster_scaling.py simulate    # 1 to 2,000 workers
    python benchmarks/cluster_scaling.py per-class   # growgan per-class with one and two jobs

``measure`` runs a search in rounds with one worker, in rounds with two, and asynchronously with
two. Each trial uses one core. It saves the candidates per hour, the workers' utilization (the
fraction of their time spent in trials), the duration of each trial, and the costs of the driver:
recording, selection, proposals and polling. It also measures Ray: the time of an empty task, the
start of a new worker, and the size of a checkpoint. Searches with saved results are skipped.

``simulate`` is a discrete-event simulation (search_simulation.py) with these measurements. Network
bandwidth, failures and workers per machine cannot be measured on one machine and are assumed. The
simulation uses the search with one worker. It is tested on the searches with two workers, given the
durations of their own trials: if a prediction is off by more than 15 %, the exit code is 1.

``per-class`` trains ten classes with one and two jobs, and as many classes as jobs.
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

from driver_overhead import NUM_CANDIDATES, make_history, measure_driver
from search_simulation import SimulationInputs, SimulationResult, simulate

import growgan as gg
from growgan.config import make_settings
from growgan.execution.ray_cluster import RayCluster
from growgan.execution.ray_executor import RayExecutor
from growgan.run.run_callback import RunCallback
from growgan.run.search_loop import SearchLoop
from growgan.search.policies import DynamicPolicy
from growgan.training.runtime import describe_machine

RESULTS = Path(__file__).parent / "results" / "cluster_scaling.json"
RUN_DIR = Path("runs/scaling")
MAX_PREDICTION_ERROR = 0.15
TRIALS_PER_ROUND = 3  # growths; a round also trains the unchanged parent
TRIAL_FRACTION = 0.03  # of one worker's images
DRIVER_METHODS = (
    (SearchLoop, "propose"),
    (SearchLoop, "record_result"),
    (SearchLoop, "record_selection"),
    (DynamicPolicy, "select"),
)
DISPATCH_METHOD = (RayExecutor, "_start_trial")
POLLING_METHODS = ((RayExecutor, "_fetch_updates"), (RunCallback, "on_progress"))
MEASURED_SEARCHES = ((1, False), (2, False), (2, True))  # number of workers, asynchronous
SIMULATED_WORKERS = (1, 2, 8, 64, 512, 2000)
TRIAL_LENGTH_FACTORS = (1, 20)  # durations of simulated trials relative to the measured ones
PER_CLASS_WIDTH = 32  # the published width of 512 would take hours
MAX_SOLO_OVERLAP = 0.5  # a trial that overlaps less with others counts as a solo trial
NUM_CLASSES = 10
SEARCH_SETTINGS: dict[str, Any] = {
    "policy": "dynamic",
    "threads": 1,
    "growth": {
        "autoscale": False,
        "trials_per_round": TRIALS_PER_ROUND,
        "trial_fraction": TRIAL_FRACTION,
        "trial_budget_fraction": 1.0,
        "plateau_slope": 100.0,
        "min_trial_images": 1,
        "images_per_parameter": 1e-6,
        "freeze_fraction": 0.0,
    },
}


@contextmanager
def time_driver_methods(times: dict[str, list[float]]) -> Iterator[None]:
    """Append the duration of every call of the driver's methods to ``times``, by method name."""

    def patch(owner: Any, name: str) -> Any:
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                times.setdefault(name, []).append(time.perf_counter() - start)

        return mock.patch.object(owner, name, timed)

    with ExitStack() as stack:
        for owner, name in (*DRIVER_METHODS, DISPATCH_METHOD, *POLLING_METHODS):
            stack.enter_context(patch(owner, name))
        yield


def measure_search(
    ray: Any, *, num_workers: int, asynchronous: bool, images: int
) -> dict[str, Any]:
    """Run a search and return the measurements."""
    out = RUN_DIR / f"{num_workers}-{'async' if asynchronous else 'rounds'}"
    shutil.rmtree(out, ignore_errors=True)
    ray.init(num_cpus=num_workers, include_dashboard=False, log_to_driver=False)
    times: dict[str, list[float]] = {}
    growth = {**SEARCH_SETTINGS["growth"], "trial_fraction": TRIAL_FRACTION / num_workers}
    try:
        data = gg.load_images("fashion-mnist", resolution=32)
        with time_driver_methods(times):
            run = gg.grow(
                data,
                out=out,
                images=images,
                settings=make_settings(SEARCH_SETTINGS, {"seed": 0, "growth": growth}),
                cluster=RayCluster(cpus_per_trial=1, asynchronous=asynchronous),
            )
        ray_overhead = measure_ray_overhead(ray, run)
    finally:
        ray.shutdown()
    candidates = [event for event in run.events if event["event"] == "candidate"]
    end = run.events[-1]
    # The first trial waits for its worker to start and to load the data, so it is left out.
    wall_seconds = end["elapsed"] - candidates[0]["elapsed"]
    trials = candidates[1:]
    # The driver's part of a trial's time is the saving.
    save_seconds = end["cost"]["save"] / len(candidates)
    round_sizes = Counter(event["round"] for event in candidates)
    is_solo = [
        overlap(event, candidates) < MAX_SOLO_OVERLAP
        if asynchronous
        else round_sizes[event["round"]] == 1
        for event in trials
    ]
    durations = [event["seconds"] - save_seconds for event in trials]
    solo = [seconds for seconds, alone in zip(durations, is_solo, strict=True) if alone]
    others = [seconds for seconds, alone in zip(durations, is_solo, strict=True) if not alone]
    num_initial_solo = [*is_solo, False].index(False)
    num_rounds = sum(size > 1 for size in round_sizes.values())
    scores = {event["id"]: event["score"] for event in candidates}

    def total_seconds(methods: tuple[tuple[type, str], ...]) -> float:
        return sum(sum(times.get(name, [])) for _, name in methods)

    return {
        "workers": num_workers,
        "asynchronous": asynchronous,
        "candidates": len(candidates),
        "candidates_per_hour": 3600 * len(trials) / wall_seconds,
        "utilization": sum(durations) / (num_workers * wall_seconds),
        "trial_seconds": others,
        "solo_trial_seconds": solo,
        "solo_ratio": (len(solo) - num_initial_solo) / len(others)
        if asynchronous
        else len(solo) / max(1, num_rounds),
        "num_initial_solo": num_initial_solo,
        "score_ratios": [
            event["score"] / scores[event["parent"]]
            for event in trials
            if event["score"] and event["parent"]
        ],
        "driver_seconds_per_trial": total_seconds(DRIVER_METHODS) / len(candidates),
        "polling_fraction": total_seconds(POLLING_METHODS) / end["elapsed"],
        "dispatch_seconds": statistics.mean(times[DISPATCH_METHOD[1]]),
        **ray_overhead,
    }


def overlap(trial: dict[str, Any], candidates: list[dict[str, Any]]) -> float:
    """Return the time that other trials ran in parallel, relative to the duration of a trial."""
    start, end = trial["elapsed"] - trial["seconds"], trial["elapsed"]
    spans = ((other["elapsed"] - other["seconds"], other["elapsed"]) for other in candidates)
    shared = sum(max(0.0, min(end, last) - max(start, first)) for first, last in spans)
    return shared / trial["seconds"] - 1  # minus the trial itself


def measure_ray_overhead(ray: Any, run: gg.Run) -> dict[str, float]:
    """Return the times of an empty task and of a worker's start, and the size of a checkpoint."""

    def mean_seconds(remote_function: Any, repeats: int) -> float:
        ray.get(remote_function.remote())
        start = time.perf_counter()
        for _ in range(repeats):
            ray.get(remote_function.remote())
        return (time.perf_counter() - start) / repeats

    # With max_calls=1, each call starts a new worker, which imports growgan.
    in_new_worker = ray.remote(num_cpus=1, max_calls=1)(
        lambda: import_module("growgan.execution.ray_worker") and 0
    )
    empty_task = ray.remote(num_cpus=1)(lambda: None)
    checkpoint = run.path / "candidates" / run.best_id
    return {
        "empty_task_seconds": mean_seconds(empty_task, 50),
        "worker_start_seconds": mean_seconds(in_new_worker, 3),
        "checkpoint_bytes": float(
            sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
        ),
    }


def measure(saved: dict[str, Any], images: int) -> Iterator[dict[str, Any]]:
    """Run the searches that this machine has cores for; yield all results so far after each.

    Searches with saved results of the same machine and number of images are skipped.
    """
    import ray

    conditions = {"machine": describe_machine(), "images": images}
    rows = list(saved["searches"]) if conditions.items() <= saved.items() else []
    finished = {(row["workers"], row["asynchronous"]) for row in rows}
    for num_workers, asynchronous in MEASURED_SEARCHES[: 1 if os.cpu_count() == 1 else None]:
        if (num_workers, asynchronous) not in finished:
            rows.append(
                measure_search(
                    ray,
                    num_workers=num_workers,
                    asynchronous=asynchronous,
                    images=images * num_workers,
                )
            )
            yield {**conditions, "searches": rows}
    per_earlier_trial = driver_seconds_per_earlier_trial()
    yield {
        **conditions,
        "searches": rows,
        "driver_seconds_per_earlier_trial": per_earlier_trial,
    }


def driver_seconds_per_earlier_trial() -> float:
    """Return how much longer selection and proposals take for each earlier trial."""
    fewest, most = NUM_CANDIDATES[0], NUM_CANDIDATES[-1]
    microseconds = []
    for num_candidates in (fewest, most):
        costs = measure_driver(make_history(num_candidates))
        microseconds.append(costs.select + costs.propose)
    return 1e-6 * (microseconds[1] - microseconds[0]) / (most - fewest)


def measure_per_class() -> Iterator[dict[str, Any]]:
    """Run ``growgan per-class`` with one and two jobs; yield the classes per hour.

    Strong scaling trains ten classes. Weak scaling trains as many classes as jobs, each by a
    process of its own, as in a job array.
    """
    rows = []
    for jobs, weak in ((1, False), (2, False), (1, True), (2, True)):
        out = RUN_DIR / f"per-class-{jobs}-{'weak' if weak else 'strong'}"
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "growgan", "per-class", "pggan", "digits"]
        command += ["--out", str(out), "--images", "5k"]
        command += ["--set", "threads=1", "--set", f"network.width={PER_CLASS_WIDTH}"]
        options = [["--jobs", str(jobs)]]
        if weak:
            options = [["--only-class", str(label)] for label in range(jobs)]
        start = time.perf_counter()
        processes = [subprocess.Popen([*command, *extra]) for extra in options]
        exit_codes = [process.wait() for process in processes]
        if any(exit_codes):
            raise RuntimeError(f"training failed; see the log files in '{out}'")
        num_classes = jobs if weak else NUM_CLASSES
        classes_per_hour = 3600 * num_classes / (time.perf_counter() - start)
        rows.append({"jobs": jobs, "classes": num_classes, "classes_per_hour": classes_per_hour})
    yield {"per_class": rows}


def simulation_inputs(
    saved: dict[str, Any],
    trial_row: dict[str, Any],
    *,
    asynchronous: bool,
    length_factor: int = 1,
) -> SimulationInputs:
    """Return the inputs of a simulation.

    Args:
        saved: the saved measurements. Most inputs are from the search with one worker; the
            frequency of solo trials in asynchronous mode is from the asynchronous search.
        trial_row: search whose trial durations to use. Workers that share a core slow each other
            down, and each search tries different growths.
        asynchronous: whether the simulated search is asynchronous.
        length_factor: factor of the durations of trials.
    """
    single_worker = _single_worker_row(saved)
    solo_row = next(row for row in saved["searches"] if row["asynchronous"])
    if not asynchronous:
        solo_row = trial_row
    return SimulationInputs(
        trial_seconds=tuple(length_factor * s for s in trial_row["trial_seconds"]),
        solo_trial_seconds=tuple(length_factor * s for s in trial_row["solo_trial_seconds"]),
        solo_ratio=solo_row["solo_ratio"],
        num_initial_solo=solo_row["num_initial_solo"],
        score_ratios=tuple(single_worker["score_ratios"]),
        driver_seconds_per_trial=single_worker["driver_seconds_per_trial"],
        driver_seconds_per_earlier_trial=saved["driver_seconds_per_earlier_trial"],
        polling_fraction=single_worker["polling_fraction"],
        dispatch_seconds=single_worker["dispatch_seconds"],
        empty_task_seconds=single_worker["empty_task_seconds"],
        worker_start_seconds=single_worker["worker_start_seconds"],
        checkpoint_bytes=single_worker["checkpoint_bytes"],
    )


def _single_worker_row(saved: dict[str, Any]) -> dict[str, Any]:
    (row,) = (row for row in saved["searches"] if row["workers"] == 1)
    return row


def predictions(
    saved: dict[str, Any], length_factor: int, hours: float
) -> Iterator[tuple[int, bool, SimulationResult]]:
    """Yield the number of workers, whether the search is asynchronous, and its result."""
    single_worker = _single_worker_row(saved)
    for num_workers in SIMULATED_WORKERS:
        for asynchronous in (False, True):
            inputs = simulation_inputs(
                saved, single_worker, asynchronous=asynchronous, length_factor=length_factor
            )
            result = simulate(
                inputs,
                num_workers,
                asynchronous=asynchronous,
                hours=length_factor * hours,
                trials_per_round=max(num_workers, TRIALS_PER_ROUND + 1),
            )
            yield num_workers, asynchronous, result


def plot(saved: dict[str, Any], hours: float, path: Path) -> None:
    """Plot the utilization of workers and driver against the number of workers."""
    from matplotlib import pyplot

    num_panels = len(TRIAL_LENGTH_FACTORS)
    _, panels = pyplot.subplots(1, num_panels, figsize=(9, 3.4), sharey=True, layout="tight")
    for panel, length_factor in zip(panels, TRIAL_LENGTH_FACTORS, strict=True):
        rows = list(predictions(saved, length_factor, hours))
        for mode, color, name in ((False, "tab:blue", "rounds"), (True, "tab:orange", "async")):
            points = [(workers, result) for workers, is_async, result in rows if is_async == mode]
            num_workers = [workers for workers, _ in points]
            utilization = [result.utilization for _, result in points]
            driver = [result.driver_utilization for _, result in points]
            panel.plot(num_workers, utilization, "o-", color=color, label=f"workers, {name}")
            panel.plot(num_workers, driver, ":", color=color, label=f"driver, {name}")
        title = f"trials {length_factor} times as long"
        panel.set(xscale="log", xlabel="workers", title=title, ylim=(0, 1))
    panels[0].set_ylabel("utilization")
    panels[-1].legend(fontsize=8)
    pyplot.savefig(path, dpi=110)


def print_tables(saved: dict[str, Any], hours: float) -> float:
    """Print measurements and predictions; return the largest relative error with two workers."""
    largest_error = 0.0
    inputs = simulation_inputs(saved, _single_worker_row(saved), asynchronous=False)
    driver_seconds = inputs.driver_seconds_per_trial + inputs.dispatch_seconds
    print(
        f"{saved['machine']}; per trial {statistics.mean(inputs.trial_seconds):.1f} s in a worker,"
        f" {1e3 * driver_seconds:.0f} ms in the driver, {inputs.checkpoint_bytes / 1e6:.1f} MB"
    )
    print(
        "| workers | mode | candidates per hour | predicted candidates per hour | utilization "
        "| predicted utilization |"
    )
    print("|---|---|---|---|---|---|")
    for row in saved["searches"]:
        rate, utilization = row["candidates_per_hour"], row["utilization"]
        result = simulate(
            simulation_inputs(saved, row, asynchronous=row["asynchronous"]),
            row["workers"],
            asynchronous=row["asynchronous"],
            hours=row["candidates"] / rate,
            trials_per_round=TRIALS_PER_ROUND + 1,
        )
        if row["workers"] == 2:
            for predicted, measured in (
                (result.candidates_per_hour, rate),
                (result.utilization, utilization),
            ):
                largest_error = max(largest_error, abs(predicted / measured - 1))
        print(
            f"| {row['workers']} | {_mode(row['asynchronous'])} | {rate:.0f} "
            f"| {result.candidates_per_hour:.0f} | {utilization:.0%} | {result.utilization:.0%} |"
        )
    for length_factor in TRIAL_LENGTH_FACTORS:
        print(f"\nTrials {length_factor} times as long:" if length_factor > 1 else "")
        print(
            "| workers | mode | candidates per hour | utilization | driver utilization "
            "| link utilization | hours to a tenth of the first score |"
        )
        print("|---|---|---|---|---|---|---|")
        for num_workers, asynchronous, result in predictions(saved, length_factor, hours):
            print(
                f"| {num_workers:,} | {_mode(asynchronous)} | {result.candidates_per_hour:,.0f} "
                f"| {result.utilization:.0%} | {result.driver_utilization:.0%} "
                f"| {result.link_utilization:.0%} | {result.hours_to_tenth:.2f} |"
            )
    return largest_error


def _mode(asynchronous: bool) -> str:
    return "async" if asynchronous else "rounds"


def main() -> None:
    """Read the command line, measure or simulate, and save and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("measure", "simulate", "per-class"))
    parser.add_argument(
        "--images", type=int, default=40_000, help="image budget per worker of each measured search"
    )
    parser.add_argument("--hours", type=float, default=2.0, help="duration of simulated searches")
    parser.add_argument("--plot", type=Path, help="write a plot of the simulations to this file")
    args = parser.parse_args()
    saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    commands: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "measure": lambda: measure(saved, args.images),
        "per-class": measure_per_class,
        "simulate": lambda: iter(()),
    }
    for results in commands[args.command]():
        saved |= results
        RESULTS.write_text(json.dumps(saved, indent=1) + "\n")
    if args.plot:
        plot(saved, args.hours, args.plot)
    if "driver_seconds_per_earlier_trial" in saved:
        error = print_tables(saved, args.hours)
        if error > MAX_PREDICTION_ERROR:
            sys.exit(
                f"the predictions for two workers are off by {error:.0%}; the limit is"
                f" {MAX_PREDICTION_ERROR:.0%}"
            )


if __name__ == "__main__":
    main()
