"""Classifiers of torchvision and timm, with their pretrained weights."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import re
import typing
from collections.abc import Callable
from typing import Any

from torch import nn

from distillation.errors import ConfigError, DataError, unknown
from distillation.models.weights import copy_fitting

# Arguments of the libraries' own that are ours to give, or that make something else of the model.
_OURS = {
    *("weights", "progress", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("checkpoint_path", "cache_dir", "features_only", "scriptable", "exportable", "no_jit"),
}
# How others spell what timm calls so
_SPELLINGS = {"image_size": "img_size", "drop_prob": "drop_rate"}
_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")


@functools.cache
def torchvision_names() -> tuple[str, ...]:
    """Names of torchvision's classifiers; none where it is not installed."""
    if importlib.util.find_spec("torchvision") is None:
        return ()
    models = _torchvision()
    return tuple(models.list_models(module=models))


@functools.cache
def timm_names() -> tuple[str, ...]:
    """Names of timm's models; none where it is not installed."""
    if importlib.util.find_spec("timm") is None:
        return ()
    return tuple(_timm().list_models())


def from_torchvision(name: str, arguments: dict[str, Any], weights: str | None) -> nn.Module:
    """A classifier of torchvision. Raises as `distillation.models.get` says."""
    builder = _torchvision().get_model_builder(name)
    model = _made(name, builder, arguments)
    if weights is None:
        return model
    chosen = _weights_of(name, weights)
    rest = {k: v for k, v in arguments.items() if k != "num_classes"}
    source = _downloaded(name, weights, lambda: builder(weights=chosen, progress=False, **rest))
    wanted = arguments.get("num_classes")
    if wanted in (None, len(chosen.meta["categories"])):
        return source
    return copy_fitting(model, source)


def from_timm(name: str, arguments: dict[str, Any], weights: str | None) -> nn.Module:
    """A model of timm. Raises as `distillation.models.get` says."""
    timm = _timm()
    entry = timm.model_entrypoint(name)
    valid = _class_parameters(entry)
    arguments = {
        _SPELLINGS[k] if k in _SPELLINGS and k not in valid and _SPELLINGS[k] in valid else k: (
            tuple(v) if isinstance(v, list) else v
        )
        for k, v in arguments.items()
    }
    if weights is None:
        return _made(name, entry, arguments)
    tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    known = [tag.partition(".")[2] for tag in tags]
    if not known:
        raise ConfigError(f"timm has no pretrained weights of {name!r}; give a checkpoint_path")
    if weights != "imagenet":
        if weights not in known:
            message = unknown(f"weights of timm's {name}:", weights, ["imagenet", *known])
            raise ConfigError(message)
        name = f"{name.partition('.')[0]}.{weights}"
    _check_ours(name, arguments)
    make = functools.partial(timm.create_model, name, pretrained=True, **arguments)
    return _downloaded(name, weights, make)


def _made(name: str, builder: Callable[..., nn.Module], arguments: dict[str, Any]) -> nn.Module:
    _check_ours(name, arguments)
    try:
        return builder(**arguments)
    except TypeError as error:
        found = _UNEXPECTED.search(str(error))
        if found is None or found[1] not in arguments:
            raise ConfigError(f"model {name!r} cannot be made with {arguments}: {error}") from error
        valid = _class_parameters(builder)
        raise ConfigError(unknown(f"argument of model {name!r}:", found[1], valid)) from error


def _check_ours(name: str, arguments: dict[str, Any]) -> None:
    for argument in arguments:
        if argument in _OURS:
            raise ConfigError(
                f"{argument!r} is no argument of model {name!r} here; weights come by "
                "pretrained_weights= or checkpoint_path="
            )


def _class_parameters(builder: Callable[..., nn.Module]) -> list[str]:
    """Arguments of the class that a builder says it returns; its own where it does not say."""
    made = typing.get_type_hints(builder).get("return")
    named = inspect.signature(made if inspect.isclass(made) else builder).parameters
    return [n for n, p in named.items() if p.kind is not p.VAR_KEYWORD and n not in _OURS]


def _weights_of(name: str, weights: str) -> Any:
    choices = _torchvision().get_model_weights(name)
    members = {member.name.lower(): member for member in choices}
    if weights.lower() in ("imagenet", "default"):
        return choices.DEFAULT
    if weights.lower() not in members:
        valid = ["imagenet", *(member.name for member in choices)]
        raise ConfigError(unknown(f"weights of torchvision's {name}:", weights, valid))
    return members[weights.lower()]


def _downloaded(name: str, weights: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except ConfigError:
        raise
    except Exception as error:  # whatever a download raises
        raise DataError(
            f"the pretrained weights {weights!r} of {name!r} cannot be had: "
            f"{type(error).__name__}: {error}. They are downloaded once: run it where there is a "
            "network and keep the cache (TORCH_HOME, HF_HOME), or give checkpoint_path= a file "
            "of them."
        ) from error


def _torchvision() -> Any:
    import distillation.torchvision_guard  # noqa: F401
    import torchvision.models as models  # isort: skip

    return models


def _timm() -> Any:
    import distillation.torchvision_guard  # noqa: F401
    import timm  # isort: skip

    return timm
