"""A table over a `ReplayableLoader`: pictures that a data set makes, made again from their keys."""

from __future__ import annotations

import copy
import hashlib

import numpy as np
import torch
from torch import Tensor

from distillation.data import ReplayableLoader, Restricted
from distillation.errors import ConfigError
from distillation.table.inputs import ImageInputs

_LEAST = 16  # epochs that a table has room for


class ReplayedInputs(ImageInputs):
    """The pictures of `loader`, each made again from its key alone.

    With the loader's `rendering` a key is (sample, view), and its views must be finite. Without
    one, the data set's own random transforms made the picture from (seed, epoch, sample): the view
    is the epoch. No two epochs of one training share an entry then; what the table saves is the
    teacher's work for every other student that sees the same stream (the same `seed`). It has room
    for `epochs` epochs, rounded up to a power of two so that trainings of about one length share
    it; the file is sparse.

    The data are named by their content: the data set's `fingerprint` where it has one (a text that
    must name its transforms too), else a digest of all items as they are in epoch 0, for which
    they are read once, by the loader's own workers.

    Raises `ConfigError` for views without end (cutout).
    """

    cheap_to_render = False  # a picture is read and decoded

    def __init__(
        self, loader: ReplayableLoader, *, epochs: int | None = None, check_images: bool = True
    ):
        self.check_images, self.samples = check_images, len(loader.dataset)
        self._loader = copy.copy(loader)
        self._loader.device = torch.device("cpu")
        rendering = loader.rendering
        if rendering is None:
            self.advice = (
                "; its views are the epochs of the training: say with epochs=… how many there are"
            )
            self.views = max(_LEAST, 1 << max(0, (epochs or 1) - 1).bit_length())
        else:
            if not rendering.views.finite:
                raise ConfigError(
                    f"{rendering.views} has no end of views, so a teacher table cannot hold them; "
                    "train without cutout, or with the teacher online (teacher_table=None)"
                )
            self.view_group, self.views = rendering.views, len(rendering.views)
            # The teacher's own pictures, before they are rounded to the student's dtype
            exact = copy.copy(rendering)
            exact.dtype, exact.channels_last = torch.float32, False
            self._loader.rendering = exact
        self._fingerprint = _content(loader)

    def identity(self) -> dict[str, object]:
        rendering = self._loader.rendering
        if rendering is None:
            return {
                "data": self._fingerprint,
                "views": f"epochs 0 to {self.views - 1} of seed {self._loader.seed}",
                "normalisation": "the data set's own",
            }
        views = rendering.views
        return {
            "data": self._fingerprint,
            "views": (views.base if isinstance(views, Restricted) else views).description,
            "normalisation": {"mean": list(rendering.mean), "std": list(rendering.std)},
        }

    def render(self, sample: np.ndarray, view: np.ndarray) -> Tensor:
        """The pictures of these keys, as the loader makes them: `[n, channels, height, width]`."""
        return self._loader.images(torch.from_numpy(sample), torch.from_numpy(view))

    def choices(self, sample: np.ndarray) -> np.ndarray:
        """`[n, K]`: the views, or all epochs, that these samples are ever shown in."""
        if self._loader.rendering is None:
            return np.tile(np.arange(self.views), (len(sample), 1))
        return super().choices(sample)


def _content(loader: ReplayableLoader) -> str:
    """Digest of what the data set gives in epoch 0, in its own order."""
    named = getattr(loader.dataset, "fingerprint", None)
    if isinstance(named, str) and named:
        return named
    plain = copy.copy(loader)
    plain.rendering, plain.shuffle, plain.drop_last, plain.keys = None, False, False, True
    plain.device, plain._order = torch.device("cpu"), None
    plain.rank, plain.world_size = 0, 1
    digest = hashlib.sha256()
    for batch in plain.batches(0):
        for image in batch.images:  # one by one: the content does not depend on the batch size
            digest.update(f"{image.dtype} {tuple(image.shape)}".encode())
            digest.update(image.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
