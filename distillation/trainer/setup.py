"""From parameters, models and loaders to an engine that is ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from distillation.compiling import compile_in_place
from distillation.engine import Engine
from distillation.errors import ConfigError
from distillation.processes import share_first
from distillation.progress import Progress
from distillation.replay import length_of
from distillation.table_option import is_online
from distillation.trainer import loaders
from distillation.trainer.callbacks import (
    CallbackList,
    Context,
    EarlyStopping,
    early_stopping_params,
)
from distillation.trainer.checkpoints import AVERAGED, BestSnapshots, CheckpointFiles
from distillation.trainer.ema import StudentEMA
from distillation.trainer.measures import Measures
from distillation.trainer.metrics import MetricSet, resolve_watch, slug
from distillation.trainer.optimizers import freeze_for_finetune, make_optimizer
from distillation.trainer.params import TrainingParams
from distillation.trainer.schedules import Schedule, split_mode
from distillation.trainer.sharding import WholeOptimizer, check_fsdp
from distillation.trainer.sync_bn import synchronise_batch_norm
from distillation.trainer.task import KDTask, OwnState, Task
from distillation.trainer.trackers import Trackers
from distillation.trainer.training import TRAIN, Training


def precision_of(params: TrainingParams) -> str:
    """Engine's name of `mixed_precision`; "auto" waits for a device."""
    if isinstance(params.mixed_precision, str):
        return params.mixed_precision
    return "bf16" if params.mixed_precision else "fp32"


def compile_options(params: TrainingParams) -> dict[str, Any]:
    """Arguments of `torch.compile`."""
    options = params.torch_compile if isinstance(params.torch_compile, Mapping) else {}
    mode = params.torch_compile_mode
    return {**options, **({} if mode is None else {"mode": mode})}


def named_loaders(valid_loader: Any) -> dict[str, Any]:
    """Validation loaders by split name: one is `valid`, a dict names several."""
    if valid_loader is None:
        return {}
    if not isinstance(valid_loader, Mapping):
        return {"valid": valid_loader}
    for name in valid_loader:
        if not isinstance(name, str) or name in (TRAIN, "train_step") or "." in name:
            raise ConfigError(
                f"validation loader {name!r} needs another name: a text without '.', and not "
                "'train' or 'train_step'."
            )
    return dict(valid_loader)


def updates_per_epoch(train_loader: Any, params: TrainingParams) -> int:
    """Optimizer updates of one epoch."""
    batches = length_of(train_loader)
    if batches is None:
        batches = params.max_train_batches
    if batches is None:
        raise ConfigError(
            "the training loader has no length, and schedules need to know the number of steps. "
            "Give training parameter 'max_train_batches'."
        )
    if params.max_train_batches is not None:
        batches = min(batches, params.max_train_batches)
    if batches < 1:
        raise ConfigError("the training loader gives no batch.")
    return -(-batches // params.batch_accumulate)


class Setup:
    """Makes the parts of one training in the order in which they need each other."""

    def __init__(
        self,
        task: Task,
        params: TrainingParams,
        train_loader: Any,
        valid_loader: Any,
        accelerator: Accelerator,
        root: Path | None = None,
    ):
        self.task, self.params, self.accelerator = task, params, accelerator
        self.device = accelerator.device
        dealt = {"accelerator": accelerator, "seed": params.seed}
        self.given_loaders = (train_loader, valid_loader)
        self.train_loader = loaders.share(train_loader, training=True, **dealt)
        self.valid_loaders = {
            name: loaders.share(loader, training=False, whole=params.fsdp, **dealt)
            for name, loader in named_loaders(valid_loader).items()
        }
        self.watched_split = next(iter(self.valid_loaders), TRAIN)
        self.per_epoch = updates_per_epoch(self.train_loader, params)
        self.metrics = {TRAIN: MetricSet(params.train_metrics_list, self.device)}
        for split in self.valid_loaders:
            self.metrics[split] = MetricSet(_fresh(params.valid_metrics_list), self.device)
        self.watched, self.greater = resolve_watch(
            params.metric_to_watch,
            self.metrics[self.watched_split],
            task.loss_names,
            params.greater_metric_to_watch_is_better,
        )
        task.to(self.device)
        if isinstance(task, KDTask):
            loaders_ = {TRAIN: self.train_loader, **self.valid_loaders}
            task.use_tables(loaders_, root, accelerator)
        elif not is_online(params.teacher_table):
            raise ConfigError("training parameter 'teacher_table' needs a teacher: use KDTrainer.")
        if params.fsdp:
            check_fsdp(params, accelerator, task.extra_parameters())
            task.shard(self.device, [TRAIN, *self.valid_loaders])
        self._resolve_plateau()
        self.optimizer = self._optimizer()
        self.schedule = Schedule(self.optimizer, params, self.per_epoch)
        self.ema = None
        if params.ema:
            total = self.per_epoch * params.max_epochs
            self.ema = StudentEMA(task.student, params.ema_params, total_updates=total)
        elif params.ema_params:
            raise ConfigError("training parameter 'ema_params' has no effect without 'ema': True.")
        self.callbacks = self._callbacks()

    def _optimizer(self) -> torch.optim.Optimizer:
        params = self.params
        rates = freeze_for_finetune(self.task.student, params)
        if rates is not None:
            params.initial_lr = rates
        return make_optimizer(self.task.student, params, self.task.extra_parameters())

    def _resolve_plateau(self) -> None:
        # a name given short (`Loss`) is a result's full name (`KDLogitsLoss/Loss`)
        mode, options = split_mode(self.params.lr_mode)
        if mode in ("ReduceLROnPlateau", ReduceLROnPlateau):
            options["metric_name"] = self._full_name(options.get("metric_name"))
            self.params.lr_mode = {"ReduceLROnPlateau": options}

    def _full_name(self, name: str | None) -> str:
        name = name or self.task.loss_names[0]
        metrics = self.metrics[self.watched_split]
        return resolve_watch(name, metrics, self.task.loss_names, kind="metric of lr_mode")[0]

    def _callbacks(self) -> CallbackList:
        params = self.params
        callbacks = list(params.phase_callbacks)
        if params.early_stopping is not None:
            options = early_stopping_params(params.early_stopping)
            monitor, greater = self.watched, self.greater
            if options.monitor is not None:
                metrics = self.metrics[self.watched_split]
                names = self.task.loss_names
                monitor, greater = resolve_watch(
                    options.monitor, metrics, names, kind="metric of early_stopping"
                )
            if options.mode is not None:
                greater = options.mode == "max"
            if not self.valid_loaders:
                raise ConfigError("early_stopping needs a valid_loader.")
            how = (options.patience, options.min_delta, self.watched_split)
            callbacks.append(EarlyStopping(monitor, greater, *how))
        context = Context(
            net=self.task.net,
            ema_model=self.ema and self.ema.module,
            optimizer=self.optimizer,
            criterion=self.task.criterion,
            training_params=params,
            train_loader=self.given_loaders[0],
            valid_loader=self.given_loaders[1],
            device=self.device,
        )
        return CallbackList(callbacks, context)

    # -- with a run

    def files(self, folder: Path | None, run_uuid: str | None) -> CheckpointFiles | None:
        """The checkpoint files, written by the main process."""
        if folder is None or not self.accelerator.is_main_process:
            return None
        return CheckpointFiles(folder, run_uuid or "")

    def engine(
        self, recorder: Any, *, folder: Path | None, trackers: Trackers | None
    ) -> tuple[Engine, Training]:
        """The engine, with the training as its step and hooks."""
        params, task = self.params, self.task
        files = self.files(folder, recorder and recorder.uuid)
        snapshots = None
        if params.average_best_models:
            if not self.valid_loaders or folder is None:
                raise ConfigError("average_best_models needs a valid_loader.")
            size = AVERAGED if params.average_best_models is True else params.average_best_models
            reader = files or CheckpointFiles(folder, recorder.uuid, writes=False)
            snapshots = BestSnapshots(reader, size, self.greater)
        self.callbacks.context.ckpt_dir = folder
        self.callbacks.context.run_uuid = recorder and recorder.uuid
        training = Training(
            task,
            params,
            self.metrics,
            self.callbacks,
            schedule=self.schedule,
            ema=self.ema,
            files=files,
            snapshots=snapshots,
            trackers=trackers,
            measures=Measures(self.valid_loaders, self.watched_split),
            watched=self.watched,
            watched_split=self.watched_split,
        )
        hooks = [training]
        if not params.silent_mode and self.accelerator.is_main_process:
            hooks.append(Progress())
        optimizer: Any = self.optimizer
        if task.whole is not None:
            optimizer = WholeOptimizer(task.student, optimizer)
        model: Any = task.student if task.whole is None else task.whole
        engine = Engine(
            training.step,
            modules={"model": model, **({"ema": self.ema.module} if self.ema else {})},
            optimizer=optimizer,
            train_loader=self.train_loader,
            epochs=params.max_epochs,
            scheduler=self.schedule,
            valid_loaders=self.valid_loaders,
            recorder=recorder,
            accumulate=params.batch_accumulate,
            clip_grad_norm=params.clip_grad_norm,
            accelerator=self.accelerator,
            save_seconds=params.save_seconds,
            log_every=params.log_every,
            validate_every=params.run_validation_freq,
            max_train_batches=params.max_train_batches,
            max_valid_batches=params.max_valid_batches,
            watch=f"{slug(self.watched)}.{self.watched_split}",
            watch_mode="max" if self.greater else "min",
            states=self._states(snapshots),
            hooks=hooks,
            **({} if params.batch_adapter is None else {"samples_of": training.adapt}),
        )
        engine.part_names = {"snapshots": "average_best_models"}
        training.engine = engine
        self._wrap(engine, training)
        return engine, training

    def _states(self, snapshots: BestSnapshots | None) -> dict[str, Any]:
        states: dict[str, Any] = {
            "own": OwnState(self.task),
            "train_metrics": self.metrics[TRAIN],
            "callbacks": self.callbacks,
        }
        if self.ema is not None:
            states["ema"] = self.ema.counters()
        if snapshots is not None:
            states["snapshots"] = snapshots
        return states

    def _wrap(self, engine: Engine, training: Training) -> None:
        params, net = self.params, self.task.net
        if params.sync_bn:
            synchronise_batch_norm(self.task.student, self.accelerator)
        if params.torch_compile:
            compile_in_place(self.task.student, **compile_options(params))
        if self.accelerator.num_processes > 1 and not params.fsdp:
            ids = None if self.device.type == "cpu" else [self.device.index]
            wrapped = nn.parallel.DistributedDataParallel(net, device_ids=ids)
            engine.wrapped["model"] = training.runner = wrapped
            share_first(training.outside)
            if self.ema is not None:
                share_first(self.ema.module.state_dict().values())


def _fresh(entries: list[Any]) -> list[Any]:
    """Metric instances that were given once are copied for each split."""
    import copy

    import torchmetrics

    return [copy.deepcopy(e) if isinstance(e, torchmetrics.Metric) else e for e in entries]
