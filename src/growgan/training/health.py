"""Health checks: measure a GAN after a segment, name the failure, and propose a mitigation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import sqrt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from growgan.config import Settings
from growgan.nets.conditioning import append_condition
from growgan.objectives.gradient_penalties import GAMMA_PER_PIXEL
from growgan.objectives.weight_regularizers import weight_matrices
from growgan.training.gan import Gan

MAX_MITIGATIONS = 3  # number of mitigations after which a run stops with the diagnosis
NUM_HEALTH_CHECK_IMAGES = 512  # images of each kind: training, held out, fake
# Largest healthy ratio of a singular value to that of a random weight of unit gain. It is 1.4 at
# initialization and below 5 in healthy runs.
MAX_SPECTRAL_RATIO = 15.0
# Images and steps of G before low diversity or a strong D indicate a failure.
WARMUP_IMAGES = 5_000
WARMUP_GENERATOR_STEPS = 150
MIN_IMAGES_FOR_CONSTANT_OUTPUT = 1_000  # images before a constant output indicates a failure
DISCRIMINATOR_WON_RATE = 0.995  # win rate of D from which D separates everything
DISCRIMINATOR_AHEAD_RATE = 0.97  # win rate of D that is too high if the score also gets worse
# D has won if it separates everything and the score does not improve for this many segments and
# steps of G. With low learning rates progress takes long to show.
MIN_STALLED_SEGMENTS = 3
MIN_STALLED_GENERATOR_STEPS = 1_000
MAX_JSON_FLOAT = 1e30  # replaces NaN and infinities, which JSON does not have

SingularValuesByLayer = dict[Literal["generator", "discriminator"], dict[str, list[float]]]


@dataclass(frozen=True)
class HealthMetrics:
    """Measurements of a GAN at the end of a segment.

    The win rate of D is the probability that D rates a random real image above a random fake.

    Attributes:
        images_seen: Real images that the GAN has seen.
        all_finite: Whether all weights, buffers and moments are finite.
        score: The candidate's score (lower is better; 1 is a constant output), or None.
        diversity_ratio: Standard deviation of the fakes' pixels, divided by that of real images.
        real_std: Mean standard deviation of the real images' pixels, as a fraction of their range.
        train_win_rate: Win rate of D over training images.
        held_out_win_rate: Win rate of D over held-out images; None if there are none.
        discriminator_spectral_norm: Largest singular value of the effective weights of D.
        copy_fraction: Fraction of fakes that are as near to a training image as few real images
            are; None if it was not measured.
        score_stderr: Standard error of the score.
        gradient_norm: Larger one of the norms of G's and D's gradients, averaged by Adam.
        best_score: Best score of the lineage that was better beyond its standard error.
        stalled_segments: Number of segments since ``best_score`` in which D separated everything,
            or nearly everything while the score got worse.
        generator_steps: Steps of G.
        best_score_generator_steps: Steps of G when ``best_score`` was reached.
        generator_spectral_norm: Largest singular value of the effective weights of G.
        spectral_ratio: Largest ratio of a singular value of D to the expected one of a random
            weight of this shape with unit gain.
        singular_values: The three largest singular values of each weight, to four digits.
    """

    images_seen: int
    all_finite: bool
    score: float | None
    diversity_ratio: float
    real_std: float
    train_win_rate: float
    held_out_win_rate: float | None
    discriminator_spectral_norm: float
    copy_fraction: float | None = None
    score_stderr: float = 0.0
    gradient_norm: float = 0.0
    best_score: float | None = None
    stalled_segments: int = 0
    generator_steps: int = 0
    best_score_generator_steps: int = 0
    generator_spectral_norm: float = 0.0
    spectral_ratio: float = 0.0
    singular_values: SingularValuesByLayer = field(default_factory=dict)

    @property
    def is_warmed_up(self) -> bool:
        """Whether the GAN has trained long enough for its fakes to be informative."""
        return self.images_seen >= WARMUP_IMAGES and self.generator_steps >= WARMUP_GENERATOR_STEPS

    @property
    def win_rate(self) -> float:
        """Win rate of D over held-out images, or over training images if none are held out."""
        return self.train_win_rate if self.held_out_win_rate is None else self.held_out_win_rate

    def with_history(self, previous: HealthMetrics | None) -> HealthMetrics:
        """Return these metrics with best score and stalled segments, given the parent's metrics."""
        best_score, best_score_steps = None, self.generator_steps
        if previous is not None:
            best_score = previous.score if previous.best_score is None else previous.best_score
            best_score_steps = previous.best_score_generator_steps
        if (
            self.score is None
            or best_score is None
            or self.score < best_score - 2 * self.score_stderr
        ):
            return replace(
                self,
                best_score=self.score,
                best_score_generator_steps=self.generator_steps,
                stalled_segments=0,
            )
        got_worse = self.score > 1.5 * best_score + 2 * self.score_stderr
        threshold = DISCRIMINATOR_AHEAD_RATE if got_worse else DISCRIMINATOR_WON_RATE
        stalled_segments = 0
        if previous is not None and min(self.win_rate, previous.train_win_rate) > threshold:
            stalled_segments = previous.stalled_segments + 1
        return replace(
            self,
            best_score=best_score,
            best_score_generator_steps=best_score_steps,
            stalled_segments=stalled_segments,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data from which ``HealthMetrics(**data)`` is equal, except for NaN."""
        return {key: _clip_for_json(value) for key, value in asdict(self).items()}


def _clip_for_json(value: Any) -> Any:
    """Return plain data in which :data:`MAX_JSON_FLOAT` replaces numbers that JSON lacks."""
    if isinstance(value, dict):
        return {key: _clip_for_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_clip_for_json(item) for item in value]
    if isinstance(value, float) and not abs(value) <= MAX_JSON_FLOAT:
        return MAX_JSON_FLOAT
    return value


@dataclass(frozen=True)
class Diagnosis:
    """A training failure.

    Attributes:
        failure: Its name, a key of :data:`FAILURE_DETECTORS`.
        message: A sentence for the user.
    """

    failure: str
    message: str


class Mitigation(NamedTuple):
    """A change of the settings against a training failure.

    Attributes:
        settings: The changed settings, nested by name.
        description: The change in words.
    """

    settings: dict[str, Any]
    description: str


@torch.no_grad()
def measure_health(
    gan: Gan,
    train_images: Tensor,
    held_out_images: Tensor | None,
    *,
    score: float | None,
    score_stderr: float = 0.0,
    copy_fraction: float | None = None,
    train_condition: Tensor | None = None,
    held_out_condition: Tensor | None = None,
    batch_size: int = NUM_HEALTH_CHECK_IMAGES,
) -> HealthMetrics:
    """Measure the health of a GAN.

    Args:
        gan: The networks with their optimizers.
        train_images: Training images, float [N, C, H, W] in [-1, 1], at the GAN's resolution.
        held_out_images: Images that are not in the training set, likewise; None if there are none.
        score: The candidate's score, or None.
        score_stderr: Standard error of the score.
        copy_fraction: Fraction of fakes that are copies of training images, or None.
        train_condition: Labels and source images of ``train_images``, float [N, C]; or None.
        held_out_condition: The same of ``held_out_images``.
        batch_size: Number of images per forward pass.
    """
    real_std = float(train_images.std(0).mean()) / 2
    if not is_finite(gan):
        return HealthMetrics(
            images_seen=gan.images_seen,
            all_finite=False,
            score=None,
            diversity_ratio=0.0,
            real_std=real_std,
            train_win_rate=0.5,
            held_out_win_rate=None,
            discriminator_spectral_norm=MAX_JSON_FLOAT,
        )

    # Fakes of the moving average, with the conditions of the training images.
    spec, rng = gan.generator.spec, torch.Generator().manual_seed(0)
    z = torch.randn(len(train_images), spec.latent_dim, generator=rng).to(train_images.device)
    if train_condition is None:
        generator_input = append_condition(spec, z)
    else:
        generator_input = torch.cat([z, train_condition], 1)
    fakes = torch.cat([gan.ema(part) for part in generator_input.split(batch_size)])

    fake_logits = _realness_logits(gan, fakes, generator_input[:, spec.latent_dim :], batch_size)
    train_logits = _realness_logits(gan, train_images, train_condition, batch_size)
    held_out_win_rate = None
    if held_out_images is not None:
        held_out_logits = _realness_logits(gan, held_out_images, held_out_condition, batch_size)
        held_out_win_rate = _win_rate(held_out_logits, fake_logits)

    generator_moments, discriminator_moments = gan.optimizer_moments()
    generator_values = top_singular_values(gan.generator)
    discriminator_values = top_singular_values(gan.discriminator)
    return HealthMetrics(
        images_seen=gan.images_seen,
        generator_steps=int(max(generator_moments["step"].values(), default=0)),
        all_finite=True,
        score=score,
        score_stderr=score_stderr,
        diversity_ratio=float(fakes.std(0).mean()) / 2 / max(real_std, 1e-6),
        real_std=real_std,
        train_win_rate=_win_rate(train_logits, fake_logits),
        held_out_win_rate=held_out_win_rate,
        copy_fraction=copy_fraction,
        gradient_norm=max(
            _global_norm(moments["exp_avg"].values())
            for moments in (generator_moments, discriminator_moments)
        ),
        generator_spectral_norm=max(values[0] for values in generator_values.values()),
        discriminator_spectral_norm=max(values[0] for values in discriminator_values.values()),
        spectral_ratio=max(
            discriminator_values[name][0] / _expected_spectral_norm(matrix)
            for name, matrix in weight_matrices(gan.discriminator)
        ),
        singular_values={"generator": generator_values, "discriminator": discriminator_values},
    )


def _expected_spectral_norm(matrix: Tensor) -> float:
    """Return the expected largest singular value of a random weight [..., out, in] of unit gain.

    It is 1 + sqrt(out / in) for independent entries of variance 1 / in (Bai & Yin 1993): 23 for a
    layer from one gray channel to 512 channels.
    """
    num_outputs, num_inputs = matrix.shape[-2:]
    return 1 + sqrt(num_outputs / num_inputs)


def is_finite(gan: Gan) -> bool:
    """Return whether all weights, buffers and moments are finite."""
    tensors = [
        tensor
        for network in (gan.generator, gan.discriminator, gan.ema)
        for tensor in network.state_dict().values()
    ]
    for moments in gan.optimizer_moments():
        for by_name in moments.values():
            tensors.extend(by_name.values())
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _global_norm(tensors: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all elements together."""
    return sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5


def _realness_logits(gan: Gan, images: Tensor, condition: Tensor | None, batch_size: int) -> Tensor:
    """Return D's logits of ``images``, with the sign by which higher means more real."""
    sign = -1 if gan.discriminator.spec.is_autoencoder else 1  # Real images have a smaller error.
    discriminator = gan.discriminator.eval()
    image_batches = images.split(batch_size)
    conditions = [None] * len(image_batches) if condition is None else condition.split(batch_size)
    logits = [
        discriminator(image_batch, condition_batch)
        for image_batch, condition_batch in zip(image_batches, conditions, strict=True)
    ]
    discriminator.train()
    return sign * torch.cat(logits)


def _win_rate(real_logits: Tensor, fake_logits: Tensor) -> float:
    """Return the probability that a real image has the larger logit; ties count one half."""
    # A patch discriminator has several logits per image: use their mean.
    real_logits, fake_logits = (
        logits.flatten(1).mean(1) if logits.ndim > 1 else logits
        for logits in (real_logits, fake_logits)
    )
    difference = real_logits[:, None] - fake_logits[None, :]
    return float((difference > 0).float().mean() + 0.5 * (difference == 0).float().mean())


def top_singular_values(network: torch.nn.Module, count: int = 3) -> dict[str, list[float]]:
    """Return the ``count`` largest singular values of each effective weight, by layer name.

    Values have four digits. BigGAN monitors them (Brock et al. 2019, section 4): a first singular
    value that explodes announces a collapse.
    """
    top_values = {}
    for name, matrix in weight_matrices(network):
        weight = matrix.detach().double()  # Squares of weights above 1e19 overflow in float32.
        gram = weight @ weight.mT if weight.shape[-2] <= weight.shape[-1] else weight.mT @ weight
        squares = torch.linalg.eigvalsh(gram).flatten().sort(descending=True).values
        values = squares.clamp(min=0).sqrt()
        top_values[name] = [float(f"{value:.4g}") for value in values[:count].tolist()]
    return top_values


def diagnose(
    metrics: HealthMetrics,
    previous: HealthMetrics | None,
    *,
    grew: bool = False,
    loss_ranks_real_above_fake: bool = True,
    generator_predicts_mean: bool = False,
) -> Diagnosis | None:
    """Return the first failure that is detected, or None.

    Args:
        metrics: Metrics of the GAN.
        previous: Latest metrics of its lineage without a failure.
        grew: Whether the GAN has just grown, which may change its score.
        loss_ranks_real_above_fake: Whether D is trained to rate real images above fakes. If not,
            its win rate says nothing.
        generator_predicts_mean: Whether G's loss favors the mean of all plausible images, as L1
            does. Low diversity is then no failure.
    """
    if not loss_ranks_real_above_fake:
        metrics = replace(metrics, train_win_rate=0.5, held_out_win_rate=None, stalled_segments=0)
    if generator_predicts_mean:
        metrics = replace(metrics, diversity_ratio=max(1.0, metrics.diversity_ratio))
    for failure, detect in FAILURE_DETECTORS.items():
        message = detect(metrics, previous, grew)
        if message is not None:
            return Diagnosis(failure, message)
    return None


def _detect_divergence(
    metrics: HealthMetrics, previous: HealthMetrics | None, grew: bool
) -> str | None:
    return None if metrics.all_finite else "training diverged: some weights are NaN or infinite"


def _detect_constant_data(
    metrics: HealthMetrics, previous: HealthMetrics | None, grew: bool
) -> str | None:
    if metrics.real_std < 1e-3:
        return "all training images are alike, so there is only one image to learn"
    return None


def _detect_instability(
    metrics: HealthMetrics, previous: HealthMetrics | None, grew: bool
) -> str | None:
    if metrics.spectral_ratio > MAX_SPECTRAL_RATIO:
        return (
            "D's weights exploded: a singular value is"
            f" {metrics.spectral_ratio:.0f} times that of a random weight"
        )
    if metrics.is_warmed_up and metrics.train_win_rate < 0.02:
        return "D broke down: it rates every fake above the training images"
    if previous is None or metrics.score is None or previous.score is None or grew:
        return None
    if metrics.score > max(4 * previous.score, previous.score + 0.2):
        return (
            "training became unstable: the score rose from"
            f" {previous.score:.3g} to {metrics.score:.3g}"
        )
    return None


def _detect_memorization(
    metrics: HealthMetrics, previous: HealthMetrics | None, grew: bool
) -> str | None:
    if metrics.copy_fraction is not None and metrics.copy_fraction > 0.5:
        return (
            "G memorized training images:"
            f" {metrics.copy_fraction:.0%} of the fakes are copies of them"
        )
    if not metrics.is_warmed_up or metrics.held_out_win_rate is None:
        return None
    if metrics.train_win_rate - metrics.held_out_win_rate > 0.2:
        return (
            f"D memorized the training images: it rates {metrics.train_win_rate:.0%} of them above"
            f" fakes, but only {metrics.held_out_win_rate:.0%} of held-out images"
        )
    return None


def _detect_mode_collapse(
    metrics: HealthMetrics, previous: HealthMetrics | None, grew: bool
) -> str | None:
    is_constant = (
        metrics.images_seen >= MIN_IMAGES_FOR_CONSTANT_OUTPUT
        and metrics.diversity_ratio < 0.02
        and (metrics.score or 0) > 0.95
    )
    is_rising = (
        previous is None or metrics.diversity_ratio > 1.2 * previous.diversity_ratio
    )  # G has only begun to make images.
    has_collapsed = metrics.is_warmed_up and metrics.diversity_ratio < 0.25 and not is_rising
    if not is_constant and not has_collapsed:
        return None
    return (
        "G collapsed to few modes: its images have"
        f" {metrics.diversity_ratio:.0%} of the diversity of real images"
    )


def _detect_discriminator_won(
    metrics: HealthMetrics, previous: HealthMetrics | None, grew: bool
) -> str | None:
    stalled_steps = metrics.generator_steps - metrics.best_score_generator_steps
    if (
        metrics.stalled_segments < MIN_STALLED_SEGMENTS
        or stalled_steps < MIN_STALLED_GENERATOR_STEPS
        or not metrics.is_warmed_up
        or grew
    ):
        return None
    return (
        f"D won: it separates {metrics.win_rate:.1%} of real images from fakes, and G has not"
        f" improved for {metrics.stalled_segments} segments"
    )


FAILURE_DETECTORS: Mapping[
    str, Callable[[HealthMetrics, HealthMetrics | None, bool], str | None]
] = {
    "divergence": _detect_divergence,
    "constant data": _detect_constant_data,
    "instability": _detect_instability,
    "memorization": _detect_memorization,
    "mode collapse": _detect_mode_collapse,
    "discriminator won": _detect_discriminator_won,
}


def mitigation(failure: str, settings: Settings) -> Mitigation | None:
    """Return what to change in ``settings`` against ``failure``, or None if nothing helps."""
    if failure in ("divergence", "instability"):
        lr = settings.optimizer.lr
        return Mitigation(
            _reduce_learning_rates(settings, 3),
            f"a learning rate of {lr / 3:.2g} instead of {lr:.2g}",
        )
    stronger_r1 = _increase_r1(settings)
    if failure == "mode collapse":
        return Mitigation(
            {**stronger_r1.settings, **_reduce_learning_rates(settings, 2)},
            f"{stronger_r1.description} and half the learning rate",
        )
    if failure == "memorization" and settings.augmentation == "none":
        return Mitigation({"augmentation": "ada"}, "adaptive augmentation (ada)")
    return stronger_r1 if failure in ("memorization", "discriminator won") else None


def _increase_r1(settings: Settings) -> Mitigation:
    """Return an R1 penalty with four times its weight, or the default R1 if there was none."""
    r1 = settings.regularizers.get("r1")
    if r1 is not None:
        option = "gamma" if r1.get("gamma") is not None else "gamma_per_pixel"
        weight = r1.get(option)
        weight = GAMMA_PER_PIXEL if weight is None else weight
        if weight > 0:
            return Mitigation({"regularizers": {"r1": {option: 4 * weight}}}, "4 times R1's weight")
    default: dict[str, float | None] = {"gamma": None, "gamma_per_pixel": GAMMA_PER_PIXEL}
    return Mitigation({"regularizers": {"r1": default}}, "an R1 penalty")


def _reduce_learning_rates(settings: Settings, divisor: float) -> dict[str, Any]:
    """Return settings in which the learning rates of G and D are divided by ``divisor``."""
    optimizer = settings.optimizer
    discriminator_lr = optimizer.discriminator_lr and optimizer.discriminator_lr / divisor
    return {"optimizer": {"lr": optimizer.lr / divisor, "discriminator_lr": discriminator_lr}}
