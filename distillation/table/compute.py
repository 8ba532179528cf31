"""Running a teacher so that what comes out for one sample depends on that sample alone.

The kernels behind a convolution are chosen by batch size and memory format, and sum in another
order each: one image's logits differ in their last bits between a batch of 1 and a batch of 64.
Here every batch has the same size (padded by repeating), format, precision and device, so an
entry has the same bits whoever asked for it. A teacher whose outputs depend on the neighbours
nevertheless (batch statistics in evaluation, active dropout) is found out by a probe.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from distillation.capture import Capture, Tap
from distillation.errors import ConfigError, TeacherError, unknown
from distillation.table.weights import WeightsWatch

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
OUTPUT = "output"
BATCH_SIZE = 64


@dataclass(frozen=True)
class Execution:
    """How the teacher runs for a table; all of it is part of the table's identity.

    precision      "fp32", or autocast in "bf16" or "fp16"
    channels_last  memory format of four-dimensional inputs; faster for bf16 on most processors
    batch_size     rows of every batch, short ones are padded; None is that of the table which is
                   there, and 64 for a new one
    """

    precision: str = "fp32"
    channels_last: bool = False
    batch_size: int | None = None

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ConfigError(unknown("precision", self.precision, PRECISIONS))
        if self.batch_size is not None and self.batch_size < 2:
            raise ConfigError(f"batch_size must be at least 2, got {self.batch_size}")

    @classmethod
    def beside(cls, precision: str, *, channels_last: bool = False) -> Execution:
        """As the teacher runs in the step of a training of this precision.

        It is the training's own, after what `Accelerator` changed (fp16 is bf16 on a CPU), whose
        `mixed_precision` says "no" for fp32. `channels_last` is the memory format of the batches.
        """
        return cls(
            precision="fp32" if precision == "no" else precision, channels_last=channels_last
        )

    def with_batch_size(self, found: int | None) -> Execution:
        """The same, with a batch size: its own, else the one found in a table, else 64."""
        return replace(self, batch_size=self.batch_size or found or BATCH_SIZE)

    def identity(self, device: torch.device, dtype: torch.dtype) -> dict[str, object]:
        """The parts of a table's identity that this decides; the batch size must be known."""
        weights = "" if dtype == torch.float32 else f", {dtype} weights".replace("torch.", "")
        return {
            "precision": self.precision + weights,
            "memory_format": "channels_last" if self.channels_last else "contiguous",
            "device": device_name(device),
            "batch_size": self.batch_size,
        }


def device_name(device: torch.device) -> str:
    """The kind of device, as far as it decides which kernels run: `cpu AVX512`, `cuda NVIDIA …`."""
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return device.type


class FixedBatch:
    """A teacher that is always run on `execution.batch_size` rows; `weights` watches over it.

    Calling it with the inputs of 1 … batch_size rows gives `{name: [rows, …]}`: "output" and each
    of `layers`. Raises `ConfigError` for layers the teacher does not have, `TeacherError` for a
    teacher that was moved, cast or trained since.
    """

    def __init__(self, weights: WeightsWatch, execution: Execution, layers: tuple[str, ...] = ()):
        teacher = weights.teacher
        self.teacher, self.weights, self.execution = teacher, weights, execution
        self.layers = layers
        self.device, self.dtype = place(teacher.module)
        self._capture = None
        if layers:
            if teacher.module is None:
                raise ConfigError(
                    f"layers {list(layers)} cannot be stored: this teacher ("
                    f"{type(teacher).__name__}) is not one module"
                )
            # Cloned: an in-place activation behind the layer must not reach the entry.
            taps = [Tap("teacher", layer) for layer in layers]
            self._capture = Capture({"teacher": teacher.module}, taps, clone=True, trained=())

    def __call__(self, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        rows = batch_rows(args, kwargs)
        if place(self.teacher.module) != (self.device, self.dtype):
            raise TeacherError(
                f"the teacher was on {self.device} in {self.dtype} when its table was opened and "
                "was moved or cast since: open the table after that"
            )
        self.weights.check()
        args, kwargs = tree_map(self._ready, (args, kwargs))
        outputs = self._run(args, kwargs)
        return {name: value[:rows] for name, value in outputs.items()}

    def probe(self, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        """Run once, and once more with other neighbours; `TeacherError` where the bits differ."""
        rows = max(1, min(batch_rows(args, kwargs), self.execution.batch_size // 2))
        outputs = self(args, kwargs)

        def beside_zeros(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            empty = value.new_zeros(self.execution.batch_size - rows, *value.shape[1:])
            return torch.cat([value[:rows], empty])

        again = self(*tree_map(beside_zeros, (args, kwargs)))
        for name, value in outputs.items():
            if not torch.equal(value[:rows], again[name][:rows]) and not value.isnan().any():
                raise TeacherError(
                    f"the teacher's {name} for an image depends on the other images of its batch, "
                    "or changes from call to call (batch statistics in evaluation, active "
                    "dropout): a table of it would be wrong. Use running batch-norm statistics "
                    "and teacher_mode='eval', or run this teacher online (teacher_table=None)"
                )
        return outputs

    def close(self) -> None:
        if self._capture is not None:
            self._capture.remove()
            self._capture = None

    def _ready(self, value: Any) -> Any:
        """Padded to the batch size, on the device, in the dtype and the memory format."""
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point():
            value = value.to(self.dtype)
        short = self.execution.batch_size - len(value)
        if short > 0:
            value = torch.cat([value, value[-1:].expand(short, *value.shape[1:])])
        value = value.to(self.device)
        if value.dim() == 4:
            last = self.execution.channels_last
            return value.contiguous(
                memory_format=torch.channels_last if last else torch.contiguous_format
            )
        return value.contiguous()

    def _run(self, args: tuple, kwargs: dict) -> dict[str, Tensor]:
        dtype = PRECISIONS[self.execution.precision]
        # Said either way, so that an autocast around the training step does not reach in here.
        cast = torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)
        with torch.no_grad(), cast, _same_kernels(), self._recording() as record:
            output = self.teacher(*args, **kwargs)
        if not isinstance(output, Tensor):
            raise TeacherError(
                f"a table holds teachers that return one tensor; this one returns a "
                f"{type(output).__name__}: wrap it in a module that picks the logits"
            )
        outputs = {OUTPUT: output}
        for layer in self.layers:
            outputs[layer] = record.tensor(Tap("teacher", layer))
        for name, value in outputs.items():
            if value.dim() < 1 or len(value) != self.execution.batch_size:
                raise TeacherError(
                    f"the teacher's {name} has shape {list(value.shape)}; the first dimension "
                    f"must be the batch ({self.execution.batch_size})"
                )
        return outputs

    @contextmanager
    def _recording(self):
        if self._capture is None:
            yield None
        else:
            with self._capture.recording() as record:
                yield record
            self._capture.clear()


@contextmanager
def _same_kernels():
    """cuDNN's kernels by rule: chosen by timing, another process may get others, and other bits."""
    flags = torch.backends.cudnn
    before = flags.benchmark, flags.deterministic
    flags.benchmark, flags.deterministic = False, True
    try:
        yield
    finally:
        flags.benchmark, flags.deterministic = before


def batch_rows(args: tuple, kwargs: dict) -> int:
    """Rows of the first tensor among the arguments."""
    for value in tree_leaves((args, kwargs)):
        if isinstance(value, Tensor):
            return len(value)
    raise ConfigError("the teacher was called without a tensor")


def has_tensor(args: tuple, kwargs: dict) -> bool:
    """Whether there is a tensor among the arguments."""
    return any(isinstance(value, Tensor) for value in tree_leaves((args, kwargs)))


def place(module: nn.Module | None) -> tuple[torch.device, torch.dtype]:
    """Device and floating dtype of a module's weights; CPU and float32 when it has none."""
    for tensor in module.parameters() if module is not None else ():
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.float32
