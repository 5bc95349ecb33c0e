"""Features of published networks: a stand-in file is found, checked, prepared for and run."""

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
from growgan.metrics import networks
from growgan.metrics.features import PixelExtractor
from growgan.metrics.networks import FEATURES, clip, dinov2, inception, load_extractor, torchscript
from growgan.metrics.resize import RESIZES
from growgan.metrics.weights import TIMEOUT, Weights, load_torchscript, open_weights

ADDRESS = "https://example.org/network.pt"
GRAY_LEVELS = 1e-2  # of 255, on white noise: torch places the filter in float32, Pillow in float64


class Means(nn.Module):
    """The mean of each channel of whatever it is given, and its height."""

    def forward(self, x: Tensor) -> Tensor:
        height = torch.full([len(x), 1], float(x.size(2)))
        return torch.cat([x.float().mean(dim=[2, 3]), height], 1)


class Maps(nn.Module):
    """Gives its input back, which is no vector of features."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Particular(nn.Module):
    """Takes no images of three channels."""

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


def pictures(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def by_pillow(images: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Each channel as floats, resized by Pillow's bicubic."""
    channels = images.reshape(-1, *images.shape[2:]).astype(np.float32)
    resized = [Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC) for x in channels]
    return np.array([np.asarray(x) for x in resized]).reshape(*images.shape[:2], size, size)


def by_bilinear(images: NDArray[np.uint8], size: int) -> NDArray[np.float64]:
    """Weights of the two nearest pixels alone, with pixels as areas and the border repeated."""

    def matrix(old: int) -> NDArray[np.float64]:
        weights = np.zeros((size, old))
        for i in range(size):
            at = np.clip((i + 0.5) * old / size - 0.5, 0, old - 1)
            low = int(at)
            weights[i, low] += 1 - (at - low)
            weights[i, min(low + 1, old - 1)] += at - low
        return weights

    return matrix(images.shape[2]) @ images.astype(np.float64) @ matrix(images.shape[3]).T


def by_nearest(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    rows, columns = (np.arange(size) * extent // size for extent in images.shape[2:])
    return images[:, :, rows][:, :, :, columns]


REFERENCES: dict[str, Callable[[NDArray[np.uint8], int], NDArray[Any]]] = {
    "clean": lambda images, size: by_pillow(images, size).clip(0, 255),
    "legacy-pytorch": by_bilinear,
    "legacy-tensorflow": by_nearest,
}


# Resizing


@pytest.mark.parametrize("size", [299, 224, 20])
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 1, 400, 25), (1, 4, 31, 640)])
def test_the_clean_resize_is_pillows_on_floats(shape: tuple[int, ...], size: int) -> None:
    images = pictures(*shape)
    got = RESIZES["clean"](torch.from_numpy(images), size)
    assert got.dtype == torch.float32
    expected = by_pillow(images, size).clip(0, 255)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=GRAY_LEVELS)


def test_the_clean_resize_clamps_and_does_not_round() -> None:
    edge = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    edge[..., 4:] = 255
    got = RESIZES["clean"](edge, 64)
    assert (float(got.min()), float(got.max())) == (0, 255)
    assert (got != got.round()).any()


@pytest.mark.parametrize("size", [299, 20])
def test_the_legacy_resize_is_bilinear_without_antialiasing(size: int) -> None:
    images = pictures(1, 3, 48, 31)
    got = RESIZES["legacy-pytorch"](torch.from_numpy(images), size)
    np.testing.assert_allclose(got.numpy(), by_bilinear(images, size), rtol=0, atol=GRAY_LEVELS)


# Inception


@pytest.mark.parametrize("resize", list(REFERENCES))
def test_inception_sees_images_at_299_pixels(resize: str, stand_in: Path, tmp_path: Path) -> None:
    extractor = inception(cache=tmp_path, path=stand_in, resize=resize)
    images = pictures(3, 3, 40, 27)
    expected = REFERENCES[resize](images, 299).mean(2).reshape(3, -1)
    got = extractor(torch.from_numpy(images))
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=GRAY_LEVELS)


def test_inception_gives_probabilities_from_logits_without_bias(
    stand_in: Path, tmp_path: Path
) -> None:
    extractor = inception(cache=tmp_path, path=stand_in)
    images = torch.from_numpy(pictures(4, 3, 16, 16))
    state = load_torchscript(stand_in)[0].state_dict()
    logits = extractor(images).double() / 255 @ state["output.weight"].double().T
    expected = logits.exp() / logits.exp().sum(1, keepdim=True)
    assert float(state["output.bias"].abs().max()) > 1e-3  # or its absence would prove nothing
    got = extractor.probabilities(images)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)


def test_gray_is_repeated_and_alpha_dropped(stand_in: Path, tmp_path: Path) -> None:
    extractor = inception(cache=tmp_path, path=stand_in)
    gray = torch.from_numpy(pictures(2, 1, 16, 16))
    assert torch.equal(extractor(gray), extractor(gray.repeat(1, 3, 1, 1)))
    rgba = torch.from_numpy(pictures(2, 4, 16, 16))
    assert torch.equal(extractor(rgba), extractor(rgba[:, :3]))
    for channels in (2, 5):
        with pytest.raises(ValueError, match=rf"1 \(gray\), 3 .* but have {channels}"):
            extractor(torch.zeros(1, channels, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"uint8 \[N, C, H, W\], but are torch.float32"):
        extractor(rgba.float())
    with pytest.raises(ValueError, match=r"but are torch.uint8 \[0, 3, 8, 8\]"):
        extractor(torch.zeros(0, 3, 8, 8, dtype=torch.uint8))


def test_chunks_equal_the_whole(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = inception(cache=tmp_path, path=stand_in)
    images = torch.from_numpy(pictures(7, 3, 16, 16))
    whole = extractor(images), extractor.probabilities(images)
    monkeypatch.setattr(networks, "_CHUNK", 3)
    torch.testing.assert_close(extractor(images), whole[0], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(extractor.probabilities(images), whole[1], rtol=1e-5, atol=1e-7)


def test_the_fingerprint_names_weights_and_resize(stand_in: Path, tmp_path: Path) -> None:
    other = save(Means(), tmp_path / "other.pt")
    prints = [
        inception(cache=tmp_path, path=path, resize=resize).fingerprint
        for path in (stand_in, other)
        for resize in REFERENCES
    ]
    prints += [build(cache=tmp_path, path=stand_in).fingerprint for build in (dinov2, clip)]
    prints.append(torchscript(stand_in).fingerprint)
    assert len(set(prints)) == len(prints) == 9
    digest = hashlib.sha256(stand_in.read_bytes()).hexdigest()[:24]
    assert prints[0] == f"inception-clean-{digest}"
    copy = tmp_path / "copy.pt"
    copy.write_bytes(stand_in.read_bytes())
    assert inception(cache=tmp_path, path=copy).fingerprint == prints[0]


def test_an_unknown_resize_is_refused_with_the_nearest(stand_in: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown resize 'clear' \(did you mean 'clean'"):
        inception(cache=tmp_path, path=stand_in, resize="clear")


# Other networks


@pytest.mark.parametrize(
    ("build", "mean", "deviation"),
    [
        (dinov2, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (clip, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ],
)
def test_towers_see_normalised_images_of_224_pixels(
    build: Callable[..., networks.TorchScriptExtractor],
    mean: tuple[float, ...],
    deviation: tuple[float, ...],
    tmp_path: Path,
) -> None:
    images = pictures(2, 3, 50, 30)
    resized = by_pillow(images, 224).clip(0, 255).astype(np.float64) / 255
    expected = (resized.mean((2, 3)) - mean) / deviation
    got = build(cache=tmp_path, path=save(Means(), tmp_path / "m.pt"))(torch.from_numpy(images))
    np.testing.assert_allclose(got[:, :3].numpy(), expected, rtol=0, atol=1e-4)
    assert got[:, 3].tolist() == [224, 224]


def test_any_torchscript_file_sees_the_images_as_they_are(tmp_path: Path) -> None:
    images = pictures(2, 3, 5, 9)
    got = torchscript(save(Means(), tmp_path / "m.pt"))(torch.from_numpy(images))
    np.testing.assert_allclose(got[:, :3].numpy(), images.mean((2, 3)), rtol=1e-6)
    assert got[:, 3].tolist() == [5, 5]


def test_a_network_of_another_kind_is_refused(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"must give features \[2, d\], but gave \[2, 3, 8, 8\]"):
        torchscript(save(Maps(), tmp_path / "maps.pt"))(images)
    with pytest.raises(UserError, match=r"cannot take images: .*seven channels"):
        torchscript(save(Particular(), tmp_path / "particular.pt"))(images)
    with pytest.raises(UserError, match=r"network 'inception-clean-.*' cannot take images"):
        inception(cache=tmp_path, path=tmp_path / "maps.pt")(images)  # has no such options


# Names


def test_every_kind_of_features_is_listed_and_loads_by_name(stand_in: Path, tmp_path: Path) -> None:
    assert {x.name for x in FEATURES} == {"domain", "pixels", "inception", "dinov2", "clip"}
    assert all(entry.summary for entry in FEATURES)
    assert isinstance(load_extractor("pixels", cache=tmp_path), PixelExtractor)
    for name in ("inception", "dinov2", "clip"):
        got = load_extractor(f"{name}:{stand_in}", cache=tmp_path)
        assert got.fingerprint == FEATURES[name](cache=tmp_path, path=stand_in).fingerprint
        with pytest.raises(UserError, match="are not here"):
            load_extractor(name, cache=tmp_path)
    assert load_extractor(str(stand_in), cache=tmp_path).fingerprint.startswith("torchscript-")
    with pytest.raises(UserError, match=r"unknown features 'incepton' .*'inception'.*FILE.pt"):
        load_extractor("incepton", cache=tmp_path)
    with pytest.raises(UserError, match="unknown features 'pixels:8'"):
        load_extractor("pixels:8", cache=tmp_path)
    with pytest.raises(ValueError, match="must not be 'domain', which domain_extractor makes"):
        load_extractor("domain", cache=tmp_path)


# Weights


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[tuple[str, float]]:
    """Let downloads give ``content``; return the list of (address, timeout) that they asked for."""
    asked: list[tuple[str, float]] = []

    def urlopen(address: str, timeout: float) -> io.BytesIO:
        asked.append((address, timeout))
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def published(file: Path) -> Weights:
    return Weights("network.pt", ADDRESS, hashlib.sha256(file.read_bytes()).hexdigest())


def test_weights_are_downloaded_once_into_the_cache(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(monkeypatch, stand_in.read_bytes())
    weights = published(stand_in)
    for _ in range(2):
        assert open_weights(weights, cache=tmp_path)[1] == weights.sha256
    assert asked == [(ADDRESS, TIMEOUT)]
    assert [x.name for x in (tmp_path / "weights").iterdir()] == ["network.pt"]
    assert (tmp_path / "weights" / "network.pt").read_bytes() == stand_in.read_bytes()


def test_a_download_of_another_checksum_is_refused_and_not_kept(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, stand_in.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"'network.pt' are not .* \(the checksum of what came"):
        open_weights(published(stand_in), cache=tmp_path)
    assert not (tmp_path / "weights").exists()


def test_a_cached_file_of_another_checksum_is_refused(stand_in: Path, tmp_path: Path) -> None:
    other = save(Means(), tmp_path / "network.pt")
    (tmp_path / "weights").mkdir()
    other.rename(tmp_path / "weights" / "network.pt")
    with pytest.raises(UserError, match=r"network.pt' is not the published file .*; remove it"):
        open_weights(published(stand_in), cache=tmp_path)


def test_a_file_put_into_the_cache_needs_no_network(stand_in: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / networks.DINOV2.file).write_bytes(stand_in.read_bytes())
    digest = hashlib.sha256(stand_in.read_bytes()).hexdigest()[:24]
    assert dinov2(cache=tmp_path).fingerprint == f"dinov2-clean-{digest}"


@pytest.mark.parametrize("build", [inception, dinov2])
def test_absent_weights_are_named_with_the_way_out(
    build: Callable[..., networks.TorchScriptExtractor], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        build(cache=tmp_path)
    weights = {inception: networks.INCEPTION, dinov2: networks.DINOV2}[build]
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"weights '{weights.file}' are not here and cannot be downloaded (")
    assert ("no network" if weights.address else "not published in this form") in text
    assert f"at '{tmp_path / 'weights' / weights.file}'" in text
    assert weights.address in text
    assert text.endswith("swd, and distances on the features domain or pixels, need no weights")


def test_a_given_path_that_is_absent_or_a_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(UserError, match=f"weights '{path}' cannot be read"):
            inception(cache=tmp_path, path=path)


def test_a_cache_that_cannot_be_written_is_named(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, stand_in.read_bytes())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache '.*file.*' cannot be written"):
        open_weights(published(stand_in), cache=tmp_path / "file")


class Trap:
    """Creates a file as soon as it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_is_refused_and_never_executed(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap works
    sprung.unlink()
    plain, zipped = tmp_path / "plain.pt", tmp_path / "zipped.pt"
    plain.write_bytes(pickle.dumps(Trap(sprung)))
    torch.save(Trap(sprung), zipped)
    for path in (plain, zipped):
        with pytest.raises(UserError, match=r"must be a TorchScript archive .*never loaded"):
            torchscript(path)
    assert not sprung.exists()


def test_a_torn_file_is_refused(stand_in: Path, tmp_path: Path) -> None:
    content = stand_in.read_bytes()
    torn = tmp_path / "torn.pt"
    for kept in (0, 100, len(content) // 2, len(content) - 1):
        torn.write_bytes(content[:kept])
        with pytest.raises(UserError, match=r"must be a TorchScript archive|broken|cannot be read"):
            torchscript(torn)
    middle = len(content) // 2
    torn.write_bytes(content[:64] + bytes(middle) + content[64 + middle :])
    with pytest.raises(UserError, match="broken TorchScript archive"):
        torchscript(torn)
