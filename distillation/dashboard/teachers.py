"""Whom a run learned from, as its run.json says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from distillation.runs.places import is_uuid

_DEEPEST = 8  # ensembles within ensembles


def teachers(info: Mapping) -> list[str]:
    """The UUIDs of the runs that taught: the parent, or the members of an ensemble."""
    if info.get("parent") is not None:
        return [info["parent"]]
    recorded = info.get("teacher")
    made_by = recorded.get("made_by") if isinstance(recorded, Mapping) else None
    return list(dict.fromkeys(_runs(made_by, _DEEPEST)))


def is_distilled(info: Mapping) -> bool:
    """Whether the run had a teacher, be it one that is no run."""
    return info.get("parent") is not None or isinstance(info.get("teacher"), Mapping)


def _runs(source: object, deepest: int) -> Iterator[str]:
    if not isinstance(source, Mapping) or deepest == 0:
        return
    if source.get("kind") == "run":
        uuid = source.get("uuid")
        if isinstance(uuid, str) and is_uuid(uuid):
            yield uuid
    members = source.get("members")
    for member in members if isinstance(members, list) else ():
        yield from _runs(member, deepest - 1)
