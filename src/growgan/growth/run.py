"""Start, resume and open runs: what ``growgan grow`` and ``gg.grow`` do."""

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
from growgan.growth.budget import Budget, Meter
from growgan.growth.cluster import Cluster, search_on
from growgan.growth.executor import Clock, SerialExecutor
from growgan.growth.history import History, Space
from growgan.growth.ledger import Ledger
from growgan.growth.lock import held
from growgan.growth.model import Model
from growgan.growth.origin import ORIGIN, origin_stacks
from growgan.growth.place import begun, check_begun, is_free, prepare
from growgan.growth.policies import POLICIES, GrowthPolicy, make_policy
from growgan.growth.ranked import check_ranks, follow
from growgan.growth.scoring import trainer_of
from growgan.growth.search import Search
from growgan.growth.stop import Stop
from growgan.growth.tracking import check_trackers, trackers
from growgan.metrics.domain import LEAST_IMAGES
from growgan.nets.blocks import BLOCKS
from growgan.nets.norms import NORMS
from growgan.nets.presets import PRESETS
from growgan.objectives import make_objective, paired
from growgan.objectives.conditioning import Conditioning
from growgan.plain import folder_name
from growgan.registry import Registry
from growgan.report.page import write_report
from growgan.training.lines import display_of
from growgan.training.progress import Shown, Together
from growgan.training.ranks import join
from growgan.training.runtime import best_threads, runtime_of


@dataclass(frozen=True)
class Run:
    """A run directory, finished or not."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a run; raise a :class:`UserError` if ``path`` holds none."""
        if not (Path(path) / "ledger.jsonl").is_file():
            raise UserError(f"'{path}' is no run directory: it holds no ledger.jsonl")
        return cls(Path(path))

    @property
    def events(self) -> list[dict[str, Any]]:
        """Everything in the ledger."""
        return list(Ledger(self.path / "ledger.jsonl").read())

    @property
    def best_id(self) -> str:
        """Id of the best candidate so far."""
        named = [e["best"] for e in self.events if e.get("best")]
        if not named:
            raise UserError(f"run '{self.path}' has no finished candidate yet")
        return str(named[-1])

    @property
    def best(self) -> Model:
        """The best candidate's generator."""
        return self.candidate(self.best_id)

    def candidate(self, candidate_id: str) -> Model:
        """Return a candidate's generator by its id, which leads nowhere outside of the run.

        Raises:
            UserError: it is no id, or the candidate's weights are gone.
        """
        try:
            folder = self.path / "candidates" / folder_name(candidate_id)
        except ValueError as error:
            raise UserError(f"'{self.path}' has no such candidate: {error}") from error
        if not (folder / "weights.safetensors").is_file():
            kept = sorted(p.parent.name for p in self.path.glob("candidates/*/weights.safetensors"))
            raise UserError(
                f"candidate '{candidate_id}' has no weights in '{self.path}'; "
                f"these have: {', '.join(kept) or 'none'}"
            )
        return Model(folder)


def grow(
    data: ImageSet,
    *,
    out: str | Path,
    policy: GrowthPolicy | str | None = None,
    budget: str | Budget | None = None,
    images: int | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
    resume: bool = False,
    display: Shown = None,
    origin: Path | None = None,
    cluster: Cluster | None = None,
) -> Run:
    """Grow a GAN for ``data`` within a budget and write everything into ``out``.

    Args:
        data: from :func:`growgan.load_images`, at the target resolution.
        policy: a policy, or its name; by default the one in ``settings``. A run by a policy that
            is not registered is resumed by giving it again.
        budget: wall clock, like "10m"; everything is counted.
        images: instead: number of images trained on, for exact repetition.
        settings: a :class:`Settings`, or nested values that differ from the defaults and from
            what the preset that they name is grown with.
        resume: go on with the run in ``out``, by its own settings but for the device, and within
            its own budget unless another one is given.
        display: shows how it goes on; None: a line now and then, to standard error; False: nothing.
        origin: folder of another run's candidate, which ``settings.origin`` says to go on from;
            see :func:`growgan.condition`.
        cluster: workers that train the children; None: one after another in this process.

    Raises:
        UserError: settings that do not fit each other or the data; an ``out`` that holds another
            run, or cannot be written.
        RuntimeError: no candidate could be trained.
    """
    clock, out, ranks = Clock(), Path(out), join()
    if cluster is not None and ranks.count > 1:
        raise UserError("--executor ray has no meaning under torchrun: use either")
    if not ranks.first:
        follow(ranks, data)
        return Run(out)
    check_out(out, None, resume=resume)
    if resume:
        settings = _again(Settings.from_yaml(out / "config.yaml"), settings)
    chosen = settings if isinstance(settings, Settings) else _grown(settings or {})
    if chosen.labels.only is not None:
        data = data.only(chosen.labels.only)
    check_out(out, data, resume=resume)
    decided, chosen = _decide(policy, chosen)
    chosen = for_data(chosen, data)
    space = Space(chosen.preset, chosen.stack, data.channels, data.resolution, chosen.actions)
    space.stacks(space.levels)  # a target that cannot be reached is refused here
    space = replace(space, origin=origin_stacks(chosen, out / ORIGIN if resume else origin, data))
    if len(data) < LEAST_IMAGES:
        raise UserError(f"a run needs at least {LEAST_IMAGES} images, but there are {len(data)}")
    limit = _limit(budget, images, Ledger(out / "ledger.jsonl"))
    chosen = _settled(chosen, limit, data, cluster)
    with held(out), Stop() as stop:
        began = check_out(out, data, resume=resume)  # another process may just have left it
        prepare(out, chosen, limit, data, began, origin)
        how = (display, clock, stop, cluster)
        return _search(out, chosen, space, decided, limit, data, *how)


def _again(own: Settings, given: Settings | Mapping[str, Any] | None) -> Settings:
    """Return a run's own settings, on the device that is named now, if one is."""
    device = given.device if isinstance(given, Settings) else (given or {}).get("device")
    return own if device in (None, "auto") else own.model_copy(update={"device": device})


def _grown(values: Mapping[str, Any]) -> Settings:
    """Return the settings with which a preset's small form begins, but for ``values``."""
    preset = make_settings({"preset": values.get("preset", "pggan")}).preset
    return make_settings(PRESETS[preset].small, values)


def _settled(
    settings: Settings, limit: Budget, data: ImageSet, cluster: Cluster | None
) -> Settings:
    """Return ``settings`` with what they left to the data and to this machine."""
    # A run counted in images is for exact repetition, so nothing in it may hang on a measurement.
    usual = best_threads if limit.seconds else torch.get_num_threads
    threads = settings.threads or (usual() if cluster is None else cluster.threads)
    return settings.model_copy(update={"resolution": data.resolution, "threads": threads})


def _limit(budget: str | Budget | None, images: int | None, ledger: Ledger) -> Budget:
    """Return the budget that is given, or the last one in the ledger."""
    if isinstance(budget, str):
        budget = Budget.parse(budget)
    if budget is not None and images is not None:
        raise UserError("give either a budget of time or one of images, not both")
    past = [e["budget"] for e in ledger.read() if e["event"] in ("start", "resume")]
    if budget is None and images is None and past:
        return Budget(**past[-1])
    return budget or Budget(images=images)


def _decide(policy: GrowthPolicy | str | None, settings: Settings) -> tuple[GrowthPolicy, Settings]:
    """Return the policy itself, and settings that name it."""
    if policy is None or isinstance(policy, str):
        settings = check_names(settings.model_copy(update={"policy": policy or settings.policy}))
        return make_policy(settings.policy, settings.growth), settings
    names = [entry.name for entry in POLICIES if isinstance(policy, entry.value)]
    known: dict[str, Any] = {"policy": type(policy).__name__, "growth": {}}
    if names:
        known = {"policy": names[0], "growth": dict(vars(policy))}
    # What the settings name instead is not used, and need not be known.
    settings = check_names(settings.model_copy(update={"policy": "fixed", "growth": {}}))
    return policy, settings.model_copy(update=known)


def check_names(settings: Settings) -> Settings:
    """Return ``settings`` with D's kind set as the loss needs it.

    Raises:
        UserError: a name that is not known here, or options that do not fit each other.
    """
    make_policy(settings.policy, settings.growth)
    named: list[tuple[Registry[Any], list[str]]] = [
        (PRESETS, [settings.preset]),
        (BLOCKS, [s for s in (settings.stack.kind, settings.stack.discriminator_kind) if s]),
        (BLOCKS, list(settings.actions.kinds)),
        (NORMS, [settings.stack.norm, settings.stack.discriminator_norm]),
    ]
    for registry, names in named:
        for name in names:
            registry[name]
    check_trackers(settings.tracking)
    check_ranks(join(), settings)
    energy = make_objective(settings).loss.energies
    if energy and settings.stack.kernels:
        raise UserError(f"stack.kernels has no meaning for the loss '{settings.loss}'")
    runtime_of(settings)
    group = settings.stack.deviation_group
    if group and settings.batch % group:
        raise UserError(
            f"batch {settings.batch} must be a multiple of stack.deviation_group {group}, "
            "or reals and fakes would share a group; 0 turns the groups off"
        )
    return settings.model_copy(
        update={"stack": settings.stack.model_copy(update={"energy": energy})}
    )


def for_data(settings: Settings, data: ImageSet) -> Settings:
    """Return ``settings`` with the stacks as the conditioning and the data's classes need them.

    Raises:
        UserError: the conditioning needs labels, and ``data`` has none.
    """
    conditioning = make_objective(settings).conditioning
    named, classes = settings.conditioning, len(data.classes)
    if conditioning.labelled and (data.labels is None or classes < 2):
        raise UserError(
            f"conditioning '{named}' needs labels of two classes or more, but '{data.name}' has "
            f"{classes or 'none'}; images in a folder for each class have them"
        )
    if settings.score.kind == "intra-fd" and not conditioning.labelled:
        what = f"score.kind 'intra-fd' has no meaning for the conditioning '{named}', which uses no"
        raise UserError(f"{what} labels; see: growgan list conditionings")
    if settings.score.kind == "pairs" and (data.given is None or not conditioning.beside):
        raise UserError(f"score.kind 'pairs' has no meaning for the conditioning '{named}'")
    _check_given(settings, conditioning, data)
    categories, numbers = conditioning.codes()
    if not conditioning.labelled:
        classes = categories + numbers
    needs = {
        "classes": classes,
        "given": 0 if data.given is None else int(data.given.shape[1]),
        "beside": conditioning.beside,
        "continuous": numbers,
        "judging": conditioning.judging,
        "readouts": tuple(conditioning.readouts(classes).items()) if classes else (),
        "proxies": conditioning.proxies,
    }
    return settings.model_copy(update={"stack": settings.stack.model_copy(update=needs)})


def _check_given(settings: Settings, conditioning: Conditioning, data: ImageSet) -> None:
    """Raise a UserError where the settings need images to make images from, or cannot use them."""
    needing = paired(settings.regularisers)
    if conditioning.given:
        needing.append(f"conditioning '{settings.conditioning}'")
    if data.given is None and needing:
        raise UserError(
            f"{needing[0]} has no meaning for '{data.name}', where no image is given to make "
            "another from; see: growgan list tasks"
        )
    if data.given is not None and settings.augment != "none":
        raise UserError("augment has no meaning where images are made from images: they must match")


def check_out(out: Path, data: ImageSet | None, *, resume: bool) -> dict[str, Any] | None:
    """Return the start event of the run in ``out``, None if it is free for a new one.

    Without ``data``, which may not have been read yet, a run's own are not compared with them.

    Raises:
        UserError: it holds a run (or none, for ``resume``), a damaged run, a run on other data,
            or other files.
    """
    began = begun(out)
    if began is None:
        free = is_free(out)
        if resume:
            hint = "; leave out --resume to start one" if free else ""
            raise UserError(f"there is no run to resume in '{out}'{hint}")
        if not free:
            raise UserError(f"'{out}' is not an empty folder; choose another --out")
        return None
    if not resume:
        raise UserError(f"'{out}' already holds a run; add --resume, or choose another --out")
    check_begun(out, began)
    if data is not None and began["data"]["fingerprint"] != data.fingerprint:
        size = tuple(began.get("resolution") or ())
        if size != data.resolution:
            was, now = ("x".join(str(side) for side in sides) for sides in (size, data.resolution))
            raise UserError(f"'{out}' holds a run at {was}, and '{data.name}' is given at {now}")
        raise UserError(
            f"'{out}' holds a run on '{began['data']['name']}', which is other data than "
            f"'{data.name}' as it is now"
        )
    return began


def _search(
    out: Path,
    settings: Settings,
    space: Space,
    policy: GrowthPolicy,
    budget: Budget,
    data: ImageSet,
    display: Shown,
    clock: Clock,
    stop: Stop,
    cluster: Cluster | None = None,
) -> Run:
    """Run the search with its display, and write the report whatever happens."""
    shown = Together(display_of(display), *trackers(out, settings))
    events = list(Ledger(out / "ledger.jsonl").read())
    elapsed = max((event.get("elapsed", 0.0) for event in events), default=0.0)
    meter = Meter(budget, elapsed + clock.lap())
    runtime = replace(runtime_of(settings), ranks=join())
    search = Search(out, settings, space, policy, budget, meter, shown, str(runtime.device), stop)
    with _shown(out, search, events[0]), _threads(settings.threads or 1):
        runtime.ranks.tell((settings, data.fingerprint))
        trainer = trainer_of(out, settings, search, data, runtime)
        meter.charge("data", clock.lap())
        if cluster is None:
            best = search.run(SerialExecutor(trainer, search.parent))
        else:
            best = search_on(cluster, search, trainer, data, stop)
        if best is None:
            tried = search.history.candidates
            raise RuntimeError(f"no candidate could be trained: {tried[-1].error if tried else ''}")
        runtime.ranks.tell(None)
    return Run(out)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Compute by so many threads: a resumed run keeps them, or its sums would round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _shown(out: Path, search: Search, start: dict[str, Any]) -> Iterator[None]:
    """Show how a run begins and ends, and write its report, whatever happens in between.

    What ends the run is raised, and not what the report says of a disk that is full.
    """
    search.display.start(start)
    try:
        yield
    except BaseException:
        with suppress(Exception):
            _close(out, search)
        raise
    _close(out, search)


def _close(out: Path, search: Search) -> None:
    """Show how a run ended, and write its report."""
    search.display.stop(_summary(out, search.history))
    if search.history.best:
        write_report(out)


def _summary(out: Path, history: History) -> dict[str, Any]:
    best, tried = history.best, history.candidates
    if best is None:
        return {"run": str(out), "best": "none yet"}
    failed = {"last failure": tried[-1].error} if tried[-1].error else {}
    return failed | {
        "best": f"{best.id}, score {best.score:.4g}",
        "report": str(out / "report.html"),
        "samples": str(out / "candidates" / best.id / "samples.png"),
    }
