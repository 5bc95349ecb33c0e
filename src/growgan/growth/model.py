"""A candidate's generator, to draw from and to look into (:mod:`growgan.growth.run` opens it).

Images are named by their number among those that ``sample(count, seed)`` draws, so that one first
looks at a sheet, and then picks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from growgan.config import Settings
from growgan.data import ImageSet, load_images
from growgan.data.npz import read_arrays
from growgan.errors import UserError
from growgan.growth.directions import Directions, principal
from growgan.growth.latents import slerp, towards, truncate
from growgan.nets.players import Generator
from growgan.nets.wishes import one_hot
from growgan.objectives import make_objective
from growgan.plain import parse
from growgan.training.checkpoint import load_generator
from growgan.training.gan import inputs, to_uint8

Images = UInt8[np.ndarray, "n h w c"]
GIVEN = "given.npz"  # in a run's folder, where it makes images from images: some to make them from
SWEPT = 2.0  # deviations of a continuous code, to either side
AROUND = 0.25  # deviations by which the neighbours of a sum differ (Radford et al. 2016, figure 7)


class Sheet(TypedDict, total=False):
    """How the images were drawn that picks are numbers of, as :meth:`Model.sample` takes it."""

    count: int  # 64 where it is not said
    seed: int
    truncation: float | None
    labels: Sequence[int] | None


@dataclass(frozen=True)
class Model:
    """A candidate's generator."""

    folder: Path

    def network(self) -> Generator:
        """Return the running average of G, on the CPU, ready to be called."""
        return load_generator(self.folder)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that it draws, as in the run's data; none if it is unconditional."""
        conditioning = make_objective(self.settings).conditioning
        if not (conditioning.labelled and conditioning.told):
            return ()
        path = self.run_folder / "data.json"
        try:
            return tuple(map(str, parse(path.read_bytes())["classes"]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"'{path}' cannot be read: {error}") from error

    @property
    def settings(self) -> Settings:
        """All settings of its run."""
        return Settings.from_yaml(self.run_folder / "config.yaml")

    @property
    def form(self) -> dict[str, Any]:
        """What ``load_images`` is told to load images in the form that its run's had."""
        settings, channels = self.settings, self._network.spec.channels
        fit = settings.data.fit
        return {"resolution": settings.resolution, "channels": channels, "fit": fit}

    def load_data(self, source: str | Path) -> ImageSet:
        """Return what its run was trained on, read again from ``source`` in the run's own form.

        Raises:
            UserError: it cannot be read, or has no image of the one label that the run is of.
        """
        data, only = load_images(source, **self.form), self.settings.labels.only
        return data if only is None else data.only(only)

    @property
    def run_folder(self) -> Path:
        """The directory of its run."""
        return self.folder.parent.parent

    @cached_property
    def _network(self) -> Generator:
        return self.network()

    def sample(
        self,
        count: int,
        *,
        seed: int = 0,
        truncation: float | None = None,
        labels: Sequence[int] | None = None,
        given: Images | None = None,
    ) -> Images:
        """Return ``count`` images, uint8 ``[N, H, W, C]``.

        Args:
            given: images uint8 [K, H, W, G] to make them from, in turn, of their own size; those
                kept with the run if None. For generators that translate alone.
            labels: take turns; all of the classes do if None. For conditional generators alone.
            truncation: redraw every latent value beyond this many deviations (Brock et al. 2019);
                with a mapping network, move each style to the mean one by this factor instead
                (Karras et al. 2019, section B).
        """
        return self._images(self._drawn(count, seed, truncation, labels, given), truncation)

    def labels(
        self, count: int, labels: Sequence[int] | None = None, given: Images | None = None
    ) -> NDArray[np.int64] | None:
        """Return the labels that :meth:`sample` draws, int64 [N]; None if it is unconditional."""
        asked = self._asked(labels, given)
        if asked is not None and asked is not labels:
            return np.resize(asked, count).astype(np.int64)
        known = self._network.spec.categories
        return turns(count, known, labels) if known else None

    def walk(self, picks: Sequence[int], steps: int, **sheet: Unpack[Sheet]) -> Images:
        """Return images on the way from each pick to the next: ``steps`` a way, and the last one.

        The way is along a great circle: on a line between two latents there are shorter ones, which
        are rarer than any that G was trained on (White 2016, 1609.04468).
        """
        if steps < 1 or len(picks) < 2:
            raise UserError(f"a walk needs two picks and a step, but got {len(picks)} and {steps}")
        z = self._picked(picks, sheet)
        shares = torch.arange(steps) / steps
        n = self._network.spec.latent
        ways = [
            torch.cat([slerp(a[:n], b[:n], share), torch.lerp(a[n:], b[n:], share)])
            for a, b in pairwise(z)
            for share in shares
        ]
        return self._images(torch.stack([*ways, z[-1]]), sheet.get("truncation"))

    def morph(
        self,
        labels: Sequence[int],
        steps: int,
        *,
        rows: int = 8,
        seed: int = 0,
        truncation: float | None = None,
    ) -> Images:
        """Return a table, row by row: one latent a row, on its way from each label to the next.

        Each way has ``steps`` images, and the last label its own; between two classes the label is
        a mixture of both.

        Raises:
            UserError: the generator is not conditional, or there are fewer than two labels.
        """
        if steps < 1 or len(labels) < 2:
            raise UserError(f"a morph needs two labels and a step, but got {[*labels]}, {steps}")
        self._check(labels)
        shares = torch.arange(steps) / steps
        z = self._cut(
            inputs(self._network.spec, rows, seed, given=self._examples()), truncation, seed
        )
        ends = one_hot(torch.tensor(labels), self._network.spec.categories)
        ways = [torch.lerp(a, b, share) for a, b in pairwise(ends) for share in shares]
        y = torch.stack([*ways, ends[-1]])
        table = z[:, None].repeat(1, len(y), 1)
        first = self._network.spec.latent
        table[:, :, first : first + y.shape[1]] = y
        return self._images(table.flatten(0, 1), truncation)

    def sweep(
        self,
        code: int,
        steps: int,
        *,
        rows: int = 8,
        seed: int = 0,
        truncation: float | None = None,
    ) -> Images:
        """Return a table, row by row: one latent a row, its continuous code from -2 to 2.

        With as many images after the first one as there are ``steps`` (Chen et al. 2016, figure 2).

        Raises:
            UserError: there is no such code, as in all but InfoGANs.
        """
        spec = self._network.spec
        if steps < 1 or not 0 <= code < spec.continuous:
            found = f"{spec.continuous or 'no'} continuous codes, and a step"
            raise UserError(f"a sweep needs one of {found}, but got {code} and {steps}")
        z = self._cut(inputs(spec, rows, seed, given=self._examples()), truncation, seed)
        table = z[:, None].repeat(1, steps + 1, 1)
        table[:, :, spec.latent + spec.categories + code] = torch.linspace(-SWEPT, SWEPT, steps + 1)
        return self._images(table.flatten(0, 1), truncation)

    def combine(
        self,
        plus: Sequence[Sequence[int]],
        minus: Sequence[Sequence[int]],
        **sheet: Unpack[Sheet],
    ) -> Images:
        """Return nine images of sums of mean latents: the sum itself, then eight near it.

        Each of ``plus`` and ``minus`` is a set of picks that have something in common, and is
        averaged (Radford et al. 2016, figure 7).
        """
        spec = self._network.spec
        total = torch.zeros(spec.inputs)
        for sign, sets in ((1, plus), (-1, minus)):
            for picks in sets:
                total = total + sign * self._picked(picks, sheet).mean(0)
        rng = torch.Generator().manual_seed(sheet.get("seed", 0))
        near = torch.rand(8, spec.latent, generator=rng) * 2 - 1
        near = torch.cat([near, near.new_zeros(8, spec.wish)], 1)
        sums = torch.cat([total[None], total + AROUND * near])
        return self._images(sums, sheet.get("truncation"))

    def mix(self, rows: Sequence[int], columns: Sequence[int], **sheet: Unpack[Sheet]) -> Images:
        """Return a table of style mixes, row by row: coarse styles of a row's pick, fine ones of a
        column's (Karras et al. 2019, figure 3).

        Raises:
            UserError: the layers of this generator have no styles.
        """
        network = self._network
        if network.styles < 2:
            raise UserError("styles cannot be mixed: this generator's layers have none")
        coarse, fine = (
            self._embedded(self._picked(picks, sheet), sheet.get("truncation"))
            for picks in (rows, columns)
        )
        half = (torch.arange(network.styles) < network.styles // 2).view(-1, 1)
        table = torch.where(half, coarse[:, None, None], fine[None, :, None])
        return self._made(table.flatten(0, 1))

    @cached_property
    def directions(self) -> Directions:
        """What its images vary along most.

        Raises:
            UserError: its images are made of others, which decide most of what varies.
        """
        if self._network.spec.given:
            raise UserError("directions have no meaning for images that are made from images")
        return principal(self._network)

    @cached_property
    def _kept(self) -> dict[str, NDArray[Any]]:
        """The images kept with the run to make others from, and what these are to be."""
        path = self.run_folder / GIVEN
        kept = read_arrays(path, (("given",), ("labels",)))
        shapes = {"given": (np.uint8, 4), "labels": (np.integer, 1)}
        for key, (kind, axes) in shapes.items():
            if key not in kept or not kept[key].size or kept[key].ndim != axes:
                raise UserError(f"'{path}' has no '{key}' of {axes} axes")
            if not np.issubdtype(kept[key].dtype, kind):
                raise UserError(f"'{key}' in '{path}' must be {kind.__name__}")
        return kept

    def _asked(self, labels: Sequence[int] | None, given: Images | None) -> Sequence[int] | None:
        """Return labels, or what the images kept with the run are to be made into."""
        known = self._network.spec.given and self._network.spec.classes
        own = labels is None and given is None and known
        return [*map(int, self._kept["labels"])] if own else labels

    def _examples(self, given: Images | None = None) -> Tensor | None:
        """Return images to make images from, float [K, G, H, W] in [-1, 1]; None for none."""
        spec = self._network.spec
        if given is None and spec.given:
            given = self._kept["given"]
        if given is None:
            return None
        expected = (*spec.resolution, spec.given)
        if given.shape[1:] != expected:
            raise UserError(f"given images must be {expected}, but are {given.shape[1:]}")
        return torch.from_numpy(given).movedim(3, 1).float() / 127.5 - 1

    def vary(
        self,
        pick: int,
        along: Mapping[int, float],
        latents: Mapping[int, float] | None = None,
        **sheet: Unpack[Sheet],
    ) -> Images:
        """Return one image, a pick that is moved: uint8 [1, H, W, C].

        Args:
            along: deviations along each of :attr:`directions`, by its number.
            latents: values that take the place of the pick's own, by the number of the latent.

        Raises:
            UserError: there is no such pick, direction or latent.
        """
        spec, latents = self._network.spec, latents or {}
        for what, asked, known in (
            ("direction", along, len(self.directions) if along else 0),
            ("latent", latents, spec.latent),
        ):
            for index in asked:
                if not 0 <= index < known:
                    raise UserError(f"{what} {index} is none of the {known}: 0 to {known - 1}")
        z, truncation = self._picked([pick], sheet), sheet.get("truncation")
        for index, value in latents.items():
            z[0, index] = value
        if not along:
            return self._images(z, truncation)
        move = self.directions.move(along)
        if not self.directions.styles:
            z[0, : spec.latent] += move
            return self._images(z, truncation)
        return self._made(self._embedded(z, truncation) + move)

    def latents(self, pick: int, **sheet: Unpack[Sheet]) -> Float[np.ndarray, " z"]:
        """Return a pick's latents, float32, as :meth:`vary` finds them."""
        return self._picked([pick], sheet)[0, : self._network.spec.latent].numpy()

    def _check(self, labels: Sequence[int] | None) -> None:
        known = self._network.spec.categories
        if labels is not None and not known:
            raise UserError("labels have no meaning here: this generator is not conditional")
        turns(0, known, labels)

    def _picked(self, picks: Sequence[int], sheet: Sheet) -> Float[Tensor, "n z"]:
        count, seed = sheet.get("count", 64), sheet.get("seed", 0)
        for pick in picks:
            if not 0 <= pick < count:
                raise UserError(f"pick {pick} is none of the {count} images: 0 to {count - 1}")
        return self._drawn(count, seed, sheet.get("truncation"), sheet.get("labels"))[list(picks)]

    def _drawn(
        self,
        count: int,
        seed: int,
        truncation: float | None,
        labels: Sequence[int] | None,
        given: Images | None = None,
    ) -> Float[Tensor, "n z"]:
        """Return what the images of a sheet are made of."""
        if count < 0:
            raise UserError(f"count must be 0 or more, but got {count}")
        self._check(labels)
        asked = self._asked(labels, given)
        z = inputs(self._network.spec, count, seed, asked, self._examples(given))
        return self._cut(z, truncation, seed)

    def _cut(self, z: Float[Tensor, "n z"], truncation: float | None, seed: int) -> Tensor:
        """Return ``z`` with latents truncated, where it is not the styles that are."""
        spec = self._network.spec
        if truncation is None or spec.mapping:
            return z
        return torch.cat([truncate(z[:, : spec.latent], truncation, seed), z[:, spec.latent :]], 1)

    @torch.no_grad()
    def _embedded(self, z: Float[Tensor, "n z"], truncation: float | None) -> Tensor:
        """Return what images are a smooth function of, truncated where that is a style."""
        styles = self._network.embed(z)
        if truncation is None or not self._network.spec.mapping:
            return styles
        return towards(self._network.stem.mean, styles, truncation)

    def _images(self, z: Float[Tensor, "n z"], truncation: float | None = None) -> Images:
        if truncation is not None and self._network.spec.mapping:
            return self._made(self._embedded(z, truncation))
        with torch.no_grad():
            return _last(to_uint8(self._network, z))

    def _made(self, styles: Tensor) -> Images:
        with torch.no_grad():
            return _last(to_uint8(self._network, styles, embedded=True))


def turns(count: int, classes: int, labels: Sequence[int] | None) -> NDArray[np.int64]:
    """Return ``labels``, all of the ``classes`` if None, in turn: int64 [count].

    Raises:
        UserError: one of them is no class.
    """
    wanted = labels or range(classes)
    for label in wanted:
        if not 0 <= label < classes:
            raise UserError(f"label {label} is none of the {classes} classes: 0 to {classes - 1}")
    return np.resize(wanted, count).astype(np.int64)


def _last(images: Tensor) -> Images:
    """Return uint8 [N, C, H, W] with channels last."""
    moved: NDArray[np.uint8] = np.ascontiguousarray(images.numpy().transpose(0, 2, 3, 1))
    return moved
