"""What was transferred: teacher, plainly trained and distilled student on the same test images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distillation.dashboard.catalogue import Entry, Listing
from distillation.dashboard.comparison import without_seed
from distillation.dashboard.reading import finite, read_json
from distillation.errors import RunError

FILE = "evaluation.json"  # a run's last evaluation


def transfer(listing: Listing, chosen: Sequence[Entry]) -> dict:
    """{"runs": [{"uuid", "name", "role", "evaluation"}], "classes", "problems"} of `chosen`.

    To one distilled run its teachers are added, and its `counterpart` where no plain run is chosen,
    as far as they are in the store.
    """
    roles = {entry.uuid: role(listing, entry, chosen) for entry in chosen}
    entries = list(chosen)
    distilled = [entry for entry in chosen if roles[entry.uuid] == "distilled"]
    if len(distilled) == 1:
        student = distilled[0]
        for uuid in student.teachers:
            if uuid in listing.entries and uuid not in roles:
                roles[uuid] = "teacher"
                entries.append(listing.entries[uuid])
        if "plain" not in roles.values():
            plain = counterpart(listing, student)
            if plain is not None and plain.uuid not in roles:
                roles[plain.uuid] = "plain"
                entries.append(plain)
    entries.sort(key=lambda entry: ("teacher", "plain", "distilled").index(roles[entry.uuid]))
    problems: list[dict] = []
    runs = [
        {
            **{k: entry.facts[k] for k in ("uuid", "name", "experiment", "status", "seed")},
            "role": roles[entry.uuid],
            "evaluation": evaluation(entry.path, problems),
        }
        for entry in entries
    ]
    problems += _other_checkpoints(listing, distilled, runs)
    classes = next((run["evaluation"]["classes"] for run in runs if run["evaluation"]), [])
    return {"runs": runs, "classes": classes, "problems": problems}


def _other_checkpoints(
    listing: Listing, students: Sequence[Entry], runs: Sequence[dict]
) -> list[dict]:
    """Teachers whose evaluation is not of the checkpoint that a student learned from."""
    evaluated = {run["uuid"]: (run["evaluation"] or {}).get("step") for run in runs}
    found = []
    for student in students:
        for uuid, step in student.teacher_steps.items():
            at = evaluated.get(uuid)
            if None not in (at, step) and at != step:
                folder = listing.entries[uuid].path
                said = f"evaluated at step {at}, while {student.uuid[:8]} learned from step {step}"
                place = f"{folder.parent.name}/{folder.name}"
                found.append({"path": place, "message": said})
    return found


def role(listing: Listing, entry: Entry, chosen: Sequence[Entry]) -> str:
    """ "distilled" for who had a teacher, "teacher" for who was one of the chosen, else "plain".

    A run that both learned and taught is the teacher when its student is among the chosen.
    """
    if any(entry.uuid in other.teachers for other in chosen):
        return "teacher"
    if entry.is_distilled:
        return "distilled"
    return "teacher" if listing.children(entry.uuid) else "plain"


def counterpart(listing: Listing, student: Entry) -> Entry | None:
    """The plain run to compare `student` with: of its experiment, architecture and epochs.

    Of several one that was evaluated, then the one whose configuration differs least in what both
    have, the seed last, then the newest. None where the architecture is not recorded.
    """
    kind = _kind(student)
    if kind is None:
        return None

    def distance(entry: Entry) -> tuple[bool, int, bool]:
        ours, theirs = without_seed(student), without_seed(entry)
        differing = sum(ours[key] != theirs[key] for key in ours.keys() & theirs.keys())
        other_seed = entry.facts["seed"] != student.facts["seed"]
        return not (entry.path / FILE).is_file(), differing, other_seed

    alike = [
        entry
        for entry in listing.entries.values()
        if not entry.is_distilled
        and entry.uuid not in (student.uuid, *student.teachers)
        and _kind(entry) == kind
    ]
    return min(alike, key=distance, default=None)


def evaluation(folder: Path, problems: list[dict]) -> dict | None:
    """The run's evaluation.json; None without one, or when it is damaged, which is a problem."""
    try:
        found = read_json(folder / FILE)
        wrong = _wrong(found)
        if wrong:
            raise RunError(f"{FILE} is damaged: {wrong}")
    except FileNotFoundError:
        return None
    except RunError as error:
        problems.append({"path": f"{folder.parent.name}/{folder.name}", "message": str(error)})
        return None
    return found


def _kind(entry: Entry) -> tuple | None:
    """Experiment, architecture and epochs; None where the architecture is not recorded."""
    model, facts = entry.info.get("model"), entry.info.get("facts") or {}
    target = model.get("target") if isinstance(model, dict) else entry.config.get("model")
    size = facts.get("parameters")
    if target is None and size is None:
        return None
    return entry.facts["experiment"], target, size, entry.facts["epochs"]


def _wrong(found: object) -> str | None:
    """What is wrong with an evaluation, or None."""
    if not isinstance(found, dict):
        return "it holds no object"
    classes, confusion = found.get("classes"), found.get("confusion")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return "classes is no list of names"
    rows = confusion if isinstance(confusion, list) else []
    square = len(rows) == len(classes) and all(
        isinstance(row, list) and len(row) == len(classes) for row in rows
    )
    if not square or not all(type(n) is int and n >= 0 for row in rows for n in row):
        return f"confusion is no table of {len(classes)} × {len(classes)} counts"
    if not isinstance(found.get("bins"), list) or not all(map(_is_bin, found["bins"])):
        return "bins is no list of counts, confidences and accuracies"
    for name in ("accuracy", "ece", "agreement", "kl"):
        if not _is_number(found.get(name)):
            return f"{name} is no number"
    return None


def _is_bin(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    return all(_is_number(value.get(key)) for key in ("count", "confidence", "accuracy"))


def _is_number(value: object) -> bool:
    """Whether it is a finite number, or None for one that is not known."""
    return value is None or finite(value) is not None
