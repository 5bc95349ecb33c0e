"""Where the weights of published networks lie, how they are fetched once, and how they are opened.

A network is a TorchScript archive: a zip that holds its code beside its tensors, so that it runs
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

from growgan.data.files import write_atomic
from growgan.errors import UserError

TIMEOUT = 30  # seconds without an answer

_LARGEST = 2**30  # bytes of a download


@dataclass(frozen=True)
class Weights:
    """A TorchScript file: its name in the cache, and where it can be had with which SHA-256.

    An empty ``address`` means that nobody publishes the file in this form.
    """

    file: str
    address: str = ""
    sha256: str = ""


def open_weights(
    weights: Weights,
    *,
    cache: Path,
    path: Path | None = None,
    device: torch.device | str = "cpu",
) -> tuple[torch.jit.ScriptModule, str]:
    """Return the network of ``weights`` on ``device``, and its file's SHA-256.

    The file is ``path``, whatever its checksum; else ``cache/weights/FILE``, fetched from its
    address where it is absent. Raises UserError where there is no file, where a file of the cache
    or a download has another checksum than the published one, or where it is not TorchScript.
    """
    if path is not None:
        return load_torchscript(path, device=device)
    target = cache / "weights" / weights.file
    if not target.is_file():
        write_atomic(target, _download(weights, target))
    return load_torchscript(target, sha256=weights.sha256, device=device)


def load_torchscript(
    path: Path, *, sha256: str = "", device: torch.device | str = "cpu"
) -> tuple[torch.jit.ScriptModule, str]:
    """Return the TorchScript network in ``path`` on ``device``, ready to infer, and its SHA-256.

    Such a file is a program that runs when it is loaded and called: it knows tensors only and no
    Python, but take it from someone you trust. Nothing is ever unpickled: a file that is no
    TorchScript archive raises UserError before it is loaded, as does one that is absent, or not of
    the checksum ``sha256`` where that is given; a broken archive raises it, too.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 and digest != sha256:
                raise UserError(
                    f"'{path}' is not the published file (its SHA-256 is {digest}, not {sha256}); "
                    "remove it"
                )
            names = zipfile.ZipFile(file).namelist() if zipfile.is_zipfile(file) else []
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"weights '{path}' cannot be read: {error}") from error
    if not any(name.split("/")[1:2] == ["code"] for name in names):
        raise UserError(
            f"weights '{path}' must be a TorchScript archive (as torch.jit.save writes), but are "
            "not; pickled models and state dicts are never loaded"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the published files are of it
            return torch.jit.load(path, map_location=device).eval(), digest
    except (RuntimeError, torch.jit.Error) as error:
        raise UserError(f"weights '{path}' are a broken TorchScript archive") from error


def _download(weights: Weights, target: Path) -> bytes:
    """Return the published file; raise the one UserError that says what to do without it."""
    why = "it is not published in this form"
    if weights.address:
        try:
            with urllib.request.urlopen(weights.address, timeout=TIMEOUT) as reply:
                content: bytes = reply.read(_LARGEST)
            if hashlib.sha256(content).hexdigest() == weights.sha256:
                return content
            why = "the checksum of what came differs"
        except (OSError, ValueError, HTTPException) as error:
            why = str(getattr(error, "reason", error)) or type(error).__name__
    source = f" from {weights.address}" if weights.address else ""
    raise UserError(
        f"weights '{weights.file}' are not here and cannot be downloaded ({why}); put the "
        f"TorchScript file{source} at '{target}', or give its path; swd, and distances on the "
        "features domain or pixels, need no weights"
    )
