"""From stored bytes to what a model sees: augment, normalise, memory format, dtype."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from distillation.data.views import Cutout, Identity, Views
from distillation.errors import ConfigError


class Rendering:
    """Makes the picture that (image, sample, view) stands for, for whole batches.

    views            the augmentation; `Identity()` for evaluation
    views_per_image  restrict every image to this many views, drawn from `views_seed` alone, so
                     that all runs and the teacher's table agree on them whatever their `seed`
    cutout           side of a blanked square in pixels, 0 for none; makes the views not finite
    seed             of the cutout
    mean, std        of each channel, in units of 0 … 1
    dtype            of the images
    channels_last    memory format of the images

    Images are `(x / 255 - mean) / std`, reckoned in float32 and then rounded to `dtype`.

    Raises `ConfigError` for options that do not fit.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        views: Views | None = None,
        views_per_image: int | None = None,
        views_seed: int = 0,
        cutout: int = 0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        self.mean, self.std = (tuple(float(v) for v in values) for values in (mean, std))
        if len(self.mean) != len(self.std):
            raise ConfigError(f"mean has {len(self.mean)} values, std has {len(self.std)}")
        if min(self.std) <= 0:
            raise ConfigError(f"std={self.std}: every channel needs a positive deviation")
        if not dtype.is_floating_point:
            raise ConfigError(f"dtype={dtype}: images are normalised, take a floating-point dtype")
        self.views = (Identity() if views is None else views).restrict(views_per_image, views_seed)
        if cutout:
            grey = tuple(round(255 * m) for m in self.mean)
            self.views = Cutout(self.views, cutout, grey, seed)
        self.dtype, self.channels_last = dtype, channels_last
        self._constants: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor, view: Tensor, sample: Tensor) -> Tensor:
        """uint8 (B, C, H, W), in the memory format of the result, to (B, C, H, W) in `dtype`.

        `view` and `sample` are int64 of shape (B,).
        """
        picked = self.views.apply(images, view, sample)
        batch, channels, height, width = picked.shape
        if channels != len(self.mean):
            raise ConfigError(f"mean has {len(self.mean)} values for {channels} channels")
        if self.channels_last:
            picked = picked.permute(0, 2, 3, 1).flatten(2)
        mean, std = self._of_row(width, picked.device)
        made = picked.to(torch.float32).div_(255).sub_(mean).div_(std).to(self.dtype)
        if self.channels_last:
            made = made.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return made

    def _of_row(self, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """mean and std, shaped to the arithmetic: in channels_last a row of pixels is one axis,
        since arithmetic along an axis of three channels is slow."""
        key = (width, device)
        if key not in self._constants:
            both = [torch.tensor(values, device=device) for values in (self.mean, self.std)]
            if self.channels_last:
                self._constants[key] = (both[0].repeat(width), both[1].repeat(width))
            else:
                self._constants[key] = (both[0].view(-1, 1, 1), both[1].view(-1, 1, 1))
        return self._constants[key]

    @property
    def normalisation(self) -> dict[str, object]:
        """Mean, std and dtype: with data and views, all that a picture depends on."""
        return {"mean": self.mean, "std": self.std, "dtype": str(self.dtype).removeprefix("torch.")}

    def fingerprint(self, data: str) -> str:
        """Hex digest of data (its fingerprint), views and normalisation: what the keys of a batch
        stand for. The memory format plays no part."""
        parts = (data, self.views.description, self.normalisation)
        return hashlib.sha256(repr(parts).encode()).hexdigest()
