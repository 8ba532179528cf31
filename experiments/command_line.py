"""
# The command line of an experiment

The same options for all of them; each is a short form of a configuration value, so that
`--epochs 3` and `--set epochs=3` are one and the same.
"""

import argparse
import sys
import warnings
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from labml.configs import BaseConfigs

from distillation import runs
from distillation.devices import leave
from distillation.errors import ConfigError, DistillationError, RunError, unknown
from distillation.pipes import ends_with_its_reader
from distillation.precision import AUTO, resolve_precision
from experiments.config_check import check, listing, resolve
from experiments.resuming import refuse_other_values

SHORT_FORMS = {
    "--data": ("data", "folder or archive of the images (else DISTILLATION_DATA, the cache)"),
    "--epochs": ("epochs", "passes over the training images"),
    "--batch-size": ("batch_size", "images a step"),
    "--seed": ("seed", "of the initial weights, the order of the data and the views"),
    "--subset": ("subset", "train on a stratified, seeded part of N images"),
    "--holdout": ("holdout", "keep N training images back to choose the best checkpoint on"),
    "--device": ("device", "auto, cpu, cuda or mps"),
    "--precision": ("precision", "fp32, bf16 or fp16; auto: bf16 if the device has it, else fp32"),
}


@dataclass
class Options:
    """
    ### What the command line said

    * `values` are the configuration values that were given, checked and converted
    * `config` is the whole configuration, defaults included
    * `resume` is the run to go on with, `teacher` the large model's run, `RUN` or `RUN@step`
    """

    values: dict[str, Any]
    config: dict[str, Any]
    root: Path
    resume: str | None = None
    teacher: str | None = None
    allow_weak_teacher: bool = False
    comment: str | None = None
    presets: list[str] = field(default_factory=list)


class Once(argparse.Action):
    """An option that has one value; another one is refused rather than dropped."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        before = getattr(namespace, self.dest)
        if before not in (None, values):
            parser.error(_twice(option_string or self.dest, before, values))
        setattr(namespace, self.dest, values)


def _program() -> str | None:
    """`python -m experiments.digits` where it was started so; None leaves it to argparse"""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else None


def _twice(name: str, first: Any, second: Any) -> str:
    return f"{name} is given twice, as {first!r} and as {second!r}; give it once"


class Parser(argparse.ArgumentParser):
    """Names the nearest options when one is unknown, and takes no option twice."""

    def __init__(self, **options: Any):
        super().__init__(prog=_program(), **options)
        # What an option is that names no other action
        self.register("action", None, Once)

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments:"):
            name = next(iter(message.split(": ", 1)[1].split()), "").split("=")[0]
            offered = [a for a in self._actions if a.help != argparse.SUPPRESS]
            names = [o for a in offered for o in a.option_strings if o.startswith("--")]
            message = unknown("command-line option", name, names)
        raise ConfigError(message)


def add_options(
    parser: argparse.ArgumentParser, refused: Container[str] = (), *, has_teacher: bool = False
) -> None:
    """
    ### The options that all experiments and chains of them have

    The short forms of `refused` configuration values are understood, for the error that says why,
    but not offered.
    """
    for flag, (key, text) in SHORT_FORMS.items():
        shown = argparse.SUPPRESS if key in refused else text
        parser.add_argument(flag, dest=key, metavar="VALUE", help=shown)
    parser.add_argument("--runs", metavar="ROOT", help="root of the run store (else ./logs)")
    if has_teacher:
        parser.add_argument(
            "--allow-weak-teacher", action="store_true", help="even from a teacher at chance level"
        )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any value of the configuration, such as optimizer.learning_rate=0.1; repeatable",
    )


def _parser(configs: type[BaseConfigs], title: str, has_teacher: bool) -> argparse.ArgumentParser:
    parser = Parser(
        description=title,
        epilog=f"configuration keys for --set, with their defaults:\n{listing(configs)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--resume", metavar="RUN", help="go on with a run that was interrupted")
    parser.add_argument("--comment", help="a line about the run, shown by `distill show`")
    if has_teacher:
        parser.add_argument("--teacher", metavar="RUN[@STEP]", help="run of the large model")
    add_options(parser, getattr(configs, "_refused", ()), has_teacher=has_teacher)
    return parser


def given_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """
    ### Configuration values on the command line, as they were typed

    But for the precision `auto`: a run says in which one it is computed.
    """
    given = {key: getattr(arguments, key) for key, _ in SHORT_FORMS.values()}
    given = {k: v for k, v in given.items() if v is not None}
    for item in arguments.set:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--set takes KEY=VALUE, got {item!r}")
        key, value = key.strip(), value.strip()
        if given.get(key, value) != value:
            raise ConfigError(_twice(key, given[key], value))
        given[key] = value
    if given.get("precision") == AUTO:
        given["precision"] = resolve_precision(AUTO, given.get("device"))
    return given


def expand(configs: type[BaseConfigs], values: dict[str, Any]) -> dict[str, Any]:
    """
    ### Presets: one value that stands for several

    A class lists them in `_presets`, as `{(key, value): {key: value, …}}`. What is given by name
    wins over the preset.
    """
    expanded: dict[str, Any] = {}
    for (key, value), meant in getattr(configs, "_presets", {}).items():
        if values.get(key) == value:
            expanded.update(meant)
    return {**expanded, **values}


def parse(
    configs: type[BaseConfigs],
    arguments: list[str] | None = None,
    *,
    title: str,
    has_teacher: bool = False,
) -> Options:
    """
    ### Read and check the command line

    Nothing is built before everything is checked. A run that is resumed brings its own
    configuration; values that are given anew win.
    """
    parsed = _parser(configs, title, has_teacher).parse_args(arguments)
    root = runs.root(parsed.runs)
    values = expand(configs, check(configs, given_values(parsed)))
    if parsed.resume:
        run = runs.find(parsed.resume, root=root)
        made, resumes = (run.experiment, run.name), (configs._experiment, configs._name)
        if made != resumes:
            raise RunError(
                f"run {run.uuid} was made by experiments.{'.'.join(map(str, made))}; "
                f"experiments.{'.'.join(resumes)} cannot go on with it"
            )
        saved = {k: v for k, v in run.config.items() if k in resolve(configs, {})}
        values = {**check(configs, saved), **values}
    elif has_teacher and not parsed.teacher:
        raise RunError(
            "a student needs a teacher: --teacher RUN, the UUID (or its beginning) that the large "
            "model's training printed last; `distill runs` lists all"
        )
    config = resolve(configs, values)
    if parsed.resume:
        refuse_other_values(run, config)
    return Options(
        values=values,
        config=config,
        root=root,
        resume=parsed.resume,
        teacher=getattr(parsed, "teacher", None),
        allow_weak_teacher=getattr(parsed, "allow_weak_teacher", False),
        comment=parsed.comment,
    )


def run_main(main, arguments: list[str] | None = None) -> NoReturn:
    """
    ### Call `main`; an error of ours is one line on stderr, with exit code 2

    An interrupted run exits with 130, as a shell expects of Ctrl-C. A warning is one line too.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        # Nobody reads on, as behind `| head -1`: no traceback
        with ends_with_its_reader():
            main(arguments)
    except DistillationError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    leave(0)
    raise SystemExit(0)
