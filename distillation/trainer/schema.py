"""A schema made of dataclass fields: each says its default, its meaning, an example and what is
valid, so that checking a dict and writing the page that documents it need no second list.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from distillation.errors import ConfigError, unknown

T = TypeVar("T")
REQUIRED = dataclasses.MISSING


@dataclasses.dataclass(frozen=True)
class Spec:
    """What one option accepts. `kinds` are types, `None` among them where it may be left out."""

    meaning: str
    example: str
    valid: str
    kinds: tuple[Any, ...]
    check: Callable[[Any], bool] | None = None
    group: str = ""


def option(
    default: Any,
    kinds: tuple[Any, ...],
    meaning: str,
    *,
    example: str,
    valid: str,
    check: Callable[[Any], bool] | None = None,
    group: str = "",
) -> Any:
    """A dataclass field that carries its `Spec`; a list or dict default is copied for each use."""
    spec = {"spec": Spec(meaning, example, valid, kinds, check, group)}
    if isinstance(default, list | dict):
        copy = type(default)
        return dataclasses.field(default_factory=lambda: copy(default), metadata=spec)
    if default is REQUIRED:
        return dataclasses.field(metadata=spec)
    return dataclasses.field(default=default, metadata=spec)


def is_kind(value: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether `value` is of one of `kinds`; a bool is no number, an int is a float."""
    for kind in kinds:
        if kind is None:
            if value is None:
                return True
        elif kind is callable:
            if callable(value):
                return True
        elif kind is float:
            if isinstance(value, numbers.Real) and not isinstance(value, bool):
                return True
        elif kind is int:
            if isinstance(value, numbers.Integral) and not isinstance(value, bool):
                return True
        elif kind is dict:
            if isinstance(value, Mapping):
                return True
        elif kind is list:
            if isinstance(value, list | tuple):
                return True
        elif isinstance(value, kind):
            return True
    return False


def kind_names(kinds: tuple[Any, ...]) -> str:
    """`(int, None)` as `int or None`."""
    names = ["None" if k is None else "callable" if k is callable else k.__name__ for k in kinds]
    return " or ".join(names)


def build(cls: type[T], values: Mapping[str, Any], *, kind: str, listed: str) -> T:
    """An instance of the schema `cls` from `values`.

    Raises `ConfigError` for an unknown or missing key, a wrong type, or a value out of range; the
    message names the key (as `kind`), what was given, and what is valid. NumPy's numbers, of a
    sweep over an array, become Python's.
    """
    values = {name: python_numbers(value) for name, value in values.items()}
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise ConfigError(unknown(kind, name, fields, listed))
    for name, field in fields.items():
        if name in values:
            check(kind, name, values[name], field.metadata["spec"])
        elif is_required(field):
            spec = field.metadata["spec"]
            raise ConfigError(f"{kind} {name!r} is missing. Give it, for example {spec.example}.")
    return cls(**values)


def python_numbers(value: Any) -> Any:
    """`value` with Python's numbers in the place of NumPy's, in dicts, lists and tuples too."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(map(python_numbers, value))
    if type(value) is dict:
        return {key: python_numbers(item) for key, item in value.items()}
    return value


def check(kind: str, name: str, value: Any, spec: Spec) -> None:
    """Raises `ConfigError` unless `value` fits `spec`."""
    if not is_kind(value, spec.kinds):
        raise ConfigError(
            f"{kind} {name!r} must be {kind_names(spec.kinds)}, not {type(value).__name__} "
            f"({value!r}). Valid: {spec.valid}."
        )
    if value is not None and spec.check is not None and not spec.check(value):
        raise ConfigError(f"{kind} {name!r} is {value!r}, which is not valid. Valid: {spec.valid}.")


def is_required(field: dataclasses.Field) -> bool:
    """Whether the option has no default."""
    return field.default is REQUIRED and field.default_factory is REQUIRED


def default_text(field: dataclasses.Field) -> str:
    """The default of a field as the page shows it."""
    if is_required(field):
        return "*required*"
    value = field.default_factory() if field.default is REQUIRED else field.default
    return f"`{value!r}`"


def page(cls: type, *, title: str, intro: str) -> str:
    """Markdown page of the schema: one table a group, in the order of the fields."""
    lines = [f"# {title}", "", intro.strip()]
    group = None
    for field in dataclasses.fields(cls):
        spec: Spec = field.metadata["spec"]
        if spec.group != group:
            group = spec.group
            lines += ["", f"## {group}", "", "| name | default | meaning | valid | example |"]
            lines += ["|---|---|---|---|---|"]
        cells = [f"`{field.name}`", default_text(field), spec.meaning, spec.valid]
        cells += [f"`{spec.example}`"]
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


# -- checks of values


def positive(value: float) -> bool:
    return value > 0


def at_least_zero(value: float) -> bool:
    return value >= 0


def fraction(value: float) -> bool:
    return 0 <= value <= 1


def one_of(*names: Any) -> Callable[[Any], bool]:
    return lambda value: not isinstance(value, str) or value in names


def rates(value: Any) -> bool:
    values = value.values() if isinstance(value, Mapping) else [value]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) == len(values) > 0 and all(v >= 0 for v in numbers)


def epochs_list(value: Any) -> bool:
    return all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value)
