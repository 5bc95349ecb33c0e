"""Features of published networks, whose weights come from a path, the cache or their publisher.

Each entry of :data:`FEATURES` makes an extractor: uint8 images [N, C, H, W] -> float32 [N, d].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from growgan.errors import UserError, unknown
from growgan.metrics.checks import uint8_images
from growgan.metrics.features import (
    Extractor,
    PixelExtractor,
    domain_extractor,
    full_precision,
)
from growgan.metrics.resize import RESIZES, clean
from growgan.metrics.weights import Weights, load_torchscript, open_weights
from growgan.registry import Registry

FEATURES: Registry[Callable[..., Extractor]] = Registry("features")

# The checksum is stated by several independent projects that fetch this file.
INCEPTION = Weights(
    file="inception-2015-12-05.pt",
    address="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt",
    sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
)
DINOV2 = Weights(file="dinov2-vitl14.pt")
CLIP = Weights(file="clip-vitl14.pt")

WEIGHTLESS = ("domain", "pixels")
ENDINGS = (".pt", ".pth", ".ts", ".torchscript")  # of TorchScript files

_CHUNK = 64  # images that pass through a network at once
_INCEPTION_SIZE = 299  # pixels
_TOWER_SIZE = 224

_RGB = tuple[float, float, float]


class TorchScriptExtractor:
    """What a TorchScript network makes of RGB images.

    Gray images are repeated to three channels, and of RGBA the alpha is dropped: these networks
    see colours alone. ``prepare`` turns [n, 3, H, W] in [0, 255] into the network's input; without
    it the network gets them as they are. ``fingerprint`` names weights and preparation.
    """

    options: Mapping[str, bool] = MappingProxyType({})  # that the network is called with

    def __init__(
        self,
        network: torch.jit.ScriptModule,
        fingerprint: str,
        prepare: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.network, self.prepare, self.fingerprint = network, prepare, fingerprint
        self.device = torch.device(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of uint8 ``images`` [N, C, H, W], float32 [N, d], on the device.

        Raises ValueError where they have neither 1, 3 nor 4 channels, and UserError where the
        network does not turn such images into vectors.
        """
        return self._run(uint8_images(images))

    def continuous(self, images: Tensor) -> Tensor:
        """Return the features of float ``images`` in [0, 255], not rounded to integers."""
        return self._run(images)

    def _run(self, images: Tensor, **options: bool) -> Tensor:
        """Return what the network, called with ``options``, makes of all images."""
        called = {**self.options, **options}
        chunks = torch.split(_colours(images), _CHUNK)
        with torch.inference_mode(), full_precision(self.device):
            return torch.cat([self._run_chunk(chunk, called) for chunk in chunks])

    def _run_chunk(self, chunk: Tensor, options: Mapping[str, bool]) -> Tensor:
        batch = chunk.to(self.device)
        try:
            out = self.network(self.prepare(batch) if self.prepare else batch, **options)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, torch.jit.Error) as error:
            why = str(error).strip().splitlines()[-1]
            raise UserError(f"network '{self.fingerprint}' cannot take images: {why}") from error
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(chunk):
            got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise UserError(
                f"network '{self.fingerprint}' must give features [{len(chunk)}, d], but gave {got}"
            )
        return out.float()


class InceptionExtractor(TorchScriptExtractor):
    """Inception's 2048 features behind its last pooling, and its class probabilities."""

    options = MappingProxyType({"return_features": True})

    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities of ``images`` [N, C, H, W], float32 [N, 1008], rows of sum 1.

        From logits without bias, as the Inception score has them (Salimans et al. 2016, arXiv
        1606.03498).
        """
        return self._run(uint8_images(images), return_features=False, no_output_bias=True)


def inception(
    *,
    cache: Path,
    path: Path | None = None,
    resize: str = "clean",
    device: torch.device | str = "cpu",
) -> InceptionExtractor:
    """Return the network that FID and the Inception score are defined by, ported from TensorFlow.

    Its weights are ``path``, or :data:`INCEPTION` in ``cache``, downloaded (96 MB) at the first
    use. ``resize`` is a name of :data:`RESIZES`; after "clean" and "legacy-pytorch" the network's
    own resize, from 299 to 299, changes nothing beyond rounding. Raises UserError as
    :func:`open_weights` does, and for another resize.
    """
    resized = RESIZES[resize]
    network, digest = open_weights(INCEPTION, cache=cache, path=path, device=device)
    fingerprint = f"inception-{resize}-{digest[:24]}"
    return InceptionExtractor(network, fingerprint, lambda x: resized(x, _INCEPTION_SIZE), device)


def dinov2(
    *, cache: Path, path: Path | None = None, device: torch.device | str = "cpu"
) -> TorchScriptExtractor:
    """Return the network of FD-DINOv2 (arXiv 2306.04675); Oquab et al. 2023, arXiv 2304.07193.

    Its weights are ``path``, or :data:`DINOV2` in ``cache``: float32 [N, 3, 224, 224] -> [N, d],
    as ``torch.jit.trace`` makes it of the published network. Raises UserError where absent.
    """
    network, digest = open_weights(DINOV2, cache=cache, path=path, device=device)
    prepare = partial(_tower_input, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))
    return TorchScriptExtractor(network, f"dinov2-clean-{digest[:24]}", prepare, device)


def clip(
    *, cache: Path, path: Path | None = None, device: torch.device | str = "cpu"
) -> TorchScriptExtractor:
    """Return the image tower of CLIP (arXiv 2103.00020), prepared as in arXiv 2306.04675.

    Its weights are ``path``, or :data:`CLIP` in ``cache``: float32 [N, 3, 224, 224] -> [N, d], as
    ``torch.jit.trace`` makes it of the published tower. Raises UserError where absent.
    """
    network, digest = open_weights(CLIP, cache=cache, path=path, device=device)
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    prepare = partial(_tower_input, mean=mean, deviation=deviation)
    return TorchScriptExtractor(network, f"clip-clean-{digest[:24]}", prepare, device)


def torchscript(path: Path, *, device: torch.device | str = "cpu") -> TorchScriptExtractor:
    """Return the extractor in a TorchScript file: uint8 [N, 3, H, W], of any size -> [N, d].

    It resizes and scales by itself. Raises UserError as :func:`load_torchscript` does.
    """
    network, digest = load_torchscript(path, device=device)
    return TorchScriptExtractor(network, f"torchscript-{digest[:24]}", device=device)


FEATURES.register("domain", "a small network trained on your own images")(domain_extractor)
FEATURES.register("pixels", "the pixels themselves, averaged down to 8x8")(PixelExtractor)
FEATURES.register("inception", "Inception v3 of 2015, as in FID", "Heusel et al. 2017, 1706.08500")(
    inception
)
FEATURES.register(
    "dinov2", "DINOv2 ViT-L/14, nearer to people's eyes", "Stein et al. 2023, 2306.04675"
)(dinov2)
FEATURES.register("clip", "image tower of CLIP ViT-L/14", "Radford et al. 2021, 2103.00020")(clip)


def load_extractor(
    features: str, *, cache: Path, resize: str = "clean", device: torch.device | str = "cpu"
) -> Extractor:
    """Return the extractor that ``features`` names, unless it must first be trained ("domain").

    ``features`` is "pixels", a network of :data:`FEATURES`, such a one with the path of its weights
    ("inception:FILE.pt"), or the path of any TorchScript file ("FILE.pt"). ``resize`` is a name of
    :data:`RESIZES`, for inception alone. Raises UserError for an unknown name or weights that
    cannot be had, and ValueError for "domain".
    """
    check_features(features, resize)
    name, _, path = features.partition(":")
    if name == "domain":
        raise ValueError("features must not be 'domain', which domain_extractor makes of images")
    if features == "pixels":
        return PixelExtractor()
    if name in FEATURES and name != "pixels":
        own = {"resize": resize} if name == "inception" else {}
        file = Path(path) if path else None
        return FEATURES[name](cache=cache, path=file, device=device, **own)
    return torchscript(Path(features), device=device)


def check_features(features: str, resize: str = "clean") -> None:
    """Raise UserError unless ``features`` is "domain" or what :func:`load_extractor` takes.

    Whether weights can be had is not looked at, but whether a file that was named is there.
    """
    name, _, path = features.partition(":")
    if not (name in FEATURES or features.endswith(ENDINGS)) or (path and name in WEIGHTLESS):
        raise unknown("features", features, [*(entry.name for entry in FEATURES), "FILE.pt"])
    named = path if name in FEATURES else features
    if named and not Path(named).is_file():
        raise UserError(f"weights '{named}' of the features are not there")
    RESIZES[resize]
    if resize != "clean" and name != "inception":
        raise UserError(f"resize '{resize}' is of the features 'inception', not of '{features}'")


def _colours(images: Tensor) -> Tensor:
    """Return ``images`` [N, C, H, W] as [N, 3, H, W]."""
    channels = images.shape[1]
    if channels not in (1, 3, 4):
        raise ValueError(
            f"images must have 1 (gray), 3 (RGB) or 4 (RGBA) channels, but have {channels}"
        )
    return images[:, :3].expand(-1, 3, -1, -1)


def _tower_input(images: Tensor, *, mean: _RGB, deviation: _RGB) -> Tensor:
    """Return uint8 ``images`` [N, 3, H, W] as normalised float32 [N, 3, 224, 224]."""
    scaled = clean(images, _TOWER_SIZE).clamp(0, 255) / 255
    offset, scale = (scaled.new_tensor(values).view(1, 3, 1, 1) for values in (mean, deviation))
    return (scaled - offset) / scale
