"""scikit-learn's digits: 1,797 gray images of 8x8, ten classes (Alpaydin & Kaynak, 1998)."""

from __future__ import annotations

from importlib import metadata

import numpy as np

from growgan.data.files import combine
from growgan.data.npz import with_labels
from growgan.data.sources import Arrays, ArraySource, parse_options
from growgan.errors import require


def open_digits(options: str) -> ArraySource:
    """Return the digits; raises UserError where scikit-learn is not installed."""
    parse_options(options, "digits", {})
    require("sklearn", "digits", "scikit-learn")
    digest = combine("digits", metadata.version("scikit-learn"))
    return ArraySource("digits", "scikit-learn", digest, read_digits)


def read_digits() -> Arrays:
    """Load the digits, their 17 gray levels spread over 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return with_labels(images, bunch.target, tuple("0123456789"), "digits")
