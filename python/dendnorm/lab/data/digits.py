"""scikit-learn's bundled digits: 1,797 images of 8 x 8 pixels, which need no file."""

from __future__ import annotations

import numpy as np

from ..._extras import require
from .dataset import DIGITS, DataSet

__all__ = ["load"]

TEST = 360


def load() -> DataSet:
    digits = require("sklearn.datasets", "train").load_digits()
    # RandomState's stream is frozen by numpy, so the split stays the same for all versions.
    order = np.random.RandomState(0).permutation(len(digits.target))
    inputs, targets = digits.data[order], digits.target[order]
    return DataSet.of_arrays(
        "digits",
        (inputs[:-TEST], targets[:-TEST]),
        (inputs[-TEST:], targets[-TEST:]),
        scale=1 / 17,  # pixels are 0..16
        classes=DIGITS,
        image_shape=(1, 8, 8),
    )
