"""A discrete-event simulation of a search on many workers, used by cluster_scaling.py.

The driver, its network link and each worker serve one request at a time. The number of trials in
flight is limited by the number of growths of a GAN: a round has those that are sampled for its
parents, and in asynchronous mode all of them may be in flight.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from dataclasses import dataclass

NUM_LEGAL_GROWTHS = 53  # of a pggan pair at 32x32 pixels in the measured searches
NUM_PARENTS = 3  # survivors that a round continues
GROWTH_SAMPLE_PROB = 0.25  # probability that a round tries a legal growth
SEGMENTS_BETWEEN_GROWTHS = 2  # solo segments after an accepted growth, before the next trials
MAX_TRIALS_PER_ROUND = 1 + round(NUM_PARENTS * GROWTH_SAMPLE_PROB * NUM_LEGAL_GROWTHS)
MAX_TRIALS_IN_FLIGHT = 1 + NUM_PARENTS * NUM_LEGAL_GROWTHS
TARGET_SCORE = 0.1  # relative to the first score
NUM_SIMULATIONS = 3


@dataclass(frozen=True)
class SimulationInputs:
    """Measured and assumed quantities.

    Attributes:
        trial_seconds: durations of trials in their workers, measured.
        solo_trial_seconds: durations of trials that ran alone because only one was proposed.
        solo_ratio: number of solo trials for each round or, in asynchronous mode, for each other
            trial.
        num_initial_solo: number of solo trials before all others.
        score_ratios: score of a trial divided by the score of its parent.
        driver_seconds_per_trial: time that the driver spends on a trial.
        driver_seconds_per_earlier_trial: additional time for each earlier trial.
        polling_fraction: fraction of the driver's time spent on progress updates.
        dispatch_seconds: time of the driver to start a trial.
        empty_task_seconds: time from the call of an empty task to its result.
        worker_start_seconds: time until a new worker, which replaces a dead one, starts a trial.
        checkpoint_bytes: size of a candidate's checkpoint.
        link_bytes_per_second: bandwidth of the driver; assumed.
        workers_per_node: workers on a machine, which receives a parent's checkpoint once; assumed.
        failures_per_worker_hour: assumed.
        max_trials_per_round: limit of a round.
        max_trials_in_flight: limit in asynchronous mode.
    """

    trial_seconds: tuple[float, ...]
    solo_trial_seconds: tuple[float, ...]
    solo_ratio: float
    num_initial_solo: int
    score_ratios: tuple[float, ...]
    driver_seconds_per_trial: float
    driver_seconds_per_earlier_trial: float
    polling_fraction: float
    dispatch_seconds: float
    empty_task_seconds: float
    worker_start_seconds: float
    checkpoint_bytes: float
    link_bytes_per_second: float = 10e9 / 8
    workers_per_node: int = 8
    failures_per_worker_hour: float = 0.001
    max_trials_per_round: int = MAX_TRIALS_PER_ROUND
    max_trials_in_flight: int = MAX_TRIALS_IN_FLIGHT


@dataclass
class SerialResource:
    """A resource that serves one request at a time, in the order of their arrival."""

    free_at: float = 0.0
    busy_seconds: float = 0.0

    def serve(self, arrival: float, seconds: float) -> float:
        """Return the time at which a request is served."""
        self.free_at = max(self.free_at, arrival) + seconds
        self.busy_seconds += seconds
        return self.free_at


@dataclass(frozen=True)
class SimulationResult:
    """The outcome of a simulated search.

    Attributes:
        candidates_per_hour: trained candidates per hour.
        utilization: fraction of the workers' time spent in trials.
        driver_utilization: fraction of the time in which the driver is busy.
        link_utilization: fraction of the time in which the link is busy.
        hours_to_tenth: hours until the best score is a tenth of the first one.
    """

    candidates_per_hour: float
    utilization: float
    driver_utilization: float
    link_utilization: float
    hours_to_tenth: float


class SearchSimulation:
    """One simulated search."""

    def __init__(self, inputs: SimulationInputs, num_workers: int, seed: int) -> None:
        self.inputs, self.num_workers = inputs, num_workers
        self.rng = random.Random(seed)
        self.driver, self.link = SerialResource(), SerialResource()
        self.num_finished, self.worker_seconds, self.now = 0, 0.0, 0.0
        self.best_score, self.target_reached_at = 1.0, math.inf

    def run_trial(
        self, start: float, *, has_parent: bool, durations: tuple[float, ...] = ()
    ) -> tuple[float, float]:
        """Simulate a trial that the driver starts; return its end time and its duration.

        The time lost to failed workers is part of the end time only.

        Args:
            start: time at which the driver starts the trial.
            has_parent: whether the worker's machine already has the parent's checkpoint.
            durations: durations to draw from; by default the measured ones.
        """
        inputs = self.inputs
        begin = self.use_driver(start, inputs.dispatch_seconds)
        if not has_parent:
            transfer = inputs.checkpoint_bytes / inputs.link_bytes_per_second
            begin = self.link.serve(begin, transfer)
        begin += inputs.empty_task_seconds
        failure_rate = inputs.failures_per_worker_hour / 3600
        while True:
            seconds = self.rng.choice(durations or inputs.trial_seconds)
            time_to_failure = self.rng.expovariate(failure_rate) if failure_rate else math.inf
            if time_to_failure > seconds:
                break
            begin += time_to_failure + inputs.worker_start_seconds
        return begin + seconds, seconds

    def finish_trial(self, end: float, seconds: float) -> float:
        """Return the time at which the driver has recorded a trial."""
        inputs = self.inputs
        self.worker_seconds += seconds
        arrival = self.link.serve(end, inputs.checkpoint_bytes / inputs.link_bytes_per_second)
        self.num_finished += 1
        earlier = inputs.driver_seconds_per_earlier_trial * self.num_finished
        return self.use_driver(arrival, inputs.driver_seconds_per_trial + earlier)

    def use_driver(self, arrival: float, seconds: float) -> float:
        """Return the time at which the driver has served a request, with polling in between."""
        return self.driver.serve(arrival, seconds / (1 - self.inputs.polling_fraction))

    def update_score(self, score: float, time: float) -> None:
        """Take the score of a finished trial into account."""
        self.best_score = min(self.best_score, score)
        if self.best_score <= TARGET_SCORE:
            self.target_reached_at = min(self.target_reached_at, time)

    def run_rounds(self, seconds: float, trials_per_round: int) -> None:
        """Simulate rounds: the next one starts when all trials of the last one are recorded."""
        inputs, due_solo_trials = self.inputs, 0.0
        num_trials = min(trials_per_round, inputs.max_trials_per_round)
        while self.now < seconds:
            due_solo_trials = self.run_solo_trials(due_solo_trials + inputs.solo_ratio)
            parent_score, free_at = self.best_score, [self.now] * self.num_workers
            heapq.heapify(free_at)
            finished = []
            num_nodes = -(-self.num_workers // inputs.workers_per_node)
            for k in range(num_trials):
                trial = self.run_trial(heapq.heappop(free_at), has_parent=k >= num_nodes)
                heapq.heappush(free_at, trial[0])
                finished.append(trial)
            for end, duration in sorted(finished):
                self.now = self.finish_trial(end, duration)
                self.update_score(parent_score * self.rng.choice(inputs.score_ratios), self.now)

    def run_async(self, seconds: float) -> None:
        """Simulate asynchronous mode: an idle worker immediately receives a new trial.

        After an accepted growth, the leader is trained alone for ``SEGMENTS_BETWEEN_GROWTHS``
        segments. Workers that become idle meanwhile wait.
        """
        inputs = self.inputs
        self.run_solo_trials(inputs.num_initial_solo)
        num_idle, solo_left = 0, 0
        # (end, duration, score of the parent, whether the trial is a solo trial)
        in_flight: list[tuple[float, float, float, bool]] = []

        def start_trial(*, is_solo: bool) -> None:
            durations = inputs.solo_trial_seconds if is_solo else ()
            trial = self.run_trial(self.now, has_parent=False, durations=durations)
            heapq.heappush(in_flight, (*trial, self.best_score, is_solo))

        for _ in range(min(self.num_workers, inputs.max_trials_in_flight)):
            start_trial(is_solo=False)
        while self.now < seconds:
            end, duration, parent_score, is_solo = heapq.heappop(in_flight)
            self.now = self.finish_trial(end, duration)
            self.update_score(parent_score * self.rng.choice(inputs.score_ratios), self.now)
            if solo_left and not is_solo:
                num_idle += 1
                continue
            if is_solo:
                solo_left -= 1
            else:
                growth_prob = inputs.solo_ratio / SEGMENTS_BETWEEN_GROWTHS
                is_growth_accepted = self.rng.random() < growth_prob
                solo_left = SEGMENTS_BETWEEN_GROWTHS * is_growth_accepted
            if solo_left:
                start_trial(is_solo=True)
            else:
                for _ in range(num_idle + 1):
                    start_trial(is_solo=False)
                num_idle = 0

    def run_solo_trials(self, due: float) -> float:
        """Simulate solo trials one by one while at least one is due; return the remainder."""
        while due >= 1:
            trial = self.run_trial(
                self.now, has_parent=False, durations=self.inputs.solo_trial_seconds
            )
            self.now = self.finish_trial(*trial)
            self.update_score(self.best_score * self.rng.choice(self.inputs.score_ratios), self.now)
            due -= 1
        return due

    def result(self) -> SimulationResult:
        """Return the outcome."""
        return SimulationResult(
            candidates_per_hour=3600 * self.num_finished / self.now,
            utilization=self.worker_seconds / (self.num_workers * self.now),
            driver_utilization=self.driver.busy_seconds / self.now,
            link_utilization=self.link.busy_seconds / self.now,
            hours_to_tenth=self.target_reached_at / 3600,
        )


def simulate(
    inputs: SimulationInputs,
    num_workers: int,
    *,
    asynchronous: bool,
    hours: float,
    trials_per_round: int,
) -> SimulationResult:
    """Simulate a search ``NUM_SIMULATIONS`` times and return the mean outcome."""
    results = []
    for seed in range(NUM_SIMULATIONS):
        simulation = SearchSimulation(inputs, num_workers, seed)
        if asynchronous:
            simulation.run_async(3600 * hours)
        else:
            simulation.run_rounds(3600 * hours, trials_per_round)
        results.append(simulation.result())
    names = SimulationResult.__dataclass_fields__
    return SimulationResult(
        **{name: statistics.mean(getattr(result, name) for result in results) for name in names}
    )
