"""A trained student as a file for other programs, compared with the model before it is kept.

* `.pt2`: `torch.export`, for `torch.export.load` and AOTInductor
* `.onnx`: for ONNX Runtime and others
* `.safetensors`: the weights alone, with a note of how the model is made
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from distillation.checkpoint import load_strict, load_tensors, save_tensors
from distillation.copies import student_copy
from distillation.errors import CheckpointError, ConfigError, unknown
from distillation.references import note, noted

# Largest difference that the arithmetic of another program explains, in float32
TOLERANCES = {".pt2": 1e-5, ".onnx": 1e-4, ".safetensors": 0.0}
BATCHES = (3, 1, 8)  #: batch sizes that are compared; the first is the one that is traced


@dataclass(frozen=True)
class Exported:
    """An exported model: where it is, its size in bytes, and what the comparison gave."""

    path: Path
    format: str
    bytes: int
    max_abs_difference: float
    tolerance: float
    input_shape: tuple[int, ...]


def export_model(
    model: nn.Module,
    path: str | os.PathLike,
    input_shape: Sequence[int],
    *,
    tolerance: float | None = None,
) -> Exported:
    """Write `model` to `path`, in the format that its ending names, with a free batch size.

    `input_shape` is that of one float32 input, without the batch axis. The file is read back and
    run on random inputs in batches of 1, 3 and 8; where an output differs from the model's by
    more than `tolerance`, nothing is kept. The model is exported in evaluation mode, on the CPU,
    in float32; it is not changed. Of a converted model the student is exported.

    Raises:
        ConfigError: another ending, a package that is not installed, a `KDModule`, or a model that
            cannot be exported.
        CheckpointError: the outputs differ too much, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise ConfigError(unknown("format to export to", path.suffix, _WRITERS))
    tolerance = TOLERANCES[path.suffix] if tolerance is None else tolerance
    made = noted(model)
    model = note(student_copy(model), made).cpu().float().eval()
    inputs = _inputs(tuple(input_shape))
    with torch.no_grad():
        try:
            expected = [_outputs(model(x)) for x in inputs]
        except Exception as error:
            raise ConfigError(
                f"{type(model).__name__} cannot be run on inputs of shape {tuple(input_shape)}: "
                f"{error}"
            ) from error
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent} to export to")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        temporary = Path(folder) / path.name
        read = _WRITERS[path.suffix](model, temporary, inputs[0])
        with torch.no_grad():
            given = [_outputs(read(x)) for x in inputs]
        difference = max(map(_difference, expected, given), key=lambda d: (d != d, d))
        if not difference <= tolerance:  # NaN is a difference too
            raise CheckpointError(
                f"the exported {path.suffix} differs from the model by {difference:.3g}, more than "
                f"{tolerance:.3g}; nothing is written to {path}"
            )
        size = temporary.stat().st_size
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        shutil.move(temporary, path)
    shape = tuple(input_shape)
    return Exported(path, path.suffix[1:], size, difference, tolerance, shape)


def _inputs(shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, *shape, generator=generator) for n in BATCHES]


def _outputs(output: Any) -> list[Tensor]:
    return [leaf.float() for leaf in tree_leaves(output) if torch.is_tensor(leaf)]


def _difference(expected: list[Tensor], given: list[Tensor]) -> float:
    shapes = [[tuple(t.shape) for t in side] for side in (expected, given)]
    if shapes[0] != shapes[1]:
        raise CheckpointError(f"the exported model gives {shapes[1]}, the model {shapes[0]}")
    gaps = [(e - g).abs().max() for e, g in zip(expected, given, strict=True) if e.numel()]
    return float(torch.stack(gaps).max()) if gaps else 0.0


# Each writes a file and returns what runs it


def _pt2(model: nn.Module, path: Path, example: Tensor) -> Callable[[Tensor], Any]:
    torch.export.save(_program(model, example), path)
    return torch.export.load(path).module()


def _onnx(model: nn.Module, path: Path, example: Tensor) -> Callable[[Tensor], Any]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError("ONNX needs more: pip install 'distillation[export]'") from error
    with _quiet(), _explained(model, "onnx"):
        torch.onnx.export(
            model,
            (example,),
            path,
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: [torch.from_numpy(o) for o in session.run(None, {"input": x.numpy()})]


def _safetensors(model: nn.Module, path: Path, example: Tensor) -> Callable[[Tensor], Any]:
    made = noted(model)
    note = {} if made is None else {"model": json.dumps(made.to_json())}
    save_tensors(path, model.state_dict(), {"input_shape": json.dumps(example.shape[1:]), **note})
    again = copy.deepcopy(model)
    for parameter in again.parameters():
        nn.init.zeros_(parameter)  # so that weights that are not in the file show
    return load_strict(again, load_tensors(path), what=str(path))


_WRITERS: dict[str, Callable[[nn.Module, Path, Tensor], Callable[[Tensor], Any]]] = {
    ".pt2": _pt2,
    ".onnx": _onnx,
    ".safetensors": _safetensors,
}


def _program(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    with _quiet(), _explained(model, "pt2"):
        dynamic = ({0: torch.export.Dim("batch")},)
        return torch.export.export(model, (example,), dynamic_shapes=dynamic)


@contextmanager
def _explained(model: nn.Module, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the exporters raise whatever they meet
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ConfigError(
            f"{type(model).__name__} cannot be exported to {what}: {first[0]}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters tell of their inner workings."""
    loggers = [
        logging.getLogger(n) for n in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
