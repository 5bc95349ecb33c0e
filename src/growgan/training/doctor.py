"""Is a pair healthy? What ails it is said in one sentence, with what may help."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import sqrt
from typing import Any, Literal

import torch
from torch import Tensor

from growgan.config import Settings
from growgan.nets.wishes import labelled
from growgan.objectives.weights import matrices
from growgan.training.gan import Gan

TREATMENTS = 3  # at most; then the run stops with the diagnosis
LOOKED_AT = 512  # images of each kind
RUNAWAY = 15.0  # times what a weight of unit gain has: 1.4 at birth, below 5 in healthy runs
SETTLED = 5_000  # images, and
STEPS = 150  # steps of G, before few images of G and a winning D mean anything
BEGUN = 1_000  # images before the same one image, over and over, does
WON, AHEAD = 0.995, 0.97  # of fakes that D tells from reals: all, and nearly all
STUCK = 3  # slices in which it does, and the score gets no better, or worse;
PATIENCE = 1_000  # steps of G that they must last, since small rates take long to show
WORST = 1e30  # stands for what JSON cannot say


Spectra = dict[Literal["generator", "discriminator"], dict[str, list[float]]]


@dataclass(frozen=True)
class Vitals:
    """What was measured of a pair at the end of a slice.

    Attributes:
        images: that it has seen.
        finite: whether every weight is a number.
        score: lower is better, 1 is one image over and over; None if it could not be taken.
        error: of the score.
        diversity: deviation of fakes, pixel by pixel, beside that of reals: 1 is as varied.
        variety: the reals' own deviation, of the range of a pixel.
        wins_seen: chance that D puts a real that it trains on above a fake.
        wins_unseen: the same for reals that it has never seen; None where none are held out.
        singular: the largest singular value of D's weights in use.
        singular_generator: the same of G's.
        excess: the largest of D's beside that of a random weight of its shape and unit gain.
        spectra: the three largest of each weight of each player, to four digits.
        gradient: the larger norm of both players' gradients, averaged as Adam does.
        copies: share of fakes that are as near to a training image as hardly a new real is.
        record: the best score of its line that was better beyond its error.
        steps: that G has taken.
        since: the steps that G had taken then.
        stuck: slices since then in which D told all apart, or nearly all and the score got worse.
    """

    images: int
    finite: bool
    score: float | None
    diversity: float
    variety: float
    wins_seen: float
    wins_unseen: float | None
    singular: float
    copies: float | None = None
    error: float = 0.0
    gradient: float = 0.0
    record: float | None = None
    stuck: int = 0
    steps: int = 0
    since: int = 0
    singular_generator: float = 0.0
    excess: float = 0.0
    spectra: Spectra = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Whether the pair has been trained for long enough to be told by its fakes."""
        return self.images >= SETTLED and self.steps >= STEPS

    @property
    def wins(self) -> float:
        """The chance that D puts a real above a fake: one that it has never seen, if there are."""
        return self.wins_seen if self.wins_unseen is None else self.wins_unseen

    def after(self, before: Vitals | None) -> Vitals:
        """Return these with ``record`` and ``stuck``, which hang on those of the parent."""
        record, since = None, self.steps
        if before is not None:
            record = before.score if before.record is None else before.record
            since = before.since
        if self.score is None or record is None or self.score < record - 2 * self.error:
            return replace(self, record=self.score, since=self.steps, stuck=0)
        worse = self.score > 1.5 * record + 2 * self.error
        won = before is not None and min(self.wins, before.wins_seen) > (AHEAD if worse else WON)
        stuck = before.stuck + 1 if before and won else 0
        return replace(self, record=record, since=since, stuck=stuck)

    def to_json(self) -> dict[str, Any]:
        """Return plain data that ``Vitals(**data)`` reads back; JSON knows no infinity."""
        return {key: _bounded(value) for key, value in asdict(self).items()}


def _bounded(value: Any) -> Any:
    """Return plain data with :data:`WORST` for each number that JSON cannot say."""
    if isinstance(value, dict):
        return {key: _bounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_bounded(each) for each in value]
    return WORST if isinstance(value, float) and not abs(value) <= WORST else value


@dataclass(frozen=True)
class Diagnosis:
    """What ails a pair.

    Attributes:
        name: of the ailment, a key of :data:`AILMENTS`.
        sentence: for people.
    """

    name: str
    sentence: str


@torch.no_grad()
def examine(
    gan: Gan,
    seen: Tensor,
    unseen: Tensor | None,
    score: float | None,
    copies: float | None = None,
    wishes: tuple[Tensor | None, Tensor | None] = (None, None),
    *,
    error: float = 0.0,
    chunk: int = LOOKED_AT,
) -> Vitals:
    """Measure a pair.

    Args:
        seen: training images float [N, C, H, W] in [-1, 1] at the pair's resolution.
        unseen: held-out ones, if there are any.
        copies: as :class:`Vitals` has it, measured elsewhere.
        wishes: what ``seen`` and ``unseen`` are made for, float [N, wish]: labels, and given
            images; None where there is nothing such.
        error: of the score.
        chunk: images that the players see at once.
    """
    variety = float(seen.std(0).mean()) / 2
    if not is_finite(gan):
        return Vitals(gan.images, False, None, 0.0, variety, 0.5, None, WORST)
    spec, rng = gan.generator.spec, torch.Generator().manual_seed(0)
    z = torch.randn(len(seen), spec.latent, generator=rng).to(seen.device)
    z = labelled(spec, z) if wishes[0] is None else torch.cat([z, wishes[0]], 1)
    fakes = torch.cat([gan.average(part) for part in z.split(chunk)])
    judged = _judged(gan, fakes, z[:, spec.latent :], chunk)
    kinds = [
        _judged(gan, each, wish, chunk)
        for each, wish in zip((seen, unseen), wishes, strict=True)
        if each is not None
    ]
    wins = [_wins(real, judged) for real in kinds]
    return Vitals(
        images=gan.images,
        steps=int(max(gan.moments()[0]["step"].values(), default=0)),
        finite=True,
        score=score,
        diversity=float(fakes.std(0).mean()) / 2 / max(variety, 1e-6),
        variety=variety,
        wins_seen=wins[0],
        wins_unseen=wins[1] if len(wins) > 1 else None,
        copies=copies,
        error=error,
        gradient=max(_norm(state["exp_avg"].values()) for state in gan.moments()),
        **_spectra(gan),
    )


def _spectra(gan: Gan) -> dict[str, Any]:
    """Return what vitals hold of singular values."""
    found = {
        "generator": singular_values(gan.generator),
        "discriminator": singular_values(gan.discriminator),
    }
    g, d = (max(values[0] for values in own.values()) for own in found.values())
    own = found["discriminator"]
    excess = max(own[name][0] / _usual(each) for name, each in matrices(gan.discriminator))
    return {"singular": d, "singular_generator": g, "spectra": found, "excess": excess}


def _usual(matrix: Tensor) -> float:
    """Return about what the largest singular value is of a random ``matrix`` of unit gain.

    That is 1 + sqrt(out / in), if its n x m numbers are independent and have the variance 1 / in
    (Bai & Yin 1993): 23 for a map of gray pixels to 512 channels.
    """
    rows, columns = matrix.shape[-2:]
    return 1 + sqrt(rows / columns)


def is_finite(gan: Gan) -> bool:
    """Return whether all that a pair is made of are numbers: weights, statistics and moments."""
    players = (gan.generator, gan.discriminator, gan.average)
    parts = [each for player in players for each in player.state_dict().values()]
    parts += [each for state in gan.moments() for kind in state.values() for each in kind.values()]
    return all(bool(torch.isfinite(part).all()) for part in parts)


def _norm(parts: Iterable[Tensor]) -> float:
    """Return the norm of all numbers together."""
    return sum(float(part.double().square().sum()) for part in parts) ** 0.5


def _judged(gan: Gan, images: Tensor, wish: Tensor | None, chunk: int) -> Tensor:
    """Return how real D finds images, a chunk at a time."""
    sign = -1 if gan.discriminator.spec.energy else 1  # a real has the smaller energy
    judge = gan.discriminator.eval()
    wishes = [None] * len(images) if wish is None else wish.split(chunk)
    judged = [judge(part, own) for part, own in zip(images.split(chunk), wishes, strict=False)]
    judge.train()
    return sign * torch.cat(judged)


def _wins(real: Tensor, fake: Tensor) -> float:
    """Return the chance that a real has the larger logit than a fake, ties counted half."""
    real, fake = (each.flatten(1).mean(1) if each.ndim > 1 else each for each in (real, fake))
    difference = real[:, None] - fake[None, :]
    return float((difference > 0).float().mean() + 0.5 * (difference == 0).float().mean())


def singular_values(player: torch.nn.Module, count: int = 3) -> dict[str, list[float]]:
    """Return the ``count`` largest singular values of each weight in use, to four digits, by name.

    BigGAN's monitor (Brock et al. 2019, section 4): a first one that runs away foretells collapse.
    """
    found = {}
    for name, matrix in matrices(player):
        used = matrix.detach().double()  # float32 ends at a weight of 1e19
        gram = used @ used.mT if used.shape[-2] <= used.shape[-1] else used.mT @ used
        squares = torch.linalg.eigvalsh(gram).flatten().sort(descending=True).values
        values = squares.clamp(min=0).sqrt()
        found[name] = [float(f"{value:.4g}") for value in values[:count].tolist()]
    return found


def diagnose(
    now: Vitals,
    before: Vitals | None,
    *,
    grew: bool = False,
    ranks: bool = True,
    averages: bool = False,
) -> Diagnosis | None:
    """Return what ails a pair, None if nothing does.

    Args:
        before: the newest healthy vitals of its line.
        grew: True if it has just grown, which may shake its score.
        ranks: False if D's loss does not ask it to put reals above fakes: then it has neither won
            nor broken down where it does not.
        averages: True if G's loss asks for the mean of all that may be right, as L1 does: then
            fakes that vary little are no collapse.
    """
    if not ranks:
        now = replace(now, wins_seen=0.5, wins_unseen=None, stuck=0)
    if averages:
        now = replace(now, diversity=max(1.0, now.diversity))
    for name, ailment in AILMENTS.items():
        sentence = ailment(now, before, grew)
        if sentence is not None:
            return Diagnosis(name, sentence)
    return None


def _not_finite(now: Vitals, before: Vitals | None, grew: bool) -> str | None:
    return None if now.finite else "weights are no longer numbers: the pair diverged"


def _lifeless(now: Vitals, before: Vitals | None, grew: bool) -> str | None:
    if now.variety < 1e-3:
        return "the training images are all alike: there is nothing to learn but one image"
    return None


def _diverged(now: Vitals, before: Vitals | None, grew: bool) -> str | None:
    if now.excess > RUNAWAY:
        return f"D's weights have run away: a singular value is {now.excess:.0f} times the usual"
    if now.settled and now.wins_seen < 0.02:
        return "D puts every fake above the reals that it trains on: it has broken down"
    if before is None or now.score is None or before.score is None or grew:
        return None
    if now.score > max(4 * before.score, before.score + 0.2):
        return f"the score went from {before.score:.3g} to {now.score:.3g}: training diverges"
    return None


def _collapsed(now: Vitals, before: Vitals | None, grew: bool) -> str | None:
    one = now.images >= BEGUN and now.diversity < 0.02 and (now.score or 0) > 0.95
    rising = before is None or now.diversity > 1.2 * before.diversity  # it begins to draw
    if not one and (not now.settled or now.diversity >= 0.25 or rising):
        return None
    return f"fakes vary {now.diversity:.0%} as much as reals: G has collapsed to few images"


def _outright(now: Vitals, before: Vitals | None, grew: bool) -> str | None:
    """D tells all apart, and G no longer learns from it."""
    lasted = now.stuck >= STUCK and now.steps - now.since >= PATIENCE
    if not now.settled or not lasted or grew:
        return None
    return (
        f"D tells {now.wins:.1%} of fakes from reals and G has not become better for {now.stuck} "
        "slices: D has won"
    )


def _memorised(now: Vitals, before: Vitals | None, grew: bool) -> str | None:
    if now.copies is not None and now.copies > 0.5:
        return f"{now.copies:.0%} of the fakes are copies of training images"
    if not now.settled or now.wins_unseen is None:
        return None
    if now.wins_seen - now.wins_unseen > 0.2:
        return (
            f"D puts {now.wins_seen:.0%} of the images it trains on above fakes, but "
            f"{now.wins_unseen:.0%} of others: it knows them by heart"
        )
    return None


AILMENTS: Mapping[str, Callable[[Vitals, Vitals | None, bool], str | None]] = {
    "divergence": _not_finite,
    "no variety": _lifeless,
    "instability": _diverged,
    "memorisation": _memorised,
    "collapse": _collapsed,
    "winning D": _outright,
}


def remedy(name: str, settings: Settings) -> tuple[dict[str, Any], str] | None:
    """Return what to change in ``settings`` against the ailment ``name``, and that in words.

    None where nothing helps.
    """
    rate, (stronger, how) = settings.optimiser.lr, _stronger(settings)
    if name in ("divergence", "instability"):
        return _slower(settings, 3), f"a rate of {rate / 3:.2g} in place of {rate:.2g}"
    if name == "winning D":
        return stronger, how
    if name == "collapse":
        return {**stronger, **_slower(settings, 2)}, f"{how} and half of the rate"
    if name == "memorisation" and settings.augment == "none":
        return {"augment": "ada"}, "adaptive augmentation"
    return (stronger, how) if name == "memorisation" else None


def _stronger(settings: Settings) -> tuple[dict[str, Any], str]:
    """Return four times as strong an R1, or the usual one where none was, and that in words."""
    r1 = settings.regularisers.get("r1")
    if r1 is None or 0 in (r1.get("weight"), r1.get("scale")):
        return {"regularisers": {"r1": {"weight": None, "scale": 1.0}}}, "R1 as well"
    stronger = {"regularisers": {"r1": {"scale": 4 * (r1.get("scale") or 1.0)}}}
    return stronger, "R1 four times as strong"


def _slower(settings: Settings, factor: float) -> dict[str, Any]:
    """Return both players' rates, divided."""
    own = settings.optimiser
    theirs = own.discriminator_lr and own.discriminator_lr / factor
    return {"optimiser": {"lr": own.lr / factor, "discriminator_lr": theirs}}
