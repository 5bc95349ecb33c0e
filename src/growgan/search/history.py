"""The history of a search, the space it explores, and the proposals for new candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from growgan.config import EditSettings, NetworkConfig
from growgan.nets.presets import PRESETS
from growgan.nets.spec import DiscriminatorSpec, GeneratorSpec
from growgan.search.budget import Budget
from growgan.search.growth import NO_GROWTH, Growth, legal_growths


@dataclass(frozen=True)
class Candidate:
    """A generator (G) and a discriminator (D) after one segment of training.

    Attributes:
        id: At least four digits, in the order of the proposals.
        parent_id: Id of the candidate that it continues. None for a root.
        round: Number of the round that proposed it.
        growth: The edits of the networks before the segment.
        generator_spec, discriminator_spec: The networks at the end of the segment.
        images_seen: Training images seen by the whole lineage.
        train_seconds: Seconds of training in this segment.
        seconds: Seconds of the segment in total, including growth, scoring and saving.
        images_per_second: Training speed in this segment.
        score: Score at the end; lower is better. None if the candidate failed.
        score_stderr: Standard error of the score.
        elapsed: Seconds on the run's clock at the end of the segment.
        spent_fraction: Fraction of the budget spent at the end of the segment.
        score_components: Parts of the score, by name.
        error: Why the candidate failed. Empty if it did not.
    """

    id: str
    parent_id: str | None
    round: int
    growth: Growth
    generator_spec: GeneratorSpec
    discriminator_spec: DiscriminatorSpec
    images_seen: int
    train_seconds: float
    seconds: float
    images_per_second: float
    score: float | None
    score_stderr: float | None
    elapsed: float
    spent_fraction: float
    score_components: Mapping[str, float]
    error: str = ""

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.generator_spec.resolution

    @property
    def specs(self) -> tuple[GeneratorSpec, DiscriminatorSpec]:
        """The specs of G and of D."""
        return self.generator_spec, self.discriminator_spec

    @property
    def layer_counts(self) -> tuple[int, int]:
        """Number of layers of G and of D, including the stems."""
        return len(self.generator_spec.layers) + 1, len(self.discriminator_spec.layers) + 1


@dataclass(frozen=True)
class SearchSpace:
    """The networks that a search may build.

    Attributes:
        preset: Name of the architecture.
        network_settings: Settings of the initial networks.
        channels: Number of image channels.
        target_resolution: Height and width to reach, in pixels.
        edit_settings: Which edits a growth may consist of, and how large the networks may become.
        warm_start_specs: Specs of the pretrained G and D that the run starts from, if any. They
            replace the initial networks.
    """

    preset: str
    network_settings: NetworkConfig
    channels: int
    target_resolution: tuple[int, int]
    edit_settings: EditSettings = EditSettings()
    warm_start_specs: tuple[GeneratorSpec, DiscriminatorSpec] | None = None

    @cached_property
    def base_resolution(self) -> tuple[int, int]:
        """Smallest height and width in pixels for which the preset can build G and D."""
        return PRESETS[self.preset].min_resolution(
            self.network_settings, self.channels, self.target_resolution
        )

    @property
    def max_level(self) -> int:
        """Number of doublings from the base resolution to the target."""
        return self.level_of(self.target_resolution)

    def level_of(self, resolution: tuple[int, int]) -> int:
        """Return the number of doublings from the base resolution to ``resolution``."""
        return (resolution[0] // self.base_resolution[0]).bit_length() - 1

    def resolution_at(self, level: int) -> tuple[int, int]:
        """Return the height and width in pixels after ``level`` doublings."""
        return self.base_resolution[0] << level, self.base_resolution[1] << level

    def specs_at(
        self, level: int, network_settings: NetworkConfig | None = None
    ) -> tuple[GeneratorSpec, DiscriminatorSpec]:
        """Return the preset's specs of G and D after ``level`` doublings.

        A run that starts from a pretrained GAN always gets the specs of that GAN.

        Args:
            level: Number of doublings from the base resolution.
            network_settings: Settings to use in place of those of the space.
        """
        if self.warm_start_specs is not None:
            return self.warm_start_specs
        preset, resolution = PRESETS[self.preset], self.resolution_at(level)
        settings = network_settings or self.network_settings
        generator_spec = preset.network_spec(
            "generator", settings, self.channels, self.target_resolution, resolution
        )
        discriminator_spec = preset.network_spec(
            "discriminator", settings, self.channels, self.target_resolution, resolution
        )
        return generator_spec, discriminator_spec

    def legal_growths(self, candidate: Candidate) -> list[Growth]:
        """Return every legal growth of ``candidate``, starting with no growth.

        Appended layers use the block of the network settings unless the edit settings name others.
        """
        settings = self.network_settings
        blocks = settings.block, settings.for_role("discriminator").block
        return legal_growths(*candidate.specs, self.edit_settings, self.target_resolution, blocks)

    def doubling_growth(self, candidate: Candidate) -> Growth:
        """Return the growth that doubles the resolution of ``candidate`` as the preset does.

        The widths follow the candidate's stem widths, which earlier growths may have changed.
        """
        family = PRESETS[self.preset].family
        generator_edit, discriminator_edit = (
            family.doubling_edit(
                self.network_settings.model_copy(update={"width": spec.stem_width}), spec
            )
            for spec in candidate.specs
        )
        return Growth((generator_edit,), (discriminator_edit,))


@dataclass(frozen=True)
class Proposal:
    """A candidate to train.

    Attributes:
        parent_id: Id of the candidate to continue. None for a root, which needs ``root_specs``.
        budget_fraction: Fraction of the budget to train it for.
        growth: The edits to make first.
        fade_segments: Duration of a complete fade-in, in segments of this length.
        root_specs: Specs of G and D of a root.
    """

    parent_id: str | None
    budget_fraction: float
    growth: Growth = NO_GROWTH
    fade_segments: float = 0.0
    root_specs: tuple[GeneratorSpec, DiscriminatorSpec] | None = None

    def initial_specs(self, history: History) -> tuple[GeneratorSpec, DiscriminatorSpec]:
        """Return the specs of G and D at the start of the training segment."""
        if self.root_specs is not None:
            return self.root_specs
        return self.growth.grown_specs(*history[self.parent_id or ""].specs)


@dataclass(frozen=True)
class History:
    """Everything a policy may look at. A policy is a pure function of it.

    Attributes:
        space: The networks that the search may build.
        budget: The budget of the run.
        seed: Random seed of the run.
        candidates: All candidates, including failed ones, in the order of their ids.
        survivor_ids: Ids of the candidates that the last selection kept, the leader first.
        round: Number of the next round.
        spent_fraction: Fraction of the budget spent so far.
        corrupted_ids: Ids of candidates whose files are damaged. None of them can be the best.
        num_workers: Number of candidates trained at once. Always 1 for a budget of images.
    """

    space: SearchSpace
    budget: Budget
    seed: int
    candidates: tuple[Candidate, ...] = ()
    survivor_ids: tuple[str, ...] = ()
    round: int = 0
    spent_fraction: float = 0.0
    corrupted_ids: frozenset[str] = frozenset()
    num_workers: int = 1

    @cached_property
    def _by_id(self) -> dict[str, Candidate]:
        return {candidate.id: candidate for candidate in self.candidates}

    def __getitem__(self, candidate_id: str) -> Candidate:
        return self._by_id[candidate_id]

    @property
    def remaining_fraction(self) -> float:
        """Fraction of the budget that is left."""
        return max(0.0, 1 - self.spent_fraction)

    @cached_property
    def best(self) -> Candidate | None:
        """The candidate with the lowest score at the highest resolution reached."""
        scored = [
            candidate
            for candidate in self.candidates
            if candidate.score is not None and candidate.id not in self.corrupted_ids
        ]
        return min(scored, key=lambda c: (-c.resolution[0], c.score), default=None)

    def lineage(self, candidate: Candidate) -> list[Candidate]:
        """Return the ancestors of ``candidate`` and itself, the root first."""
        lineage = [candidate]
        while lineage[-1].parent_id is not None:
            lineage.append(self[lineage[-1].parent_id])
        return lineage[::-1]

    def with_round(self, children: tuple[Candidate, ...], survivor_ids: tuple[str, ...]) -> History:
        """Return the history after a round that tried ``children`` and kept ``survivor_ids``."""
        return replace(
            self,
            candidates=(*self.candidates, *children),
            survivor_ids=survivor_ids,
            round=self.round + 1,
            spent_fraction=max(self.spent_fraction, *(c.spent_fraction for c in children)),
        )
