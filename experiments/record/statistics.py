r"""
# Means, errors and tests

All of them from numbers that the record holds: accuracies by seed, and which test images were
right. They are computed in float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Spread:
    r"""
    ### Mean over the seeds, with its spread

    The sample standard deviation ($n - 1$) and the standard error $s / \sqrt n$ are `None` for one
    seed: one number has no spread.
    """

    n: int
    mean: float
    deviation: float | None
    error: float | None


def spread(values: Sequence[float]) -> Spread:
    """
    ### The spread of some values, one or more
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Spread(len(values), mean, None, None)
    squares = math.fsum((v - mean) ** 2 for v in values)
    deviation = math.sqrt(squares / (len(values) - 1))
    return Spread(len(values), mean, deviation, deviation / math.sqrt(len(values)))


@dataclass(frozen=True)
class Margin:
    """
    ### What one student is ahead of the other, in accuracy

    * `over_seeds` is the spread of the differences, seed by seed
    * `p_seeds` is of a paired t-test, two-sided, with $n - 1$ degrees of freedom
    * `image_error` is the standard error of the margin over test images, for these very models: the
      accuracy on other images of the kind would be as far off
    * `gained`, `lost` are the test images, over all seeds, that only the first or only the second
      gets right; `p_images` is McNemar's exact test for each seed
    """

    over_seeds: Spread
    p_seeds: float | None
    image_error: float
    gained: int
    lost: int
    p_images: list[float]


def margin(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Margin:
    """
    ### Compare two students, seed by seed

    Each is a sequence of boolean arrays `[images]`, a seed each: what was right.
    """
    pairs = list(zip(first, second, strict=True))
    differences = [float(a.mean()) - float(b.mean()) for a, b in pairs]
    over_seeds = spread(differences)
    # Per image, the mean over the seeds of 1, 0 or -1
    per_image = np.mean([a.astype(float) - b.astype(float) for a, b in pairs], axis=0)
    image_error = float(per_image.std(ddof=1) / math.sqrt(len(per_image)))
    gained = [int((a & ~b).sum()) for a, b in pairs]
    lost = [int((~a & b).sum()) for a, b in pairs]
    # Equal differences have no spread, and a t-test of them no meaning
    varied = len({g - l for g, l in zip(gained, lost, strict=True)}) > 1
    p_seeds = float(stats.ttest_1samp(differences, 0.0).pvalue) if varied else None
    p_images = [
        float(stats.binomtest(g, g + l, 0.5).pvalue) if g + l else 1.0
        for g, l in zip(gained, lost, strict=True)
    ]
    return Margin(over_seeds, p_seeds, image_error, sum(gained), sum(lost), p_images)
