"""What differs between runs: configuration, metrics, size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distillation.errors import RunError
from distillation.runs.metrics import best_values, is_maximised, last_values
from distillation.runs.run import Run

_RESUMING = ("resume", "resume_path")


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    `config` holds the dotted keys whose values differ, each with the values by run UUID (no entry
    where a run has no such key); `final`, `best` and `facts` hold every metric and fact the same
    way, `best` as (value, step).
    """

    runs: tuple[Run, ...]
    config: dict[str, dict[str, object]]
    final: dict[str, dict[str, float | None]]
    best: dict[str, dict[str, tuple[float, int]]]
    facts: dict[str, dict[str, object]]

    def to_dict(self) -> dict:
        """Plain values, as `distill compare --json` prints them."""
        metrics = {}
        for name, final in self.final.items():
            best = self.best.get(name, {})
            metrics[name] = {
                "better": "higher" if is_maximised(name) else "lower",
                "final": final,
                "best": {uuid: {"value": v, "step": s} for uuid, (v, s) in best.items()},
            }
        return {
            "runs": [
                {
                    "uuid": run.uuid,
                    "experiment": run.experiment,
                    "name": run.name,
                    "status": run.status,
                    "started": run.started,
                    "seed": run.seed,
                    "parent": run.parent_uuid,
                }
                for run in self.runs
            ],
            "config": self.config,
            "metrics": metrics,
            "facts": self.facts,
        }


def compare(runs: Sequence[Run]) -> Comparison:
    """Put runs side by side; a run that is given twice counts once.

    Raises:
        RunError: fewer than two different runs.
    """
    by_uuid = {run.uuid: run for run in runs}
    if len(by_uuid) < 2:
        raise RunError(f"comparing takes at least two different runs, not {len(by_uuid)}")
    configs = {uuid: flat(run.config) for uuid, run in by_uuid.items()}
    final = {uuid: last_values(run.metrics) for uuid, run in by_uuid.items()}
    best = {uuid: best_values(run.metrics) for uuid, run in by_uuid.items()}
    facts = {uuid: flat(run.facts) for uuid, run in by_uuid.items()}
    return Comparison(
        tuple(by_uuid.values()),
        {k: v for k, v in _turn(configs).items() if _differ(v, len(by_uuid))},
        _turn(final),
        _turn(best),
        _turn(facts),
    )


def flat(values: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested mappings as one, with dotted keys; empty ones stay as they are."""
    result: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = value
    return result


def changes(before: Mapping, now: Mapping) -> dict[str, list]:
    """`{dotted key: [before, now]}` of the values that both have and that differ.

    That a run is resumed, which some configurations hold, is no change of it.
    """
    had, has = flat(before), flat(now)
    return {
        key: [had[key], value]
        for key, value in has.items()
        if key in had and had[key] != value and key.rpartition(".")[2] not in _RESUMING
    }


def _turn(by_run: Mapping[str, Mapping]) -> dict[str, dict]:
    """{run: {name: value}} as {name: {run: value}}, names sorted."""
    names = sorted({name for values in by_run.values() for name in values})
    return {n: {run: values[n] for run, values in by_run.items() if n in values} for n in names}


def _differ(values: Mapping[str, object], runs: int) -> bool:
    listed = list(values.values())
    return len(listed) != runs or any(
        type(v) is not type(listed[0]) or v != listed[0] for v in listed
    )
