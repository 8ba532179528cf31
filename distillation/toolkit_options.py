"""Options of `KnowledgeDistillationTraining`, and the training parameters that they stand for."""

# ruff: noqa: RUF009 (option() makes a dataclass field)
from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from distillation.errors import ConfigError, unknown
from distillation.table.teacher_table import TeacherTable
from distillation.trainer.description import plain
from distillation.trainer.schema import build, option

# name -> (optimizer of torch, its options)
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("Adam", {}),
    "sgd": ("SGD", {}),
    "adam_wav2vec2.0": ("Adam", {"betas": (0.9, 0.98), "eps": 1e-6}),
    "adam_distilBert": ("Adam", {"eps": 1e-6}),
    "adamW_distilBert": ("AdamW", {"betas": (0.9, 0.98), "eps": 1e-6}),
}
SCHEDULERS = ("", "linear_decay_with_warm_up", "cosine_anneal")
PRECISIONS = {32: "fp32", "32": "fp32", 16: "fp16", "16": "fp16", "bf16": "bf16", "auto": "auto"}
COSINE_END = 1e-6  #: learning rate that the cosine approaches

# Of the trainer below the original toolkit: neutral values, and what to do instead of others
ELSEWHERE: dict[str, tuple[tuple, str]] = {
    "accelerator": ((None, "auto"), "`accelerate launch` starts several processes"),
    "num_nodes": ((None, 1), "`accelerate launch --num_machines` starts a script on several"),
    "track_grad_norm": (
        (None, -1),
        "gradients are not recorded; a Callback of KDTrainer sees them",
    ),
}

_COUNT = {"valid": "an integer of at least 1", "check": lambda v: v >= 1}
_NATURAL = {"valid": "an integer of at least 0", "check": lambda v: v >= 0}
_POSITIVE = {"valid": "a number above 0", "check": lambda v: v > 0}


@dataclasses.dataclass
class ToolkitOptions:
    """One field an option; `of` checks names, types and ranges."""

    num_gpu_used: int | None = option(
        None, (int, None), "None takes what there is, 0 the CPU.", example="1", **_NATURAL
    )
    max_epoch: int = option(10, (int,), "Passes over the training data.", example="100", **_COUNT)
    temperature: float = option(
        1.0, (float,), "Of the knowledge distillation loss.", example="4", **_POSITIVE
    )
    optimize_method: str = option(
        "adam", (str,), "The optimizer.", example='"sgd"', valid=", ".join(OPTIMIZERS)
    )
    scheduler_method: str = option(
        "", (str,), "The learning rate's course.", example='"cosine_anneal"', valid=str(SCHEDULERS)
    )
    learning_rate: float = option(
        1e-3, (float,), "After the warm-up.", example="0.001", **_POSITIVE
    )
    num_lr_warm_up_epoch: int = option(
        0, (int,), "The rate rises to learning_rate; with any scheduler.", example="5", **_NATURAL
    )
    final_loss_coeff_dict: dict = option(
        {"kd_loss": 0.5, "ce_loss": 0.5},
        (dict,),
        "Weights of the losses.",
        example='{"kd_loss": 0.7, "ce_loss": 0.3}',
        valid="numbers by name: kd_loss, ce_loss, cos_embed_loss, or what the student returns",
    )
    accumulate_grad_batches: int = option(1, (int,), "Batches a step.", example="4", **_COUNT)
    precision: Any = option(
        32,
        (int, str),
        "16 is bf16 on a CPU; auto is bf16 where the device has instructions for it, else 32.",
        example="16",
        valid="32, 16, bf16 or auto",
    )
    teacher_table: Any = option(
        None,
        (str, Path, bool, None, TeacherTable),
        "Answer for the teacher from a table of its outputs: `auto` (beside the runs of "
        "`ckpt_root_dir`), a folder, or a `TeacherTable`. Needs a loader whose batches carry keys.",
        example='"auto"',
        valid="`auto`, a folder, a TeacherTable, or None (`off`) for the teacher itself",
        check=lambda value: value is not True,
    )
    seed: int = option(
        32, (int,), "Of the order of the data, and dropout.", example="1", **_NATURAL
    )
    deterministic: bool = option(
        False, (bool,), "Deterministic algorithms only.", example="True", valid="True or False"
    )
    resume_from_checkpoint: Any = option(
        None,
        (str, Path, None),
        "A run's UUID, its folder or ckpt_latest.pth; '' is none.",
        example='"3fa9c0d2"',
        valid="a run or a path into its folder",
    )
    log_to_comet: bool = option(
        False, (bool,), "Log to Comet as well.", example="True", valid="True or False"
    )
    comet_info_path: str = option(
        "",
        (str, Path),
        "A file of three lines: API key, project name, workspace.",
        example='"comet_info.txt"',
        valid="a path",
    )
    comet_exp_name: str = option(
        "", (str,), "Name at Comet, and comment of the run.", example='"digits"', valid="a text"
    )
    logging_param: dict | None = option(
        {},
        (dict, None),
        "More to record with the run.",
        example='{"note": "first"}',
        valid="a dict",
    )
    experiment_name: str = option(
        "kd_training", (str,), "In the run store.", example='"digits"', valid="a name"
    )
    ckpt_root_dir: Any = option(
        None, (str, Path, None), "Root of the run store.", example='"logs"', valid="a folder"
    )
    silent_mode: bool = option(
        False, (bool,), "Print nothing.", example="True", valid="True or False"
    )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ToolkitOptions:
        """Checked options. Raises `ConfigError` naming what is unknown, wrong or out of range."""
        for name, (neutral, instead) in ELSEWHERE.items():
            if name in values and values[name] not in neutral:
                raise ConfigError(f"option {name!r} can only be {neutral[-1]!r} here: {instead}")
        options = build(
            cls,
            {name: value for name, value in values.items() if name not in ELSEWHERE},
            kind="option of KnowledgeDistillationTraining:",
            listed="distillation.toolkit_options",
        )
        for name, value, valid in (
            ("optimize_method", options.optimize_method, OPTIMIZERS),
            ("scheduler_method", options.scheduler_method, SCHEDULERS),
            ("precision", options.precision, PRECISIONS),
        ):
            if value not in valid:
                raise ConfigError(unknown(name, value, map(str, valid)))
        if options.num_lr_warm_up_epoch >= options.max_epoch:
            raise ConfigError(
                f"num_lr_warm_up_epoch ({options.num_lr_warm_up_epoch}) leaves none of the "
                f"{options.max_epoch} epochs"
            )
        return options

    def training_params(self, **more: Any) -> dict[str, Any]:
        """What the options mean to `KDTrainer`."""
        optimizer, settings = OPTIMIZERS[self.optimize_method]
        schedule: dict[str, Any] = {}
        if self.scheduler_method == "cosine_anneal":
            ratio = min(1.0, COSINE_END / self.learning_rate)
            schedule = {"lr_mode": "Cosine", "cosine_final_lr_ratio": ratio}
        elif self.scheduler_method == "linear_decay_with_warm_up":
            schedule = {"lr_mode": "Function", "lr_schedule_function": linear_decay}
        return {
            "max_epochs": self.max_epoch,
            "optimizer": optimizer,
            "optimizer_params": settings,
            "initial_lr": self.learning_rate,
            "lr_warmup_epochs": self.num_lr_warm_up_epoch,
            "batch_accumulate": self.accumulate_grad_batches,
            "mixed_precision": PRECISIONS[self.precision],
            "seed": self.seed,
            "resume_path": self.resume_from_checkpoint or None,
            "silent_mode": self.silent_mode,
            "trackers": self.trackers(),
            "teacher_table": self.teacher_table,
            **schedule,
            **more,
        }

    def device(self) -> str:
        """The device by name; a GPU that is asked for and not there is a warning, and the CPU."""
        wanted = self.num_gpu_used
        if wanted is None:
            return "auto"
        if wanted == 0:
            return "cpu"
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if there < wanted:
            warnings.warn(
                f"num_gpu_used={wanted}, but {there or 'no'} GPU is here; "
                + ("all there are may be used" if there else "training on the CPU"),
                stacklevel=3,
            )
        if wanted > 1 and there > 1:
            warnings.warn(
                f"num_gpu_used={wanted}: one process uses one GPU; start the script with "
                f"`accelerate launch --num_processes {wanted}`",
                stacklevel=3,
            )
        return "cuda" if there else "cpu"

    def trackers(self) -> list[Any]:
        """Comet's tracker; without package, key file or network a warning instead."""
        if not self.log_to_comet:
            return []
        from accelerate.tracking import CometMLTracker
        from accelerate.utils import is_comet_ml_available

        path = Path(self.comet_info_path)
        reason = None
        if not str(self.comet_info_path) or not path.is_file():
            reason = f"there is no file {str(self.comet_info_path)!r} at comet_info_path"
        elif not is_comet_ml_available():
            reason = "its package is not installed (pip install comet_ml)"
        text = path.read_text(encoding="utf-8") if reason is None else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if reason is None and len(lines) < 3:
            reason = f"{path} has not the three lines API key, project name and workspace"
        if reason is not None:
            warnings.warn(f"log_to_comet: {reason}. The run store records the run.", stacklevel=4)
            return []
        import comet_ml

        named = {}
        if self.comet_exp_name:
            named["experiment_config"] = comet_ml.ExperimentConfig(name=self.comet_exp_name)
        key, project, workspace = lines[:3]
        return [CometMLTracker(project, api_key=key, workspace=workspace, **named)]

    def logged(self) -> dict[str, Any]:
        """The options as plain values, to be recorded."""
        return plain(self)

    @contextmanager
    def determinism(self) -> Iterator[None]:
        """torch's deterministic algorithms, when asked for; the setting comes back."""
        before = torch.get_deterministic_debug_mode()
        if self.deterministic:
            torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before)


def linear_decay(
    *, initial_lr: float, epoch: int, iter: int, max_epoch: int, iters_per_epoch: int
) -> float:
    """From the initial rate to 0 in equal steps, one an update."""
    done = (epoch * iters_per_epoch + iter) / (max_epoch * iters_per_epoch)
    return initial_lr * max(0.0, 1.0 - done)
