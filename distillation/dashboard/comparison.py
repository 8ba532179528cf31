"""Runs side by side: what their configurations differ in, and mean ± std over seeds."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence

from distillation.dashboard.catalogue import Entry, Listing

_SEED = "seed"


def comparison(listing: Listing, entries: Sequence[Entry]) -> dict:
    """{"runs", "differences", "groups"} of `entries`.

    A difference has no value for a run without such a key. A group is runs of one experiment whose
    model and whole configuration but the seed are equal, and whose teachers are alike in the same
    sense, at the same checkpoint where they are one run.
    """
    return {
        "runs": [{**entry.facts, "config": entry.config} for entry in entries],
        "differences": differences(entries),
        "groups": [_group(members) for members in _grouped(listing, entries)],
    }


def differences(entries: Sequence[Entry]) -> list[dict]:
    """[{"key", "values": {uuid: value}}] of the keys whose values are not the same in all."""
    keys = sorted({key for entry in entries for key in entry.config})
    found = []
    for key in keys:
        values = {e.uuid: e.config[key] for e in entries if key in e.config}
        if len(values) < len(entries) or len({_exactly(v) for v in values.values()}) > 1:
            found.append({"key": key, "values": values})
    return found


def without_seed(entry: Entry) -> dict[str, object]:
    """The configuration but for the seed, at whatever depth it stands."""
    return {k: v for k, v in entry.config.items() if k.rpartition(".")[2] != _SEED}


def spread(values: Sequence[float]) -> dict:
    """{"mean", "std", "n"}: the sample's standard deviation, None of one value."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "n": len(values)}


def _grouped(listing: Listing, entries: Sequence[Entry]) -> list[list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    # One teacher at several of its checkpoints is several teachers
    taught = {pair for entry in entries for pair in entry.teacher_steps.items()}
    several = {uuid for uuid, times in Counter(uuid for uuid, _ in taught).items() if times > 1}
    for entry in entries:
        teachers = [
            [
                _kind(listing.entries[uuid]) if uuid in listing.entries else uuid,
                step if uuid in several else None,
            ]
            for uuid, step in entry.teacher_steps.items()
        ]
        groups.setdefault(_exactly([_kind(entry), teachers]), []).append(entry)
    return list(groups.values())


def _kind(entry: Entry) -> list:
    """What runs have in common that differ in their seed alone."""
    experiment, model = entry.facts["experiment"], entry.info.get("model")
    return [experiment, model, entry.is_distilled, without_seed(entry)]


def _group(members: Sequence[Entry]) -> dict:
    """A row of the table. Where some are completed only those count: others are on their way."""
    completed = [entry for entry in members if entry.status == "completed"]
    counted = completed or members
    names = sorted({name for entry in counted for name in entry.facts["metrics"]})
    metrics = {}
    for name in names:
        values = [entry.facts["metrics"].get(name) for entry in counted]
        numbers = [float(value) for value in values if value is not None]
        if numbers:
            metrics[name] = spread(numbers)
    return {
        "experiment": members[0].facts["experiment"],
        "name": members[0].facts["name"],
        "config": without_seed(members[0]),
        "runs": [entry.uuid for entry in members],
        "counted": [entry.uuid for entry in counted],
        "metrics": metrics,
    }


def _exactly(value: object) -> str:
    """A text that is the same for the same value of the same type: 1, 1.0 and true differ."""
    return json.dumps(value, sort_keys=True)
