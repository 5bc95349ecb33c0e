"""Features of published networks: download, checks, preprocessing and calls, with a stand-in."""

from __future__ import annotations

import hashlib
import io
import pickle
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from growgan.errors import UserError
from growgan.metrics.downloads import (
    DOWNLOAD_TIMEOUT_SECONDS,
    PublishedWeights,
    load_published_weights,
    load_torchscript,
)
from growgan.metrics.features.pixels import PixelExtractor
from growgan.metrics.features.pretrained import (
    DINOV2_WEIGHTS,
    FEATURES,
    INCEPTION_WEIGHTS,
    TorchScriptExtractor,
    load_clip,
    load_dinov2,
    load_extractor,
    load_inception,
    load_torchscript_extractor,
)
from growgan.metrics.features.resize import RESIZE_METHODS

WEIGHTS_URL = "https://example.org/network.pt"
# On white noise, of 255: torch computes the filter in float32, Pillow in float64.
PIXEL_TOLERANCE = 1e-2


class ChannelMeans(nn.Module):
    """Return the mean of each channel of the input, and the input's height."""

    def forward(self, x: Tensor) -> Tensor:
        height = torch.full([len(x), 1], float(x.size(2)))
        return torch.cat([x.float().mean(dim=[2, 3]), height], 1)


class FeatureMaps(nn.Module):
    """Return the input, which is not a vector of features."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class SevenChannels(nn.Module):
    """Refuse images with three channels."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.size(1) == 7, "seven channels"
        return x.float().flatten(1)


def save(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))
    return path


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def random_images(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def resize_by_pillow(images: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Resize each channel as floats, by Pillow's bicubic filter."""
    channels = images.reshape(-1, *images.shape[2:]).astype(np.float32)
    resized = [Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC) for x in channels]
    return np.array([np.asarray(x) for x in resized]).reshape(*images.shape[:2], size, size)


def resize_bilinear(images: NDArray[np.uint8], size: int) -> NDArray[np.float64]:
    """Resize by the two nearest pixels of each row and column, with the border repeated."""

    def weights(old_size: int) -> NDArray[np.float64]:
        matrix = np.zeros((size, old_size))
        for i in range(size):
            position = np.clip((i + 0.5) * old_size / size - 0.5, 0, old_size - 1)
            low = int(position)
            matrix[i, low] += 1 - (position - low)
            matrix[i, min(low + 1, old_size - 1)] += position - low
        return matrix

    return weights(images.shape[2]) @ images.astype(np.float64) @ weights(images.shape[3]).T


def resize_nearest(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    rows, columns = (np.arange(size) * extent // size for extent in images.shape[2:])
    return images[:, :, rows][:, :, :, columns]


REFERENCES: dict[str, Callable[[NDArray[np.uint8], int], NDArray[Any]]] = {
    "clean": lambda images, size: resize_by_pillow(images, size).clip(0, 255),
    "legacy-pytorch": resize_bilinear,
    "legacy-tensorflow": resize_nearest,
}


# Resizing


@pytest.mark.parametrize("size", [299, 224, 20])
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 1, 400, 25), (1, 4, 31, 640)])
def test_the_clean_resize_equals_pillows_on_floats(shape: tuple[int, ...], size: int) -> None:
    images = random_images(*shape)
    got = RESIZE_METHODS["clean"](torch.from_numpy(images), size)
    assert got.dtype == torch.float32
    expected = resize_by_pillow(images, size).clip(0, 255)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=PIXEL_TOLERANCE)


def test_the_clean_resize_clamps_and_does_not_round() -> None:
    edge = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    edge[..., 4:] = 255
    got = RESIZE_METHODS["clean"](edge, 64)
    assert (float(got.min()), float(got.max())) == (0, 255)
    assert (got != got.round()).any()


@pytest.mark.parametrize("size", [299, 20])
def test_the_legacy_resize_is_bilinear_without_antialiasing(size: int) -> None:
    images = random_images(1, 3, 48, 31)
    got = RESIZE_METHODS["legacy-pytorch"](torch.from_numpy(images), size)
    np.testing.assert_allclose(
        got.numpy(), resize_bilinear(images, size), rtol=0, atol=PIXEL_TOLERANCE
    )


# Inception


@pytest.mark.parametrize("resize", list(REFERENCES))
def test_inception_receives_images_of_299_pixels(
    resize: str, inception_stand_in: Path, tmp_path: Path
) -> None:
    extractor = load_inception(cache_dir=tmp_path, path=inception_stand_in, resize=resize)
    images = random_images(3, 3, 40, 27)
    expected = REFERENCES[resize](images, 299).mean(2).reshape(3, -1)
    got = extractor(torch.from_numpy(images))
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=PIXEL_TOLERANCE)


def test_inception_probabilities_come_from_logits_without_bias(
    inception_stand_in: Path, tmp_path: Path
) -> None:
    extractor = load_inception(cache_dir=tmp_path, path=inception_stand_in)
    images = torch.from_numpy(random_images(4, 3, 16, 16))
    state = load_torchscript(inception_stand_in)[0].state_dict()
    logits = extractor(images).double() / 255 @ state["output.weight"].double().T
    expected = logits.exp() / logits.exp().sum(1, keepdim=True)
    assert float(state["output.bias"].abs().max()) > 1e-3  # otherwise the test would prove nothing
    got = extractor.probabilities(images)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)


def test_gray_is_repeated_and_alpha_dropped(inception_stand_in: Path, tmp_path: Path) -> None:
    extractor = load_inception(cache_dir=tmp_path, path=inception_stand_in)
    gray = torch.from_numpy(random_images(2, 1, 16, 16))
    assert torch.equal(extractor(gray), extractor(gray.repeat(1, 3, 1, 1)))
    rgba = torch.from_numpy(random_images(2, 4, 16, 16))
    assert torch.equal(extractor(rgba), extractor(rgba[:, :3]))
    for channels in (2, 5):
        with pytest.raises(ValueError, match=rf"1 \(gray\), 3 .* but have {channels}"):
            extractor(torch.zeros(1, channels, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"uint8 \[N, C, H, W\] and not empty, but got float32"):
        extractor(rgba.float())
    with pytest.raises(ValueError, match=r"but got uint8 \[0, 3, 8, 8\]"):
        extractor(torch.zeros(0, 3, 8, 8, dtype=torch.uint8))


def test_features_do_not_depend_on_the_batch_size(
    inception_stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = load_inception(cache_dir=tmp_path, path=inception_stand_in)
    images = torch.from_numpy(random_images(7, 3, 16, 16))
    features, probabilities = extractor(images), extractor.probabilities(images)
    monkeypatch.setattr("growgan.metrics.features.pretrained._BATCH_SIZE", 3)
    torch.testing.assert_close(extractor(images), features, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(extractor.probabilities(images), probabilities, rtol=1e-5, atol=1e-7)


def test_the_fingerprint_depends_on_weights_and_resize(
    inception_stand_in: Path, tmp_path: Path
) -> None:
    other = save(ChannelMeans(), tmp_path / "other.pt")
    fingerprints = [
        load_inception(cache_dir=tmp_path, path=path, resize=resize).fingerprint
        for path in (inception_stand_in, other)
        for resize in REFERENCES
    ]
    fingerprints += [
        load(cache_dir=tmp_path, path=inception_stand_in).fingerprint
        for load in (load_dinov2, load_clip)
    ]
    fingerprints.append(load_torchscript_extractor(inception_stand_in).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints) == 9
    digest = hashlib.sha256(inception_stand_in.read_bytes()).hexdigest()[:24]
    assert fingerprints[0] == f"inception-clean-{digest}"
    copy = tmp_path / "copy.pt"
    copy.write_bytes(inception_stand_in.read_bytes())
    assert load_inception(cache_dir=tmp_path, path=copy).fingerprint == fingerprints[0]


def test_an_unknown_resize_is_refused_with_the_nearest(
    inception_stand_in: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"unknown resize 'clear' \(did you mean 'clean'"):
        load_inception(cache_dir=tmp_path, path=inception_stand_in, resize="clear")


# Other networks


@pytest.mark.parametrize(
    ("load", "mean", "std"),
    [
        (load_dinov2, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (load_clip, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ],
)
def test_vits_receive_normalized_images_of_224_pixels(
    load: Callable[..., TorchScriptExtractor],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    tmp_path: Path,
) -> None:
    images = random_images(2, 3, 50, 30)
    resized = resize_by_pillow(images, 224).clip(0, 255).astype(np.float64) / 255
    expected = (resized.mean((2, 3)) - mean) / std
    weights_path = save(ChannelMeans(), tmp_path / "m.pt")
    got = load(cache_dir=tmp_path, path=weights_path)(torch.from_numpy(images))
    np.testing.assert_allclose(got[:, :3].numpy(), expected, rtol=0, atol=1e-4)
    assert got[:, 3].tolist() == [224, 224]


def test_a_torchscript_file_receives_the_images_unchanged(tmp_path: Path) -> None:
    images = random_images(2, 3, 5, 9)
    got = load_torchscript_extractor(save(ChannelMeans(), tmp_path / "m.pt"))(
        torch.from_numpy(images)
    )
    np.testing.assert_allclose(got[:, :3].numpy(), images.mean((2, 3)), rtol=1e-6)
    assert got[:, 3].tolist() == [5, 5]


def test_a_network_with_another_interface_is_refused(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(
        UserError, match=r"must return features \[2, d\], but returned \[2, 3, 8, 8\]"
    ):
        load_torchscript_extractor(save(FeatureMaps(), tmp_path / "maps.pt"))(images)
    with pytest.raises(UserError, match=r"does not accept these images: .*seven channels"):
        load_torchscript_extractor(save(SevenChannels(), tmp_path / "particular.pt"))(images)
    with pytest.raises(UserError, match=r"network 'inception-clean-.*' does not accept"):
        load_inception(cache_dir=tmp_path, path=tmp_path / "maps.pt")(
            images
        )  # its forward has no such arguments


# Names


def test_all_features_are_registered_and_load_by_name(
    inception_stand_in: Path, tmp_path: Path
) -> None:
    assert {entry.name for entry in FEATURES} == {"own", "pixels", "inception", "dinov2", "clip"}
    assert all(entry.summary for entry in FEATURES)
    assert isinstance(load_extractor("pixels", cache_dir=tmp_path), PixelExtractor)
    for name in ("inception", "dinov2", "clip"):
        got = load_extractor(f"{name}:{inception_stand_in}", cache_dir=tmp_path)
        assert (
            got.fingerprint
            == FEATURES[name](cache_dir=tmp_path, path=inception_stand_in).fingerprint
        )
        with pytest.raises(UserError, match="are not in the cache"):
            load_extractor(name, cache_dir=tmp_path)
    assert load_extractor(str(inception_stand_in), cache_dir=tmp_path).fingerprint.startswith(
        "torchscript-"
    )
    with pytest.raises(UserError, match=r"unknown features 'incepton' .*'inception'.*FILE.pt"):
        load_extractor("incepton", cache_dir=tmp_path)
    with pytest.raises(UserError, match="unknown features 'pixels:8'"):
        load_extractor("pixels:8", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="must not be 'own': call load_or_train_own_extractor"):
        load_extractor("own", cache_dir=tmp_path)


# Weights


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[tuple[str, float]]:
    """Make downloads return ``content``; return the list of requested (URL, timeout)."""
    requests: list[tuple[str, float]] = []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        requests.append((url, timeout))
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return requests


def published(file: Path) -> PublishedWeights:
    return PublishedWeights(
        "network.pt", WEIGHTS_URL, hashlib.sha256(file.read_bytes()).hexdigest()
    )


def test_weights_are_downloaded_once_into_the_cache(
    inception_stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = serve(monkeypatch, inception_stand_in.read_bytes())
    weights = published(inception_stand_in)
    for _ in range(2):
        assert load_published_weights(weights, cache_dir=tmp_path)[1] == weights.sha256
    assert requests == [(WEIGHTS_URL, DOWNLOAD_TIMEOUT_SECONDS)]
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["network.pt"]
    assert (tmp_path / "weights" / "network.pt").read_bytes() == inception_stand_in.read_bytes()


def test_a_download_with_another_checksum_is_refused_and_not_kept(
    inception_stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, inception_stand_in.read_bytes()[:-1])
    with pytest.raises(
        UserError, match=r"'network.pt' are not .* \(the downloaded file has the wrong"
    ):
        load_published_weights(published(inception_stand_in), cache_dir=tmp_path)
    assert not (tmp_path / "weights").exists()


def test_a_cached_file_with_another_checksum_is_refused(
    inception_stand_in: Path, tmp_path: Path
) -> None:
    other = save(ChannelMeans(), tmp_path / "network.pt")
    (tmp_path / "weights").mkdir()
    other.rename(tmp_path / "weights" / "network.pt")
    with pytest.raises(
        UserError, match=r"network.pt' is not the published file: .*; delete the file"
    ):
        load_published_weights(published(inception_stand_in), cache_dir=tmp_path)


def test_a_file_in_the_cache_needs_no_network(inception_stand_in: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / DINOV2_WEIGHTS.filename).write_bytes(inception_stand_in.read_bytes())
    digest = hashlib.sha256(inception_stand_in.read_bytes()).hexdigest()[:24]
    assert load_dinov2(cache_dir=tmp_path).fingerprint == f"dinov2-clean-{digest}"


@pytest.mark.parametrize(
    ("load", "weights"), [(load_inception, INCEPTION_WEIGHTS), (load_dinov2, DINOV2_WEIGHTS)]
)
def test_missing_weights_are_named_with_instructions(
    load: Callable[..., TorchScriptExtractor], weights: PublishedWeights, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load(cache_dir=tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(
        f"weights '{weights.filename}' are not in the cache and cannot be downloaded ("
    )
    assert ("no network" if weights.url else "not published as TorchScript") in message
    assert f"at '{tmp_path / 'weights' / weights.filename}'" in message
    assert weights.url in message
    assert message.endswith("features 'own' and 'pixels' need no weights")


def test_a_path_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pt", tmp_path):
        with pytest.raises(UserError, match=f"weights '{path}' cannot be read"):
            load_inception(cache_dir=tmp_path, path=path)


def test_a_cache_that_cannot_be_written_is_named(
    inception_stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, inception_stand_in.read_bytes())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache '.*file.*' cannot be written"):
        load_published_weights(published(inception_stand_in), cache_dir=tmp_path / "file")


class CreateFileWhenUnpickled:
    """A pickle that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_is_refused_and_never_executed(tmp_path: Path) -> None:
    created = tmp_path / "created"
    pickle.loads(pickle.dumps(CreateFileWhenUnpickled(created)))
    assert created.exists()  # the pickle does run code
    created.unlink()
    plain, zipped = tmp_path / "plain.pt", tmp_path / "zipped.pt"
    plain.write_bytes(pickle.dumps(CreateFileWhenUnpickled(created)))
    torch.save(CreateFileWhenUnpickled(created), zipped)
    for path in (plain, zipped):
        with pytest.raises(UserError, match=r"must be a TorchScript archive, .*never loaded"):
            load_torchscript_extractor(path)
    assert not created.exists()


def test_an_incomplete_file_is_refused(inception_stand_in: Path, tmp_path: Path) -> None:
    content = inception_stand_in.read_bytes()
    broken = tmp_path / "broken.pt"
    for size in (0, 100, len(content) // 2, len(content) - 1):
        broken.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"must be a TorchScript archive|broken|cannot be read"):
            load_torchscript_extractor(broken)
    middle = len(content) // 2
    broken.write_bytes(content[:64] + bytes(middle) + content[64 + middle :])
    with pytest.raises(UserError, match="broken TorchScript archive"):
        load_torchscript_extractor(broken)
