"""
# Configurations, checked before anything is built

labml takes misspelt option names and unknown nested keys without a word. Here every `key=value`
is held against the configuration class first.
"""

import ast
import math
from dataclasses import dataclass
from typing import Any

from labml.configs import BaseConfigs

from distillation.errors import ConfigError, unknown


@dataclass
class Field:
    """One item of a configuration: its key, type, options and default"""

    key: str
    type: Any
    options: list[str]
    default: Any

    @property
    def is_plain(self) -> bool:
        """A value that can be written down, rather than a part that is built"""
        return self.type in (int, float, bool, str, list)


def fields(configs: type[BaseConfigs]) -> dict[str, Field]:
    """
    ### All items of a configuration, nested ones with dotted keys

    A class names the classes of its nested configurations in `_nested`.
    """
    instance = configs()
    found: dict[str, Field] = {}
    for key, facts in instance._to_json().items():
        default = instance._Configs__defaults.get(key)
        if default is None and facts["options"]:
            default = facts["options"][0]
        found[key] = Field(key, instance._get_type(key), facts["options"], default)
    for key, nested in getattr(configs, "_nested", {}).items():
        for name, field in fields(nested).items():
            found[f"{key}.{name}"] = Field(
                f"{key}.{name}", field.type, field.options, field.default
            )
    # Parts that are handed over, not configured
    for name in getattr(configs, "_parts", ()):
        found.pop(name, None)
    return found


def refuse(configs: type[BaseConfigs], key: str) -> None:
    """
    ### Keys that other experiments have and this one, for a reason, has not

    A class lists them in `_refused`.
    """
    reason = getattr(configs, "_refused", {}).get(key)
    if reason:
        raise ConfigError(f"{key!r} cannot be set here: {reason}")


def _settable(known: dict[str, Field]) -> list[str]:
    return [k for k, field in known.items() if field.is_plain or field.options]


def _in_range(key: str, value: Any, ranges: dict[str, tuple]) -> None:
    if isinstance(value, (int, float)) and not abs(value) < 2**63:
        raise ConfigError(f"{key}={value} is out of range: it must be finite, and below 2^63")
    low, high = ranges.get(key, (None, None))
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{key}={value} is out of range: it must be {bounds}")


def _check_items(key: str, values: list, kind: type, count: int | None) -> list:
    """The items of a list, each of the same kind"""
    if count is not None and len(values) != count:
        raise ConfigError(f"{key}={values} has {len(values)} items; it must have {count}")
    for value in values:
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or isinstance(value, bool):
            raise ConfigError(
                f"{key}={values} is of the wrong type: {value!r} must be {kind.__name__}"
            )
    return values


def _words(text: Any) -> Any:
    """The words of a list, which need no quotes on the command line: `screen,file`"""
    if not isinstance(text, str):
        return text
    words = [word.strip(" '\"") for word in text.strip(" []()").split(",")]
    return [word for word in words if word]


def convert_value(field: Field, text: Any) -> Any:
    """
    ### A value of the field's type, from text or from JSON
    """
    wanted = field.type
    if field.options and not field.is_plain:
        if text not in field.options:
            raise ConfigError(unknown(f"option for {field.key!r}:", text, field.options))
        return text
    value = text
    if isinstance(text, str) and wanted is not str:
        word = {"true": "True", "false": "False", "none": "None"}.get(text.strip().lower(), text)
        try:
            value = ast.literal_eval(word)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            # Whatever literal_eval cannot read is left as it is; the type says what is wrong
            value = text
    if wanted is list and isinstance(value, (int, tuple)) and not isinstance(value, bool):
        value = list(value) if isinstance(value, tuple) else [value]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**63 else math.inf
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ConfigError(
            f"{field.key}={text!r} is of the wrong type: it must be {wanted.__name__}, "
            f"for example {field.key}={field.default!r}"
        )
    if field.options and value not in field.options:
        raise ConfigError(unknown(f"option for {field.key!r}:", value, field.options))
    return value


def check(configs: type[BaseConfigs], values: dict[str, Any]) -> dict[str, Any]:
    """
    ### Check `values` against the class; returns them converted

    Unknown keys at any depth, misspelt option names, wrong types and values out of range are
    `ConfigError`s that name the nearest valid ones.
    """
    known = fields(configs)
    settable = _settable(known)
    ranges = getattr(configs, "_ranges", {})
    items = getattr(configs, "_items", {})
    checked: dict[str, Any] = {}
    for key, text in values.items():
        refuse(configs, key)
        if key not in known:
            raise ConfigError(unknown("configuration key", key, settable, "--help"))
        if key not in settable:
            raise ConfigError(f"{key!r} is built from the other keys and cannot be set")
        if key in items and items[key][0] is str:
            text = _words(text)
        value = convert_value(known[key], text)
        if key in items:
            value = _check_items(key, value, *items[key])
        for one in value if isinstance(value, list) else [value]:
            _in_range(key, one, ranges)
        choices = getattr(configs, "_choices", {}).get(key)
        for one in value if isinstance(value, list) else [value]:
            if choices and one not in choices:
                raise ConfigError(unknown(f"value for {key!r}:", one, choices))
        checked[key] = value
    return checked


def resolve(configs: type[BaseConfigs], values: dict[str, Any]) -> dict[str, Any]:
    """
    ### Every value that can be written down, defaults included
    """
    known = fields(configs)
    settable = _settable(known)
    nested = tuple(getattr(configs, "_nested", {}))
    # A nested configuration is its items
    return {k: values.get(k, known[k].default) for k in settable if k not in nested}


def listing(configs: type[BaseConfigs]) -> str:
    """
    ### A line for each key: its default, and its options
    """
    known = fields(configs)
    lines = []
    for key, default in resolve(configs, {}).items():
        options = (
            f"   one of {', '.join(known[key].options)}" if len(known[key].options) > 1 else ""
        )
        lines.append(f"  {key}={default!r}{options}")
    return "\n".join(lines)
