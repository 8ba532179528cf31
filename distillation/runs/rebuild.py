"""From a run back to its trained model. The one module of the run store that needs torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from distillation import references
from distillation.checkpoint import load_strict
from distillation.errors import RunError, unknown

if TYPE_CHECKING:
    from torch import nn

    from distillation.runs.run import Run


def load_model(
    run: Run,
    step: int | str | None,
    *,
    model: nn.Module | None,
    weights: str,
    trust: Iterable,
    device: str,
) -> nn.Module:
    """See `Run.load_model`."""
    step = run.resolve_step(step)
    present = run.weight_names(step)
    if weights == "auto":
        weights = "ema" if "ema" in present else "model"
    if weights not in present:
        raise RunError(f"run {run.label}: " + unknown("weights", weights, present))
    if model is None:
        model = _build(run, trust)
    loaded = run.checkpoint(step, names=[weights], state=False)
    load_strict(model, loaded.weights[weights], what=f"{weights} of run {run.label} at {step}")
    return references.note_run(model.to(device).eval(), run.uuid, step)


def _build(run: Run, trust: Iterable) -> nn.Module:
    recorded = run.info.get("model")
    if recorded is None:
        raise RunError(
            f"run {run.label} did not record how its model is made; pass an instance: "
            "load_model(model=…)"
        )
    return references.build(references.Reference.from_json(recorded), trust=trust)
