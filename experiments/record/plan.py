"""
# What is to be run, as far as it is known

A search has to end before the parts that take up what it has found.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from distillation.models import get
from distillation.models.facts import model_facts
from experiments.record.protocol import (
    BASES,
    SEARCHES,
    TRIALS,
    Part,
    Scale,
    controls,
    large,
    searches,
    students,
)

Facts = dict[str, Any]
# What each search has found; `None` as long as it has not ended
Choices = dict[str, Facts | None]


def members(found: Mapping[str, Facts], group: str) -> list[Facts]:
    """
    ### The recorded runs of a group, by seed or trial
    """
    return sorted(
        (f for f in found.values() if f["group"] == group), key=lambda f: (f["seed"], f["key"])
    )


def chosen(trials: Sequence[Facts]) -> Facts:
    """
    ### The trial with the highest accuracy on the held out images; the first of equals
    """
    return max(trials, key=lambda facts: facts["accuracy_valid"])


def tried(part: Part) -> Facts:
    """
    ### What a trial of a search tries
    """
    group = next(g for g, search in SEARCHES.items() if search == part.group)
    return dict(TRIALS[group][int(part.key.rpartition("_")[2]) - 1])


def plan(scale: Scale, found: Mapping[str, Facts], precision: str | None = None) -> list[Part]:
    """
    ### The parts whose values are known, in the order in which they are run

    `found` are the recorded runs by key. `precision` is what the others are computed in, if it is
    not the protocol's: not every processor can compute in that.
    """
    choices: Choices = {}
    for group in SEARCHES:
        base = choices[BASES[group]] if group in BASES else {}
        own = _choice(scale, found, group)
        choices[group] = None if base is None or own is None else {**base, **own}
    return [_computed(part, found.get(part.key), precision) for part in _parts(scale, choices)]


def _computed(part: Part, facts: Facts | None, precision: str | None) -> Part:
    """The part in the precision that it was recorded in, or else shall have"""
    used = precision if facts is None else facts["config"]["precision"]
    return part if used is None else replace(part, values={**part.values, "precision": used})


def sizes(scale: Scale) -> Counter[str]:
    """
    ### How many parts each group has, once all is known
    """
    return Counter(part.group for part in _parts(scale, {group: {} for group in SEARCHES}))


def keys(scale: Scale) -> list[str]:
    """
    ### The keys of all parts
    """
    return [part.key for part in _parts(scale, {group: {} for group in SEARCHES})]


def _parts(scale: Scale, choices: Choices) -> list[Part]:
    parts = searches(scale, "large")
    if choices["large"] is not None:
        # The teacher comes before its students
        parts.append(large(scale, choices["large"]))
    parts += _searched(scale, "small", choices["small"])
    base = choices[BASES["distilled"]]
    if choices["large"] is not None and base is not None:
        parts += _searched(scale, "distilled", choices["distilled"], base)
    return parts + controls(scale, choices, cost_ratio())


def _searched(
    scale: Scale, group: str, choice: Facts | None, base: Facts | None = None
) -> list[Part]:
    """A search, then the students of what it chose"""
    found = [] if choice is None else students(scale, group, choice)
    return searches(scale, group, base) + found


def _choice(scale: Scale, found: Mapping[str, Facts], group: str) -> Facts | None:
    """What the group's search has chosen, or `None` as long as a trial is missing"""
    trials = members(found, SEARCHES[group])
    missing = len(trials) < len(TRIALS[group][: scale.trials])
    return None if missing else chosen(trials)["tried"]


@cache
def cost_ratio() -> float:
    """
    ### MACs of the large model over those of the small one, for one image
    """
    shape = (3, 32, 32)
    macs = [
        model_facts(get(f"{size}_model", num_classes=10), shape)["macs"]
        for size in ("large", "small")
    ]
    return macs[0] / macs[1]
