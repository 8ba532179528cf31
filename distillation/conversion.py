"""`convert` and `export`: into a meta-model and back, in place, all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from distillation.carried import KD, attach, detach, reattach
from distillation.distiller import Distiller
from distillation.errors import ConfigError
from distillation.kd_config import KDLossConfig, build_model, parse_modes
from distillation.layerwise import LayerwiseDistiller
from distillation.meta_model import DistillationModel

__all__ = ["KDLossConfig", "convert", "export"]

DISTILLERS = {"kd_loss": Distiller, "layerwise_kd": LayerwiseDistiller}


def convert(model: Any, mode: Any = None, **config: Any) -> nn.Module:
    """Make a model its own distillation meta-model, in place.

    Args:
        model: the student: an instance, a class, or `(class, args, kwargs)`.
        mode: a name, a list of names, a list of `(name, config)`, or `{name: config}`, with the
            names "kd_loss", "layerwise_kd" (each paired student layer is trained on the teacher
            layer's input, to give its output; all else is frozen) and "export_student". The
            configuration is a `KDLossConfig` or a dict. An empty list changes nothing.
        config: instead of `mode`, the configuration of "kd_loss": `convert(model,
            teacher_model=…, criterion=…, teacher_table=…)`.

    Returns:
        The same object. Its class is a subclass of (`DistillationModel`, its own class).

    Raises:
        ConfigError: an unknown mode, key or layer; a model that is converted already.
        TeacherError: the teacher is, or shares weights with, the student.

    When anything fails, the model is as it was.
    """
    if mode is None:
        mode = [("kd_loss", config)]
    elif config:
        raise ConfigError(f"give mode, or the configuration as keywords ({', '.join(config)})")
    steps = parse_modes(mode)
    student = build_model(model)
    undo: list[Callable[[], object]] = []
    done: list[Callable[[], object]] = []
    try:
        for name, settings in steps:
            if settings is None:
                _apply_export(student, undo, done)
            else:
                _apply_distiller(student, name, settings, undo)
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    for step in done:
        step()
    return student


def export(model: nn.Module) -> nn.Module:
    """The student as it came: the same object, its own class, no trace of teacher or losses.

    The teacher gets its flags back, once no other student holds it. A class that another tool made
    of the model's since (FSDP2) stays, without ours.

    Raises:
        ConfigError: the model is not converted.
    """
    _refuse_plain(model)
    model._leave_teacher()
    return model


def _apply_distiller(
    student: nn.Module, name: str, config: KDLossConfig, undo: list[Callable[[], object]]
) -> None:
    _refuse_student(student)
    teacher, opened = _teacher(name, config)
    try:
        distiller = DISTILLERS[name](
            student,
            teacher,
            config.criterion,
            config.loss_balancer,
            teacher_mode=config.teacher_mode,
        )
    finally:
        if opened:
            teacher.release()  # the distiller has a hold of its own
    undo.append(distiller.release)
    if not config.expose_minimal_state_dict and distiller.teacher.module is None:
        raise ConfigError(
            "expose_minimal_state_dict=False shows the teacher's weights, but this teacher is no "
            "single module"
        )
    attach(
        student,
        KD(distiller, show_teacher=not config.expose_minimal_state_dict),
        DistillationModel,
    )
    undo.append(lambda: detach(student))


def _teacher(name: str, config: KDLossConfig) -> tuple[Any, bool]:
    """The teacher as given, or the table before it; and whether it was opened here."""
    from distillation.table_option import is_online, table_source, teacher_layers

    if is_online(config.teacher_table):
        return config.teacher_model, False
    if name == "layerwise_kd":
        raise ConfigError(
            "layerwise_kd runs the student's layers on what the teacher's layers see, which no "
            "table holds; leave teacher_table out"
        )
    if config.teacher_mode != "eval":
        raise ConfigError(
            f"teacher_table needs a teacher whose outputs stay the same, so teacher_mode='eval', "
            f"not {config.teacher_mode!r}"
        )
    options = dict(config.table_options or {})
    options["layers"] = options.get("layers") or teacher_layers([config.criterion])
    table = table_source(config.teacher_model, config.teacher_table, config.table_data, **options)
    return table, True


def _apply_export(
    student: nn.Module, undo: list[Callable[[], object]], done: list[Callable[[], object]]
) -> None:
    _refuse_plain(student)
    cls = type(student)
    kd = detach(student)
    undo.append(lambda: reattach(student, kd, cls))
    done.append(kd.distiller.release)


_OUTER = (nn.parallel.DistributedDataParallel, nn.DataParallel, torch.jit.ScriptModule)


def _refuse_student(student: nn.Module) -> None:
    kind = type(student).__name__
    if isinstance(student, DistillationModel):
        raise ConfigError(
            f"this {student.original_cls.__name__} is converted already; export(model) first"
        )
    if isinstance(student, _OUTER) or hasattr(student, "_orig_mod"):
        raise ConfigError(f"convert the model before it is wrapped, not the {kind} around it")
    taken = [n for n in NAMES if n in vars(student) or hasattr(type(student), n)]
    taken += [n for n in NAMES if n in student._modules or n in student._parameters]
    if taken:
        raise ConfigError(
            f"{kind} has an attribute {taken[0]!r} of its own, which DistillationModel needs; "
            "rename it"
        )


# What DistillationModel adds to a module.
NAMES = sorted(
    {
        n
        for base in DistillationModel.__mro__[: DistillationModel.__mro__.index(nn.Module)]
        for n in vars(base)
        if not n.startswith("__") and not hasattr(nn.Module, n)
    }
    | {"_kd", "original_cls"}
)


def _refuse_plain(model: nn.Module) -> None:
    if isinstance(model, DistillationModel):
        return
    if not isinstance(model, nn.Module):
        raise ConfigError(f"export takes a converted model, not a {type(model).__name__}")
    inside = [n for n, m in model.named_modules() if isinstance(m, DistillationModel)]
    hint = ""
    if inside:
        hint = f"; its submodule {inside[0]!r} is: export that one"
    raise ConfigError(f"this {type(model).__name__} is not converted{hint}")
