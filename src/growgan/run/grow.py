"""Starts or resumes a run, for ``growgan grow`` and :func:`growgan.grow`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from growgan.config import Settings, make_settings
from growgan.data import ImageSet
from growgan.errors import UserError
from growgan.execution.candidate_scorer import SCORE_SEED
from growgan.execution.distributed import follower_loop
from growgan.execution.executor import SerialExecutor
from growgan.execution.ray_cluster import RayCluster
from growgan.execution.ray_executor import RayExecutor, build_worker_context
from growgan.execution.scoring import build_batches, build_extractor, build_scorer
from growgan.execution.signals import GracefulShutdown
from growgan.execution.stopwatch import Stopwatch
from growgan.execution.trainer import CandidateTrainer
from growgan.execution.warm_start import PRETRAINED_FOLDER, load_pretrained_gan, warm_start_specs
from growgan.metrics.functional.frechet_distance import NUM_JACKKNIFE_GROUPS
from growgan.metrics.result import MeasurementProtocol
from growgan.nets.presets import PRESETS
from growgan.report.page import write_report
from growgan.run.async_search import AsyncSearchLoop
from growgan.run.budget_allocator import BudgetMeter
from growgan.run.ledger import Ledger
from growgan.run.lock import run_lock
from growgan.run.loggers import build_loggers
from growgan.run.run import Run
from growgan.run.run_directory import (
    CONFIG_FILE,
    EXTRACTOR_FILE,
    LEDGER_FILE,
    REPORT_FILE,
    SAMPLE_SHEET_FILE,
    candidate_dir,
    check_run_dir,
    initialize_run,
    read_start_event,
    record_resume,
)
from growgan.run.search_loop import SearchLoop
from growgan.run.validation import (
    check_num_images,
    check_settings_have_effect,
    derive_network_settings,
    validate_settings,
)
from growgan.search.budget import Budget
from growgan.search.history import Candidate, History, SearchSpace
from growgan.search.policies import POLICIES, GrowthPolicy, make_policy
from growgan.training.distributed import init_distributed
from growgan.training.progress import CompositeDisplay, DisplayArg
from growgan.training.runtime import Runtime, fastest_num_threads, runtime_from_settings
from growgan.training.text_display import resolve_display


@dataclass(frozen=True)
class RunPlan:
    """Everything that is decided before a run starts or resumes."""

    data: ImageSet
    settings: Settings
    policy: GrowthPolicy
    space: SearchSpace
    budget: Budget


def grow(
    data: ImageSet,
    *,
    out: str | Path,
    policy: GrowthPolicy | str | None = None,
    budget: str | Budget | None = None,
    images: int | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
    resume: bool = False,
    display: DisplayArg = None,
    init_from: Path | None = None,
    cluster: RayCluster | None = None,
) -> Run:
    """Grow a GAN for ``data`` within a budget, and write everything to the run directory ``out``.

    Args:
        data: Training images at the target resolution, from :func:`growgan.load_images`.
        out: The run directory. It must be new or empty, unless the run is resumed.
        policy: A policy, or its name. The default is the policy of ``settings``. To resume a run
            with a policy that is not registered, pass the policy again.
        budget: Wall-clock time, such as "10m". All work counts.
        images: Number of training images, instead of ``budget``. The run is then repeatable.
        settings: A :class:`Settings`, or nested values that differ from the small settings of
            their preset.
        resume: Continue the run in ``out`` with its own settings. Only the device and the budget
            may change.
        display: Shows the progress. None prints lines to standard error, and False nothing.
        init_from: Checkpoint folder of a pretrained GAN, as :func:`growgan.finetune` passes it.
        cluster: Ray workers that train the candidates. By default this process trains them.

    Raises:
        UserError: The settings do not fit each other or the data, or ``out`` holds another run or
            is not writable.
        RuntimeError: No candidate could be trained.
    """
    stopwatch, run_dir, distributed = Stopwatch(), Path(out), init_distributed()
    if cluster is not None and distributed.world_size > 1:
        raise UserError("--executor ray has no meaning under torchrun; use one of them")
    if not distributed.is_main_process:
        follower_loop(distributed, data)
        return Run(run_dir)

    # Resolve the settings, the policy and the budget.
    check_run_dir(run_dir, None, resume=resume)
    plan = _make_plan(
        data,
        run_dir=run_dir,
        policy=policy,
        budget=_resolve_budget(budget, images, Ledger(run_dir / LEDGER_FILE)),
        settings=settings,
        resume=resume,
        pretrained_dir=run_dir / PRETRAINED_FOLDER if resume else init_from,
        cluster=cluster,
    )

    # Lock the run directory. Another process may have written to it in the meantime.
    with run_lock(run_dir), GracefulShutdown() as shutdown:
        check_run_dir(run_dir, plan.data, resume=resume)

        # Prepare the run directory.
        if resume:
            record_resume(run_dir, plan.budget)
        else:
            initialize_run(run_dir, plan.settings, plan.budget, plan.data, pretrained_dir=init_from)

        # Search, and write the report however the search ends.
        search = _build_search(
            plan, run_dir, display=display, stopwatch=stopwatch, shutdown=shutdown
        )
        with _display_and_report(search), _torch_threads(plan.settings.threads or 1):
            best = _search(search, plan, stopwatch=stopwatch, shutdown=shutdown, cluster=cluster)
            if best is None:
                candidates = search.state.history.candidates
                reason = candidates[-1].error if candidates else ""
                raise RuntimeError(f"no candidate could be trained: {reason}")
            distributed.broadcast_object(None)
    return Run(run_dir)


# Resolve


def _make_plan(
    data: ImageSet,
    *,
    run_dir: Path,
    policy: GrowthPolicy | str | None,
    budget: Budget,
    settings: Settings | Mapping[str, Any] | None,
    resume: bool,
    pretrained_dir: Path | None,
    cluster: RayCluster | None,
) -> RunPlan:
    """Check the arguments of :func:`grow`, and fill in what they leave open."""
    if resume:
        settings = _settings_on_resume(Settings.from_yaml(run_dir / CONFIG_FILE), settings)
    if not isinstance(settings, Settings):
        settings = _small_preset_settings(settings or {})
    if settings.labels.only_class is not None:
        data = data.only_class(settings.labels.only_class)
    check_run_dir(run_dir, data, resume=resume)
    policy, settings = _resolve_policy(policy, settings)
    settings = derive_network_settings(settings, data)
    space = SearchSpace(
        preset=settings.preset,
        network_settings=settings.network,
        channels=data.channels,
        target_resolution=data.resolution,
        edit_settings=settings.edits,
    )
    space.specs_at(space.max_level)  # raises an error if the target cannot be reached
    space = replace(space, warm_start_specs=warm_start_specs(settings, pretrained_dir, data))
    if not resume:
        check_settings_have_effect(settings, space)
    check_num_images(data)
    settings = _fill_in_machine_defaults(settings, budget, data, cluster)
    return RunPlan(data, settings, policy, space, budget)


def _settings_on_resume(
    run_settings: Settings, overrides: Settings | Mapping[str, Any] | None
) -> Settings:
    """Return the settings of the run, on the device that ``overrides`` name, if they do."""
    if isinstance(overrides, Settings):
        device = overrides.device
    else:
        device = (overrides or {}).get("device", "auto")
    if device in (None, "auto"):
        return run_settings
    return run_settings.model_copy(update={"device": device})


def _small_preset_settings(overrides: Mapping[str, Any]) -> Settings:
    """Return the small settings of the preset that ``overrides`` name, with ``overrides``."""
    preset = make_settings({"preset": overrides.get("preset", "pggan")}).preset
    return make_settings(PRESETS[preset].small_settings, overrides)


def _fill_in_machine_defaults(
    settings: Settings, budget: Budget, data: ImageSet, cluster: RayCluster | None
) -> Settings:
    """Fill in the resolution of the data and the number of threads.

    In a budget of images nothing may depend on a measurement, because such a run is repeatable.
    """
    threads = settings.threads
    if threads is None and cluster is not None:
        threads = cluster.default_threads
    elif threads is None:
        threads = fastest_num_threads() if budget.seconds else torch.get_num_threads()
    return settings.model_copy(update={"resolution": data.resolution, "threads": threads})


def _resolve_budget(budget: str | Budget | None, images: int | None, ledger: Ledger) -> Budget:
    """Return the budget of the arguments, or else the last one in the ledger."""
    if budget is not None and images is not None:
        raise UserError("give either a budget of time or one of images, but not both")
    if isinstance(budget, str):
        return Budget.parse(budget)
    if budget is not None:
        return budget
    if images is not None:
        return Budget(images=images)
    events = [event for event in ledger.read() if event["event"] in ("start", "resume")]
    return Budget.model_validate(events[-1]["budget"]) if events else Budget()


def _resolve_policy(
    policy: GrowthPolicy | str | None, settings: Settings
) -> tuple[GrowthPolicy, Settings]:
    """Return the policy itself, and settings that name it."""
    if policy is None or isinstance(policy, str):
        settings = settings.model_copy(update={"policy": policy or settings.policy})
        settings = validate_settings(settings)
        return make_policy(settings.policy, settings.growth), settings
    # The policy that the settings name is not used, so it need not be valid.
    settings = validate_settings(settings.model_copy(update={"policy": "fixed", "growth": {}}))
    for entry in POLICIES:
        if isinstance(policy, entry.value):
            update = {"policy": entry.name, "growth": policy.model_dump()}
            return policy, settings.model_copy(update=update)
    return policy, settings.model_copy(update={"policy": type(policy).__name__})


# Search


def _build_search(
    plan: RunPlan,
    run_dir: Path,
    *,
    display: DisplayArg,
    stopwatch: Stopwatch,
    shutdown: GracefulShutdown,
) -> AsyncSearchLoop:
    """Build the search loop, which replays the ledger of a resumed run."""
    loggers = build_loggers(run_dir, plan.settings)
    events = Ledger(run_dir / LEDGER_FILE).read()
    elapsed = max((event.get("elapsed", 0.0) for event in events), default=0.0)
    return AsyncSearchLoop(
        run_dir,
        plan.settings,
        space=plan.space,
        policy=plan.policy,
        budget=plan.budget,
        meter=BudgetMeter(plan.budget, elapsed + stopwatch.lap()),
        display=CompositeDisplay(resolve_display(display), *loggers),
        device=str(runtime_from_settings(plan.settings).device),
        shutdown=shutdown,
    )


def _search(
    search: AsyncSearchLoop,
    plan: RunPlan,
    *,
    stopwatch: Stopwatch,
    shutdown: GracefulShutdown,
    cluster: RayCluster | None,
) -> Candidate | None:
    """Run the search in this process or on a cluster; return the best candidate."""
    distributed = init_distributed()
    distributed.broadcast_object((plan.settings, plan.data.fingerprint))
    runtime = replace(runtime_from_settings(plan.settings), distributed=distributed)
    trainer = build_trainer(search, plan.settings, plan.data, runtime)
    search.meter.add_phase_seconds("data", stopwatch.lap())
    if cluster is None:
        return search.run(SerialExecutor(trainer, search.load_candidate))

    context = build_worker_context(cluster, search.state.settings, trainer, plan.data)
    if context.settings.device == "cpu" and runtime.device.type != "cpu":
        search.display.message(
            "candidates are trained on CPUs; --gpus-per-worker 1 gives each worker a GPU"
        )
    executor = RayExecutor(
        cluster,
        context,
        load_parent=search.read_candidate_files,
        callback=search.callback,
        should_stop=shutdown.should_stop,
    )
    try:
        if cluster.asynchronous:
            return search.run_async(executor)
        search.set_num_workers(executor.num_workers)
        return search.run(executor)
    finally:
        executor.close()


def build_trainer(
    search: SearchLoop, settings: Settings, data: ImageSet, runtime: Runtime
) -> CandidateTrainer:
    """Build what trains and scores the candidates of a run.

    Raises:
        UserError: The run's scores so far were measured in another way.
    """

    def on_extractor_progress(done: int, total: int) -> None:
        if done == 1:
            search.display.message(
                "training the feature extractor of the score, once for this data"
            )

    extractor = None
    if settings.score.kind != "swd":
        # All scores of a run use one extractor, that of its first budget.
        start_event = read_start_event(search.run_dir) or {}
        extractor = build_extractor(
            data,
            Budget.model_validate(start_event["budget"]),
            runtime.device,
            extractor_copy=search.run_dir / EXTRACTOR_FILE,
            progress=on_extractor_progress,
        )
    scorer = build_scorer(data, settings, extractor)
    latents = f"latents {SCORE_SEED:#x}, even in {NUM_JACKKNIFE_GROUPS} groups"
    record_or_check_protocol(search.ledger, replace(scorer.protocol, preprocessing=latents))
    pretrained_gan = None
    if settings.init_from != "none":
        pretrained_gan = load_pretrained_gan(search.run_dir, runtime.device)
    # With several processes each has a part of the batch, so an earlier division does not apply.
    is_single = runtime.distributed.world_size == 1
    return CandidateTrainer(
        batches=build_batches(data, settings),
        runtime=runtime,
        scorer=scorer,
        callback=search.callback,
        pretrained_gan=pretrained_gan,
        num_micro_batches=search.state.num_micro_batches if is_single else 1,
    )


def record_or_check_protocol(ledger: Ledger, protocol: MeasurementProtocol) -> None:
    """Record how scores are measured, or check that a resumed run measures them in the same way.

    Raises:
        UserError: It does not. The message names the differences.
    """
    for event in ledger.read():
        if event["event"] == "protocol":
            differences = MeasurementProtocol.from_json(event["protocol"]).differences(protocol)
            if differences:
                raise UserError(
                    "the scores of the run were measured differently, so new ones could not be "
                    f"compared with them: {'; '.join(differences)}"
                )
            return
    ledger.append({"event": "protocol", "protocol": protocol.to_json()})


@contextmanager
def _torch_threads(num_threads: int) -> Iterator[None]:
    """Use ``num_threads`` CPU threads.

    A resumed run must use as many as before, since sums are rounded differently otherwise.
    """
    previous = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(previous)


# Report


@contextmanager
def _display_and_report(search: SearchLoop) -> Iterator[None]:
    """Show the start and the end of a run, and write its report.

    If the search fails, its error is raised even if writing the report fails, too.
    """
    search.display.start(read_start_event(search.run_dir) or {})
    try:
        yield
    except BaseException:
        with suppress(Exception):
            _finish(search)
        raise
    _finish(search)


def _finish(search: SearchLoop) -> None:
    search.display.stop(_display_summary(search.run_dir, search.state.history))
    if search.state.history.best:
        write_report(search.run_dir)


def _display_summary(run_dir: Path, history: History) -> dict[str, Any]:
    best, candidates = history.best, history.candidates
    if best is None:
        return {"run": str(run_dir), "best": "none yet"}
    failure = {"last failure": candidates[-1].error} if candidates[-1].error else {}
    return failure | {
        "best": f"{best.id}, score {best.score:.4g}",
        "report": str(run_dir / REPORT_FILE),
        "samples": str(candidate_dir(run_dir, best.id) / SAMPLE_SHEET_FILE),
    }
