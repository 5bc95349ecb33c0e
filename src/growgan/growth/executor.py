"""How the children of a round are trained: here one after another, elsewhere by a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from growgan.config import Settings
from growgan.data.batches import Batches
from growgan.growth.history import Proposal
from growgan.growth.origin import continued
from growgan.metrics.neighbours import memorisation
from growgan.metrics.score import GROUPS, Score, Scorer
from growgan.nets.spec import StackSpec
from growgan.nets.wishes import labelled, one_hot
from growgan.objectives import make_objective
from growgan.training.checkpoint import Files, packed
from growgan.training.doctor import LOOKED_AT, Vitals, examine, is_finite
from growgan.training.gan import Gan, even_latents, to_uint8
from growgan.training.memory import PeakMemory, out_of_memory, parts_that_fit
from growgan.training.runtime import Runtime
from growgan.training.stage import Diverged, Mark, Progress, Slice, train

SCORE_SEED = 0x5C04E  # all candidates are scored on the same latents
SHEET = 64  # images on a candidate's sample sheet
SHEET_SEED = 1  # the same latents for every candidate
LEARNT = 10_000  # images that a pair might learn by heart
COPY_LEVEL = 0.05  # share of new images that are nearer to a training image than a copy must be


@dataclass(frozen=True)
class Task:
    """One child to make: whom to continue, what to change, how long to train, and how."""

    id: str
    round: int
    proposal: Proposal
    piece: Slice
    seed: int
    settings: Settings


@dataclass(frozen=True)
class Asked:
    """Images to score a pair by: how many, made from how many, of what labels, how many at once."""

    count: int
    given: int
    labels: list[int] | None
    chunk: int


@dataclass
class Outcome:
    """What became of a task; of a pair that failed there are no specs, score or vitals.

    Attributes:
        gan, files: the pair, where it was trained in this process; its files, where in another.
        specs, sizes: G's and D's, as the slice ended; sizes in parameters.
        sheet: its first images, uint8 [SHEET, C, H, W].
        memory: the most that was in use, in MiB, where the system tells.
        lost: its worker was, so that its ``error`` says nothing of the pair.
    """

    task: Task
    gan: Gan | None = None
    files: Files | None = None
    specs: tuple[StackSpec, StackSpec] | None = None
    sizes: tuple[int, int] = (0, 0)
    sheet: Tensor | None = None
    score: Score | None = None
    vitals: Vitals | None = None
    images: int = 0
    trained: float = 0.0
    memory: float | None = None
    costs: dict[str, float] = field(default_factory=dict)
    error: str = ""
    lost: bool = False


class Executor(Protocol):
    """Runs tasks. It may take them one by one or all at once."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yield an outcome for each task, in their order."""


class Crew(Executor, Protocol):
    """Workers that take tasks whenever they are free, too."""

    @property
    def workers(self) -> int:
        """How many tasks are made at once."""

    def submit(self, task: Task) -> None:
        """Begin a task, with its parent as it is now; there must be a worker for it."""

    def wait(self) -> Outcome:
        """Return the outcome of a task that is finished, whichever is first."""


class Standing(Protocol):
    """Where a pair in training stands: what of it is shown."""

    @property
    def resolution(self) -> tuple[int, int]: ...

    @property
    def alpha(self) -> float: ...

    @property
    def images(self) -> int: ...


class Keeper(Protocol):
    """Watches a child in training, and keeps what a crash would otherwise cost."""

    def report(self, task: Task, gan: Standing, progress: Progress | None) -> None:
        """Take a point of the log; None when the child is being scored."""

    def keep(self, task: Task, gan: Gan, mark: Mark) -> None:
        """Save the child, if it is time to; called between steps, which it may end by raising."""

    def out_of_memory(self, task: Task, parts: int) -> None:
        """Write down that batches go through in so many parts from now on."""

    def begun(self, task: Task) -> tuple[Gan, Mark] | None:
        """Return what an earlier process kept of ``task``, if anything."""


class Silent:
    """A :class:`Keeper` that says nothing and keeps nothing."""

    def report(self, task: Task, gan: Standing, progress: Progress | None) -> None:
        """Say nothing."""

    def keep(self, task: Task, gan: Gan, mark: Mark) -> None:
        """Keep nothing."""

    def out_of_memory(self, task: Task, parts: int) -> None:
        """Say nothing."""

    def begun(self, task: Task) -> tuple[Gan, Mark] | None:
        """Return None: nothing was kept."""
        return None


@dataclass
class Trainer:
    """Makes one child: branch, train, score. All that is needed for it, and no decisions."""

    batches: Batches
    runtime: Runtime
    scorer: Scorer | None  # None: it only trains along
    keeper: Keeper
    origin: Gan | None = None  # of another run, from which roots go on
    parts: int = 1  # in which a batch goes through: more where memory has run out
    _known: tuple[Tensor, Tensor] | None = None  # features of training and new images

    def make(self, task: Task, parent: Gan | None) -> Outcome:
        """Return the outcome of ``task``; a divergence is an outcome, not an error."""
        outcome, clock, peak = Outcome(task), Clock(), PeakMemory(self.runtime.device)
        gan, mark = self.keeper.begun(task) or (self._begin(task, parent), None)
        outcome.costs["branch"] = clock.lap()
        first = mark or Mark(gan.images, gan.alpha)
        if self.runtime.ranks.count > 1:
            self.runtime.ranks.tell((task, packed(gan), first))
        outcome.error = self.along(task, gan, first)
        outcome.images = gan.images - first.images
        outcome.trained = outcome.costs["train"] = first.seconds + clock.lap()
        if not outcome.error:
            self.keeper.report(task, gan, None)
            players = gan.generator, gan.discriminator
            outcome.gan, outcome.specs = gan, (players[0].spec, players[1].spec)
            outcome.sizes = players[0].parameter_count(), players[1].parameter_count()
            try:
                self._in_parts(task, partial(self._measure, outcome, gan))
            except MemoryError as error:
                outcome.error = str(error)
        outcome.costs["score"], outcome.memory = clock.lap(), peak.mib
        return outcome

    def _measure(self, outcome: Outcome, gan: Gan) -> None:
        """Score and examine a child. What is made of weights that are no numbers has no score."""
        if is_finite(gan):
            outcome.sheet = gan.generate(SHEET, seed=SHEET_SEED, given=self.given(SHEET))
            outcome.score = self.score(gan, outcome.task.settings.batch)
        outcome.vitals = self.examine(gan, outcome.score)

    def along(self, task: Task, gan: Gan, first: Mark) -> str:
        """Train ``gan`` for the rest of its slice; return what became of it, "" if all is well."""
        try:
            self._fit(task, gan)
            with self.runtime.randomness(gan.generator.noisy):
                self._train(task, gan, first)
        except (Diverged, MemoryError) as error:
            return str(error)
        return ""

    def _train(self, task: Task, gan: Gan, mark: Mark) -> None:
        def keep(now: Mark) -> None:
            nonlocal mark
            mark = now
            self.keeper.keep(task, gan, now)

        def report(progress: Progress) -> None:
            self.keeper.report(task, gan, progress)

        objective = make_objective(task.settings)
        how = (gan, self.batches, objective, task.settings, self.runtime, task.piece, report, keep)
        self._in_parts(task, lambda: train(*how, mark, self.parts))

    def _in_parts(self, task: Task, work: Callable[[], None]) -> None:
        """Work, and where the memory runs out again, with batches in twice as many parts.

        Raises:
            MemoryError: not even the smallest part fits.
        """
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self.runtime.ranks.count > 1:
                    raise
                self._halve(task)

    def _fit(self, task: Task, gan: Gan) -> None:
        """Let batches go through in parts where all at once would hardly fit.

        A run counted in images repeats exactly, so there nothing hangs on how much is free.
        """
        if task.piece.images is not None or self.runtime.ranks.count > 1:
            return
        settings, pair = task.settings, (gan.generator.spec, gan.discriminator.spec)
        group = settings.stack.deviation_group
        parts = parts_that_fit(pair, settings.batch, group, self.runtime.device)
        if parts > self.parts:
            self.parts = parts
            self.keeper.out_of_memory(task, parts)

    def _halve(self, task: Task) -> None:
        """Put batches through in twice as many parts from now on, each of whole groups."""
        size = task.settings.batch // self.parts
        if size % (2 * max(1, task.settings.stack.deviation_group)):
            raise MemoryError(f"candidate {task.id} does not fit into memory, {size} images a part")
        self.parts *= 2
        self.keeper.out_of_memory(task, self.parts)

    def _begin(self, task: Task, parent: Gan | None) -> Gan:
        proposal = task.proposal
        if parent is not None:
            growth = proposal.growth
            return parent.branch(growth.generator, growth.discriminator, seed=task.seed)
        if proposal.stacks is None:
            raise ValueError(f"proposal {task.id} has neither a parent nor stacks of its own")
        settings, device = task.settings.optimiser, self.runtime.device
        if self.origin is not None:
            return continued(self.origin, proposal.stacks, settings, seed=task.seed, device=device)
        return Gan.create(*proposal.stacks, settings, seed=task.seed, device=device)

    def score(self, gan: Gan, batch: int = 32) -> Score:
        """Score the running average of G; each rank draws its share of what that takes."""

        assert self.scorer is not None
        given, truth = self.scorer.samples // self.scorer.draws, None
        if self.scorer.draws > 1:  # new images, however few: G may know the others by heart
            given = min(given, len(self.batches.held_out) or given)
            truth = _new_or_seen(self.batches.some, given)
        labels = self._labels(given)

        def generate(count: int) -> Tensor:
            asked = Asked(count, given, labels, min(256, 8 * batch // self.parts))
            return self.draw(gan, self.runtime.ranks.tell(asked))

        return self.scorer.score(generate, gan.resolution, labels=labels, truth=truth)

    @torch.no_grad()
    def draw(self, gan: Gan, asked: Asked) -> Tensor:
        """Return the images that a score asks for, uint8 [N, C, H, W]; all of them on rank 0."""
        spec, ranks = gan.average.spec, self.runtime.ranks
        z = even_latents(asked.count, spec.latent, SCORE_SEED, GROUPS)
        z = labelled(spec, z, asked.labels, SCORE_SEED, self.given(asked.given))
        with self.runtime.autocast():
            share = to_uint8(gan.average, z[ranks.rank :: ranks.count], asked.chunk)
        return ranks.gather(share)

    def given(self, count: int) -> Tensor | None:
        """Return images to make images from: new ones where they suffice, None where none is."""
        some = _new_or_seen(self.batches.given_of_some, count)
        return None if some is None else self.runtime.images(some)

    def _labels(self, count: int) -> list[int] | None:
        """Return labels as the score asks for them, or as often as the data has them, mixed."""
        if self.batches.given_of_some(1) is not None:  # those of the very images given
            known = _new_or_seen(self.batches.labels_of_some, count)
            return None if known is None else known.tolist()
        asked = self.scorer.labels() if self.scorer else None
        if asked is not None:
            return asked.tolist()
        known = self.batches.known_labels
        if known is None:  # codes, if any, modulo as many as there are: each group has all of them
            return [i // GROUPS for i in range(count)]
        rng = torch.Generator().manual_seed(SCORE_SEED)
        some = torch.randint(len(known), (count,), generator=rng)
        return known[some].tolist()

    def examine(self, gan: Gan, score: Score | None) -> Vitals:
        """Take what the doctor looks at."""
        kinds = [self.batches.some(LOOKED_AT, held_out=held) for held in (False, True)]
        known = [self._wishes(gan, held) for held in (False, True)]
        seen, unseen = (
            None if each is None else gan.shown(self.runtime.images(each)) for each in kinds
        )
        if seen is None:
            raise ValueError("there are no images to train on")
        with self.runtime.autocast():
            return examine(
                gan,
                seen,
                unseen,
                score.value if score else None,
                self._copies(gan) if score else None,
                (known[0], known[1]),
                error=score.stderr if score else 0.0,
                chunk=self.batches.batch // self.parts,
            )

    def _wishes(self, gan: Gan, held_out: bool) -> Tensor | None:
        """Return what the images that the doctor looks at are made for, None if for nothing."""
        labels = self.batches.labels_of_some(LOOKED_AT, held_out=held_out)
        given = self.batches.given_of_some(LOOKED_AT, held_out=held_out)
        parts = []
        if labels is not None:
            parts.append(one_hot(labels, gan.generator.spec.classes).to(self.runtime.device))
        if given is not None:
            parts.append(gan.shown(self.runtime.images(given)).flatten(1))
        return torch.cat(parts, 1) if parts else None

    @torch.no_grad()
    def _copies(self, gan: Gan) -> float | None:
        """Return the share of fakes that copy a training image.

        None where it cannot be known, and for sets too large to be learnt by heart.
        """
        new = self.batches.some(LOOKED_AT, held_out=True)
        extractor = self.scorer.extractor if self.scorer else None
        if new is None or extractor is None or self.batches.count > LEARNT:
            return None
        if gan.resolution != tuple(new.shape[2:]):
            return None
        if self._known is None:
            rows = self.batches.some(LEARNT)
            assert rows is not None
            self._known = extractor(rows), extractor(new)
        fakes = gan.generate(LOOKED_AT, seed=SCORE_SEED, given=self.given(LOOKED_AT))
        try:
            return memorisation(extractor(fakes), *self._known, level=COPY_LEVEL).share
        except ValueError:  # too few are held out, or they are in the training set, too
            return None


class Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        last, self._last = self._last, time.perf_counter()
        return self._last - last


@dataclass
class SerialExecutor:
    """Trains one child after another in this process.

    Attributes:
        parent: returns a parent's players by id.
    """

    trainer: Trainer
    parent: Callable[[str], Gan]

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        for task in tasks:
            parent_id = task.proposal.parent
            yield self.trainer.make(task, self.parent(parent_id) if parent_id else None)


def _new_or_seen(take: Callable[..., Tensor | None], count: int) -> Tensor | None:
    """Return what ``take`` has of held-out images, of others where too few are held out."""
    new = take(count, held_out=True)
    return new if new is not None and len(new) >= count else take(count)
