"""`distill export RUN --to FILE`: a run's model as a file for other programs."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from distillation.commands import output
from distillation.commands.output import Json
from distillation.errors import ConfigError, RunError
from distillation.runs import Run, store

_SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}


def export(
    run: Annotated[str, typer.Argument(metavar="RUN[@STEP]", help="UUID or a beginning of it.")],
    to: Annotated[str, typer.Option(metavar="FILE", help="Ends in .pt2, .onnx or .safetensors.")],
    weights: Annotated[
        str, typer.Option(help="model, ema, or auto: ema where there is one.")
    ] = "auto",
    shape: Annotated[
        str | None,
        typer.Option(metavar="C,H,W", help="Of one input.", show_default="the run's"),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Largest difference.", show_default="1e-5 pt2, 1e-4 onnx, 0 else"),
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Code that may build the model.", show_default=False),
    ] = None,
    runs: output.Runs = None,
    json: Json = False,
) -> None:
    """Export a run's model, without teacher or losses, and compare the file with the model.

    The file is run on random inputs in batches of several sizes; where its outputs differ by more
    than the tolerance, it is not kept.

    Example: distill export 3fa9@best --to student.onnx
    """
    found = store.find(run, runs)
    input_shape = _shape(found) if shape is None else _parsed(shape)

    from distillation.exporting import export_model

    model = found.load_model(weights=weights, trust=tuple(trust or ()))
    exported = export_model(model, to, input_shape, tolerance=tolerance)
    facts = {
        **dataclasses.asdict(exported),
        "path": str(exported.path),
        "input_shape": list(exported.input_shape),
        "run": found.uuid,
        "step": found.resolve_step(),
    }
    if json:
        output.print_json(facts)
    else:
        shown = {**facts, "max_abs_difference": f"{exported.max_abs_difference:.3g}"}
        output.print_facts({name.replace("_", " "): value for name, value in shown.items()})


def _shape(run: Run) -> tuple[int, ...]:
    recorded = run.facts.get("input_shape")
    if recorded is None:
        dataset = (run.info.get("evaluation") or {}).get("dataset")
        recorded = _SHAPES.get(dataset)
    if recorded is None:
        raise RunError(
            f"run {run.label} does not say what shape its inputs have; give --shape C,H,W"
        )
    return tuple(recorded)


def _parsed(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ConfigError(f"--shape takes numbers such as 3,32,32, not {text!r}")
    return shape
