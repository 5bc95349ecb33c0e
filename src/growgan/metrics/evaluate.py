"""Measure one set of images against another: every metric asked for, each with its protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growgan.data.files import default_cache
from growgan.data.images import ImageSet
from growgan.errors import UserError
from growgan.metrics.features import Extractor, domain_extractor
from growgan.metrics.networks import check_features, load_extractor
from growgan.metrics.protocol import Figure
from growgan.metrics.side import Digest, Stored, classifier
from growgan.metrics.sources import Model, Source, check_fit, chosen, images_of, shrunk
from growgan.metrics.suite import METRICS, Comparison, Need
from growgan.metrics.watch import Watch, unwatched

USUAL = ("fid", "kid", "precision", "recall", "density", "coverage", "swd", "ms-ssim")
ALONE = ("intra-fid",)  # metrics that look at each class alone, and so at as many of each


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
        count: fakes at most: 10,000 of a run, all of a set by default. ``real_count``: reals. A
            conditional run draws its classes as often as ``real`` has them, and as many of each for
            what is measured within each.
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
    sets = _load(fake, real, held_out, count, seed, watch, wanted)
    extractor = _Once(partial(_extractor, features, resize, sets.reals, cache, device, watch))
    skipped = _skipped(needs, _missing(sets), extractor)
    if strict and skipped:
        raise UserError(": ".join(next(iter(skipped.items()))))
    side = partial(_side, extractor=extractor, cache=cache, watch=watch)
    comparison = Comparison(
        fake=side(sets.fakes, "fakes"),
        real=side(chosen(sets.reals, real_count, seed), "reals"),
        held_out=side(sets.held_out, "held-out reals") if sets.held_out else None,
        generator=_Walk(sets.network()) if sets.network and walks else None,
        seed=seed,
        preparation=preparation,
        watch=watch,
    )
    looks = _looks(comparison, [n for n in wanted if n not in skipped], sets, side)
    return _measure(looks, skipped, strict, watch)


@dataclass(frozen=True)
class _Sets:
    """What was given, as images of one shape, and the model that drew the fakes, if any.

    ``even`` draws fakes anew, as many of each class, None where ``fakes`` are such or were given.
    """

    fakes: ImageSet
    reals: ImageSet
    held_out: ImageSet | None
    model: Model | None
    even: Callable[[], ImageSet] | None

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
    wanted: Sequence[str],
) -> _Sets:
    draw = partial(images_of, fake, "fakes", count, seed, watch)
    alone = set(wanted) <= set(ALONE)
    # Reals that a model draws are of other latents than the fakes are.
    reals, _ = images_of(real, "reals", None, seed + 1, watch)
    fakes, model = draw(None if alone else reals)
    held = None if held_out is None else images_of(held_out, "held-out reals", None, seed, watch)[0]
    if model is not None:
        reals = shrunk(reals, fakes)
        held = held and shrunk(held, fakes)
    for other in (fakes, held):
        check_fit(other, reals)
    even = None if model is None or alone else lambda: draw()[0]
    return _Sets(fakes, reals, held, model, even)


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


def _looks(
    c: Comparison, wanted: Sequence[str], sets: _Sets, side: Callable[[ImageSet, str], Stored]
) -> dict[str, Comparison]:
    """Return what each metric compares: what looks at each class alone, as many fakes of each."""
    if sets.even is None or not set(wanted) & set(ALONE):
        return dict.fromkeys(wanted, c)
    within = replace(c, fake=side(sets.even(), "fakes"))
    return {name: within if name in ALONE else c for name in wanted}


def _measure(
    looks: Mapping[str, Comparison], skipped: dict[str, str], strict: bool, watch: Watch
) -> Evaluation:
    """Take the metrics; what the images are unfit for is an error, or left out with the reason."""
    figures: dict[str, Figure] = {}
    for name, c in looks.items():
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
