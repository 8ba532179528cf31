"""What is in a batch: inputs, target, and the keys of the samples, whatever the loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from distillation.data import moving
from distillation.errors import ConfigError
from distillation.replay import samples_in

TARGETS = ("labels", "label", "target", "targets", "y")
INPUTS = ("images", "image", "inputs", "input", "x", "data")
KEYS = ("sample", "view")


class Parts(NamedTuple):
    """A batch taken apart. A model is called as `model(*args, **kwargs)`.

    `sample` and `view` (int64, shape (N,)) name each image and its augmentation for a teacher
    that looks its outputs up; None where the loader does not tell.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any
    sample: torch.Tensor | None = None
    view: torch.Tensor | None = None

    @property
    def inputs(self) -> Any:
        """What a function of the inputs sees: one tensor, a tuple, or a dict of keywords."""
        if self.kwargs:
            return dict(self.kwargs)
        return self.args[0] if len(self.args) == 1 else self.args

    @property
    def size(self) -> int:
        """Number of samples."""
        first = self.args[0] if self.args else None
        if isinstance(first, torch.Tensor) and first.dim():
            return first.shape[0]
        return samples_in([*self.args, *self.kwargs.values()])


def take_apart(batch: Any, adapter: Callable[[Any], Any] | None = None) -> Parts:
    """Inputs, target and keys of a batch.

    Known are: `(inputs, target)` and `(inputs, target, further items)`; our `data.Batch`; a dict
    or Hugging Face batch with a target under `labels`, `label`, `target`, `targets` or `y`, where
    a single input under `images`, `image`, `inputs`, `input`, `x` or `data` is positional and all
    else goes to the model by name; a bare tensor, without target. `adapter(batch)` gives
    `(inputs, target)` for anything else. Raises `ConfigError` for what it cannot read.
    """
    if adapter is not None:
        return _adapted(adapter(batch), batch)
    if isinstance(batch, torch.Tensor):
        return Parts((batch,), {}, None)
    if not isinstance(batch, (list, tuple)) and isinstance(batch, Mapping):
        return _named(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        fields = batch._asdict()
        if any(name in fields for name in (*TARGETS, *KEYS)):
            return _named(fields)
    if isinstance(batch, list | tuple) and 1 <= len(batch) <= 3:
        args, kwargs = _inputs(batch[0])
        target = batch[1] if len(batch) > 1 else None
        keys = batch[2] if len(batch) == 3 and isinstance(batch[2], Mapping) else {}
        return Parts(args, kwargs, target, keys.get("sample"), keys.get("view"))
    what = type(batch).__name__
    if isinstance(batch, list | tuple):
        what += f" of {len(batch)} items"
    raise ConfigError(
        f"a batch of type {what} cannot be taken apart into inputs and target. "
        "Give training parameter 'batch_adapter', a function of the batch that returns "
        "(inputs, target)."
    )


def _inputs(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, list | tuple):
        return tuple(inputs), {}
    return (inputs,), {}


def _named(batch: Mapping[str, Any]) -> Parts:
    rest = dict(batch)
    sample, view = (rest.pop(key, None) for key in KEYS)
    found = [name for name in TARGETS if name in rest]
    if len(found) > 1:
        raise ConfigError(
            f"the batch has several targets ({', '.join(found)}). Give training parameter "
            "'batch_adapter', a function of the batch that returns (inputs, target)."
        )
    target = rest.pop(found[0]) if found else None
    if not rest:
        raise ConfigError(f"the batch has no inputs, only {', '.join(map(str, batch))}.")
    if len(rest) == 1 and next(iter(rest)) in INPUTS:
        return Parts(tuple(rest.values()), {}, target, sample, view)
    return Parts((), rest, target, sample, view)


def _adapted(result: Any, batch: Any) -> Parts:
    if not isinstance(result, tuple) or len(result) != 2:
        raise ConfigError(
            f"batch_adapter must return (inputs, target), not {type(result).__name__}."
        )
    args, kwargs = _inputs(result[0])
    sample, view = (
        batch.get(key) if isinstance(batch, Mapping) else getattr(batch, key, None) for key in KEYS
    )
    return Parts(args, kwargs, result[1], sample, view)


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors in (nested) tuples, lists and dicts on `device`; what is there stays as it is."""
    if isinstance(value, torch.Tensor):
        return moving.to_device(value, device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)([to_device(item, device) for item in value])
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    return value


def plain_output(output: Any, adapter: Callable[[Any], Any] | None = None) -> Any:
    """What loss and metrics see of a model's output: `adapter(output)`, else its logits.

    Without an adapter an object with `.logits` and a dict with `"logits"` give those.
    """
    if adapter is not None:
        return adapter(output)
    if torch.is_tensor(output):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    logits = getattr(output, "logits", None)
    return output if logits is None else logits
