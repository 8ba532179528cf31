"""`Trainer`: hand over a model and loaders; get checkpoints, metrics, schedules and a record."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from distillation import runs
from distillation.devices import make_accelerator
from distillation.engine import Engine
from distillation.errors import ConfigError
from distillation.hooks import Hooks
from distillation.precision import AUTO, resolve_precision
from distillation.references import forget_run, note_run
from distillation.rng import get_rng_state, seed_everything, set_rng_state
from distillation.runs import Run
from distillation.trainer import record
from distillation.trainer.callbacks import CallbackList, Context
from distillation.trainer.checkpoints import read_checkpoint_file
from distillation.trainer.description import loader_facts, plain
from distillation.trainer.flags import KeepFlags
from distillation.trainer.metrics import MetricSet
from distillation.trainer.params import TrainingParams
from distillation.trainer.passes import TEST, Passes
from distillation.trainer.prediction import Predictions, normalisation, predict
from distillation.trainer.setup import Setup, precision_of
from distillation.trainer.task import Task
from distillation.trainer.trackers import Trackers
from distillation.trainer.training import Training

FOLDER = "ckpt"  #: of the checkpoint files, inside the run's folder


class Trainer:
    """Trains one model at a time, on the engine.

        trainer = Trainer("digits_teacher")
        trainer.train(model, {"max_epochs": 10, "initial_lr": 0.1}, train_loader, valid_loader)
        trainer.test(test_loader=test_loader, test_metrics_list=["Accuracy"])

    `experiment_name` names the experiment in the run store, `ckpt_root_dir` its root (else the
    environment's DISTILLATION_RUNS, else ./logs). `device` is "auto", "cpu", "cuda" or "mps".
    `comment` is kept with the run.

    After a training: `net` (the model, or the KDModule), `ema_model` (the averaged student or
    None), `run` and `checkpoints_dir`, `results` (metrics of the last epoch).
    """

    def __init__(
        self,
        experiment_name: str,
        ckpt_root_dir: str | os.PathLike | None = None,
        *,
        device: str | None = None,
        comment: str = "",
    ):
        if not isinstance(experiment_name, str) or not experiment_name:
            raise ConfigError(f"experiment_name must be a name, not {experiment_name!r}")
        self.experiment_name, self.device, self.comment = experiment_name, device, comment
        self.root = None if ckpt_root_dir is None else Path(ckpt_root_dir)
        self.about: dict[str, Any] = {}  #: more fields of run.json, set by whoever trains
        self.hooks: list[Hooks] = []  #: more hooks of the engine, called before the training's own
        self.net: nn.Module | None = None
        self.ema_model: nn.Module | None = None
        self.run: Run | None = None
        self.results: dict[str, float] = {}
        self._params: TrainingParams | None = None
        self._train_loader: Any = None

    @property
    def checkpoints_dir(self) -> Path | None:
        """Where `ckpt_best.pth` and the others are: in the folder of the last run."""
        return None if self.run is None else self.run.path / FOLDER

    # -- train

    def train(
        self,
        model: nn.Module,
        training_params: Mapping[str, Any] | TrainingParams,
        train_loader: Iterable | None = None,
        valid_loader: Iterable | Mapping[str, Iterable] | None = None,
        additional_configs_to_log: Mapping[str, Any] | None = None,
    ) -> dict[str, float]:
        """Train `model`; gives the metrics of the last epoch (`accuracy.valid`).

        `training_params` are listed in docs/training_params.md. `valid_loader` may be a dict of
        loaders by name, of which the first is watched. The trained weights are in `model`.

        Raises `ConfigError` for whatever does not fit, before the first step.
        """
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model must be an nn.Module, not {type(model).__name__}")
        params = TrainingParams.from_any(training_params)
        return self._fit(
            Task(model, params), params, train_loader, valid_loader, additional_configs_to_log
        )

    @classmethod
    def train_from_config(
        cls, cfg: Any, *, allow_targets: Iterable[Any] = ()
    ) -> tuple[nn.Module, dict[str, float]]:
        """Train as a recipe says, a dict or an OmegaConf config; gives `(net, results)`.

        `distillation.trainer.recipes.train_from_config` says what a recipe holds, and gives the
        whole trainer. `allow_targets` are `_target_`s beyond the allow-list.
        """
        from distillation.trainer.recipes import train_from_config

        trainer = train_from_config(cls, cfg, allow_targets=allow_targets)
        return trainer.net, trainer.results

    def _fit(
        self,
        task: Task,
        params: TrainingParams,
        train_loader: Any,
        valid_loader: Any,
        additional: Mapping[str, Any] | None,
    ) -> dict[str, float]:
        if train_loader is None:
            raise ConfigError("train() needs a train_loader.")
        # A run says in which precision it is computed
        if params.mixed_precision == AUTO:
            params.mixed_precision = resolve_precision(AUTO, self.device)
        before = record.run_to_resume(params, self.experiment_name, self.root)
        if before is not None:
            self._check_resume(before, task, params)
        config = {
            **plain(additional or {}),
            "training_params": plain(params),
            "train_loader": loader_facts(train_loader),
            "student": type(task.student).__name__,
            **self._facts(task),
        }
        rng = get_rng_state()
        accelerator = make_accelerator(self.device, precision_of(params))
        try:
            with KeepFlags(task.modules()):
                seed_everything(params.seed + accelerator.process_index)
                setup = Setup(task, params, train_loader, valid_loader, accelerator, self.root)
                with self._recorder(before, task, params, config, accelerator) as recorder:
                    self._params, self._train_loader = params, train_loader
                    self.run = Run.read(recorder.path)
                    self.net, self.ema_model = task.net, setup.ema and setup.ema.module
                    interrupted = self._loop(setup, recorder, config)
        finally:
            task.release()
            set_rng_state(rng)
            if self.run is not None:
                self.run = Run.read(self.run.path)
        if interrupted:  # the run is complete, and whatever would follow is not wanted
            raise KeyboardInterrupt
        return self.results

    def _loop(self, setup: Setup, recorder: Any, config: dict[str, Any]) -> bool:
        """Train; returns whether a signal has come in the last epoch."""
        params = setup.params
        trackers = None
        if params.trackers and setup.accelerator.is_main_process:
            folder = recorder.path / "trackers"
            trackers = Trackers(
                params.trackers, project=self.experiment_name, folder=folder, config=config
            )
        engine, training = setup.engine(recorder, folder=recorder.path / FOLDER, trackers=trackers)
        engine.hooks.hooks[:0] = self.hooks
        setup.callbacks.context.experiment_name = self.experiment_name
        try:
            seed_everything(params.seed + setup.accelerator.process_index)
            forget_run(setup.task.student)
            self.results = engine.fit(resume=self._take_up(engine, training, recorder))
            setup.task.unshard()
            self.net = setup.task.net
            # Whoever learns from it has this run for a teacher; of a run with averaged weights,
            # these are the model
            model = self.ema_model if self.ema_model is not None else setup.task.student
            note_run(model, recorder.uuid, recorder.last_step())
            record.note_facts(recorder, setup.task, setup.accelerator)
        finally:
            if trackers is not None:
                trackers.finish()
        return engine.interrupted

    def _take_up(self, engine: Engine, training: Training, recorder: Any) -> bool:
        """Go on from a checkpoint file here; True when the run's last checkpoint is to be used."""
        params = training.params
        path = record.checkpoint_file(params)
        if path is None:
            return params.resume or params.resume_path is not None
        content = read_checkpoint_file(path)
        weights = {"model": training.task.student_state(content["net"])}
        if "ema_net" in content:
            weights["ema"] = content["ema_net"]
        engine.load_state_dict(weights, content["state"])
        recorder.rewind(content["step"])
        training.go_back(engine)
        return False

    def _check_resume(self, run: Run, task: Task, params: TrainingParams) -> None:
        """What must still be as it was when the run began."""

    def _facts(self, task: Task) -> dict[str, Any]:
        """More for the record's configuration."""
        return {}

    def _parent(self, task: Task) -> str | None:
        """UUID of the teacher's run."""
        return None

    def _recorder(
        self,
        before: Run | None,
        task: Task,
        params: TrainingParams,
        config: dict[str, Any],
        accelerator: Accelerator,
    ) -> Any:
        place: list[Any] = [None]
        recorder = None
        if accelerator.is_main_process:
            recorder = self._open(before, task, params, config)
            place = [str(recorder.path)]
        if accelerator.num_processes > 1:
            broadcast_object_list(place)
        return recorder or record.Follower(Path(place[0]))

    def _open(
        self, before: Run | None, task: Task, params: TrainingParams, config: dict[str, Any]
    ) -> runs.Recorder:
        made = record.how_made(task.student)
        if before is not None:
            recorder = runs.resume(before.uuid, before.path.parent.parent)
            recorder.set_config(config)
        else:
            recorder = runs.create(
                self.experiment_name,
                comment=self.comment,
                config=config,
                parent=self._parent(task),
                seed=params.seed,
                model=None if made is None else made.to_json(),
                root=self.root,
            )
        count = sum(p.numel() for p in task.student.parameters())
        recorder.update(facts={"parameters": count}, **self.about, **self._about(task))
        if not params.silent_mode:
            print(f"recording run {recorder.uuid} in {recorder.path}", flush=True)
        return recorder

    def _about(self, task: Task) -> dict[str, Any]:
        """Fields of run.json beside the usual ones."""
        return {}

    # -- afterwards

    def test(
        self,
        model: nn.Module | None = None,
        test_loader: Iterable | None = None,
        test_metrics_list: list[Any] | None = None,
        loss: Any = None,
        use_ema_net: bool = True,
        test_phase_callbacks: list[Any] | None = None,
    ) -> dict[str, float]:
        """Metrics on a loader, under full names: `Accuracy`, `KDLogitsLoss/Loss`.

        Without `model` the trained one is tested: its EMA, unless `use_ema_net` is False, with
        the training's loss, and its validation metrics unless `test_metrics_list` names others.
        Another `model` is tested with `loss` where that is given. The model's flags come back.
        """
        if test_loader is None:
            raise ConfigError("test() needs a test_loader.")
        trained = model is None or model is self.net
        model = self.net if model is None else model
        if model is None:
            raise ConfigError("there is no trained model yet: call train() first, or give model=.")
        params = self._test_params(loss, trained)
        task = self._task(model, params, scored=trained or loss is not None)
        metrics = test_metrics_list
        if metrics is None:
            metrics = params.valid_metrics_list
        if not metrics and not task.loss_names:
            raise ConfigError("there is nothing to measure: give test_metrics_list or loss.")
        accelerator = make_accelerator(self.device, precision_of(params))
        ema = self.ema_model if trained and use_ema_net else None
        held = [*task.modules(), *([ema] if ema is not None else [])]
        try:
            with KeepFlags(held):
                task.to(accelerator.device)
                context = Context(experiment_name=self.experiment_name, net=model, ema_model=ema)
                callbacks = CallbackList(test_phase_callbacks or [], context)
                sets = {TEST: MetricSet(metrics, accelerator.device)}
                return self._evaluate(task, params, sets, callbacks, ema, accelerator, test_loader)
        finally:
            task.release()

    def _evaluate(
        self,
        task: Task,
        params: TrainingParams,
        metrics: dict[str, MetricSet],
        callbacks: CallbackList,
        ema: nn.Module | None,
        accelerator: Accelerator,
        loader: Any,
    ) -> dict[str, float]:
        from distillation.trainer import loaders

        passes = Passes(task, params, metrics, callbacks, ema)
        engine = Engine(
            passes.step,
            modules={"student": task.student, **({"ema": ema} if ema is not None else {})},
            optimizer=None,
            train_loader=(),
            epochs=0,
            accelerator=accelerator,
            hooks=[passes],
        )
        passes.engine = engine
        loader = loaders.share(loader, accelerator, training=False, seed=params.seed)
        try:
            engine.evaluate(loader, TEST)
        finally:
            passes.close()
        return passes.results

    def _test_params(self, loss: Any, trained: bool) -> TrainingParams:
        import dataclasses

        params = self._params or TrainingParams(max_epochs=1)
        if loss is not None:
            return dataclasses.replace(params, loss=loss, criterion_params={})
        return params if trained else dataclasses.replace(params, loss=None, criterion_params={})

    def _task(self, model: nn.Module, params: TrainingParams, scored: bool) -> Task:
        return Task(model, params, scored=scored)

    def predict(
        self,
        images: Any,
        *,
        mean: Iterable[float] | None = None,
        std: Iterable[float] | None = None,
        use_ema_net: bool = True,
    ) -> Predictions:
        """What the trained student says of images, in eval mode.

        A floating tensor (N, C, H, W) or (C, H, W) is taken as the model's input. Pictures (PIL
        images, arrays (H, W), (H, W, C) or (N, H, W, C), uint8 tensors, lists of these) are
        scaled to 0 … 1 and normalised with `mean` and `std`, by default those of the training's
        loader where it has them.
        """
        if self.net is None:
            raise ConfigError("there is no trained model yet: call train() first.")
        student = getattr(self.net, "student", self.net) if self._distils() else self.net
        if use_ema_net and self.ema_model is not None:
            student = self.ema_model
        norm = normalisation(self._train_loader, mean, std)
        params = self._params or TrainingParams(max_epochs=1)
        with KeepFlags([student]), torch.no_grad():
            shape = self.run.info.get("facts", {}).get("input_shape") if self.run else None
            shape = None if shape is None else tuple(shape)
            return predict(
                student,
                images,
                norm,
                params.output_adapter,
                self._input_adapter(),
                shape,
                params.forward_adapter,
            )

    def _input_adapter(self) -> Any:
        """What the inputs pass before the student sees them."""
        return self.net.student_input_adapter if self._distils() else None

    def _distils(self) -> bool:
        return False
