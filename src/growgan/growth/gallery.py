"""What a finished pair has learnt, for the report: walks, nearest images, truncation, classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from growgan.config import Settings
from growgan.data import ImageSet, default_cache
from growgan.data.files import replace_file
from growgan.errors import UserError
from growgan.growth.budget import Budget
from growgan.growth.model import Model, Sheet
from growgan.growth.run import Run, check_out
from growgan.growth.scoring import make_scorer
from growgan.metrics.distances import frechet_of_samples
from growgan.metrics.features import Extractor
from growgan.metrics.neighbours import nearest, neighbourhoods
from growgan.metrics.side import Stored
from growgan.nets.players import Discriminator
from growgan.nets.wishes import one_hot
from growgan.report.sheet import save_sheet
from growgan.training.checkpoint import load_gan
from growgan.training.doctor import LOOKED_AT
from growgan.training.gan import Gan, latents

PICKS, STEPS = (0, 1, 2, 3), 8  # of the walk: as many rows as ways
SHOWN = 16  # samples beside their nearest images
COMPARED = 2_000  # samples, and reals, for a point of the curve
CUTS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # deviations beyond which latents are redrawn
KINDS, COLUMNS = 12, 8  # classes on a sheet, and latents of each
SWEEPS = 3  # latents of each continuous code
MORPHED, WAY = 4, 4  # classes that become each other, and images on a way
SHARES = (0.25, 0.5, 0.75, 1.0)  # of a style's distance to the mean one

Curve = list[dict[str, float | None]]


def write_gallery(run: Run, data: ImageSet | None = None) -> Path:
    """Write ``RUN/gallery``: a walk, and with ``data`` nearest images and a truncation curve.

    Raises:
        UserError: ``data`` is not what the run was trained on, or the run has nothing to show yet.
    """
    if data is not None:
        check_out(run.path, data, resume=True)
    folder, model = run.path / "gallery", run.best
    folder.mkdir(exist_ok=True)
    walk = model.walk(PICKS, STEPS)[: STEPS * (len(PICKS) - 1)]
    save_sheet(walk.transpose(0, 3, 1, 2), folder / "walk.png", STEPS)
    if model.classes:
        show_classes(model, folder)
    if codes := model.network().spec.continuous:
        rows = [model.sweep(code, COLUMNS - 1, rows=SWEEPS) for code in range(min(codes, KINDS))]
        save_sheet(np.concatenate(rows).transpose(0, 3, 1, 2), folder / "codes.png", COLUMNS)
    if data is None:
        return folder
    extractor = comparing(run, model, data)
    fakes, reals = nearest_images(model, data, extractor)
    pairs = np.concatenate([fakes, reals]).transpose(0, 3, 1, 2)
    save_sheet(pairs, folder / "neighbours.png", SHOWN)
    curve = truncation_curve(model, data, extractor)
    replace_file(folder / "truncation.json", json.dumps(curve, indent=1).encode())
    if model.classes:
        found = {"distances": class_distances(model, data, extractor)}
        found["pairings"] = pairings(load_gan(model.folder), data)
        replace_file(folder / "classes.json", json.dumps(found, indent=1).encode())
    return folder


def comparing(run: Run, model: Model, data: ImageSet) -> Extractor:
    """Return the network that compares a candidate's samples with what its run was trained on.

    Raises:
        UserError: ``data`` is something else, or of another size than the samples.
    """
    check_out(run.path, data, resume=True)
    size = model.network().spec.resolution
    if size != data.resolution:
        raise UserError(
            f"candidate {model.folder.name} makes images of {size}, not yet {data.resolution}"
        )
    return extractor_of(run, data)


def show_classes(model: Model, folder: Path) -> None:
    """Draw each class from the same latents, and some latents on the way between classes."""
    known = range(min(KINDS, len(model.classes)))
    rows = np.concatenate([model.sample(COLUMNS, labels=[label]) for label in known])
    save_sheet(rows.transpose(0, 3, 1, 2), folder / "classes.png", COLUMNS)
    ends = known[:MORPHED]
    ways = model.morph(ends, WAY, rows=COLUMNS)
    save_sheet(ways.transpose(0, 3, 1, 2), folder / "morph.png", WAY * (len(ends) - 1) + 1)


def class_distances(model: Model, data: ImageSet, extractor: Extractor) -> dict[str, float]:
    """Return the Fréchet distance of each class by name, of as many samples as there are reals."""
    assert data.labels is not None
    found = {}
    for label, name in enumerate(model.classes):
        rows = np.flatnonzero(data.labels == label)[:COMPARED]
        if len(rows) > 1:
            fake = extractor(_first(model.sample(len(rows), labels=[label])))
            real = extractor(torch.from_numpy(np.array(data.images[rows])))
            found[name] = frechet_of_samples(fake, real)
    return found


@torch.no_grad()
def pairings(gan: Gan, data: ImageSet) -> dict[str, float]:
    """Return D's mean score of reals and of fakes, each with the right label and with a wrong one.

    A D that looks at labels puts each wrong pairing below the right one (Boulahbal et al. 2021,
    2103.15470, table 1). The score is the logit, where that heeds the label; the label's own score
    where a classifier stands beside the logit, the cosine with its direction where classes have
    one. Empty where D knows no labels.
    """
    spec = gan.discriminator.spec
    if not spec.classes or gan.average.spec.given or data.labels is None:
        return {}
    rows = np.random.default_rng(0).permutation(np.flatnonzero(data.labels >= 0))[:LOOKED_AT]
    labels = torch.from_numpy(data.labels[np.sort(rows)])
    right, wrong = (one_hot((labels + shift) % spec.classes, spec.classes) for shift in (0, 1))
    real = torch.from_numpy(np.array(data.images[np.sort(rows)])).float() / 127.5 - 1
    z = torch.cat([latents(len(labels), gan.average.spec.latent, 0), right], 1)
    sets = {"real": real, "fake": gan.average(z)}
    gan.discriminator.eval()
    return {
        f"{kind}, {side}": float(_heeding(gan.discriminator, images, y).mean())
        for kind, images in sets.items()
        for side, y in (("right", right), ("wrong", wrong))
    }


def _heeding(judge: Discriminator, images: Tensor, y: Tensor) -> Tensor:
    """Return D's scores of images with labels, float [N]."""
    if judge.spec.judging not in ("plain", "classes"):
        return cast(Tensor, judge(images, y))
    features = judge.features(images)
    if judge.spec.proxies:
        scores = F.cosine_similarity(judge.readouts["h"](features)[:, None], judge.proxies, dim=2)
    else:
        scores = judge.readouts["p"](features)
    return (scores[:, : y.shape[1]] * y).sum(1)


def nearest_images(
    model: Model, data: ImageSet, extractor: Extractor, **sheet: Unpack[Sheet]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return samples and the training image nearest to each, uint8 [N, H, W, C]."""
    drawn: Any = {"count": SHOWN, **sheet}
    samples = model.sample(**drawn)
    index, _ = nearest(extractor(_first(samples)), real_features(data, extractor))
    return samples, np.array(data.images[index.numpy()]).transpose(0, 2, 3, 1)


def real_features(data: ImageSet, extractor: Extractor) -> Tensor:
    """Return the features of all training images, float32 [N, d], from the cache if it has them."""
    return Stored(
        data.images,
        name="reals",
        extractor=lambda: extractor,
        identity=data.fingerprint,
        cache=default_cache(),
    ).features


def truncation_curve(model: Model, data: ImageSet, extractor: Extractor, seed: int = 0) -> Curve:
    """Return precision and recall (k = 3) of samples at growing truncation; None: without it.

    Fidelity against variety, as BigGAN's figure 16 has it (Brock et al. 2019).
    """
    some = np.random.default_rng(0).permutation(len(data))[:COMPARED]
    real = extractor(torch.from_numpy(np.array(data.images[np.sort(some)])))
    cuts = SHARES if model.network().spec.mapping else (*CUTS, None)
    curve: Curve = []
    for cut in cuts:
        fake = extractor(_first(model.sample(len(real), seed=seed, truncation=cut)))
        found = neighbourhoods(fake, real)
        curve.append({"truncation": cut, "precision": found.precision, "recall": found.recall})
    return curve


def extractor_of(run: Run, data: ImageSet) -> Extractor:
    """Return the network that a run's scores are taken with, or one like it if they need none."""
    settings, began = Settings.from_yaml(run.path / "config.yaml"), run.events[0]
    copy, budget = run.path / "extractor.safetensors", Budget(**began["budget"])
    score = settings.score.model_copy(update={"kind": "fd"})
    settings = settings.model_copy(update={"score": score})
    extractor = make_scorer(data, settings, budget, torch.device("cpu"), copy).extractor
    assert extractor is not None
    return extractor


def _first(images: NDArray[np.uint8]) -> Tensor:
    """Return uint8 [N, H, W, C] with channels first."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
