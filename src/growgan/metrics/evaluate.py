"""Measure one set of images against another: every metric asked for, each with its protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growgan.data.files import combine, default_cache
from growgan.data.images import ImageSet
from growgan.errors import UserError
from growgan.metrics.domain import shrink
from growgan.metrics.features import Extractor, domain_extractor
from growgan.metrics.networks import check_features, load_extractor
from growgan.metrics.protocol import Figure
from growgan.metrics.side import Digest, Stored, classifier
from growgan.metrics.suite import METRICS, Comparison, Need
from growgan.metrics.watch import Watch, unwatched

USUAL = ("fid", "kid", "precision", "recall", "density", "coverage", "swd", "ms-ssim")
SAMPLES = 10_000  # that are drawn from a run


class Model(Protocol):
    """What a run's model can do: draw images uint8 [N, H, W, C].

    One with a single generator has ``network()``. A conditional one has ``classes``, their names,
    and ``labels(count)``: those that it draws.
    """

    def sample(self, count: int, *, seed: int = 0) -> NDArray[np.uint8]: ...


class Grown(Protocol):
    """A run, of which the best model is measured."""

    @property
    def best(self) -> Model: ...


Source = Grown | Model | ImageSet | NDArray[np.uint8]


@dataclass(frozen=True)
class Evaluation(Mapping[str, Figure]):
    """Figures by metric, and why the others are missing."""

    figures: Mapping[str, Figure]
    skipped: Mapping[str, str]

    def __getitem__(self, name: str) -> Figure:
        return self.figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.figures)

    def __len__(self) -> int:
        return len(self.figures)

    def to_json(self) -> dict[str, Any]:
        """Return plain data that :meth:`from_json` reads back."""
        figures = {name: figure.to_json() for name, figure in self.figures.items()}
        return {"metrics": figures, "skipped": dict(self.skipped)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Rebuild an evaluation; raise a :class:`UserError` for anything that is not one."""
        try:
            figures = {name: Figure.from_json(each) for name, each in data["metrics"].items()}
            return cls(figures, dict(data.get("skipped", {})))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise UserError(f"this is no evaluation: {error}") from error


def evaluate(
    fake: Source,
    real: Source,
    *,
    metrics: str | Sequence[str] = (),
    features: str = "domain",
    resize: str = "clean",
    count: int | None = None,
    real_count: int | None = None,
    held_out: ImageSet | NDArray[np.uint8] | None = None,
    preparation: str = "none",
    seed: int = 0,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    watch: Watch = unwatched,
) -> Evaluation:
    """Measure ``fake`` against ``real``.

    Args:
        fake: a run, its model, an :class:`ImageSet`, or uint8 [N, H, W, C].
        real: the reference, as many channels, and the same resolution (or a multiple of that of a
            model that stopped below it: reals are then averaged down, as in the search).
        metrics: one name or several of :data:`METRICS`, or "all"; those that usually apply if
            empty. What was not named and cannot be had is left out with its reason.
        features: "domain" (trained on ``real`` once), "pixels", "inception", "dinov2", "clip", such
            a network with its weights ("inception:FILE.pt"), or any TorchScript "FILE.pt".
        resize: to inception's input: "clean", or a legacy way of :data:`RESIZES`.
        count: fakes at most: 10,000 of a run, all of a set by default. ``real_count``: reals.
        held_out: reals that are not in ``real``, which "cas" and "memorisation" need.
        preparation: how the images were brought to their resolution, for the protocol.
        seed: of every draw.
        watch: told what is being done.

    Raises:
        UserError: an unknown name, images that do not fit each other, weights that cannot be had,
            or a metric that was asked for by name and cannot be taken.
    """
    cache = cache or default_cache()
    check_features(features, resize)
    metrics = [metrics] if isinstance(metrics, str) else metrics
    strict = bool(metrics) and "all" not in metrics
    wanted = [entry.name for entry in METRICS] if "all" in metrics else list(metrics or USUAL)
    needs = {name: METRICS[name].needs for name in wanted}
    walks = any("generator" in each for each in needs.values())
    sets = _load(fake, real, held_out, count, seed, watch)
    extractor = _Once(partial(_extractor, features, resize, sets.reals, cache, device, watch))
    skipped = _skipped(needs, _missing(sets), extractor)
    if strict and skipped:
        raise UserError(": ".join(next(iter(skipped.items()))))
    side = partial(_side, extractor=extractor, cache=cache, watch=watch)
    comparison = Comparison(
        fake=side(sets.fakes, "fakes"),
        real=side(_chosen(sets.reals, real_count, seed), "reals"),
        held_out=side(sets.held_out, "held-out reals") if sets.held_out else None,
        generator=_Walk(sets.network()) if sets.network and walks else None,
        seed=seed,
        preparation=preparation,
        watch=watch,
    )
    return _measure(comparison, [n for n in wanted if n not in skipped], skipped, strict, watch)


@dataclass(frozen=True)
class _Sets:
    """What was given, as images of one shape, and the model that drew the fakes, if any."""

    fakes: ImageSet
    reals: ImageSet
    held_out: ImageSet | None
    model: Model | None

    @property
    def network(self) -> Callable[[], Any] | None:
        """What gives the model's one generator, if there is one."""
        return getattr(self.model, "network", None)


def _load(
    fake: Source,
    real: Source,
    held_out: ImageSet | NDArray[np.uint8] | None,
    count: int | None,
    seed: int,
    watch: Watch,
) -> _Sets:
    fakes, model = _images(fake, "fakes", count, seed, watch)
    # Reals that a model draws are of other latents than the fakes are.
    reals, _ = _images(real, "reals", None, seed + 1, watch)
    held = None if held_out is None else _images(held_out, "held-out reals", None, seed, watch)[0]
    if model is not None:
        reals = _shrunk(reals, fakes)
        held = held and _shrunk(held, fakes)
    for other in (fakes, held):
        _check_fit(other, reals)
    return _Sets(fakes, reals, held, model)


def _skipped(
    needs: Mapping[str, frozenset[Need]], missing: Mapping[Need, str], extractor: _Once
) -> dict[str, str]:
    """Return the metrics that cannot be taken, and why, before any is taken."""
    missing = dict(missing)
    kinds: tuple[Need, ...] = ("features", "probabilities")
    for need in kinds:
        if any(need in each and not each & set(missing) for each in needs.values()):
            missing.update(extractor.problem(need))
    return {
        name: next(missing[need] for need in sorted(each) if need in missing)
        for name, each in needs.items()
        if each & set(missing)
    }


def _measure(
    c: Comparison, wanted: Sequence[str], skipped: dict[str, str], strict: bool, watch: Watch
) -> Evaluation:
    """Take the metrics; what the images are unfit for is an error, or left out with the reason."""
    figures: dict[str, Figure] = {}
    for name in wanted:
        watch(name, 0, 1)
        try:
            figures[name] = METRICS[name].take(c)
        except (UserError, ValueError) as error:
            if strict:
                raise UserError(f"{name}: {error}") from error
            skipped[name] = str(error)
        watch(name, 1, 1)
    return Evaluation(figures, skipped)


def _missing(sets: _Sets) -> dict[Need, str]:
    """Return what metrics cannot have here, and why."""
    missing: dict[Need, str] = {}
    reals, held = sets.reals, sets.held_out
    if sets.network is None:
        missing["generator"] = "needs a generator's latents: FAKE must be a run"
    if held is None:
        missing["held out"] = "needs reals that are not in REAL: give them as --held-out DATA"
    for name, images in (("fakes", sets.fakes), ("reals", reals), ("held-out reals", held)):
        if images is not None and (images.labels is None or not (images.labels >= 0).any()):
            missing.setdefault("labels", f"needs labels, but the {name} have none")
        elif images is not None and images.classes != reals.classes:
            names = [", ".join(each.classes[:12]) for each in (images, reals)]
            missing.setdefault(
                "labels", f"needs the same classes, but the {name} have {names[0]}: not {names[1]}"
            )
    return missing


class _Once:
    """An extractor that is made when it is first asked for; a failure is remembered, too."""

    def __init__(self, make: Callable[[], Extractor]) -> None:
        self._make = make
        self._made: Extractor | UserError | None = None

    def __call__(self) -> Extractor:
        if self._made is None:
            try:
                self._made = self._make()
            except UserError as error:
                self._made = error
        if isinstance(self._made, UserError):
            raise self._made
        return self._made

    def problem(self, need: Need) -> dict[Need, str]:
        """Return why ``need`` cannot be had, if it cannot."""
        try:
            extractor = self()
            if need == "probabilities":
                classifier(extractor)
        except UserError as error:
            return {need: str(error)}
        return {}


class _Walk:
    """A generator's network as a function of latents."""

    def __init__(self, network: Any) -> None:
        self.network, self.latent = network, int(network.spec.latent)

    def __call__(self, z: Tensor) -> Tensor:
        images: Tensor = self.network(self.network.labelled(z))
        return images


def _images(
    source: Source, name: str, count: int | None, seed: int, watch: Watch
) -> tuple[ImageSet, Model | None]:
    """Return the images of ``source``, at most ``count``, and the model that drew them, if any."""
    if isinstance(source, ImageSet):
        return _chosen(source, count, seed), None
    if isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim == 4:
        images = np.ascontiguousarray(source.transpose(0, 3, 1, 2))
        return _chosen(ImageSet(name, images, None, (), ""), count, seed), None
    model: Any = getattr(source, "best", source)
    if not hasattr(model, "sample"):
        raise UserError(
            f"{name} must be a run, an ImageSet (see load_images) or a uint8 array [N, H, W, C]"
        )
    _check_count(count)
    watch(f"drawing {name}", 0, 1)
    drawn = model.sample(count or SAMPLES, seed=seed).transpose(0, 3, 1, 2)
    watch(f"drawing {name}", 1, 1)
    classes = getattr(model, "classes", ())
    labels = model.labels(len(drawn)) if classes else None
    return ImageSet(name, np.ascontiguousarray(drawn), labels, classes, ""), model


def _check_count(count: int | None) -> None:
    if count is not None and count < 1:
        raise UserError(f"a count of images must be at least 1, but got {count}")


def _chosen(images: ImageSet, count: int | None, seed: int) -> ImageSet:
    """Return ``count`` of the images, drawn by ``seed``, so that an order by class does no harm."""
    _check_count(count)
    if not len(images):
        raise UserError(f"{images.name} hold no image")
    if count is None or count >= len(images):
        return images
    rows = np.sort(np.random.default_rng(seed).permutation(len(images))[:count])
    return _named(images.subset(rows), images)


def _named(images: ImageSet, source: ImageSet) -> ImageSet:
    """Return ``images`` without a fingerprint if ``source``, of which they are made, had none."""
    return images if source.fingerprint else replace(images, fingerprint="")


def _shrunk(reals: ImageSet, fakes: ImageSet) -> ImageSet:
    """Return ``reals`` averaged down to the resolution of ``fakes``, where that divides theirs."""
    size, own = fakes.resolution, reals.resolution
    if own == size or own[0] % size[0] or own[1] % size[1]:
        return reals
    parts = [
        shrink(torch.from_numpy(np.array(reals.images[i : i + 1024])), size).numpy()
        for i in range(0, len(reals), 1024)
    ]
    digest = combine(reals.fingerprint, "area", *size)
    return _named(replace(reals, images=np.concatenate(parts), fingerprint=digest), reals)


def _check_fit(images: ImageSet | None, reals: ImageSet) -> None:
    if images is not None and images.images.shape[1:] != reals.images.shape[1:]:
        shapes = [
            f"{h}x{w} with {c} channel{'s' * (c > 1)}"
            for c, h, w in (images.images.shape[1:], reals.images.shape[1:])
        ]
        raise UserError(
            f"images of {shapes[0]} cannot be compared with reals of {shapes[1]}: load both at one "
            "resolution (--resolution) with as many channels"
        )


def _extractor(
    features: str,
    resize: str,
    reals: ImageSet,
    cache: Path,
    device: torch.device | str,
    watch: Watch,
) -> Extractor:
    watch(f"features '{features}'", 0, 1)
    if features == "domain":
        extractor: Extractor = domain_extractor(
            reals.images,
            reals.labels,
            fingerprint=reals.fingerprint or Digest.of(reals.images),
            cache=cache,
            device=device,
            progress=partial(watch, "training of the features"),
        )
    else:
        extractor = load_extractor(features, cache=cache, resize=resize, device=device)
    watch(f"features '{features}'", 1, 1)
    return extractor


def _side(images: ImageSet, name: str, **how: Any) -> Stored:
    return Stored(images.images, images.labels, name=name, identity=images.fingerprint, **how)
