"""The step of evaluation and training, and the metrics of each split."""

from __future__ import annotations

from typing import Any

import torch

from distillation.engine import Engine
from distillation.hooks import Hooks
from distillation.trainer.batches import take_apart, to_device
from distillation.trainer.callbacks import CallbackList
from distillation.trainer.flags import KeepFlags
from distillation.trainer.metrics import MetricSet, slug
from distillation.trainer.params import TrainingParams
from distillation.trainer.task import Task

TEST = "test"
_BATCH_PHASES = (
    "on_train_batch_start",
    "on_train_batch_loss_end",
    "on_train_batch_backward_end",
    "on_train_batch_gradient_step_start",
    "on_train_batch_gradient_step_end",
    "on_train_batch_end",
)


class Passes(Hooks):
    """Evaluation passes over a task; `step` is the engine's.

    `kind` is whose phases the callbacks are told: those of a test, or of a training's validation.

    `metrics` holds one `MetricSet` a split. `results` are those of the last evaluation under full
    names: `Accuracy`, `KDLogitsLoss/Loss`.
    """

    engine: Engine
    kind = "test"

    def __init__(
        self,
        task: Task,
        params: TrainingParams,
        metrics: dict[str, MetricSet],
        callbacks: CallbackList,
        ema_model: torch.nn.Module | None = None,
    ):
        self.task, self.params, self.metrics = task, params, metrics
        self.callbacks, self.ema_model = callbacks, ema_model
        self.results: dict[str, float] = {}
        self._told = callbacks.handles(*_BATCH_PHASES)
        self._told_valid = callbacks.handles(*map(self._phase, ("batch_start", "batch_end")))
        self._using: Any = None
        self._net: Any = None
        self._criterion: KeepFlags | None = None

    def step(self, batch: Any, batch_idx: Any) -> None:
        """One batch of an evaluation: loss and metrics of the student."""
        parts = to_device(take_apart(batch, self.params.batch_adapter), self.engine.device)
        n = parts.size
        if not n:
            return
        split, index = self.engine.split, batch_idx.idx
        if self._told_valid:
            fields = {"batch_idx": index, "batch": batch, "inputs": parts.inputs}
            self.callbacks.call(self._phase("batch_start"), **fields, target=parts.target)
        with self.engine.autocast():
            output = self.task.forward(self._net, parts)
        predictions = self.task.predictions(output)
        loss, values = self.task.loss(predictions, parts.target, self.engine.epoch)
        self.engine.log(values, n=n)
        if self.metrics[split].metrics:
            student = self.task.student_output(predictions)
            self.metrics[split].update(student, parts.target)
        self.observe(predictions, parts.target)
        if self._told_valid:
            self.callbacks.call(self._phase("batch_end"), preds=predictions, loss=loss)

    def observe(self, predictions: Any, target: Any) -> None:
        """A batch of an evaluation, for whoever measures more."""

    def on_validate_start(self, engine: Engine, split: str) -> None:
        self.metrics[split].reset()
        self.task.answer_for(split)
        self._using = self.task.using(self.ema_model)
        self._net = self._using.__enter__()
        self._net.eval()
        if isinstance(self.task.criterion, torch.nn.Module):
            self._criterion = KeepFlags([self.task.criterion])
            self._criterion.__enter__()
            self.task.criterion.eval()
        fields = {"epoch": engine.epoch, "split": split, "metrics_dict": {}}
        self.callbacks.call(self._phase("loader_start"), **fields)

    def on_validate_end(self, engine: Engine, split: str, metrics: dict[str, float]) -> None:
        self._leave()
        measured = self.metrics[split].compute()
        self.results = {
            **measured,
            **{
                name: metrics[f"{slug(name)}.{split}"]
                for name in self.task.loss_names
                if f"{slug(name)}.{split}" in metrics
            },
        }
        metrics.update({f"{slug(name)}.{split}": value for name, value in measured.items()})
        self.callbacks.call(self._phase("loader_end"), metrics_dict=dict(self.results))

    def _leave(self) -> None:
        if self._using is not None:
            self._using.__exit__(None, None, None)
        if self._criterion is not None:
            self._criterion.__exit__(None, None, None)
        self._using = self._net = self._criterion = None

    def close(self) -> None:
        """Put back what an evaluation that failed left."""
        self._leave()

    def _phase(self, what: str) -> str:
        return f"on_{self.kind}_{what}"
