"""`KDTrainer`: a student learns from a teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from distillation.errors import ConfigError
from distillation.kd_module import KDModule, make_kd_module
from distillation.runs import Run
from distillation.teacher import in_store
from distillation.trainer.params import TrainingParams
from distillation.trainer.record import check_teacher
from distillation.trainer.task import KDTask, Task
from distillation.trainer.trainer import Trainer


class KDTrainer(Trainer):
    """A Trainer for a student and its teacher.

        trainer = KDTrainer("digits_student")
        trainer.train(
            student=student, teacher=teacher, training_params={"max_epochs": 10, "initial_lr": 0.1},
            train_loader=train_loader, valid_loader=valid_loader,
        )

    The teacher is never trained, and is in no optimizer, EMA or DDP wrapper; its flags come back.
    """

    def train(  # type: ignore[override]
        self,
        model: KDModule | None = None,
        training_params: Mapping[str, Any] | TrainingParams | None = None,
        student: nn.Module | None = None,
        teacher: Any = None,
        kd_architecture: Any = "kd_module",
        kd_arch_params: Mapping[str, Any] | None = None,
        run_teacher_on_eval: bool = True,
        train_loader: Iterable | None = None,
        valid_loader: Iterable | Mapping[str, Iterable] | None = None,
        additional_configs_to_log: Mapping[str, Any] | None = None,
    ) -> dict[str, float]:
        """Train the student; gives the metrics of the last epoch.

        Give either `student` and `teacher`, or `model`, a KDModule. `teacher` is a module, a run
        UUID (of this trainer's root), a `Run`, or a source of outputs. `kd_architecture` is
        "kd_module" or a subclass of KDModule, `kd_arch_params` its options. With
        `run_teacher_on_eval=False` the teacher follows `train()` and `eval()`.

        Raises `ConfigError` or `TeacherError` for whatever does not fit, before the first step.
        """
        if training_params is None:
            raise ConfigError("train() needs training_params, for example {'max_epochs': 10}.")
        params = TrainingParams.from_any(training_params)
        if model is None:
            model = self._pair(
                student, teacher, kd_architecture, kd_arch_params, run_teacher_on_eval
            )
        else:
            given = {
                "student": student is not None,
                "teacher": teacher is not None,
                "kd_architecture": kd_architecture != "kd_module",
                "kd_arch_params": bool(kd_arch_params),
                "run_teacher_on_eval": run_teacher_on_eval is not True,
            }
            extra = [name for name, was in given.items() if was]
            if extra:
                raise ConfigError(
                    f"model= is a whole KDModule already; {', '.join(extra)} cannot be given "
                    "beside it."
                )
            if not isinstance(model, KDModule):
                raise ConfigError(
                    f"model must be a KDModule, not {type(model).__name__}. Give student= and "
                    "teacher= for two plain models, or use Trainer for plain training."
                )
        try:
            task = KDTask(model, params)
        except BaseException:
            model.release()
            raise
        return self._fit(task, params, train_loader, valid_loader, additional_configs_to_log)

    def _pair(
        self,
        student: nn.Module | None,
        teacher: Any,
        kd_architecture: Any,
        kd_arch_params: Mapping[str, Any] | None,
        run_teacher_on_eval: bool,
    ) -> KDModule:
        missing = [n for n, v in (("student", student), ("teacher", teacher)) if v is None]
        if missing:
            raise ConfigError(
                f"train() needs {' and '.join(missing)}: give student= and teacher=, or model=, "
                "a KDModule."
            )
        teacher = in_store(teacher, self.root)
        return make_kd_module(
            kd_architecture, student, teacher, kd_arch_params, run_teacher_on_eval
        )

    def _check_resume(self, run: Run, task: Task, params: TrainingParams) -> None:
        check_teacher(run, task.net.teacher_source, params.allow_changed_teacher)

    def _facts(self, task: Task) -> dict[str, Any]:
        source = task.net.teacher_source
        name = type(source.module).__name__ if source.module is not None else "outputs"
        return {"teacher": name, "kd_architecture": type(task.net).__name__}

    def _parent(self, task: Task) -> str | None:
        return task.net.teacher_source.run_uuid

    def _about(self, task: Task) -> dict[str, Any]:
        source = task.net.teacher_source
        about = {"fingerprint": source.fingerprint, "made_by": source.describe()}
        return {"teacher": about}

    def _task(self, model: nn.Module, params: TrainingParams, scored: bool) -> Task:
        if isinstance(model, KDModule):
            return KDTask(model, params, scored=scored)
        return Task(model, params, scored=scored)

    def _distils(self) -> bool:
        return isinstance(self.net, KDModule)
