"""`models.get`: one door to our zoo, to torchvision and to timm, in this order."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from distillation.errors import ConfigError, unknown
from distillation.models import external
from distillation.models.digits import DigitsLargeModel, DigitsSmallModel
from distillation.models.resnet import CIFARResNet
from distillation.models.vgg import LargeModel, SmallModel
from distillation.models.weights import load_into
from distillation.references import Reference, note

SOURCES = ("zoo", "torchvision", "timm")
LISTED = "distillation.models.names()"

# name -> the callable and its first arguments
ZOO: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "large_model": (LargeModel, {}),
    "small_model": (SmallModel, {}),
    "digits_large_model": (DigitsLargeModel, {}),
    "digits_small_model": (DigitsSmallModel, {}),
    **{f"resnet{d}": (CIFARResNet, {"depth": d}) for d in (8, 14, 20, 32, 44, 56, 110)},
    **{
        f"resnet{d}x4": (CIFARResNet, {"depth": d, "width": 4, "shortcut": "conv"}) for d in (8, 32)
    },
}
_ALIASES = {
    **{cls.__name__: name for name, (cls, first) in ZOO.items() if not first},
    **{f"cifar_{name}": name for name, (_, first) in ZOO.items() if first},
    **{f"{name}_cifar": name for name, (_, first) in ZOO.items() if first},
    "digits_large": "digits_large_model",
    "digits_small": "digits_small_model",
    "cifar10_large": "large_model",
    "cifar10_small": "small_model",
}


def get(
    name: str,
    num_classes: int | None = None,
    *,
    arch_params: Mapping[str, Any] | None = None,
    checkpoint_path: str | os.PathLike | None = None,
    strict_load: bool = True,
    pretrained_weights: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A model by name.

    Args:
        name: of our zoo (`names("zoo")`), else a classifier of torchvision, else one of timm.
        num_classes: logits; None is the model's own default.
        arch_params, kwargs: further arguments of the model's constructor.
        checkpoint_path: weights to load by name: a file, a run's folder or UUID, see
            `distillation.models.weights.load_into`.
        strict_load: False loads what fits, and warns of the rest.
        pretrained_weights: of torchvision or timm: "imagenet" for their best, or the name of a
            set of weights. They are downloaded when they are not in the cache. With another
            `num_classes` the last layer is a new one.

    The model remembers how it was made, so that a run of it can be loaded without `model=`.

    Raises:
        ConfigError: an unknown name or argument (the nearest are named), or pretrained weights
            of a model that has none.
        DataError: pretrained weights cannot be downloaded.
        CheckpointError: the checkpoint is missing or does not fit; class counts are named.
    """
    arguments = _arguments(num_classes, arch_params, kwargs)
    source, known = find(name)
    if pretrained_weights is not None and checkpoint_path is not None:
        raise ConfigError("pretrained_weights and checkpoint_path exclude each other; give one")
    if source == "zoo":
        if pretrained_weights is not None:
            raise ConfigError(
                f"{known!r} has no pretrained weights to download; train it, and give its run's "
                "UUID or file as checkpoint_path"
            )
        model = _from_zoo(known, arguments)
    else:
        make = external.from_torchvision if source == "torchvision" else external.from_timm
        model = make(known, arguments, pretrained_weights)
        note(model, Reference.of(get, known, **arguments))
    if checkpoint_path is not None:
        load_into(model, checkpoint_path, strict=strict_load)
    return model


def names(source: str | None = None) -> list[str]:
    """Names that `get` takes, sorted: of "zoo", "torchvision", "timm", or of all."""
    if source is not None and source not in SOURCES:
        raise ConfigError(unknown("source of models", source, SOURCES))
    found: set[str] = set()
    if source in (None, "zoo"):
        found |= set(ZOO)
    if source in (None, "torchvision"):
        found |= set(external.torchvision_names())
    if source in (None, "timm"):
        found |= set(external.timm_names())
    return sorted(found)


def find(name: str) -> tuple[str, str]:
    """Where a model comes from and its name there: `("zoo", "small_model")`.

    Raises `ConfigError` with the nearest names.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"a model's name is a text, not {name!r}; {LISTED} lists them")
    known = _ALIASES.get(name, name)
    if known in ZOO:
        return "zoo", known
    if known in external.torchvision_names():
        return "torchvision", known
    if known.partition(".")[0] in external.timm_names():
        return "timm", known
    raise ConfigError(unknown("model", name, [*_ALIASES, *names()], LISTED))


def _arguments(
    num_classes: int | None, arch_params: Mapping[str, Any] | None, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    arguments = {str(k): v for k, v in (arch_params or {}).items()}
    given = {} if num_classes is None else {"num_classes": num_classes}
    for name, value in {**given, **kwargs}.items():
        if name in arguments and arguments[name] != value:
            raise ConfigError(
                f"{name} is given twice: {value!r}, and {arguments[name]!r} in arch_params"
            )
        arguments[name] = value
    return arguments


def _from_zoo(name: str, arguments: dict[str, Any]) -> nn.Module:
    make, first = ZOO[name]
    valid = [p for p in inspect.signature(make).parameters if p not in first]
    for argument in arguments:
        if argument not in valid:
            raise ConfigError(unknown(f"argument of model {name!r}:", argument, valid))
    model = make(**first, **arguments)
    return note(model, Reference.of(functools.partial(make, **first), **arguments))
