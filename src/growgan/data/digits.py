"""scikit-learn's digits: 1,797 gray images of 8x8, ten classes (Alpaydin & Kaynak, 1998)."""

from __future__ import annotations

from importlib import metadata

import numpy as np

from growgan.data.base import ArraySource, ImageArrays, parse_options
from growgan.data.npz import with_labels
from growgan.errors import require_extra
from growgan.files import hash_json


def open_digits(options: str) -> ArraySource:
    """Open the digits; raise a UserError if scikit-learn is not installed."""
    parse_options(options, "digits", {})
    require_extra("sklearn", "digits", "scikit-learn")
    digest = hash_json("digits", metadata.version("scikit-learn"))
    return ArraySource("digits", "scikit-learn", digest, read_digits)


def read_digits() -> ImageArrays:
    """Load the digits, with their 17 gray levels scaled to 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return with_labels(images, bunch.target, tuple("0123456789"), "digits")
