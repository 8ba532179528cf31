"""Distil as a recipe says.

    python -m distillation.train_from_kd_recipe --config-name=cifar10_resnet key=value …

Several processes: `torchrun --nproc_per_node 2 -m distillation.train_from_kd_recipe …`, or
`accelerate launch -m …`.

Recipes lie in `distillation/recipes`, or in `--config-dir`. `--cfg job` prints the composed recipe
and trains nothing. `distill train` does the same, for plain recipes too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from distillation.errors import ConfigError, DistillationError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns 0; 130 when it was interrupted; 2 after a message for what the user can put right.
    """
    parser = argparse.ArgumentParser(
        prog="python -m distillation.train_from_kd_recipe",
        description="Distil as a recipe says.",
        epilog="example: python -m distillation.train_from_kd_recipe --config-name=digits "
        "training_hyperparams.max_epochs=5",
        allow_abbrev=False,
    )
    parser.add_argument("--config-name", "-cn", metavar="NAME", help="the recipe")
    parser.add_argument("--config-dir", "-cd", metavar="FOLDER", help="where your recipes are")
    parser.add_argument("--cfg", choices=["job"], help="print the recipe, do not train")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="in Hydra's grammar")
    options = parser.parse_intermixed_args(arguments)
    try:
        return _main(options)
    except KeyboardInterrupt:
        print("interrupted and saved; go on with the same command and resume=true", file=sys.stderr)
        return 130
    except DistillationError as error:
        print(f"train_from_kd_recipe: {error}", file=sys.stderr)
        return 2


def _main(options: argparse.Namespace) -> int:
    from distillation.trainer import recipe_files

    if options.config_name is None:
        known = ", ".join(recipe_files.names())
        raise ConfigError(f"give the recipe's name: --config-name=NAME, of {known}")
    composed = recipe_files.compose(options.config_name, options.overrides, options.config_dir)
    if options.cfg:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(composed.config), end="")
        return 0
    from distillation.trainer.kd_trainer import KDTrainer
    from distillation.trainer.recipes import is_main_process, train_from_config

    trainer = train_from_config(KDTrainer, composed.config, allow_targets=composed.trust)
    if is_main_process():
        print(f"run: {trainer.run.uuid}")
    return 0


if __name__ == "__main__":
    code = main()
    if code == 0:
        from distillation.devices import leave

        leave(code)
    sys.exit(code)
