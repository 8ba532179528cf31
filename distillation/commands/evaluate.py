"""`distill evaluate RUN`: a recorded run's model on its experiment's test set."""

from __future__ import annotations

from typing import Annotated

import typer

from distillation.commands import output
from distillation.commands.output import Json
from distillation.errors import ConfigError
from distillation.runs import store
from distillation.runs.places import parse


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN[@STEP]", help="UUID or a beginning of it.")],
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where CIFAR-10 lies.", show_default=False)
    ] = None,
    step: Annotated[
        str | None, typer.Option(help="A checkpoint's step, last or best.", show_default="last")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="model, ema, or auto: ema where there is one.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 500,
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Code that may build the model.", show_default=False),
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Write evaluation.json for the dashboard's comparison.")
    ] = False,
    runs: output.Runs = None,
    json: Json = False,
) -> None:
    """Evaluate a run's model: accuracy, loss and calibration error (ece) on the test set.

    For a student whose teacher is in the store also agreement, the share of images for which both
    choose the same class, and kl, of the teacher's probabilities from the student's, in nats.
    Experiments save all of that after each epoch; for other runs, --save does.

    Example: distill evaluate 3fa9 --step best
    """
    name, named_step = parse(run)
    if step is not None and named_step is not None:
        raise ConfigError(f"{run!r} names a step and --step {step} another; give one")
    if step is not None:
        run = f"{name}@{step}"
    found = store.find(run, runs)

    from distillation.evaluation import check_device, evaluate_run

    result = evaluate_run(
        found,
        data=data,
        weights=weights,
        device=check_device(device),
        batch_size=batch_size,
        trust=tuple(trust or ()),
        save=save,
    )
    if json:
        output.print_json(result)
    else:
        rounded = {k: output.number(v) if isinstance(v, float) else v for k, v in result.items()}
        output.print_facts(rounded)
