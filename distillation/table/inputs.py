"""What a table's keys stand for, and where the teacher's inputs for a missing entry come from.

`ImageInputs` makes the picture of any `(sample, view)` itself, so an entry is a pure function of
its key and a table can be filled ahead. `GivenInputs` takes the inputs of whoever asks, for data
that this library does not hold.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from distillation.data import ImageSet, ReplayableLoader, Restricted, TensorLoader, Views
from distillation.errors import ConfigError, TeacherError

# How far a picture may be from its rendering, in units of the standard deviation: rounding only.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Inputs(ABC):
    """The keys `0 … samples-1` × `0 … views-1` and the inputs they stand for."""

    samples: int
    views: int
    #: what to do about a view outside the table
    advice = ""
    #: whether the inputs of any key can be made here, at little cost beside the teacher
    cheap_to_render = False

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """The parts `data`, `views` and `normalisation` of a table's identity."""

    @abstractmethod
    def take(
        self, rows: np.ndarray, sample: np.ndarray, view: np.ndarray, args: tuple, kwargs: dict
    ) -> tuple[tuple, dict]:
        """Arguments for the teacher for these keys; `rows` are their places in the batch given."""

    @abstractmethod
    def check(self, sample: np.ndarray, view: np.ndarray, args: tuple, kwargs: dict) -> None:
        """Raise `TeacherError` when a batch's inputs are visibly not what its keys stand for."""


class ImageInputs(Inputs):
    """The pictures of an `ImageSet` under finite `views`, normalised, in float32.

    `mean` and `std` default to the image set's. Views restricted to K keep the numbers of the group
    they were taken from, so tables of K = 4, 16 or all views are one and the same table.
    `check_images=False` allows a student that sees other pictures than its teacher (another
    normalisation, say); otherwise two pictures of every batch are compared with their keys.

    Raises `ConfigError` for views that are not finite (cutout): they have no table.
    """

    cheap_to_render = True

    def __init__(
        self,
        image_set: ImageSet,
        views: Views | None = None,
        *,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        check_images: bool = True,
    ):
        if views is not None and not views.finite:
            raise ConfigError(
                f"{views} has no end of views, so a teacher table cannot hold them; train without "
                "cutout, or with the teacher online (teacher_table=None)"
            )
        self.check_images = check_images
        # A copy: a loader prepares its views for its own device, this one renders on the host.
        views = copy.copy(views)
        self._loader = TensorLoader(
            image_set, 1, views=views, mean=mean, std=std, shuffle=False, dtype=torch.float32
        )
        self.image_set, self.view_group = image_set, self._loader.views
        self.samples, self.views = len(image_set), len(self.view_group)

    @classmethod
    def of(cls, loader: TensorLoader, *, check_images: bool = True) -> ImageInputs:
        """The pictures that this loader shows, before it rounds them to its own dtype.

        Those of a `ReplayableLoader` are `ReplayedInputs`.
        """
        if isinstance(loader, ReplayableLoader):
            from distillation.table.replayed import ReplayedInputs

            return ReplayedInputs(loader, check_images=check_images)
        if not isinstance(loader, TensorLoader):
            raise ConfigError(
                "a teacher table needs a loader whose batches carry keys, not "
                f"{type(loader).__name__}: data.ReplayableLoader(dataset, batch_size) brings those "
                "of any map-style dataset, data.TensorLoader those of an image set. For other "
                "loaders make the table by hand: TeacherTable(teacher, folder, "
                "GivenInputs(samples, fingerprint)), and call compute_kd_loss(sample=…, view=…)"
            )
        return cls(
            loader.image_set,
            loader.views,
            mean=loader.mean,
            std=loader.std,
            check_images=check_images,
        )

    def identity(self) -> dict[str, object]:
        views = self.view_group.base if isinstance(self.view_group, Restricted) else self.view_group
        return {
            "data": self.image_set.fingerprint,
            "views": views.description,
            "normalisation": {"mean": list(self._loader.mean), "std": list(self._loader.std)},
        }

    def render(self, sample: np.ndarray, view: np.ndarray) -> Tensor:
        """The pictures of these keys: float32 `[n, channels, height, width]`."""
        return self._loader.images(torch.from_numpy(sample), torch.from_numpy(view))

    def choices(self, sample: np.ndarray) -> np.ndarray:
        """`[n, K]`: the views that these samples are ever shown in."""
        return self.view_group.choices(torch.from_numpy(sample)).numpy()

    def take(self, rows, sample, view, args, kwargs):
        return (self.render(sample, view),), {}

    def check(self, sample, view, args, kwargs):
        if len(args) > 1 or kwargs:
            raise ConfigError(
                "the table makes the teacher's pictures from their keys; the further arguments "
                f"{[*map(type, args[1:]), *kwargs]} cannot reach the teacher: use GivenInputs"
            )
        if not (args and self.check_images and len(sample)):
            return
        images = args[0]
        if len(images) != len(sample):
            raise ConfigError(f"{len(images)} images came with {len(sample)} keys")
        ends = [0, len(sample) - 1]
        # A data set may give any dtype
        made = self.render(sample[ends], view[ends]).float()
        given = images[ends].detach().to("cpu")
        if made.shape != given.shape or not torch.allclose(
            made, given.float(), rtol=0.0, atol=_TOLERANCE.get(given.dtype, 1e-4)
        ):
            raise TeacherError(
                f"the images of this batch are not what its keys stand for in this table (sample "
                f"{int(sample[0])}, view {int(view[0])}): the loader has other data, views or "
                "normalisation, or changes the images afterwards. Evaluate on other data with the "
                "teacher itself (table.teacher). If the student is meant to see other pictures "
                "than its teacher, make the table's inputs with check_images=False"
            )


class GivenInputs(Inputs):
    """Keys of data that only the caller knows; missing entries run on the inputs of the call.

    `samples` is the size of the data set, `views` how many numbered variants each sample has.
    `data` names its content (a digest), `description` whatever else changes the inputs
    (augmentation, normalisation). What the fingerprints do not name cannot be noticed.
    """

    def __init__(self, samples: int, data: str, *, views: int = 1, description: str = ""):
        if samples < 1 or views < 1:
            raise ConfigError(f"samples={samples}, views={views}: at least 1 of each is needed")
        if not data:
            raise ConfigError("data: a fingerprint of the data set's content is needed")
        self.samples, self.views, self.data, self.description = samples, views, data, description

    def identity(self) -> dict[str, object]:
        return {
            "data": self.data,
            "views": f"{self.views} given",
            "normalisation": self.description,
        }

    def take(self, rows, sample, view, args, kwargs):
        index = torch.from_numpy(rows)

        def select(value: Any) -> Any:
            return value[index.to(value.device)] if isinstance(value, Tensor) else value

        return tree_map(select, args), tree_map(select, kwargs)

    def check(self, sample, view, args, kwargs):
        for value in [*args, *kwargs.values()]:
            if isinstance(value, Tensor) and (value.dim() == 0 or len(value) != len(sample)):
                raise ConfigError(
                    f"a tensor of shape {list(value.shape)} came with {len(sample)} keys: its "
                    "first dimension must be the batch"
                )
