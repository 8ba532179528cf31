"""Weights for a new model, from a file or a run: read safely, loaded by name."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distillation.checkpoint import load_state, load_strict, load_tensors, read_checkpoint
from distillation.errors import CheckpointError
from distillation.files import MANIFEST

_RUN = re.compile(r"[0-9a-fA-F-]{4,36}(@\w+)?")
# Under which key tools keep the weights; "net" is ours and SuperGradients'
_KEYS = ("net", "state_dict", "model_state_dict", "model")


def load_into(
    model: nn.Module, source: str | os.PathLike | Any, *, strict: bool = True
) -> nn.Module:
    """Load the weights that `source` names into `model`, by name; returns `model`.

    `source` is one of: a `.safetensors` file; a file of `torch.save` (read with
    `weights_only=True`) that holds a state dict, or one under "net", "state_dict",
    "model_state_dict" or "model"; a checkpoint folder; a run's folder, its UUID or `RUN@step`.
    The averaged student (EMA) of a run is taken where there is one. Of a KDModule's file the
    student is taken.

    With `strict=False` what fits by name and shape is loaded, and a warning names the rest.

    Raises:
        CheckpointError: there is none, it is damaged, or it does not fit; other numbers of classes
            are named.
        RunError: the run or its checkpoint is not there.
    """
    state = _students(read_weights(source), model)
    what = f"checkpoint {os.fspath(source)!r}"
    if strict:
        try:
            return load_strict(model, state, what=what)
        except CheckpointError as error:
            raise CheckpointError(f"{error}{_advice(model, state)}") from error
    return _load_fitting(model, state, what)


def read_weights(source: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The state dict that `source` names, as `load_into` reads it."""
    path = Path(source)
    if path.is_dir():
        if (path / MANIFEST).exists():
            return _averaged(read_checkpoint(path, state=False).weights)
        return _of_run(path)
    if path.is_file():
        if path.suffix == ".safetensors":
            return load_tensors(path)
        return _state_dict(load_state(path), path)
    if _RUN.fullmatch(os.fspath(source)):
        return _of_run(os.fspath(source))
    raise CheckpointError(
        f"there is no checkpoint at {os.fspath(source)!r}; give a file, a run's folder, or a "
        "run's UUID (`distill runs` lists them)"
    )


def _of_run(source: Path | str) -> dict[str, torch.Tensor]:
    from distillation import runs  # a floor above; only a model that is made from a run needs it

    run = runs.find(source) if isinstance(source, str) else runs.Run.read(source)
    return _averaged(run.checkpoint(state=False).weights)


def _averaged(weights: Mapping[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return weights["ema"] if "ema" in weights else weights["model"]


def _state_dict(content: Any, path: Path) -> dict[str, torch.Tensor]:
    found = content
    if isinstance(content, Mapping):
        for key in _KEYS:
            if isinstance(content.get(key), Mapping):
                found = content[key]
                break
    if not _is_state_dict(found):
        has = f"a dict with {sorted(map(str, content))[:8]}" if isinstance(content, Mapping) else ""
        raise CheckpointError(
            f"{path} holds no state dict but {has or type(content).__name__}; the weights may be "
            f"the file itself or stand under one of {', '.join(_KEYS)}"
        )
    state = dict(found)
    if all(name.startswith("module.") for name in state):  # of DistributedDataParallel
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _students(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The student's part of a KDModule's file, for a model that has no `student` itself."""
    part = "student."
    theirs = {n.removeprefix(part): v for n, v in state.items() if n.startswith(part)}
    if not theirs or any(name.startswith(part) for name in model.state_dict()):
        return state
    return theirs


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(n, str) and torch.is_tensor(v) for n, v in value.items())
    )


def _load_fitting(
    model: nn.Module, state: Mapping[str, torch.Tensor], what: str, quiet: bool = False
) -> nn.Module:
    own = model.state_dict()
    fitting = {n: v for n, v in state.items() if n in own and own[n].shape == v.shape}
    if not fitting:
        raise CheckpointError(
            f"{what} has nothing that fits {type(model).__name__}: none of its {len(state)} names "
            "is there with the same shape"
        )
    rest = {
        "keep their first values": [n for n in own if n not in fitting],
        "are not used": [n for n in state if n not in fitting and n not in own],
    }
    for fate, names in rest.items():
        if names and not quiet:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            warnings.warn(
                f"{what}, strict_load=False: {', '.join(names[:5])}{more} {fate}", stacklevel=4
            )
    model.load_state_dict(fitting, strict=False)
    return model


def copy_fitting(model: nn.Module, source: nn.Module) -> nn.Module:
    """What fits of another model's weights, by name and shape: all but a head of other classes."""
    return _load_fitting(model, source.state_dict(), type(source).__name__, quiet=True)


def _advice(model: nn.Module, state: Mapping[str, torch.Tensor]) -> str:
    """What to do when the only difference is the number of classes."""
    own = model.state_dict()
    if set(own) != set(state):
        return ""
    different = [n for n in own if own[n].shape != state[n].shape]
    counts = {(len(own[n]), len(state[n])) for n in different if own[n].dim() and state[n].dim()}
    inner = all(own[n].shape[1:] == state[n].shape[1:] for n in different)
    if len(counts) != 1 or not inner:
        return ""
    ((ours, theirs),) = counts
    return (
        f" It is of {theirs} classes, the model has {ours}: give num_classes={theirs}, or "
        "strict_load=False to begin with a new last layer."
    )
