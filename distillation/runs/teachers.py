"""Whom a run learned from, as its run.json says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from distillation.runs.places import is_uuid

_DEEPEST = 8  # ensembles within ensembles


def teachers(info: Mapping) -> list[str]:
    """The UUIDs of the runs that taught: the parent, or the members of an ensemble."""
    return list(checkpoints(info))


def checkpoints(info: Mapping) -> dict[str, int | None]:
    """The step of the checkpoint that each of the `teachers` taught with; None if not recorded."""
    recorded = info.get("teacher")
    recorded = recorded if isinstance(recorded, Mapping) else {}
    members = dict(_runs(recorded.get("made_by"), _DEEPEST))
    parent = info.get("parent")
    if parent is None:
        return members
    own = recorded.get("step") if recorded.get("run") == parent else members.get(parent)
    return {parent: own if isinstance(own, int) else None}


def named(info: Mapping, length: int = 32) -> list[str]:
    """`UUID@step` of each teacher, of the UUID so many characters."""
    found = checkpoints(info).items()
    return [uuid[:length] + ("" if step is None else f"@{step}") for uuid, step in found]


def is_distilled(info: Mapping) -> bool:
    """Whether the run had a teacher, be it one that is no run."""
    return info.get("parent") is not None or isinstance(info.get("teacher"), Mapping)


def _runs(source: object, deepest: int) -> Iterator[tuple[str, int | None]]:
    if not isinstance(source, Mapping) or deepest == 0:
        return
    if source.get("kind") == "run":
        uuid = source.get("uuid")
        if isinstance(uuid, str) and is_uuid(uuid):
            step = source.get("step")
            yield uuid, step if isinstance(step, int) else None
    members = source.get("members")
    for member in members if isinstance(members, list) else ():
        yield from _runs(member, deepest - 1)
