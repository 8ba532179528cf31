"""`distill train RECIPE key=value …`: a training written down as a recipe."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from distillation.commands import output
from distillation.commands.output import Json
from distillation.errors import ConfigError


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name, or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value…", help="In Hydra's grammar.")
    ] = None,
    config_dir: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Where your recipes are.", show_default=False),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print the composed recipe, do not train.")
    ] = False,
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Code that a _target_ may call.", show_default=False),
    ] = None,
    runs: output.Runs = None,
    json: Json = False,
) -> None:
    """Train as a recipe says: distillation, or plain training where it names no student.

    Shipped: digits and digits_small (half a minute), cifar10_large_small, cifar10_small,
    cifar10_resnet, cifar100_resnet56_resnet20, imagenet_resnet50_kd.

    Example: distill train digits training_hyperparams.criterion_params.temperature=4
    """
    from distillation.trainer import recipe_files

    values = list(overrides or ())
    if runs is not None and any(v.lstrip("+").startswith("ckpt_root_dir=") for v in values):
        raise ConfigError("--runs and ckpt_root_dir are two names of one thing; give one")
    composed = recipe_files.compose(recipe, values, config_dir)
    if runs is not None:
        composed.config["ckpt_root_dir"] = runs
    if show:
        _show(composed.config, json)
        return
    if json:
        composed.config.setdefault("training_hyperparams", {})["silent_mode"] = True
        if composed.config.get("teacher_training_hyperparams"):
            composed.config["teacher_training_hyperparams"]["silent_mode"] = True

    from distillation.trainer import KDTrainer, Trainer
    from distillation.trainer.recipes import distils, is_main_process, train_from_config

    kind = KDTrainer if distils(composed.config) else Trainer
    allowed = (*composed.trust, *(trust or ()))
    try:
        trainer = train_from_config(kind, composed.config, allow_targets=allowed)
    except KeyboardInterrupt:
        words = [w for w in sys.argv[1:] if w.lstrip("+") != "resume=true"]
        print(
            f"interrupted and saved; go on with:\n  distill {shlex.join(words)} resume=true",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    run = trainer.run
    if not is_main_process():
        return
    if json:
        facts = {"run": run.uuid, "teacher": run.parent_uuid, "path": str(run.path)}
        output.print_json({**facts, "metrics": trainer.results})
    else:
        print(f"run: {run.uuid}")


def _show(config: dict, json: bool) -> None:
    if json:
        output.print_json(config)
        return
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(config), end="")
