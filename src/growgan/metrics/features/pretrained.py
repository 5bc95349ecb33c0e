"""Features of published networks, and the registry of all feature extractors.

The weights come from a file, from the cache, or from their publisher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from growgan.errors import UserError, unknown_name_error
from growgan.metrics.downloads import PublishedWeights, load_published_weights, load_torchscript
from growgan.metrics.features.base import FeatureExtractor, full_precision
from growgan.metrics.features.own import load_or_train_own_extractor
from growgan.metrics.features.pixels import PixelExtractor
from growgan.metrics.features.resize import RESIZE_METHODS, resize_clean
from growgan.metrics.validation import check_uint8_images
from growgan.registry import Registry

FEATURES: Registry[Callable[..., FeatureExtractor]] = Registry("features")

# The checksum is stated by several independent projects that fetch this file.
INCEPTION_WEIGHTS = PublishedWeights(
    filename="inception-2015-12-05.pt",
    url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt",
    sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
)
DINOV2_WEIGHTS = PublishedWeights(filename="dinov2-vitl14.pt")
CLIP_WEIGHTS = PublishedWeights(filename="clip-vitl14.pt")

FEATURES_WITHOUT_WEIGHTS = ("own", "pixels")
TORCHSCRIPT_SUFFIXES = (".pt", ".pth", ".ts", ".torchscript")

_BATCH_SIZE = 64  # images passed through a network at once
_INCEPTION_INPUT_PIXELS = 299  # side of the input of Inception
_VIT_INPUT_PIXELS = 224  # side of the input of DINOv2 and CLIP

_RGBValues = tuple[float, float, float]


class TorchScriptExtractor:
    """The output of a TorchScript network for RGB images.

    Grayscale images are repeated to three channels, and the alpha channel of RGBA images is
    dropped, because these networks expect RGB.

    Args:
        network: Maps images [n, 3, H, W] to features [n, d].
        fingerprint: Identifies the weights and the preprocessing.
        preprocess: Maps [n, 3, H, W] in [0, 255] to the input of the network. None passes the
            images unchanged.
        device: Device that the network is on.
    """

    forward_kwargs: Mapping[str, bool] = MappingProxyType({})  # passed to the network

    def __init__(
        self,
        network: torch.jit.ScriptModule,
        fingerprint: str,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.network, self.preprocess, self.fingerprint = network, preprocess, fingerprint
        self.device = torch.device(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of uint8 ``images`` [N, C, H, W], float32 [N, d], on the device.

        Raises:
            ValueError: The images do not have 1, 3 or 4 channels.
            UserError: The network does not map such images to vectors.
        """
        check_uint8_images("images", images)
        return self._extract(images, self.forward_kwargs)

    def extract_float(self, images: Tensor) -> Tensor:
        """Return the features of float ``images`` in [0, 255], which are not rounded."""
        return self._extract(images, self.forward_kwargs)

    def _extract(self, images: Tensor, forward_kwargs: Mapping[str, bool]) -> Tensor:
        """Return the output of the network, called with ``forward_kwargs``, for all images."""
        batches = torch.split(_to_rgb(images), _BATCH_SIZE)
        with torch.inference_mode(), full_precision(self.device):
            return torch.cat([self._extract_batch(batch, forward_kwargs) for batch in batches])

    def _extract_batch(self, images: Tensor, forward_kwargs: Mapping[str, bool]) -> Tensor:
        batch = images.to(self.device)
        try:
            features = self.network(
                self.preprocess(batch) if self.preprocess else batch, **forward_kwargs
            )
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, torch.jit.Error) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"network '{self.fingerprint}' does not accept these images: {reason}"
            ) from error
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            is_tensor = isinstance(features, Tensor)
            got = list(features.shape) if is_tensor else type(features).__name__
            raise UserError(
                f"network '{self.fingerprint}' must return features [{len(images)}, d], but"
                f" returned {got}"
            )
        return features.float()


class InceptionExtractor(TorchScriptExtractor):
    """The 2048 features of Inception after its last pooling, and its class probabilities."""

    forward_kwargs = MappingProxyType({"return_features": True})

    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities of uint8 ``images`` [N, C, H, W], float32 [N, 1008].

        They come from logits without bias, as in the Inception score (Salimans et al. 2016, arXiv
        1606.03498).
        """
        check_uint8_images("images", images)
        return self._extract(images, {"return_features": False, "no_output_bias": True})


def load_inception(
    *,
    cache_dir: Path,
    path: Path | None = None,
    resize: str = "clean",
    device: torch.device | str = "cpu",
) -> InceptionExtractor:
    """Return the network that defines FID and the Inception score, ported from TensorFlow.

    Args:
        cache_dir: Root of the cache. The weights (96 MB) are downloaded into it at the first use.
        path: File with the weights, instead of :data:`INCEPTION_WEIGHTS` in the cache.
        resize: A name of :data:`RESIZE_METHODS`. After "clean" and "legacy-pytorch" the network's
            own resizing, from 299 to 299 pixels, only causes rounding errors.
        device: Device to run on.

    Raises:
        UserError: An unknown ``resize``, or weights that cannot be loaded.
    """
    resize_images = RESIZE_METHODS[resize]
    network, digest = load_published_weights(
        INCEPTION_WEIGHTS, cache_dir=cache_dir, path=path, device=device
    )
    return InceptionExtractor(
        network,
        fingerprint=f"inception-{resize}-{digest[:24]}",
        preprocess=lambda images: resize_images(images, _INCEPTION_INPUT_PIXELS),
        device=device,
    )


def load_dinov2(
    *, cache_dir: Path, path: Path | None = None, device: torch.device | str = "cpu"
) -> TorchScriptExtractor:
    """Return DINOv2 (Oquab et al. 2023, arXiv 2304.07193), as in FD-DINOv2 (arXiv 2306.04675).

    The weights are the file ``path``, or :data:`DINOV2_WEIGHTS` in ``cache_dir``: the published
    network as written by ``torch.jit.trace``, float32 [N, 3, 224, 224] to [N, d].

    Raises:
        UserError: There are no such weights.
    """
    network, digest = load_published_weights(
        DINOV2_WEIGHTS, cache_dir=cache_dir, path=path, device=device
    )
    preprocess = partial(_vit_input, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return TorchScriptExtractor(network, f"dinov2-clean-{digest[:24]}", preprocess, device)


def load_clip(
    *, cache_dir: Path, path: Path | None = None, device: torch.device | str = "cpu"
) -> TorchScriptExtractor:
    """Return the image encoder of CLIP (arXiv 2103.00020), used as in arXiv 2306.04675.

    The weights are the file ``path``, or :data:`CLIP_WEIGHTS` in ``cache_dir``: the published
    encoder as written by ``torch.jit.trace``, float32 [N, 3, 224, 224] to [N, d].

    Raises:
        UserError: There are no such weights.
    """
    network, digest = load_published_weights(
        CLIP_WEIGHTS, cache_dir=cache_dir, path=path, device=device
    )
    preprocess = partial(
        _vit_input,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    )
    return TorchScriptExtractor(network, f"clip-clean-{digest[:24]}", preprocess, device)


def load_torchscript_extractor(
    path: Path, *, device: torch.device | str = "cpu"
) -> TorchScriptExtractor:
    """Return the extractor in a TorchScript file, which maps uint8 [N, 3, H, W] to [N, d].

    The network must accept images of any size and do its own resizing and scaling.

    Raises:
        UserError: The file is missing or is not a TorchScript archive.
    """
    network, digest = load_torchscript(path, device=device)
    return TorchScriptExtractor(network, f"torchscript-{digest[:24]}", device=device)


FEATURES.register("own", "A small network trained on the real images of the run or evaluation.")(
    load_or_train_own_extractor
)
FEATURES.register("pixels", "The pixels, averaged down to 8x8.")(PixelExtractor)
FEATURES.register(
    "inception", "Inception v3 of 2015, which defines FID.", "Heusel et al. 2017, 1706.08500"
)(load_inception)
FEATURES.register(
    "dinov2",
    "DINOv2 ViT-L/14, which agrees better with human judgment.",
    "Stein et al. 2023, 2306.04675",
)(load_dinov2)
FEATURES.register("clip", "The image encoder of CLIP ViT-L/14.", "Radford et al. 2021, 2103.00020")(
    load_clip
)


def load_extractor(
    features: str, *, cache_dir: Path, resize: str = "clean", device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """Return the extractor called ``features``, unless it must be trained first ("own").

    Args:
        features: "pixels", a network of :data:`FEATURES`, such a network with the path of its
            weights ("inception:FILE.pt"), or the path of any TorchScript file ("FILE.pt").
        cache_dir: Root of the cache, for downloaded weights.
        resize: A name of :data:`RESIZE_METHODS`, for Inception only.
        device: Device to run on.

    Raises:
        UserError: An unknown name, or weights that cannot be loaded.
        ValueError: ``features`` is "own", which :func:`load_or_train_own_extractor` trains.
    """
    check_features(features, resize)
    name, _, path = features.partition(":")
    if name == "own":
        raise ValueError(
            "features must not be 'own': call load_or_train_own_extractor with the real images"
        )
    if features == "pixels":
        return PixelExtractor()
    weights_path = Path(path) if path else None
    if name == "inception":
        return load_inception(cache_dir=cache_dir, path=weights_path, resize=resize, device=device)
    if name in FEATURES:
        return FEATURES[name](cache_dir=cache_dir, path=weights_path, device=device)
    return load_torchscript_extractor(Path(features), device=device)


def check_features(features: str, resize: str = "clean") -> None:
    """Raise UserError unless ``features`` is "own" or accepted by :func:`load_extractor`.

    A file that is named must exist. Whether weights can be downloaded is not checked.
    """
    name, _, path = features.partition(":")
    is_known = name in FEATURES or features.endswith(TORCHSCRIPT_SUFFIXES)
    if not is_known or (path and name in FEATURES_WITHOUT_WEIGHTS):
        raise unknown_name_error(
            "features", features, [*(entry.name for entry in FEATURES), "FILE.pt"]
        )
    weights_path = path if name in FEATURES else features
    if weights_path and not Path(weights_path).is_file():
        raise UserError(
            f"features '{features}' need the weights '{weights_path}', which do not exist"
        )
    RESIZE_METHODS[resize]  # raises a UserError for an unknown name
    if resize != "clean" and name != "inception":
        raise UserError(
            f"resize must be 'clean' for the features '{features}', but got '{resize}'; other"
            " values apply to the features 'inception' only"
        )


def _to_rgb(images: Tensor) -> Tensor:
    """Return ``images`` [N, C, H, W] as [N, 3, H, W]."""
    channels = images.shape[1]
    if channels not in (1, 3, 4):
        raise ValueError(
            f"images must have 1 (gray), 3 (RGB) or 4 (RGBA) channels, but have {channels}"
        )
    return images[:, :3].expand(-1, 3, -1, -1)


def _vit_input(images: Tensor, *, mean: _RGBValues, std: _RGBValues) -> Tensor:
    """Return ``images`` [N, 3, H, W] in [0, 255] as normalized float32 [N, 3, 224, 224]."""
    scaled = resize_clean(images, _VIT_INPUT_PIXELS).clamp(0, 255) / 255
    offset, scale = (scaled.new_tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (scaled - offset) / scale
