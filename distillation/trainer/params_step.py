"""Training parameters of the step and of the averages of the weights."""

# ruff: noqa: RUF009 (option() makes a dataclass field)
from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from distillation.compiling import MODES
from distillation.precision import AUTO, PRECISIONS
from distillation.table.teacher_table import TeacherTable
from distillation.trainer.schema import one_of, option, positive

_STEP = {"group": "The step"}
_EMA = {"group": "Averages of the weights"}


@dataclasses.dataclass
class StepParams:
    """Accumulation, precision, devices, adapters, EMA."""

    batch_accumulate: int = option(
        1,
        (int,),
        "Batches per optimizer step; the gradient is the mean over their samples and an "
        "incomplete group at an epoch's end is used as well. n batches of b samples equal one of "
        "n·b for models without batch statistics: batch norm sees b samples at a time.",
        example="4",
        valid="an integer of at least 1",
        check=positive,
        **_STEP,
    )
    clip_grad_norm: float | None = option(
        None,
        (float, None),
        "Largest norm of the student's gradient.",
        example="1.0",
        valid="a number above 0, or None",
        check=positive,
        **_STEP,
    )
    mixed_precision: Any = option(
        False,
        (bool, str, None),
        "Precision of the forward pass, of student and teacher; True is bf16. fp16 scales the "
        "loss and needs a GPU; auto is bf16 where the device has instructions for it, else fp32.",
        example='"bf16"',
        valid="True, False, None, " + ", ".join(f"`{p}`" for p in (*PRECISIONS, AUTO)),
        check=one_of(*PRECISIONS, AUTO),
        **_STEP,
    )
    torch_compile: Any = option(
        False,
        (bool, dict),
        "Compile the student's forward; a dict gives the arguments of `torch.compile`. The "
        "weights keep their names. Where compiling fails, a warning says why and the student runs "
        "uncompiled.",
        example='{"mode": "max-autotune"}',
        valid="True, False, or arguments of torch.compile",
        **_STEP,
    )
    torch_compile_mode: str | None = option(
        None,
        (str, None),
        "`reduce-overhead` runs the compiled student as CUDA graphs, on a GPU (a mode of torch's "
        "own, not tried by this library's tests); the `max-autotune` modes also try kernels out.",
        example='"reduce-overhead"',
        valid=", ".join(f"`{mode}`" for mode in MODES) + ", or None; with `torch_compile`",
        check=one_of(*MODES),
        **_STEP,
    )
    sync_bn: bool = option(
        False,
        (bool,),
        "With several processes, batch norm of the student uses the statistics of all of them. "
        "Without it P processes equal one process with the same global batch only for models "
        "without batch norm: each normalises with its own part of the batch, and the running "
        "statistics are those of the first process. The layers are restored after the training.",
        example="True",
        valid="True or False",
        **_STEP,
    )
    fsdp: bool = option(
        False,
        (bool,),
        "With several processes, keep student, optimizer and teacher in shards (FSDP2) instead of "
        "whole on each process. Copies are sharded; the trained weights come back into the "
        "student. Every process evaluates all of the validation data.",
        example="True",
        valid="True or False; not with ema, sync_bn, torch_compile, average_best_models or "
        "teacher_table",
        **_STEP,
    )
    teacher_table: Any = option(
        None,
        (str, Path, bool, None, TeacherTable),
        "Answer for the teacher from a table of its outputs, computed once and kept: `auto` (in "
        "the run store's root), a folder, or a `TeacherTable`. It is filled in `mixed_precision` "
        "and the loader's memory format, with the layers that a criterion names. Needs a "
        "`TensorLoader` with finite views, or a `ReplayableLoader`. (KDTrainer)",
        example='"auto"',
        valid="`auto`, a folder, a TeacherTable, or None (`off`) for the teacher itself",
        check=lambda value: value is not True,
        **_STEP,
    )
    batch_adapter: Any = option(
        None,
        (callable, None),
        "Called with a batch of the loader, gives `(inputs, target)`, where inputs are one "
        "tensor, a tuple of arguments or a dict of keywords. None knows tuples, dicts and "
        "Hugging Face's batches.",
        example='lambda batch: (batch["pixels"], batch["class"])',
        valid="a function of a batch, or None",
        **_STEP,
    )
    forward_adapter: Any = option(
        None,
        (callable, None),
        "Called with the model (a KDModule for KDTrainer) and the inputs instead of "
        "`model(inputs)`.",
        example="lambda net, x: net(x.flatten(1))",
        valid="a function of the model and the inputs, or None",
        **_STEP,
    )
    output_adapter: Any = option(
        None,
        (callable, None),
        "Called with a model's output, gives what the loss and the metrics see; for student and "
        "teacher alike. None takes `.logits` or `['logits']` where there is one.",
        example="lambda output: output[0]",
        valid="a function of an output, or None",
        **_STEP,
    )
    ema: bool = option(
        False,
        (bool,),
        "Keep an exponential moving average of the student's weights; validation, the best "
        "checkpoint and `test` use it.",
        example="True",
        valid="True or False",
        **_EMA,
    )
    ema_params: dict = option(
        {},
        (dict,),
        "`decay` (0.9999), `decay_type` and `beta` (15): `constant`; `threshold`: "
        "`min(decay, (1 + n) / (10 + n))`; `exp`: `decay * (1 - exp(-beta * n / N))` for update "
        "n of N.",
        example='{"decay": 0.999, "decay_type": "threshold"}',
        valid="decay from 0 to 1, decay_type `constant`, `threshold` or `exp`, beta above 0",
        **_EMA,
    )
    average_best_models: Any = option(
        False,
        (bool, int),
        "Average the weights of the best 10 (or this many) validated epochs when the training "
        "ends, evaluate them and write `average_model.pth`.",
        example="True",
        valid="True, False, or an integer of at least 1",
        check=lambda value: isinstance(value, bool) or value >= 1,
        **_EMA,
    )
