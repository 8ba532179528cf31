"""Pictures in, classes out: what `Trainer.predict` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from distillation.errors import ConfigError, ShapeError
from distillation.trainer.batches import plain_output
from distillation.trainer.criteria import single

Normalisation = tuple[list[float], list[float]] | None


class Predictions(NamedTuple):
    """For N images and C classes, on the CPU."""

    logits: torch.Tensor  #: (N, C), float32
    probabilities: torch.Tensor  #: (N, C)
    labels: torch.Tensor  #: (N,), int64


def normalisation(
    loader: Any, mean: Iterable[float] | None, std: Iterable[float] | None
) -> Normalisation:
    """The given mean and deviation of each channel, else the loader's, else None.

    Raises `ConfigError` when only one of the two is given.
    """
    if (mean is None) != (std is None):
        raise ConfigError("give mean and std together, one number per channel each.")
    if mean is None:
        mean, std = getattr(loader, "mean", None), getattr(loader, "std", None)
    if mean is None or std is None:
        return None
    return [float(v) for v in mean], [float(v) for v in std]


@torch.no_grad()
def predict(
    student: nn.Module,
    images: Any,
    norm: Normalisation,
    output_adapter: Callable[[Any], Any] | None = None,
    input_adapter: Callable[[Any], Any] | None = None,
    trained_shape: tuple[int, ...] | None = None,
    forward_adapter: Callable[[nn.Module, Any], Any] | None = None,
) -> Predictions:
    """Logits, probabilities and labels of `images`, on the student's device, in eval mode.

    `trained_shape` is that of an image of the training. Raises `ShapeError` where the student
    cannot take an image of another shape.
    """
    inputs = to_inputs(images, norm)
    shape = tuple(inputs.shape[1:])
    parameter = next(student.parameters(), None)
    if parameter is not None:
        dtype = parameter.dtype if parameter.is_floating_point() else inputs.dtype
        inputs = inputs.to(parameter.device, dtype)
    student.eval()
    if input_adapter is not None:
        inputs = input_adapter(inputs)
    try:
        output = student(inputs) if forward_adapter is None else forward_adapter(student, inputs)
    except RuntimeError as error:
        if trained_shape is None or shape == trained_shape:
            raise
        raise ShapeError(_other_shape(shape, trained_shape)) from error
    logits = single(plain_output(output, output_adapter)).cpu()
    return Predictions(logits, logits.softmax(1), logits.argmax(1))


def _other_shape(shape: tuple[int, ...], trained: tuple[int, ...]) -> str:
    text = f"the student was trained on images of shape {trained} and cannot take one of {shape}"
    if len(shape) == len(trained) == 3 and shape[0] != trained[0]:
        channels = "channel" if trained[0] == 1 else "channels"
        text += f": it wants {trained[0]} {channels} (C, H, W), not {shape[0]}"
        mode = {1: "L", 3: "RGB"}.get(trained[0])
        text += f"; convert a picture with image.convert({mode!r})" if mode else ""
    elif shape[1:] != trained[1:]:
        text += "; resize the pictures first"
    return f"{text}."


def to_inputs(images: Any, norm: Normalisation) -> torch.Tensor:
    """A floating tensor (N, C, H, W) from a tensor, an array, a PIL image, or a list of them.

    Raises `ConfigError` for pictures of different sizes, and for pictures whose normalisation is
    not known.
    """
    if torch.is_tensor(images) and images.is_floating_point():
        return images.unsqueeze(0) if images.dim() == 3 else images
    if isinstance(images, list | tuple):
        if not images:
            raise ConfigError("predict() needs at least one image.")
        parts = [to_inputs(image, norm) for image in images]
        shapes = sorted({tuple(p.shape[1:]) for p in parts})
        if len(shapes) > 1:
            raise ConfigError(f"the images have different shapes {shapes}; make them one size.")
        return torch.cat(parts)
    pixels = _pixels(images)
    if norm is None:
        raise ConfigError(
            "the loader of the training does not tell how pictures are normalised; give predict() "
            "mean= and std=, or a floating tensor that is the model's input."
        )
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in norm)
    if mean.shape[1] not in (1, pixels.shape[1]):
        raise ConfigError(
            f"the image has {pixels.shape[1]} channels, the normalisation {mean.shape[1]}."
        )
    return (pixels - mean) / std


def _pixels(image: Any) -> torch.Tensor:
    """(N, C, H, W) in 0 … 1."""
    if torch.is_tensor(image):  # integers, channels first
        pixels = image.unsqueeze(0) if image.dim() == 3 else image
        return pixels.float() / 255
    array = np.asarray(image)
    if array.dtype == object or array.dtype.kind not in "uif" or not 2 <= array.ndim <= 4:
        raise ConfigError(
            f"predict() takes tensors, arrays, PIL images and lists of these, not "
            f"{type(image).__name__}."
        )
    pixels = torch.from_numpy(np.array(array))
    whole = not pixels.is_floating_point()
    if pixels.dim() == 2:
        pixels = pixels[..., None]
    if pixels.dim() == 3:
        pixels = pixels[None]
    pixels = pixels.permute(0, 3, 1, 2).float()
    return pixels / 255 if whole else pixels
