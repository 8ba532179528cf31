"""The toolkit door: the one call of the Knowledge Distillation Toolkit, on the trainer's engine.

    training = KnowledgeDistillationTraining(
        train_data_loader=train_loader,
        val_data_loaders={"validation": valid_loader},
        inference_pipeline=InferencePipeline(),
        student_model=student,
        teacher_model=teacher,
        max_epoch=10,
        temperature=4,
        final_loss_coeff_dict={"kd_loss": 0.5, "ce_loss": 0.5},
    )
    training.start_kd_training()

Models are plain (a batch is `(x, y)`, the output logits), or follow the toolkit's dict contract:
see `distillation.toolkit_models`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distillation.engine import Engine
from distillation.errors import ConfigError
from distillation.hooks import Hooks
from distillation.rng import get_rng_state, set_rng_state
from distillation.table_option import is_online
from distillation.teacher import in_store
from distillation.toolkit_models import ToolkitLoss, ToolkitModule, follows_contract
from distillation.toolkit_options import ToolkitOptions
from distillation.trainer import KDTrainer
from distillation.trainer.flags import KeepFlags
from distillation.trainer.setup import named_loaders

if TYPE_CHECKING:
    from distillation.runs import Run

RESULT = "inference_result"


class KnowledgeDistillationTraining:
    """Distils `teacher_model` into `student_model`; a thin front of `KDTrainer`.

    Arguments:
        train_data_loader: yields `(x, y)`, dicts, or whatever models of the dict contract take.
        val_data_loaders: `{name: loader}`.
        inference_pipeline: its `run_inference_pipeline(model, data_loader)` returns
            `{"inference_result": number}`; called once an epoch for every validation loader, with
            the student in evaluation mode and without gradients.
        student_model: the model that is trained, in place.
        teacher_model: a model, or what `KDTrainer` takes as teacher; it is not changed.
        options: see `distillation.toolkit_options.ToolkitOptions`.

    After the training: `results`, `{loader name: [inference result per epoch]}`; `run`, the record
    in the run store, with the results as `inference_result.<name>`; `trainer`. The best checkpoint
    is the one with the lowest training loss.

    Raises `ConfigError` for an unknown option (the nearest are named), a coefficient of no loss,
    `val_data_loaders` that is no dict, and a loader or pipeline without the other.
    """

    def __init__(
        self,
        train_data_loader: Any = None,
        val_data_loaders: Mapping[str, Any] | None = None,
        inference_pipeline: Any = None,
        student_model: nn.Module | None = None,
        teacher_model: Any = None,
        **options: Any,
    ):
        for name, value in (
            ("train_data_loader", train_data_loader),
            ("student_model", student_model),
            ("teacher_model", teacher_model),
        ):
            if value is None:
                raise ConfigError(f"{name} is missing")
        self.options = ToolkitOptions.of(options)
        self.val_data_loaders = _checked_loaders(val_data_loaders, inference_pipeline)
        self.inference_pipeline = inference_pipeline
        self.train_data_loader = train_data_loader
        self.student_model, self.teacher_model = student_model, teacher_model
        self.results: dict[str, list[float]] = {name: [] for name in self.val_data_loaders}
        ToolkitLoss.check(self.options.final_loss_coeff_dict, student_model)
        options_ = self.options
        self.trainer = KDTrainer(
            options_.experiment_name,
            options_.ckpt_root_dir,
            device=options_.device(),
            comment=options_.comet_exp_name,
        )
        self.trainer.hooks.append(
            Inference(inference_pipeline, self.val_data_loaders, not options_.silent_mode)
        )

    @property
    def run(self) -> Run | None:
        """The record of the training."""
        return self.trainer.run

    def start_kd_training(self) -> dict[str, list[float]]:
        """Train; returns `results`, those of earlier epochs included when it was resumed."""
        options = self.options
        teacher = in_store(self.teacher_model, options.ckpt_root_dir)
        module = ToolkitModule(self.student_model, teacher, options.temperature)
        if follows_contract(module.teacher) and not is_online(options.teacher_table):
            module.release()
            raise ConfigError(
                "teacher_table keeps one tensor of logits for each image; a teacher of the dict "
                "contract returns a dict. Give a plain model, or leave teacher_table out"
            )
        loss = ToolkitLoss(options.final_loss_coeff_dict, options.temperature)
        params = options.training_params(loss=loss, **module.adapters())
        logged = {"toolkit": options.logged(), "logging_param": dict(options.logging_param or {})}
        try:
            with options.determinism():
                self.trainer.train(
                    model=module,
                    training_params=params,
                    train_loader=self.train_data_loader,
                    additional_configs_to_log=logged,
                )
        finally:
            if self.run is not None:
                self._read_results()
        return self.results

    def get_student_model(self) -> nn.Module:
        """The student, the very object that was passed."""
        return self.student_model

    def _read_results(self) -> None:
        rows = self.run.metrics
        for name in self.val_data_loaders:
            key = f"{RESULT}.{name}"
            self.results[name] = [
                float("nan") if row[key] is None else row[key] for row in rows if key in row
            ]


class Inference(Hooks):
    """Calls the user's pipeline after every epoch, and records what it says of the student."""

    def __init__(self, pipeline: Any, loaders: Mapping[str, Any], told: bool):
        self.pipeline, self.loaders, self.told = pipeline, dict(loaders), told

    def on_epoch_end(self, engine: Engine, metrics: dict[str, float]) -> None:
        if not engine.accelerator.is_main_process:
            return
        student = engine.modules["model"]
        for name, loader in self.loaders.items():
            # However a pipeline draws random numbers, the training goes on as without it
            rng = get_rng_state()
            with KeepFlags([student]), torch.no_grad():
                student.eval()
                result = self.pipeline.run_inference_pipeline(student, loader)
            set_rng_state(rng)
            metrics[f"{RESULT}.{name}"] = _number(result, type(self.pipeline).__name__)


def _number(result: Any, kind: str) -> float:
    if not isinstance(result, Mapping) or RESULT not in result:
        has = sorted(map(str, result)) if isinstance(result, Mapping) else type(result).__name__
        raise ConfigError(
            f"{kind}.run_inference_pipeline must return {{{RESULT!r}: number}}, not {has}"
        )
    try:
        return float(result[RESULT])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{kind}: {RESULT!r} is no number but {result[RESULT]!r}") from error


def _checked_loaders(loaders: Any, pipeline: Any) -> dict[str, Any]:
    if loaders is None:
        loaders = {}
    if not isinstance(loaders, Mapping):
        raise ConfigError(
            f"val_data_loaders must be a dict of loaders by name, not {type(loaders).__name__}; "
            'for one loader give {"validation": loader}'
        )
    if loaders and not callable(getattr(pipeline, "run_inference_pipeline", None)):
        raise ConfigError(
            "val_data_loaders need an inference_pipeline: an object with "
            "run_inference_pipeline(model, data_loader)"
            + ("" if pipeline is None else f"; {type(pipeline).__name__} has none")
        )
    if pipeline is not None and not loaders:
        warnings.warn("inference_pipeline is never called without val_data_loaders", stacklevel=3)
    return named_loaders(loaders)
