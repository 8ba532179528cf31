"""Recipes in YAML files, composed by Hydra: defaults lists, interpolation, `key=value`.

Hydra only composes. It does not change the working folder, writes no `outputs/`, and makes none of
the objects that a file could name (launchers, callbacks): what a recipe may call is for
`distillation.trainer.targets`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillation.errors import ConfigError, unknown

SHIPPED = Path(__file__).resolve().parents[1] / "recipes"
_NOT_THERE = re.compile(r"Could not override '([^']+)'")


@dataclass(frozen=True)
class Composed:
    """A recipe as a dict, and what the command line trusts beyond the allow-list."""

    config: dict[str, Any]
    trust: tuple[str, ...]


def names(folder: Path | None = None) -> list[str]:
    """Names of the shipped recipes, or of those in a folder."""
    return sorted(path.stem for path in (folder or SHIPPED).glob("*.yaml"))


def compose(
    recipe: str, overrides: Sequence[str] = (), folder: str | Path | None = None
) -> Composed:
    """A recipe with `key=value` overrides, in Hydra's grammar.

    `recipe` is the name of a shipped one, or of one in `folder`, or the path of a YAML file. A
    file may build on a shipped one: `defaults: [digits, _self_]`. `key=value` also adds a key,
    since a misspelt one is found by whoever takes it; `~key` removes one; `+trust=MODULE` (or
    `+trust=[A,B]`) trusts code that the recipe calls, and is of no use inside a file.

    Raises `ConfigError` for an unknown recipe (the nearest are named) and what Hydra refuses.
    """
    try:
        import hydra
        from hydra.core.global_hydra import GlobalHydra
        from hydra.errors import HydraException, MissingConfigException
    except ImportError as error:
        raise ConfigError("recipes need Hydra: pip install 'distillation[recipes]'") from error
    from distillation.trainer.recipes import as_dict

    name, place = _place(recipe, folder)
    trust, values = _split(overrides)
    # The command line's path wins over a file's, which could name a package to import
    shipped = SHIPPED.as_posix().replace("'", "\\'")
    values = [f"hydra.searchpath=['file://{shipped}']", *values]
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(place), version_base="1.3", job_name="distill"):
            return Composed(as_dict(_composed(hydra.compose, name, values)), trust)
    except MissingConfigException as error:
        raise ConfigError(f"recipe {recipe!r}: {error}") from error
    except HydraException as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise ConfigError(f"recipe {recipe!r}: {error}{cause}") from error
    finally:
        GlobalHydra.instance().clear()


def _composed(compose: Any, name: str, values: list[str]) -> Any:
    from hydra.errors import ConfigCompositionException

    while True:
        try:
            return compose(name, values)
        except ConfigCompositionException as error:
            found = _NOT_THERE.search(str(error))
            mine = [i for i, v in enumerate(values) if found and v.startswith(f"{found[1]}=")]
            if not mine:
                raise
            values = [f"++{v}" if i in mine else v for i, v in enumerate(values)]


def _place(recipe: str, folder: str | Path | None) -> tuple[str, Path]:
    """Name and folder of a recipe's file."""
    path = Path(recipe).expanduser()
    if path.suffix in (".yaml", ".yml") and folder is None and path.is_file():
        return path.name, path.resolve().parent
    place = SHIPPED if folder is None else Path(folder).expanduser().resolve()
    if not place.is_dir():
        raise ConfigError(f"there is no folder {place} to find recipes in")
    name = recipe.removesuffix(".yaml")
    if not (place / f"{name}.yaml").is_file():
        if (SHIPPED / f"{name}.yaml").is_file():
            return name, SHIPPED
        message = unknown("recipe", recipe, {*names(place), *names()})
        raise ConfigError(f"{message} Or give the path of a YAML file.")
    return name, place


def _split(overrides: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """What is trusted, and the other overrides."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    trust: list[str] = []
    rest: list[str] = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise ConfigError(f"{text!r} is not key=value: {error}") from error
        key = override.key_or_group
        if key == "trust":
            value = override.value()
            trust += [str(v) for v in value] if isinstance(value, list) else [str(value)]
        elif key == "hydra" or key.startswith(("hydra.", "hydra/")):
            raise ConfigError(
                f"{text!r}: Hydra only composes the recipe; runs are kept in the run store, "
                "under ckpt_root_dir"
            )
        elif override.is_sweep_override():
            raise ConfigError(f"{text!r}: one training has one value")
        else:
            rest.append(text)
    return tuple(trust), rest
