"""One training: the step, and what happens at the phases of the engine's loop."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from distillation.checkpoint import load_strict
from distillation.engine import Engine
from distillation.trainer import loaders
from distillation.trainer.batches import Parts, take_apart, to_device
from distillation.trainer.callbacks import CallbackList
from distillation.trainer.checkpoints import (
    AVERAGE,
    BEST,
    LATEST,
    BestSnapshots,
    CheckpointFiles,
    epoch_file,
)
from distillation.trainer.ema import StudentEMA
from distillation.trainer.measures import Measures
from distillation.trainer.metrics import MetricSet, slug
from distillation.trainer.params import TrainingParams
from distillation.trainer.passes import Passes
from distillation.trainer.schedules import Schedule
from distillation.trainer.task import Task
from distillation.trainer.trackers import Trackers

TRAIN = "train"


class Training(Passes):
    """What `Trainer.train` puts into the engine: its step and its hooks.

    The parts are made by `distillation.trainer.setup`; here they meet.
    """

    kind = "validation"

    def __init__(
        self,
        task: Task,
        params: TrainingParams,
        metrics: dict[str, MetricSet],
        callbacks: CallbackList,
        *,
        schedule: Schedule,
        ema: StudentEMA | None,
        files: CheckpointFiles | None,
        snapshots: BestSnapshots | None,
        trackers: Trackers | None,
        measures: Measures,
        watched: str,
        watched_split: str,
    ):
        super().__init__(task, params, metrics, callbacks, ema and ema.module)
        self.schedule, self.ema, self.files = schedule, ema, files
        self.snapshots, self.trackers = snapshots, trackers
        self.measures: Measures | None = measures
        self.watched, self.watched_split = watched, watched_split
        self.runner: Any = task.net
        self.outside = task.outside_parameters()
        self.valid_results: dict[str, float] = {}
        self._adapted: dict[int, Parts] = {}

    # -- the step

    def adapt(self, batch: Any) -> int:
        """Show a batch to `batch_adapter`, once; the step takes what it gives. Returns its size."""
        parts = take_apart(batch, self.params.batch_adapter)
        self._adapted[id(batch)] = parts
        return parts.size

    def step(self, batch: Any, batch_idx: Any) -> None:
        """One batch, of the training or of an evaluation."""
        engine = self.engine
        if not engine.is_train:
            super().step(batch, batch_idx)
            return
        parts = self._adapted.pop(id(batch), None) or take_apart(batch, self.params.batch_adapter)
        parts = to_device(parts, engine.device)
        if self._told:
            fields = {"batch_idx": batch_idx.idx, "batch": batch, "inputs": parts.inputs}
            self.callbacks.call("on_train_batch_start", **fields, target=parts.target)
        with engine.autocast():
            output = self.task.forward(self.runner, parts)
        predictions = self.task.predictions(output)
        loss, values = self.task.loss(predictions, parts.target, engine.epoch)
        engine.log(values, n=parts.size)
        if self.metrics[TRAIN].metrics:
            student = self.task.student_output(predictions)
            self.metrics[TRAIN].update(student, parts.target)
        if not self._told:
            engine.backward(loss)
            self._update(engine)
        else:
            self._told_update(engine, predictions, loss)

    def _update(self, engine: Engine) -> None:
        if self.outside and engine.group_is_complete and engine.accelerator.num_processes > 1:
            loaders.average_gradients(self.outside, engine.accelerator.num_processes)
        engine.optimizer_step()
        engine.zero_grad()

    def _told_update(self, engine: Engine, predictions: Any, loss: torch.Tensor) -> None:
        call = self.callbacks.call
        call("on_train_batch_loss_end", preds=predictions, loss=loss.detach())
        engine.backward(loss)
        call("on_train_batch_backward_end")
        complete = engine.group_is_complete
        if complete:
            call("on_train_batch_gradient_step_start")
        self._update(engine)
        if complete:
            call("on_train_batch_gradient_step_end")
        call("on_train_batch_end")
        self._heed()

    def _heed(self) -> None:
        if self.callbacks.context.stop_training:
            self.engine.stop_training = True

    def observe(self, predictions: Any, target: Any) -> None:
        if self.measures is not None:
            student = self.task.student_output(predictions)
            self.measures.tally.observe(student, target, self.task.teacher_output(predictions))

    # -- the phases

    def on_train_start(self, engine: Engine) -> None:
        if engine.accelerator.num_processes == 1:
            self._mend_files(engine)
        if self.trackers is not None:
            self.trackers.start()
        self.callbacks.call("on_training_start", epoch=engine.epoch)

    def on_epoch_start(self, engine: Engine) -> None:
        self.task.answer_for(TRAIN)
        self.task.net.train()
        if not engine.batch:
            self.metrics[TRAIN].reset()
        fields = {"epoch": engine.epoch, "split": TRAIN, "metrics_dict": {}}
        self.callbacks.call("on_train_loader_start", **fields)

    def on_update_end(self, engine: Engine) -> None:
        if self.ema is not None:
            self.ema.update_parameters(self.task.student)

    def on_train_epoch_end(self, engine: Engine, metrics: dict[str, float]) -> None:
        measured = self.metrics[TRAIN].compute()
        results = {
            **measured,
            **{
                name: metrics[f"{slug(name)}.{TRAIN}"]
                for name in self.task.loss_names
                if f"{slug(name)}.{TRAIN}" in metrics
            },
        }
        metrics.update({f"{slug(name)}.{TRAIN}": value for name, value in measured.items()})
        metrics.update(self._rates())
        self.results = results
        self.valid_results = {}
        self.callbacks.call("on_train_loader_end", metrics_dict=dict(results))

    def _rates(self) -> dict[str, float]:
        groups = self.engine.optimizer.param_groups
        names = [g.get("name", str(i)) for i, g in enumerate(groups)]
        if len(set(names)) == 1:
            return {"learning_rate": float(groups[0]["lr"])}
        return {f"learning_rate.{n}": float(g["lr"]) for n, g in zip(names, groups, strict=True)}

    def on_validate_start(self, engine: Engine, split: str) -> None:
        super().on_validate_start(engine, split)
        if self.measures is not None:
            self.measures.on_validate_start(engine, split)

    def on_validate_end(self, engine: Engine, split: str, metrics: dict[str, float]) -> None:
        super().on_validate_end(engine, split, metrics)
        if self.measures is not None:
            self.measures.on_validate_end(engine, split, metrics)
        if split == self.watched_split:
            self.valid_results = dict(self.results)

    def on_epoch_end(self, engine: Engine, metrics: dict[str, float]) -> None:
        # An epoch without its evaluation has nothing to compare with the others' results
        watched = self.valid_results if engine.valid_loaders else self.results
        if watched:
            self.schedule.epoch_end(watched)
        if self.snapshots is not None and self.watched in watched:
            self.snapshots.offer(watched[self.watched], engine.epoch + 1, self._best_weights())
        self._heed()
        if self.trackers is not None:
            self.trackers.log(metrics, step=engine.samples)

    def on_checkpoint(self, engine: Engine, best: bool) -> None:
        if engine.batch:
            return  # in the middle of an epoch only the run store's checkpoint is written
        if best and self.results:  # none yet: noted again where the training goes on
            self.callbacks.call("on_validation_end_best_epoch", metrics_dict=self.valid_results)
        if self.files is not None or self.task.whole is not None:
            if best:
                self._write_best(engine, self._best_weights())
            self._write_whole(engine, LATEST)
            if engine.epoch in self.params.save_ckpt_epoch_list:
                self._write_whole(engine, epoch_file(engine.epoch))

    def _write_best(self, engine: Engine, weights: dict[str, torch.Tensor]) -> None:
        best = engine.best or {}
        if self.files is None:
            return
        self.files.write(
            BEST, weights, epoch=best["epoch"] + 1, metrics=engine.metrics, step=best["step"]
        )

    def _write_whole(self, engine: Engine, name: str) -> None:
        more: dict[str, Any] = {"state": engine.saved_state, "step": engine.samples}
        if self.ema is not None:
            more["ema_net"] = dict(self.ema.module.state_dict())
        net = self.task.state(self.params.save_teacher)  # of shards: all processes take part
        if self.files is None:
            return
        self.files.write(name, net, epoch=engine.epoch, metrics=engine.metrics, **more)

    def go_back(self, engine: Engine) -> None:
        """Save what an older file gave, with the best as it was then; what came after is abandoned.

        An epoch that was better came after it, perhaps, and the best until then was pruned: then
        the best is chosen anew, from here on.
        """
        best, lost = engine.best, [False]
        here = best is not None and best["step"] == engine.samples
        if best is not None and not here and engine.accelerator.is_main_process:
            lost = [best["step"] not in engine.recorder.run.checkpoints]
        if engine.accelerator.num_processes > 1:
            lost = broadcast_object_list(lost)
        if lost[0]:
            engine.best = None
        if engine.best is None and self.files is not None:
            self.files.remove(BEST)
            if lost[0]:
                warnings.warn(
                    f"the best epoch until then, {best['epoch'] + 1}, is no longer kept: the best "
                    f"checkpoint is chosen among the epochs from {engine.epoch + 1} on",
                    stacklevel=2,
                )
        engine.save(best=here)

    def _mend_files(self, engine: Engine) -> None:
        # A training that was killed between the run store's checkpoint and these files
        if self.files is None or not engine.samples or engine.batch:
            return
        engine.saved_state = engine.state_dict()
        if self.files.step(LATEST) != engine.samples:
            self._write_whole(engine, LATEST)
        best = engine.best
        if best and self.files.step(BEST) != best["step"]:
            present = engine.recorder.run.checkpoints
            if best["step"] in present:
                weights = engine.recorder.load_checkpoint(best["step"]).weights
                self._write_best(engine, weights.get("ema", weights["model"]))

    def _best_weights(self) -> dict[str, torch.Tensor]:
        if self.ema is None:
            return self.task.student_weights()
        return dict(self.ema.module.state_dict())

    def on_train_end(self, engine: Engine) -> None:
        if self.snapshots is not None and self.snapshots.kept:
            self._average(engine)
        self.callbacks.call("on_training_end", metrics_dict=dict(self.valid_results))

    def _average(self, engine: Engine) -> None:
        """Average the best epochs' weights, evaluate and keep them."""
        engine.accelerator.wait_for_everyone()
        model = copy.deepcopy(self.task.student)
        load_strict(model, self.snapshots.average(), what="average of the best epochs")
        ema, self.ema_model = self.ema_model, model
        measures, self.measures = self.measures, None  # evaluation.json is of the last epoch
        self.callbacks.call("on_average_best_models_validation_start")
        loader = engine.valid_loaders[self.watched_split]
        metrics = engine.evaluate(loader, self.watched_split)
        self.ema_model, self.measures = ema, measures
        self.callbacks.call("on_average_best_models_validation_end")
        values = {f"{name.rpartition('.')[0]}.average_model": v for name, v in metrics.items()}
        engine.metrics = {**engine.metrics, **values}
        if engine.recorder is not None:
            engine.recorder.log(engine.samples, engine.epoch - 1, values)
        if self.files is not None:
            weights = dict(model.state_dict())
            self.files.write(AVERAGE, weights, epoch=engine.epoch, metrics=values)
