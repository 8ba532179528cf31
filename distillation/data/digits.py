"""Handwritten digits: small real data that comes with scikit-learn."""

from __future__ import annotations

import torch

from distillation.data.images import ImageSet
from distillation.errors import DataError


def digits(seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """(1,437 training images, 360 test images) of 8×8 pixels, one channel, ten classes.

    The 1,797 images of scikit-learn's `load_digits` (the test part of the UCI data set "Optical
    Recognition of Handwritten Digits", Alpaydin and Kaynak 1998), split stratified by the seed.
    Their grey levels v = 0 … 16 become ⌊(255·v + 8) / 16⌋: 0 … 255, rounded half up.

    Raises `DataError` when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install scikit-learn (or distillation[experiments])"
        ) from error
    bunch = load_digits()
    levels = torch.from_numpy(bunch.images).round().to(torch.int64)
    pixels = ((levels * 255 + 8) // 16).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    whole = ImageSet.of(pixels, labels, [str(name) for name in bunch.target_names])
    train, test = whole.split(holdout=360, seed=seed)
    train = ImageSet.of(train.images, train.labels, train.classes)
    return train, ImageSet.of(test.images, test.labels, test.classes, train.mean, train.std)
