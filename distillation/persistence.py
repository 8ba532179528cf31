"""`save` and `restore`: a meta-model in one file, without the teacher's weights.

The file says how teacher, losses and balancer are made, and holds the fingerprint of the one and
the weights of the others. It loads with `torch.load(weights_only=True)`: nothing in it can run
code, and `distillation.trust` decides what its names may call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from distillation import checkpoint, descriptions
from distillation.conversion import convert, export
from distillation.criterion import Criterion
from distillation.distiller import Distiller
from distillation.errors import CheckpointError, ConfigError, RunError, TeacherError
from distillation.kd_config import KDLossConfig, build_model, check_table_config
from distillation.meta_model import DistillationModel
from distillation.teacher import TeacherSource, as_teacher, rebuild
from distillation.trust import as_tuple

__all__ = ["restore", "save"]

FORMAT, VERSION = "distillation.meta_model", 1


def save(model: nn.Module, path: str | os.PathLike) -> None:
    """Write a converted model to one file, atomically; a plain model is written alike.

    The file holds the weights of student, losses and balancer, how these and the teacher are made,
    and the teacher's fingerprint; never the teacher's weights. Parameters of student or teacher
    that FSDP2 has sharded are gathered: call it on every rank then, rank 0 writes.

    Raises:
        CheckpointError: the write failed, or the state dict holds what is no tensor; an older file
            is unchanged.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"save takes a model, not a {type(model).__name__}")
    inside = [n for n, m in model.named_modules() if n and isinstance(m, DistillationModel)]
    if inside:
        raise ConfigError(
            f"the submodule {inside[0]!r} of this {type(model).__name__} is the converted model; "
            "save that one"
        )
    state: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    parameters = list(model.parameters())
    if isinstance(model, DistillationModel):
        teacher = model._kd.distiller.teacher.module
        parameters += [] if teacher is None else teacher.parameters()
        with model.hide_loss_modules(), model.hide_teacher_model():
            state["student"] = _whole(model.state_dict())
        state["distillation"] = _described(model)
    else:
        state["student"] = _whole(model.state_dict())
        state["distillation"] = None
    sharded = any(hasattr(parameter, "full_tensor") for parameter in parameters)
    if not sharded or not dist.is_initialized() or dist.get_rank() == 0:
        checkpoint.save_state(path, state)


def restore(
    model: Any,
    path: str | os.PathLike,
    *,
    teacher: Any = None,
    criterion: nn.Module | Mapping[tuple[str, str], nn.Module] | None = None,
    loss_balancer: nn.Module | None = None,
    student_only: bool = False,
    trust: Iterable[str | Callable[..., Any]] = (),
    allow_changed_teacher: bool = False,
    teacher_table: Any = None,
    table_data: Any = None,
    table_options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Load what `save` wrote into `model`, in place, and convert it as it was.

    Args:
        model: a plain student: an instance, a class, or `(class, args, kwargs)`.
        path: the file.
        teacher: instead of the one the file describes; needed when that was an instance, a lambda
            or a local function.
        criterion, loss_balancer: instead of those the file describes, with the same layer pairs
            and parameters; needed for classes that cannot be imported, or with constructor
            arguments that are not plain. Their weights come from the file.
        student_only: load the weights and leave the model plain.
        trust: what the file may call beside `nn.Module` classes that are imported, functions of
            `__main__` and of the student's module, and model functions of `distillation.models`,
            torchvision and timm: module names, "package.module:name", or the callables themselves.
        allow_changed_teacher: go on with a teacher whose weights are not those it had.
        teacher_table, table_data, table_options: as in `KDLossConfig`. The file does not say
            whether the teacher was a table: that changes what a step costs, not what it teaches.

    Returns:
        The model: converted, or plain when the file is a plain model's, or with `student_only`.

    Raises:
        CheckpointError: a missing or damaged file, or weights that do not fit.
        TeacherError: no way to make the teacher, or it has changed.
        TrustError: the file names what must not be called.
        ConfigError: something must be given (`criterion=`, `loss_balancer=`), or does not apply.

    When anything fails, the model is as it was.
    """
    state = _read(path)
    student = build_model(model)
    if isinstance(student, DistillationModel):
        raise ConfigError("restore takes a plain student; this one is converted: export it first")
    about = state["distillation"]
    if student_only or about is None:
        given = {"teacher": teacher, "criterion": criterion, "loss_balancer": loss_balancer}
        given |= {"teacher_table": teacher_table, "table_data": table_data}
        given |= {"table_options": table_options}
        for name, value in given.items():
            if value is not None:
                why = "student_only=True" if student_only else f"{path} holds a plain model"
                raise ConfigError(f"{name}= has no use here: {why}")
        return checkpoint.load_strict(student, state["student"], what=str(path))
    names = {"trust": as_tuple(trust), "home_module": type(student).__module__}
    check_table_config(teacher_table, table_data, table_options)
    if teacher is None and isinstance(teacher_table, TeacherSource):
        teacher = teacher_table
    made_criterion = _criterion(about["criterion"], criterion, names)
    made_balancer = _balancer(about["balancer"], loss_balancer, names)
    source = _teacher(about["teacher"], teacher, allow_changed_teacher, names)
    try:
        config = KDLossConfig(
            teacher_model=source,
            criterion=made_criterion,
            loss_balancer=made_balancer,
            expose_minimal_state_dict=about["expose_minimal_state_dict"],
            teacher_table=teacher_table,
            table_data=table_data,
            table_options=table_options,
        )
        convert(student, mode=[(about["mode"], config)])
    finally:
        if source is not teacher:
            source.release()  # the model has a hold of its own
    try:
        _load(student, state, str(path))
    except BaseException:
        export(student)
        raise
    return student


# Writing ------------------------------------------------------------------------------------


def _described(model: DistillationModel) -> dict[str, Any]:
    distiller: Distiller = model._kd.distiller
    teacher, balancer = distiller.teacher, distiller.loss_balancer
    keys, losses = distiller.criterion.keys, list(distiller.loss_modules)
    return {
        "mode": distiller.mode,
        "expose_minimal_state_dict": not model._kd.show_teacher,
        "teacher": {
            "description": teacher.describe(),
            "fingerprint": teacher.fingerprint,
            "mode": teacher.mode,
            "name": _name(teacher),
        },
        "criterion": {
            "pairs": [list(key) for key in keys],
            "losses": [descriptions.describe(loss) for loss in losses],
            "first": [list(map(id, losses)).index(id(loss)) for loss in losses],
            "names": distiller.loss_names,
            "state": _whole(distiller.loss_modules.state_dict()),
        },
        "balancer": None
        if balancer is None
        else {
            "recipe": descriptions.describe(balancer),
            "name": type(balancer).__name__,
            "state": _whole(balancer.state_dict()),
        },
    }


def _name(teacher: TeacherSource) -> str:
    """Class of the teacher; of a table's, that of the model behind it."""
    behind = getattr(teacher, "teacher", None) if teacher.keyed else None
    source = teacher if behind is None else behind
    return type(source if source.module is None else source.module).__name__


def _whole(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict with sharded tensors gathered (a collective call)."""
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in state.items()
    }


# Reading ------------------------------------------------------------------------------------


def _read(path: str | os.PathLike) -> dict[str, Any]:
    state = checkpoint.load_state(path)
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} was not written by distillation.save")
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has version {state.get('version')!r} of the format; this library reads "
            f"version {VERSION}"
        )
    about = state.get("distillation")
    whole = isinstance(state.get("student"), Mapping) and _fits(about, _SHAPE)
    if whole and about is not None:
        criterion = about["criterion"]
        lengths = {len(criterion[name]) for name in ("pairs", "losses", "names", "first")}
        whole = len(lengths) == 1 and all(len(pair) == 2 for pair in criterion["pairs"])
        whole = whole and all(0 <= first <= i for i, first in enumerate(criterion["first"]))
    if not whole:
        raise CheckpointError(f"{path} is not as distillation.save writes it")
    return dict(state)


# What a file of VERSION holds under "distillation"; a tuple lists alternatives.
_RECIPE = (None, dict)
_SHAPE = (
    None,
    {
        "mode": str,
        "expose_minimal_state_dict": bool,
        "teacher": {"description": (None, dict), "fingerprint": str, "mode": str, "name": str},
        "criterion": {
            "pairs": [[str]],
            "losses": [_RECIPE],
            "names": [str],
            "first": [int],  # of several pairs with one loss module, the number of the first
            "state": dict,
        },
        "balancer": (None, {"recipe": _RECIPE, "name": str, "state": dict}),
    },
)


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, tuple):
        return any(_fits(value, alternative) for alternative in shape)
    if shape is None:
        return value is None
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(item, shape[0]) for item in value)
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            name in value and _fits(value[name], inner) for name, inner in shape.items()
        )
    return isinstance(value, shape)


def _criterion(
    about: Mapping[str, Any], given: Any, names: Mapping[str, Any]
) -> dict[tuple[str, str], nn.Module]:
    pairs = [(student, teacher) for student, teacher in about["pairs"]]
    if given is not None:
        losses = Criterion(given).as_mapping()
        if set(losses) != set(pairs):
            raise ConfigError(
                f"criterion has the layer pairs {list(losses)}; the file was saved with {pairs}"
            )
        return {pair: losses[pair] for pair in pairs}
    missing = [n for n, r in zip(about["names"], about["losses"], strict=True) if r is None]
    if missing:
        raise ConfigError(
            f"the file does not say how {', '.join(missing)} is made (a class that cannot be "
            f"imported, or arguments that are not plain); pass criterion= with the pairs {pairs}"
        )
    losses: list[nn.Module] = []
    for recipe, first in zip(about["losses"], about["first"], strict=True):
        shared = first < len(losses)
        losses.append(losses[first] if shared else descriptions.remade(recipe, **names))
    return dict(zip(pairs, losses, strict=True))


def _balancer(
    about: Mapping[str, Any] | None, given: nn.Module | None, names: Mapping[str, Any]
) -> nn.Module | None:
    if given is not None or about is None:
        return given
    if about["recipe"] is None:
        raise ConfigError(
            f"the file does not say how the balancer {about['name']} is made (a class that cannot "
            "be imported, or arguments that are not plain); pass loss_balancer="
        )
    return descriptions.remade(about["recipe"], **names)


def _teacher(
    about: Mapping[str, Any], given: Any, allow_changed: bool, names: Mapping[str, Any]
) -> TeacherSource:
    if given is not None:
        source = as_teacher(given, mode=about["mode"], **names)
    elif about["description"] is None:
        raise TeacherError(
            f"the file does not say how the teacher ({about['name']}) is made: it was an instance, "
            "a lambda or a local function; pass teacher="
        )
    else:
        try:
            source = rebuild(about["description"], mode=about["mode"], **names)
        except RunError as error:
            raise TeacherError(
                f"the teacher ({about['name']}) cannot be made again: {error}. Pass it as teacher="
            ) from error
    found = source.fingerprint
    if found != about["fingerprint"] and not allow_changed:
        if source is not given:
            source.release()
        raise TeacherError(
            f"the teacher has changed: its fingerprint is {found[:12]}, the student was trained "
            f"with {about['fingerprint'][:12]} ({about['name']}). Pass the right one as teacher=, "
            "or allow_changed_teacher=True"
        )
    return source


def _load(model: DistillationModel, state: Mapping[str, Any], what: str) -> None:
    about = state["distillation"]
    checkpoint.load_strict(model.loss_modules, about["criterion"]["state"], what=f"{what} (losses)")
    if about["balancer"] is not None and model.loss_balancer is not None:
        checkpoint.load_strict(
            model.loss_balancer, about["balancer"]["state"], what=f"{what} (balancer)"
        )
    weights: Mapping[str, Tensor] = state["student"]
    with model.hide_loss_modules(), model.hide_teacher_model():
        checkpoint.load_strict(model, weights, what=what)
