"""What every loss looks like from outside, so that doors can call any of them.

A loss is a module called as `loss(student_output, teacher_output, **keywords)`. It returns a
tensor (a scalar unless its reduction is "none") and may own parameters (projectors) and declare
further keywords it wants, such as `target` (labels), `mask` or `epoch`. Any `nn.Module` with such
a `forward` is a loss, `nn.MSELoss` included; `DistillationLoss` is only a convenience.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from distillation.errors import ConfigError, unknown

# Their `target` is 1 or -1 for a pair that is to be alike or not, and no class
_OF_PAIRS = (nn.CosineEmbeddingLoss, nn.MarginRankingLoss)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Remembers(nn.Module):
    """A module that remembers the arguments it was constructed with.

    `constructor_arguments` is the pair (args, kwargs) as given, so that a file can say how the
    object is made instead of holding a pickle of it. A keyword that the constructor does not take
    is a `ConfigError` with the nearest that it does.
    """

    constructor_arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Remembers:
        taken = inspect.signature(cls.__init__).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            for name in kwargs:
                if name not in taken:
                    valid = [n for n in taken if n != "self"]
                    raise ConfigError(unknown(f"argument of {cls.__name__}:", name, valid))
        self = super().__new__(cls)
        # nn.Module.__setattr__ wants its __init__ to have run, for modules among the arguments.
        self.__dict__["constructor_arguments"] = (args, kwargs)
        return self


class DistillationLoss(Remembers):
    """Base class of the losses here: `forward(student_output, teacher_output, *, …) -> Tensor`.

    Subclasses detach the teacher's tensors, name wrong shapes with `ShapeError`, and name wrong
    options with `ConfigError`.
    """

    def forward(self, student_output: Any, teacher_output: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def keywords(self) -> frozenset[str]:
        """Keyword names that `forward` uses as this instance is configured."""
        return keywords_of(self.forward)


class _Every(frozenset):
    """The keywords of a `forward(…, **kwargs)`: contains each name, iterates over the named."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str)

    def __repr__(self) -> str:
        return f"<every keyword, {sorted(self)} by name>"


def keywords_of(call: Callable[..., Any]) -> frozenset[str]:
    """Keyword names that `call` takes beyond its first two positional parameters."""
    names: list[str] = []
    positional = 0
    takes_all = False
    for parameter in inspect.signature(call).parameters.values():
        if parameter.kind in _POSITIONAL:
            positional += 1
            if positional > 2 and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY:
                names.append(parameter.name)
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            names.append(parameter.name)
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            takes_all = True
    return _Every(names) if takes_all else frozenset(names)


def accepts(loss: nn.Module | Callable[..., Any]) -> frozenset[str]:
    """Keyword names that a loss takes beyond student and teacher output; test with `in`.

    A loss with `**kwargs` takes all: `name in accepts(loss)` is then true for every name.
    `LogitsDistillationLoss()` takes `mask`, and `target` only when it has an `ignore_index`.
    """
    loss = getattr(loss, "_orig_mod", loss)  # torch.compile's wrapper hides the signature
    if isinstance(loss, DistillationLoss):
        return loss.keywords()
    return keywords_of(loss.forward if isinstance(loss, nn.Module) else loss)


def refuse_target_of_pairs(loss: nn.Module | Callable[..., Any]) -> None:
    """Raise `ConfigError` for a loss of torch that would take labels for something else."""
    loss = getattr(loss, "_orig_mod", loss)
    for kind in _OF_PAIRS:
        if isinstance(loss, kind) and type(loss).forward is kind.forward:
            raise ConfigError(
                f"nn.{kind.__name__} wants a target of 1 or -1, and would be given labels; use "
                "distillation.losses.CosineLoss, or a module of your own that calls it."
            )


def route(losses: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Gives each loss those of the `given` keywords that it takes.

    `losses` maps names to losses; the result maps the same names to keyword dictionaries.

    Raises:
        ConfigError: a keyword that none of the losses takes.
    """
    taken = {name: accepts(loss) for name, loss in losses.items()}
    for key in given:
        if not any(key in names for names in taken.values()):
            valid = set().union(*taken.values())
            raise ConfigError(
                f"{unknown('loss keyword', key, valid)} None of the losses "
                f"({', '.join(taken) or 'there are none'}) takes it."
            )
    return {name: dict(_pick(given, names)) for name, names in taken.items()}


def _pick(given: Mapping[str, Any], names: frozenset[str]) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in given.items() if key in names)
