"""Handwritten digits: small real data that comes with scikit-learn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from distillation.data.images import ImageSet
from distillation.errors import DataError

# In scikit-learn's package
_FILE = "datasets/data/digits.csv.gz"


def digits(seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """(1,437 training images, 360 test images) of 8×8 pixels, one channel, ten classes.

    The 1,797 images of scikit-learn's `load_digits` (the test part of the UCI data set "Optical
    Recognition of Handwritten Digits", Alpaydin and Kaynak 1998), split stratified by the seed.
    Their grey levels v = 0 … 16 become ⌊(255·v + 8) / 16⌋: 0 … 255, rounded half up.

    Raises `DataError` when scikit-learn is not installed.
    """
    rows = torch.from_numpy(_rows())
    levels, labels = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].contiguous()
    pixels = ((levels * 255 + 8) // 16).to(torch.uint8).unsqueeze(1)
    whole = ImageSet.of(pixels, labels, [str(digit) for digit in range(10)])
    train, test = whole.split(holdout=360, seed=seed)
    train = ImageSet.of(train.images, train.labels, train.classes)
    return train, ImageSet.of(test.images, test.labels, test.classes, train.mean, train.std)


def _rows() -> np.ndarray:
    """int64 `[1797, 65]`: 64 grey levels, and the digit.

    From the file, since importing scikit-learn takes longer than a short training of the digits;
    a scikit-learn that keeps it elsewhere is asked for them.
    """
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install scikit-learn (or distillation[experiments])"
        )
    file = Path(found.origin).parent / _FILE
    if file.exists():
        return np.loadtxt(file, delimiter=",", dtype=np.int64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target]).round().astype(np.int64)
