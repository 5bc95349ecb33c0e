"""Download, cache and open the weights of published networks.

A network is a TorchScript archive: a zip file that holds its code and its tensors, so that it runs
without the library that it was written with.
"""

from __future__ import annotations

import hashlib
import urllib.request
import warnings
import zipfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch

from growgan.data.cache import write_cache_file
from growgan.errors import UserError
from growgan.files import file_sha256

DOWNLOAD_TIMEOUT_SECONDS = 30  # time without a response

_MAX_DOWNLOAD_BYTES = 2**30


@dataclass(frozen=True)
class PublishedWeights:
    """A TorchScript file: its name in the cache, its URL and its SHA-256.

    An empty ``url`` means that the file is not published as TorchScript.
    """

    filename: str
    url: str = ""
    sha256: str = ""


def load_published_weights(
    weights: PublishedWeights,
    *,
    cache_dir: Path,
    path: Path | None = None,
    device: torch.device | str = "cpu",
) -> tuple[torch.jit.ScriptModule, str]:
    """Return the network of ``weights`` on ``device``, and the SHA-256 of its file.

    The file is ``path``, whatever its checksum, or else ``CACHE_DIR/weights/FILENAME``, which is
    downloaded if it is missing.

    Raises:
        UserError: There is no file, a cached or downloaded file has another checksum than the
            published one, or the file is not TorchScript.
    """
    if path is not None:
        return load_torchscript(path, device=device)
    target = cache_dir / "weights" / weights.filename
    if not target.is_file():
        write_cache_file(target, _download(weights, target))
    return load_torchscript(target, sha256=weights.sha256, device=device)


def load_torchscript(
    path: Path, *, sha256: str = "", device: torch.device | str = "cpu"
) -> tuple[torch.jit.ScriptModule, str]:
    """Return the TorchScript network in ``path`` on ``device``, in eval mode, and its SHA-256.

    Nothing is unpickled. A TorchScript archive is still a program that runs when it is loaded and
    called. It can only compute with tensors and cannot run Python, but load only files from a
    source that you trust.

    Raises:
        UserError: The file is missing, broken, not a TorchScript archive, or its checksum is not
            ``sha256``, if that is given. Files that are not archives are refused before loading.
    """
    try:
        digest = file_sha256(path)
        if sha256 and digest != sha256:
            raise UserError(
                f"'{path}' is not the published file: its SHA-256 is {digest}, not {sha256};"
                " delete the file and try again"
            )
        names: list[str] = []
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"weights '{path}' cannot be read: {error}") from error
    if not any(name.split("/")[1:2] == ["code"] for name in names):
        raise UserError(
            f"weights '{path}' must be a TorchScript archive, as written by torch.jit.save;"
            " pickled models and state dicts are never loaded"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself
            return torch.jit.load(path, map_location=device).eval(), digest
    except (RuntimeError, torch.jit.Error) as error:
        raise UserError(f"weights '{path}' is a broken TorchScript archive") from error


def _download(weights: PublishedWeights, target_path: Path) -> bytes:
    """Return the content of the published file; raise UserError with instructions if it fails."""
    reason = "the file is not published as TorchScript"
    if weights.url:
        try:
            with urllib.request.urlopen(weights.url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
                content: bytes = response.read(_MAX_DOWNLOAD_BYTES)
            if hashlib.sha256(content).hexdigest() == weights.sha256:
                return content
            reason = "the downloaded file has the wrong checksum"
        except (OSError, ValueError, HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
    source = f" from {weights.url}" if weights.url else ""
    raise UserError(
        f"weights '{weights.filename}' are not in the cache and cannot be downloaded ({reason});"
        f" put the TorchScript file{source} at '{target_path}', or pass its path; the metric 'swd'"
        " and the features 'own' and 'pixels' need no weights"
    )
