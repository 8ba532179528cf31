"""Views: the pictures that an augmentation can make of one image.

An augmentation is *finite* when its views can be numbered 0 … len-1. Then the pair (sample,
view) names one picture for good: a teacher's output for it can be stored and looked up. Crop
after padding by 4 and flip has 9 × 9 × 2 = 162 views. What cannot be numbered (cutout at any
place) has *replayable* keys instead: the key holds the epoch, and (sample, key) makes the same
picture again.

`draw` says which view a sample shows in an epoch, `apply` makes the pictures. Both are pure
functions of their arguments.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from distillation.data import keys
from distillation.errors import ConfigError, ShapeError


class Views(ABC):
    """What an augmentation makes of an image, by number."""

    #: whether `len()` counts all views there are
    finite: bool = True

    @abstractmethod
    def __len__(self) -> int:
        """Number of views of one image."""

    @abstractmethod
    def apply(self, images: Tensor, view: Tensor, sample: Tensor | None = None) -> Tensor:
        """Picture `view[b]` of image b: uint8 (B, C, H, W) and int64 (B,) to uint8 (B, C, H, W).

        `sample` (int64, shape (B,)) is needed by replayable views only. Images in channels_last
        memory format come back in it.
        """

    @property
    @abstractmethod
    def description(self) -> str:
        """Name and parameters; two that differ in any picture differ here."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of the description."""
        return hashlib.sha256(self.description.encode()).hexdigest()

    def draw(self, sample: Tensor, epoch: int, seed: int = 0) -> Tensor:
        """The view that each sample shows in this epoch (int64, shape of `sample`)."""
        return keys.integers(keys.derive(seed, "view", epoch), sample, len(self))

    def choices(self, sample: Tensor) -> Tensor:
        """All views that these samples ever show: int64, shape (len(sample), len(self))."""
        every = torch.arange(len(self), device=sample.device)
        return every.expand(len(sample), -1)

    def prepare(self, n: int, device: torch.device | str = "cpu") -> None:  # noqa: B027
        """Make ahead what `draw` and `apply` need for samples 0 … n-1 on this device."""

    def restrict(self, k: int | None, seed: int = 0) -> Views:
        """At most k views of each image, drawn from the seed; None or k ≥ len changes nothing."""
        if k is None or (self.finite and k == len(self)):
            return self
        return Restricted(self, k, seed)

    def __repr__(self) -> str:
        return self.description


class Identity(Views):
    """The image itself; its one view has the number 0."""

    description = "identity"

    def __len__(self) -> int:
        return 1

    def draw(self, sample: Tensor, epoch: int, seed: int = 0) -> Tensor:
        return torch.zeros_like(sample)

    def apply(self, images: Tensor, view: Tensor, sample: Tensor | None = None) -> Tensor:
        return images


class CropFlip(Views):
    """Pad with black, cut a window of the old size at any place, mirror or not.

    The usual augmentation of CIFAR (He et al. 2015, section 4.2): `RandomCrop(size, padding)`
    and `RandomHorizontalFlip()`, with its (2·padding + 1)² × 2 outcomes numbered:

        view = (flip · n + dy) · n + dx,   n = 2·padding + 1,   0 ≤ dy, dx < n

    where (dy, dx) is the window's corner in the padded image, cut first and mirrored after.
    View `identity` is the image itself. All views are equally likely.

    With flips the set is closed under mirroring: the views of the mirrored image are the views
    of the image, each under another number.
    """

    def __init__(self, padding: int = 4, size: int = 32, flip: bool = True) -> None:
        if padding < 0 or size < 1:
            raise ConfigError(f"padding={padding}, size={size}: at least 0 and 1 are needed")
        self.padding, self.size, self.flip = padding, size, flip
        self._offsets: dict[tuple[int, bool, torch.device], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return (2 * self.padding + 1) ** 2 * (2 if self.flip else 1)

    @property
    def description(self) -> str:
        return f"crop_flip(padding={self.padding}, size={self.size}, flip={self.flip})"

    @property
    def identity(self) -> int:
        """Number of the view that is the image itself."""
        return self.padding * (2 * self.padding + 1) + self.padding

    def apply(self, images: Tensor, view: Tensor, sample: Tensor | None = None) -> Tensor:
        """One gather for the whole batch, whatever the views are.

        Raises `ShapeError` for images of another size than `size` × `size`.
        """
        batch, channels, height, width = images.shape
        if height != self.size or width != self.size:
            raise ShapeError(
                f"CropFlip(size={self.size}) got images of {height}×{width} pixels; "
                f"make it CropFlip(size={height}) for square images of that size"
            )
        last = channels > 1 and images.is_contiguous(memory_format=torch.channels_last)
        p = self.padding
        if last:
            padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, p, p, p, p)).reshape(-1)
        else:
            padded = F.pad(images, (p, p, p, p)).reshape(-1)
        outer, inner = self._offset_tables(channels, last, images.device)
        # A pixel's place in the padded batch is a sum of what depends on the image, on the row
        # and on the column; int32 halves the traffic wherever the batch is small enough for it.
        dtype = torch.int32 if padded.numel() < 2**31 else torch.int64
        start = torch.arange(batch, device=images.device) * (padded.numel() // max(batch, 1))
        rows = (outer[view] + start[:, None]).to(dtype)
        index = rows[:, :, None] + inner[view].to(dtype)[:, None, :]
        picked = padded.index_select(0, index.reshape(-1))
        if last:
            return picked.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return picked.view(batch, channels, height, width)

    def _offset_tables(
        self, channels: int, last: bool, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """For every view: offsets of (channel, row) and of columns; of rows and (column, channel)
        in channels_last."""
        key = (channels, last, device)
        if key not in self._offsets:
            n, side = 2 * self.padding + 1, self.size + 2 * self.padding
            view = torch.arange(len(self))
            flip, dy, dx = view // (n * n), view // n % n, view % n
            line = torch.arange(self.size)
            rows = dy[:, None] + line
            columns = torch.where(flip[:, None] == 1, line.flip(0), line) + dx[:, None]
            channel = torch.arange(channels)
            if last:
                outer = rows * side * channels
                inner = (columns * channels)[:, :, None] + channel
            else:
                outer = channel[:, None] * side * side + (rows * side)[:, None, :]
                inner = columns
            self._offsets[key] = (outer.flatten(1).to(device), inner.flatten(1).to(device))
        return self._offsets[key]


class Restricted(Views):
    """k different views of each image out of those of `base`, drawn from (seed, sample).

    View numbers stay those of `base`: only which of them a sample ever shows is restricted.
    """

    def __init__(self, base: Views, k: int, seed: int = 0) -> None:
        if not base.finite:
            raise ConfigError(f"{base} is not finite: its views cannot be restricted to {k}")
        if isinstance(base, Restricted):
            raise ConfigError(f"{base} is restricted already")
        if not 1 <= k <= len(base):
            raise ConfigError(f"{k} views of each image: {base} has {len(base)}, take 1 … that")
        self.base, self.k, self.seed = base, k, seed
        self._table = torch.empty(0, k, dtype=torch.int64)

    def __len__(self) -> int:
        """Number of views of `base`, since view numbers are those of `base`."""
        return len(self.base)

    @property
    def description(self) -> str:
        return f"{self.base.description}[{self.k} of {len(self.base)}, seed {self.seed}]"

    def prepare(self, n: int, device: torch.device | str = "cpu") -> None:
        """Draw the views of samples 0 … n-1 ahead, so that no batch waits for it."""
        if len(self._table) < n:
            self._table = self._choose(torch.arange(n))
        self._table = self._table.to(device)

    def draw(self, sample: Tensor, epoch: int, seed: int = 0) -> Tensor:
        which = keys.integers(keys.derive(seed, "view", epoch), sample, self.k)
        return self.choices(sample).gather(-1, which.unsqueeze(-1)).squeeze(-1)

    def choices(self, sample: Tensor) -> Tensor:
        """int64, shape (len(sample), k): all views that these samples ever show."""
        if self._table.device == sample.device and (
            sample.device.type != "cpu" or not len(sample) or int(sample.max()) < len(self._table)
        ):
            return self._table[sample]
        return self._choose(sample)

    def apply(self, images: Tensor, view: Tensor, sample: Tensor | None = None) -> Tensor:
        return self.base.apply(images, view, sample)

    def _choose(self, sample: Tensor) -> Tensor:
        """The first k places of a shuffle (Fisher and Yates) of each sample's own views."""
        total = len(self.base)
        deck = torch.arange(total, device=sample.device).repeat(len(sample), 1)
        for place in range(self.k):
            key = keys.derive(self.seed, "choices", place)
            other = (place + keys.integers(key, sample, total - place)).unsqueeze(1)
            drawn = deck.gather(1, other)
            deck.scatter_(1, other, deck[:, place : place + 1].clone())
            deck[:, place : place + 1] = drawn
        return deck[:, : self.k].contiguous()


class Cutout(Views):
    """The views of `base` with a square blanked out, at another place in each epoch.

    DeVries and Taylor 2017, "Improved regularization of convolutional neural networks with
    cutout": a square of `size` × `size` pixels, its centre anywhere in the image, so that it may
    reach over the edge. It is filled with `fill` (one grey level 0 … 255 for each channel): the
    mean of the data set, which is zero after normalisation, up to rounding.

    Not finite. The key of a view is epoch · len(base) + (view of base); the centre follows from
    (seed, epoch, sample), so `apply` makes the picture again from sample and key alone.
    """

    finite = False

    def __init__(self, base: Views, size: int, fill: tuple[int, ...], seed: int = 0) -> None:
        if size < 1:
            raise ConfigError(f"cutout of {size} pixels: at least 1 is needed")
        self.base, self.size, self.fill, self.seed = base, size, tuple(fill), seed
        self._levels: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        raise TypeError(f"{self.description} has no number of views: its keys are (sample, epoch)")

    @property
    def description(self) -> str:
        return f"cutout({self.base.description}, {self.size}, fill={self.fill}, seed {self.seed})"

    def draw(self, sample: Tensor, epoch: int, seed: int = 0) -> Tensor:
        return epoch * len(self.base) + self.base.draw(sample, epoch, seed)

    def prepare(self, n: int, device: torch.device | str = "cpu") -> None:
        self.base.prepare(n, device)

    def choices(self, sample: Tensor) -> Tensor:
        raise ConfigError(f"{self.description} is not finite: its views cannot be listed")

    def apply(self, images: Tensor, view: Tensor, sample: Tensor | None = None) -> Tensor:
        if sample is None:
            raise ConfigError("cutout needs the sample numbers: apply(images, view, sample)")
        pictures = self.base.apply(images, view % len(self.base), sample)
        _, channels, height, width = pictures.shape
        if channels != len(self.fill):
            raise ShapeError(f"cutout has {len(self.fill)} fill levels for {channels} channels")
        # one number for each (epoch, sample): epochs and samples both stay far below 2³¹
        where = (view // len(self.base)) << 32 | sample
        y = keys.integers(keys.derive(self.seed, "cutout y"), where, height)
        x = keys.integers(keys.derive(self.seed, "cutout x"), where, width)
        hole = self._span(y, height)[:, :, None] & self._span(x, width)[:, None, :]
        if images.device not in self._levels:  # made once: a copy to a device waits for it
            levels = torch.tensor(self.fill, dtype=torch.uint8, device=images.device)
            self._levels[images.device] = levels.view(1, -1, 1, 1)
        return torch.where(hole[:, None], self._levels[images.device], pictures)

    def _span(self, centre: Tensor, length: int) -> Tensor:
        line = torch.arange(length, device=centre.device)
        first = centre[:, None] - self.size // 2
        return (line >= first) & (line < first + self.size)
