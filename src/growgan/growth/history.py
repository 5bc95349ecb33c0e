"""What a search has tried: candidates, in the order of their ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from growgan.config import ActionSettings, StackSettings
from growgan.growth.actions import UNCHANGED, Growth, legal_growths
from growgan.growth.budget import Budget
from growgan.nets.presets import PRESETS
from growgan.nets.spec import Role, StackSpec


@dataclass(frozen=True)
class Candidate:
    """One slice of training of one pair of players.

    Attributes:
        id: four digits or more, in the order of the proposals.
        parent: id of the candidate it continues; None for a root.
        growth: what was changed before training.
        generator, discriminator: the specs at the end of the slice.
        images: real images seen along the lineage.
        trained: seconds of training in this slice; ``seconds`` also counts branching and scoring.
        rate: images a second in this slice.
        score, stderr: the score at the end and its standard error; None if it failed.
        elapsed, spent: the run's clock (s) and share of the budget at its end.
    """

    id: str
    parent: str | None
    round: int
    growth: Growth
    generator: StackSpec
    discriminator: StackSpec
    images: int
    trained: float
    seconds: float
    rate: float
    score: float | None
    stderr: float | None
    elapsed: float
    spent: float
    parts: Mapping[str, float]
    error: str = ""

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of its images."""
        return self.generator.resolution

    @property
    def specs(self) -> tuple[StackSpec, StackSpec]:
        """The specs of G and of D."""
        return self.generator, self.discriminator

    @property
    def layers(self) -> tuple[int, int]:
        """Number of layers of G and of D, stems included."""
        return len(self.generator.layers) + 1, len(self.discriminator.layers) + 1


@dataclass(frozen=True)
class Space:
    """Where a search may go.

    Attributes:
        preset: name of the family of stacks.
        shape: the shape that it starts from.
        channels: of the images.
        target: height and width to reach, in pixels.
        actions: the edits that may be tried.
        origin: stacks of another run's pair, where this one goes on from it.
    """

    preset: str
    shape: StackSettings
    channels: int
    target: tuple[int, int]
    actions: ActionSettings = ActionSettings()
    origin: tuple[StackSpec, StackSpec] | None = None

    @cached_property
    def smallest(self) -> tuple[int, int]:
        """Height and width of the smallest images that both players can be made for."""
        return PRESETS[self.preset].smallest(self.shape, self.channels, self.target)

    @property
    def levels(self) -> int:
        """Number of doublings from the smallest images to the target."""
        return self.level(self.target)

    def level(self, resolution: tuple[int, int]) -> int:
        """Return the number of doublings from the smallest images to ``resolution``."""
        return (resolution[0] // self.smallest[0]).bit_length() - 1

    def resolution(self, level: int) -> tuple[int, int]:
        """Return height and width after ``level`` doublings."""
        return self.smallest[0] << level, self.smallest[1] << level

    def stacks(self, level: int, shape: StackSettings | None = None) -> tuple[StackSpec, StackSpec]:
        """Return complete stacks of G and D after ``level`` doublings."""
        if self.origin is not None:
            return self.origin
        preset, size = PRESETS[self.preset], self.resolution(level)
        roles: tuple[Role, Role] = ("generator", "discriminator")
        g, d = (
            preset.stack(role, shape or self.shape, self.channels, self.target, size)
            for role in roles
        )
        return g, d

    def growths(self, candidate: Candidate) -> list[Growth]:
        """Return every growth that is legal for ``candidate``, the unchanged one first.

        What is appended is of the stacks' own kind, unless the actions name others.
        """
        kinds = self.shape.kind, self.shape.of("discriminator").kind
        return legal_growths(*candidate.specs, self.actions, self.target, kinds)

    def doubling(self, candidate: Candidate) -> Growth:
        """Return the growth that doubles ``candidate``, in the preset's own kind of layer.

        Widths follow the candidate's stems, which growth may have changed.
        """
        family = PRESETS[self.preset].family
        g, d = (
            family.doubling(self.shape.model_copy(update={"width": spec.stem}), spec)
            for spec in (candidate.generator, candidate.discriminator)
        )
        return Growth((g,), (d,))


@dataclass(frozen=True)
class Proposal:
    """A child to try.

    Attributes:
        parent: whom to continue; None for a root, which then has ``stacks``.
        growth: what to change first.
        share: how much of the budget to train it for.
        fade: how long a whole fade-in takes, in slices of this length.
    """

    parent: str | None
    share: float
    growth: Growth = UNCHANGED
    fade: float = 0.0
    stacks: tuple[StackSpec, StackSpec] | None = None

    def specs(self, history: History) -> tuple[StackSpec, StackSpec]:
        """Return the child's stacks as its training begins."""
        if self.stacks is not None:
            return self.stacks
        return self.growth.specs(*history[self.parent or ""].specs)


@dataclass(frozen=True)
class History:
    """All that a policy may look at; a policy is a pure function of it.

    Attributes:
        candidates: everything tried, failures included, in the order of ids.
        alive: ids of the newest frontier, the best first.
        round: number of the round to be proposed.
        spent: share of the budget used so far.
        lost: ids whose weights a damaged disk has taken; they are nobody's best.
        workers: children that are trained at once, where time is counted.
    """

    space: Space
    budget: Budget
    seed: int
    candidates: tuple[Candidate, ...] = ()
    alive: tuple[str, ...] = ()
    round: int = 0
    spent: float = 0.0
    lost: frozenset[str] = frozenset()
    workers: int = 1

    @cached_property
    def _by_id(self) -> dict[str, Candidate]:
        return {candidate.id: candidate for candidate in self.candidates}

    def __getitem__(self, candidate_id: str) -> Candidate:
        return self._by_id[candidate_id]

    @property
    def left(self) -> float:
        """Share of the budget that is left."""
        return max(0.0, 1 - self.spent)

    @cached_property
    def best(self) -> Candidate | None:
        """The lowest score at the highest resolution reached."""
        scored = [c for c in self.candidates if c.score is not None and c.id not in self.lost]
        return min(scored, key=lambda c: (-c.resolution[0], c.score), default=None)

    def lineage(self, candidate: Candidate) -> list[Candidate]:
        """Return ``candidate`` and its ancestors, the root first."""
        line = [candidate]
        while line[-1].parent is not None:
            line.append(self[line[-1].parent])
        return line[::-1]

    def with_round(self, children: tuple[Candidate, ...], alive: tuple[str, ...]) -> History:
        """Return the history after a round."""
        return replace(
            self,
            candidates=(*self.candidates, *children),
            alive=alive,
            round=self.round + 1,
            spent=max(self.spent, *(c.spent for c in children)),
        )
