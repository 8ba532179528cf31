"""Recipes: a training written down as a configuration, in SuperGradients' structure.

    student_architecture: digits_small_model
    student_arch_params: {num_classes: 10}
    teacher_architecture: digits_large_model
    teacher_checkpoint_params: {checkpoint_path: 3fa9c0d2}    # a run's UUID, or a file
    dataset: {name: digits, batch_size: 64}
    training_hyperparams: {max_epochs: 20, initial_lr: 0.1, loss: KDLogitsLoss}
    experiment_name: digits_kd

A recipe with `student_architecture` distils; one with `architecture` alone is plain training.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distillation import models, runs
from distillation.devices import make_accelerator
from distillation.errors import ConfigError, unknown
from distillation.kd_module import make_kd_module
from distillation.references import note_run
from distillation.rng import get_rng_state, seed_everything, set_rng_state
from distillation.trainer import recipe_data
from distillation.trainer.flags import KeepFlags
from distillation.trainer.params import TrainingParams
from distillation.trainer.record import run_to_resume
from distillation.trainer.setup import Setup, precision_of
from distillation.trainer.targets import check_targets, make
from distillation.trainer.task import KDTask

if TYPE_CHECKING:
    from distillation.trainer.trainer import Trainer

COMMON = (
    *("experiment_name", "ckpt_root_dir", "comment", "device", "resume"),
    *("dataset", "train_dataloader", "val_dataloader", "training_hyperparams", "training_params"),
    *("architecture", "arch_params"),
)
PLAIN = (*COMMON, "checkpoint_params")
KD = (
    *COMMON,
    *("student_architecture", "student_arch_params", "student_checkpoint_params"),
    *("teacher_architecture", "teacher_arch_params", "teacher_checkpoint_params"),
    *("teacher_training_hyperparams", "run_teacher_on_eval"),
)
CHECKPOINT = ("checkpoint_path", "strict_load", "pretrained_weights")


def distils(cfg: Mapping[str, Any]) -> bool:
    """Whether a recipe has a student and a teacher."""
    return "student_architecture" in cfg


def train_from_config(
    trainer_class: type[Trainer], cfg: Any, *, allow_targets: Iterable[str | Callable] = ()
) -> Trainer:
    """Train as a recipe says; returns the trainer, with `net`, `results` and `run`.

    `cfg` is a dict or an OmegaConf config. Keys of both kinds: `experiment_name`,
    `ckpt_root_dir`, `comment`, `device`, `resume`, `dataset` (see `recipe_data.DatasetParams`),
    `train_dataloader` and `val_dataloader` (instead of `dataset`: a name, a `_target_` or an
    object), and `training_hyperparams` (or `training_params`).

    Plain: `architecture`, `arch_params`, `checkpoint_params`.

    KDTrainer: `student_architecture`, `student_arch_params`, `student_checkpoint_params`, the
    same three of the teacher, `architecture` (`kd_module`), `arch_params` (of the KDModule) and
    `run_teacher_on_eval`. A teacher without weights is trained first, when
    `teacher_training_hyperparams` say how, as a run of the experiment `<experiment_name>_teacher`.

    Every `_target_` is checked before anything is made; `allow_targets` are those beyond the
    allow-list of `distillation.trainer.targets`.

    Raises `ConfigError` for an unknown or missing key, `TrustError` for a target that is not
    allowed, `DataError` for data that is not there.
    """
    from distillation.trainer.kd_trainer import KDTrainer

    plain = as_dict(cfg)
    kd = issubclass(trainer_class, KDTrainer)
    _check_keys(plain, kd)
    check_targets(plain, allow_targets)
    recipe = Recipe(trainer_class, plain, tuple(allow_targets))
    return recipe.distil() if kd else recipe.train()


def is_main_process() -> bool:
    """Whether this process, of those that trained, is the one that tells."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def as_dict(cfg: Any) -> dict[str, Any]:
    """A config as a dict, interpolations resolved; `ConfigError` names a value left `???`."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(cfg, DictConfig):
        try:
            return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"the recipe is not complete: {error}") from error
    if not isinstance(cfg, Mapping):
        raise ConfigError(f"a recipe is a dict or an OmegaConf config, not {type(cfg).__name__}")
    return dict(cfg)


class Recipe:
    """One recipe on its way to a trained model."""

    def __init__(self, trainer_class: type[Trainer], cfg: dict[str, Any], allow: tuple):
        self.cfg, self.allow, self.trainer_class = cfg, allow, trainer_class
        self.params = self._params(self._either("training_hyperparams", "training_params"))
        if cfg.get("resume"):
            self.params.resume = True
        root = cfg.get("ckpt_root_dir")
        self.root = None if root is None else Path(root).expanduser()
        self.name = cfg["experiment_name"]

    def train(self) -> Trainer:
        """Plain training."""
        model = self._model("", self.params.seed)
        trainer = self._trainer(self.trainer_class, self.name)
        trainer.train(model, self.params, *self._loaders(), additional_configs_to_log=self._log())
        return trainer

    def distil(self) -> Trainer:
        """Distillation, after the teacher's training where it has to be trained."""
        student = self._model("student_", self.params.seed)
        loaders = self._loaders()
        teacher = self._teacher(student, loaders)
        trainer = self._trainer(self.trainer_class, self.name)
        trainer.train(
            student=student,
            teacher=teacher,
            training_params=self.params,
            **self._kd_module("kd_"),
            train_loader=loaders[0],
            valid_loader=loaders[1],
            additional_configs_to_log=self._log(),
        )
        return trainer

    # -- the parts

    def _kd_module(self, prefix: str = "") -> dict[str, Any]:
        return {
            f"{prefix}architecture": self._made("architecture") or "kd_module",
            f"{prefix}arch_params": self._made("arch_params"),
            "run_teacher_on_eval": self.cfg.get("run_teacher_on_eval", True),
        }

    def _rehearse(self, student: nn.Module, loaders: tuple[Any, Any]) -> None:
        """Raise for what the student's training cannot be made of, before a teacher is trained."""
        params = dataclasses.replace(self.params, teacher_table=None, fsdp=False)
        if not isinstance(params.optimizer, torch.optim.Optimizer):
            student = copy.deepcopy(student)  # an optimizer's instance knows the student alone
        given = self._kd_module()
        teacher = self._model("teacher_", self.params.seed)
        module = make_kd_module(given.pop("architecture"), student, teacher, **given)
        try:
            with KeepFlags([student]), _seeded(self.params.seed):
                accelerator = make_accelerator(self.cfg.get("device"), precision_of(params))
                Setup(KDTask(module, params), params, *loaders, accelerator, self.root)
        finally:
            module.release()

    def _teacher(self, student: nn.Module, loaders: tuple[Any, Any]) -> Any:
        weights = self.cfg.get("teacher_checkpoint_params") or {}
        if any(weights.get(key) is not None for key in ("checkpoint_path", "pretrained_weights")):
            return self._model("teacher_", self.params.seed)
        architecture = self._made("teacher_architecture")
        if isinstance(architecture, nn.Module):
            return architecture
        how = self.cfg.get("teacher_training_hyperparams")
        if how is None:
            raise ConfigError(
                "the teacher has no weights: give teacher_checkpoint_params.checkpoint_path=RUN "
                "(a run's UUID or a file) or .pretrained_weights, or say in "
                "teacher_training_hyperparams how it is trained first"
            )
        self._rehearse(student, loaders)
        before = self._before()
        if before is not None:
            return _chosen(runs.find(before.parent_uuid, self.root), loaders[1])
        return _chosen(self._trained_teacher(self._params(how), loaders), loaders[1])

    def _before(self) -> runs.Run | None:
        """The student's run that is gone on with, if it has got so far."""
        name = f"{self.name}_teacher"
        waiting = self.params.resume and not runs.list(self.root, experiment=self.name)
        if waiting and runs.list(self.root, experiment=name):
            self.params.resume = False  # it was the teacher's training that was interrupted
            return None
        return run_to_resume(self.params, self.name, self.root)

    def _trained_teacher(self, params: TrainingParams, loaders: tuple[Any, Any]) -> runs.Run:
        from distillation.trainer.trainer import Trainer

        name = f"{self.name}_teacher"
        if self.cfg.get("resume"):
            found = runs.list(self.root, experiment=name)
            if found and found[0].status == "completed":
                return found[0]
            params.resume = bool(found)
        trainer = self._trainer(Trainer, name)
        trainer.train(self._model("teacher_", params.seed), params, *loaders)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # the main process has closed the record now
        return runs.Run.read(trainer.run.path)

    def _model(self, whose: str, seed: int) -> nn.Module:
        given = self._made(f"{whose}architecture")
        arguments = self._made(f"{whose}arch_params") or {}
        weights = self.cfg.get(f"{whose}checkpoint_params") or {}
        for key in weights:
            if key not in CHECKPOINT:
                raise ConfigError(unknown(f"key in {whose}checkpoint_params:", key, CHECKPOINT))
        if given is None:
            raise ConfigError(f"the recipe names no model: give {whose}architecture")
        if isinstance(given, nn.Module):
            if arguments or weights:
                raise ConfigError(
                    f"{whose}architecture is a model already; {whose}arch_params and "
                    f"{whose}checkpoint_params are for one that is made by name"
                )
            return given
        options = {key: value for key, value in weights.items() if value is not None}
        run = self._run_at(options.get("checkpoint_path"))
        if run is not None and run.step is not None:
            options["checkpoint_path"] = run.path / "checkpoints" / str(run.step)
        with _seeded(seed):
            model = models.get(given, arch_params=arguments, **options)
        if run is not None and whose == "teacher_":
            note_run(model, run.uuid, run.step)
        return model

    def _run_at(self, path: Any) -> runs.Run | None:
        """The run that a checkpoint is of: named by its UUID, or by a file in its folder."""
        if path is None:
            return None
        if not Path(path).exists():
            run = runs.find(str(path), self.root)
            run.step = run.resolve_step()
            return run
        for folder in (Path(path), *Path(path).resolve().parents):
            if (folder / "run.json").is_file():
                return runs.Run.read(folder)
        return None

    def _loaders(self) -> tuple[Any, Any]:
        train, valid = self._made("train_dataloader"), self._made("val_dataloader")
        return recipe_data.loaders(self.cfg.get("dataset"), train, valid)

    def _trainer(self, cls: type[Trainer], name: str) -> Trainer:
        comment, device = self.cfg.get("comment") or "", self.cfg.get("device")
        trainer = cls(name, self.root, device=device, comment=comment)
        dataset = (self.cfg.get("dataset") or {}).get("name")
        if dataset in ("digits", "cifar10"):
            trainer.about = {"evaluation": {"dataset": dataset}}
        return trainer

    def _params(self, values: Any) -> TrainingParams:
        return TrainingParams.from_any(make(values, self.allow))

    def _made(self, key: str) -> Any:
        return make(self.cfg.get(key), self.allow)

    def _either(self, one: str, other: str) -> Any:
        given = [key for key in (one, other) if self.cfg.get(key) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"{one} and {other} are two names of one thing; give one"
                if given
                else f"the recipe has no {one}, for example {{max_epochs: 20}}"
            )
        return self.cfg[given[0]]

    def _log(self) -> dict[str, Any]:
        left = ("training_hyperparams", "training_params", "train_dataloader", "val_dataloader")
        return {"recipe": {k: v for k, v in self.cfg.items() if k not in left}}


def _chosen(run: runs.Run, valid: Any) -> runs.Run:
    """The best checkpoint where held out images chose it, else the last."""
    held_out = isinstance(valid, Mapping) and "test" in valid
    run.step = run.resolve_step("best" if held_out and run.best_step is not None else "last")
    return run


def _check_keys(cfg: Mapping[str, Any], kd: bool) -> None:
    if "trust" in cfg or "allow_targets" in cfg:
        raise ConfigError(
            "what a recipe may call is not for the recipe to say: give +trust=MODULE on the "
            "command line, or allow_targets=[…] to train_from_config"
        )
    if kd is not distils(cfg):
        raise ConfigError(
            "KDTrainer needs a recipe with student_architecture and teacher_architecture; train "
            "this one with Trainer"
            if kd
            else "this recipe has student_architecture: train it with KDTrainer"
        )
    for key in cfg:
        if key not in (KD if kd else PLAIN):
            raise ConfigError(unknown("key in the recipe:", key, KD if kd else PLAIN))
    needed = ("experiment_name", *(("teacher_architecture",) if kd else ("architecture",)))
    for key in needed:
        if cfg.get(key) is None:
            raise ConfigError(f"the recipe has no {key}")


@contextmanager
def _seeded(seed: int):
    """First weights that depend on the seed alone; the generators get their state back."""
    state = get_rng_state()
    seed_everything(seed)
    try:
        yield
    finally:
        set_rng_state(state)
