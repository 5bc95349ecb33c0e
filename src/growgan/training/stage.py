"""The one training loop: a slice of the budget spent on one pair of players."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite, sqrt

import torch
from torch import Tensor, nn

from growgan.config import Settings
from growgan.data.batches import Batches
from growgan.nets.layers import downsample, upsample
from growgan.nets.wishes import one_hot
from growgan.objectives.objective import Objective
from growgan.objectives.step import Step
from growgan.training.gan import Gan
from growgan.training.runtime import Runtime

LOG_EVERY = 0.5  # seconds between two points of the log
CHECK_EVERY = 64  # steps between two looks for divergence, where a run is counted in images


@dataclass(frozen=True)
class Slice:
    """How long to train, and where in the run that lies.

    Exactly one of ``seconds`` and ``images`` is set.

    Attributes:
        fade: how long a whole fade-in takes, in slices; above 1 it goes on in the next one.
        begin, end: shares of the whole budget at the slice's ends, for the decay of the rate.
    """

    seconds: float | None = None
    images: int | None = None
    fade: float = 0.0
    begin: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class Progress:
    """A point of the log.

    Attributes:
        share: how much of the slice is done, 0 to 1.
        rate: images a second since the last point.
        terms: the objective's terms by name.
    """

    share: float
    images: int
    rate: float
    alpha: float
    terms: dict[str, float]


@dataclass(frozen=True)
class Mark:
    """Where in its slice a pair stands: with the pair itself, all that is needed to go on.

    Attributes:
        images: what the pair had seen when the slice began.
        alpha: the fade with which the slice began.
        seconds: how long it has been trained in the slice.
    """

    images: int
    alpha: float
    seconds: float = 0.0


class Diverged(RuntimeError):
    """A loss is no longer finite."""


def train(
    gan: Gan,
    batches: Batches,
    objective: Objective,
    settings: Settings,
    runtime: Runtime,
    piece: Slice,
    report: Callable[[Progress], None] = lambda progress: None,
    keep: Callable[[Mark], None] = lambda mark: None,
    mark: Mark | None = None,
    parts: int = 1,
) -> None:
    """Train ``gan`` for one slice, or for the rest of one from ``mark`` on, in place.

    Each batch goes through in so many ``parts``. ``report`` gets the points of the log. ``keep`` is
    called between any two steps: it may save the pair with the mark that it is given, and it may
    raise, to stop here.

    Everything random is a function of the seed and of the images seen so far, so that a run needs
    no random state to be resumed, and siblings see the same batches and latents.

    The log holds the newest value of each term: lazy ones are not taken at every step.

    Raises:
        Diverged: a loss became NaN or infinite; it is noticed at the next point of the log, or,
            so that a run counted in images repeats exactly, at the next 64th step.
    """
    runtime.compile([*gan.generator.blocks(), *gan.discriminator.blocks()])
    first = mark or Mark(gan.images, gan.alpha)
    logged = time.perf_counter()
    begun = logged - first.seconds
    seen, alpha = gan.images, first.alpha
    terms: dict[str, Tensor] = {}
    done = _share(piece, first.seconds, gan.images - first.images)
    share, due = runtime.ranks.agree(done, LOG_EVERY <= 0)
    while share < 1:
        gan.set_alpha(min(1.0, alpha + share / piece.fade) if piece.fade else 1.0)
        set_rates(gan, settings, piece.begin + share * (piece.end - piece.begin))

        terms |= step(gan, batches, objective, settings, runtime, parts)

        now = time.perf_counter()
        done = _share(piece, now - begun, gan.images - first.images)
        if due if piece.images is None else gan.steps % CHECK_EVERY == 0:
            _check_finite(terms)
        if due:
            values = {name: float(term) for name, term in terms.items()}
            rate = (gan.images - seen) / (now - logged)
            report(Progress(done, gan.images, rate, gan.alpha, values))
            logged, seen = now, gan.images
        with runtime.ranks.leaving():
            keep(replace(first, seconds=now - begun))
        share, due = runtime.ranks.agree(done, now - logged >= LOG_EVERY)
    _check_finite(terms)
    if not piece.fade or alpha + 1 / piece.fade >= 1:
        gan.finish_fade()
    else:
        gan.set_alpha(alpha + 1 / piece.fade)


def _share(piece: Slice, seconds: float, images: int) -> float:
    """Return how much of a slice is done: by time or by images, never by both.

    Otherwise a run could not be repeated exactly.
    """
    if piece.seconds is not None:
        return min(1.0, seconds / piece.seconds)
    return min(1.0, images / (piece.images or 1))


def step(
    gan: Gan,
    batches: Batches,
    objective: Objective,
    settings: Settings,
    runtime: Runtime,
    parts: int = 1,
) -> dict[str, Tensor]:
    """Take one step of D and one of G; return the objective's terms by name.

    Where a batch would not fit into memory it goes through in ``parts``, whose gradients are added
    up before the players move: the step is that of the whole batch, but for terms that look at
    several samples together.
    """
    real, z, labels, given, rng = _inputs(gan, batches, objective, settings, runtime)
    shares = parts * runtime.ranks.count
    chunks = zip(*(t.chunk(shares) for t in (real, z, labels, given)), strict=True)
    views = [
        _view(gan, x, z, y, c, rng if shares == 1 else _again(rng), objective, (place, shares))
        for place, (x, z, y, c) in enumerate(chunks)
        if place // parts == runtime.ranks.rank
    ]
    terms = _step_discriminator(gan, views, objective, runtime)
    if (gan.steps + 1) % settings.critic_steps == 0:
        terms |= _step_generator(gan, views, objective, runtime)
    # By name: a pair that came as files has another order.
    known = [each for _, each in sorted(gan.memory.items()) if each.numel() == 1]
    seen = [each for each in gan.generator.buffers() if each.is_floating_point()]
    runtime.ranks.average([*known, *seen])
    gan.images += len(real)
    gan.steps += 1
    half_life = min(settings.average.half_life, settings.average.ramp * gan.images)
    gan.update_average(0.5 ** (len(real) / max(half_life, 1e-9)))
    return terms | views[-1].curves


def _view(
    gan: Gan,
    real: Tensor,
    latents: Tensor,
    labels: Tensor,
    given: Tensor,
    rng: torch.Generator,
    objective: Objective,
    place: tuple[int, int],
) -> Step:
    """Return the step before anything is computed."""
    nothing = latents.new_empty(0)
    view = Step(
        gan.generator,
        gan.discriminator,
        real,
        real,
        latents,
        rng,
        nothing,
        nothing,
        labels=labels,
        given=given,
        index=gan.steps,
        images=gan.images,
        memory=gan.memory,
        place=place,
    )
    objective.prepare(view)
    return view


def _again(rng: torch.Generator) -> torch.Generator:
    """Return a generator of the same numbers: each share of a batch takes its own rows of them."""
    copy = torch.Generator(rng.device)
    copy.set_state(rng.get_state())
    return copy


def _step_discriminator(
    gan: Gan, views: list[Step], objective: Objective, runtime: Runtime
) -> dict[str, Tensor]:
    terms: dict[str, Tensor] = {}
    gan.discriminator_optimiser.zero_grad()
    for view in views:
        real = view.real
        with runtime.autocast():
            objective.latents(view)
            # A batch in one piece keeps G's forward for its own step.
            with torch.set_grad_enabled(len(views) == 1):
                fake = gan.generator(view.latents)
            view.fake = fake.detach()
            objective.presented(view)
            _judge(view)
            losses = objective.discriminator(view)
        _descend(losses, len(views), terms)
        view.real, view.fake = real, fake
    runtime.ranks.average_gradients(gan.discriminator, terms)
    gan.discriminator_optimiser.step()
    objective.after(gan.discriminator, views[-1])
    return terms


def _judge(view: Step) -> None:
    """Set D's features and logits of reals and fakes, from one forward where they do not mix."""
    apart = view.discriminator.mixes
    sets = [view.real, view.fake] if apart else [torch.cat([view.real, view.fake])]
    looked = [_looked(view, images) for images in sets]
    features, logits = (torch.cat(parts) for parts in zip(*looked, strict=True))
    n = len(view.real)
    view.real_features, view.fake_features = features[:n], features[n:]
    view.real_logits, view.fake_logits = logits[:n], logits[n:]


def _looked(view: Step, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return D's features and logits of images; an autoencoder's features are nobody's business."""
    if view.discriminator.spec.energy:
        return images.new_empty(len(images), 0), view.judge(images)
    features = view.features(images)
    return features, view.discriminator.judge(features, *view.labels_of(images))


def _step_generator(
    gan: Gan, views: list[Step], objective: Objective, runtime: Runtime
) -> dict[str, Tensor]:
    terms: dict[str, Tensor] = {}
    gan.generator_optimiser.zero_grad()
    with _frozen(gan.discriminator):
        for view in views:
            with runtime.autocast():
                if len(views) > 1:
                    view.fake = gan.generator(view.latents)
                view.fake_features, view.fake_logits = _looked(view, view.fake)
                if objective.paired:
                    view.real_logits = view.judge(view.real).detach()
                losses = objective.generator(view)
            _descend(losses, len(views), terms)
    runtime.ranks.average_gradients(gan.generator, terms)
    gan.generator_optimiser.step()
    objective.after(gan.generator, views[-1])
    return terms


@contextmanager
def _frozen(player: nn.Module) -> Iterator[None]:
    """Spare a player's weights their gradients, until the end however it comes."""
    player.requires_grad_(False)
    try:
        yield
    finally:
        player.requires_grad_(True)


def _inputs(
    gan: Gan, batches: Batches, objective: Objective, settings: Settings, runtime: Runtime
) -> tuple[Tensor, Tensor, Tensor, Tensor, torch.Generator]:
    """Return the step's reals, G's inputs, labels, given images, and random numbers."""
    key = (settings.seed * 0x9E3779B97F4A7C15 + gan.steps) & (2**63 - 1)
    rng = torch.Generator(runtime.device).manual_seed(key)
    if gan.generator.noisy:
        # Another stream than that of the latents, and another one for each rank's images.
        torch.manual_seed((~key + runtime.ranks.rank * 0xD1B54A32D192ED03) & (2**63 - 1))
    pixels, labels = batches.batch_at(gan.images)
    given, spec = batches.given_at(gan.images), gan.generator.spec
    # What is given is blended and flipped as the images are that are to be made of it.
    seen = pixels if given is None else torch.cat([pixels, given], 1)
    factor = seen.shape[-1] // gan.resolution[1]
    real = _reals(gan, runtime.images(seen, factor), rng, settings.mirror)
    real, given = real.split([spec.channels, spec.given], 1)
    z = torch.randn(len(real), spec.latent, generator=rng, device=runtime.device)
    y = told = z[:, :0]
    if objective.conditioning.labelled and labels is not None:
        y = one_hot(runtime.moved(labels), gan.discriminator.spec.classes)
        told = y if objective.conditioning.told else told
    elif spec.classes:
        drawn = torch.randint(1 << 30, (len(real),), generator=rng, device=runtime.device)
        numbers = torch.randn(len(real), spec.continuous, generator=rng, device=runtime.device)
        y = told = torch.cat([one_hot(drawn, spec.categories), numbers], 1)
    given = given.flatten(1)
    return real, torch.cat([z, told, given], 1), y, given, rng


def _descend(losses: dict[str, Tensor], parts: int, terms: dict[str, Tensor]) -> None:
    """Add the gradients of one of so many parts of a batch, and its losses to ``terms``."""
    total = torch.stack(list(losses.values())).sum()
    (total if parts == 1 else total / parts).backward()
    for name, value in losses.items():
        terms[name] = terms.get(name, 0) + value.detach() / parts


def _reals(gan: Gan, real: Tensor, rng: torch.Generator, mirror: bool) -> Tensor:
    """Return reals of the pair's resolution, blended as the fakes are while a size fades in."""
    factor = max(gan.generator.fade_factor, gan.discriminator.fade_factor)
    if factor > 1:
        real = torch.lerp(upsample(downsample(real, factor), factor), real, gan.generator.alpha)
    if mirror:
        flip = torch.rand(len(real), 1, 1, 1, generator=rng, device=real.device) < 0.5
        real = torch.where(flip, real.flip(3), real)
    return real


def rates(settings: Settings, progress: float, images: int) -> tuple[float, float]:
    """Return G's and D's rates: they hold, fall as 1/sqrt(images), to 0 over ``anneal``.

    Args:
        progress: of the run, 0 to 1.
        images: that the pair has seen.
    """
    left = (1 - progress) / settings.anneal if settings.anneal else 1.0
    own = settings.optimiser
    aged = sqrt(max(1.0, images / own.decay)) if own.decay else 1.0
    share = min(1.0, max(left, 0.0)) / aged
    return share * own.lr, share * (own.discriminator_lr or own.lr)


def set_rates(gan: Gan, settings: Settings, progress: float) -> None:
    """Set both players' rates to those of this moment."""
    optimisers = (gan.generator_optimiser, gan.discriminator_optimiser)
    for rate, optimiser in zip(rates(settings, progress, gan.images), optimisers, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = rate


def _check_finite(terms: dict[str, Tensor]) -> None:
    for name, term in terms.items():
        value = float(term)
        if not isfinite(value):
            raise Diverged(f"{name} became {value}: the run diverged (try a smaller rate)")
