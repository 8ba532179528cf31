"""The run store: list, find and remove the runs under a root."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from distillation import files
from distillation.errors import ConfigError, RunError, nearest, unknown
from distillation.runs import lock, places
from distillation.runs.places import STATUSES, is_experiment, is_uuid, normal, parse
from distillation.runs.run import Run
from distillation.runs.teachers import teachers

_SHOWN = 8  # runs that a message lists
_NO_FOLDER = "there is no such folder"


def list_runs(
    root: str | os.PathLike | None = None,
    experiment: str | None = None,
    status: str | None = None,
) -> list[Run]:
    """All runs under `root`, newest first, or those of one experiment, or with one status.

    A folder that is no readable run is left out (`scan` names it).

    Raises:
        ConfigError: a status there is not.
    """
    return scan(root, experiment, status)[0]


def scan(
    root: str | os.PathLike | None = None,
    experiment: str | None = None,
    status: str | None = None,
) -> tuple[list[Run], list[RunError]]:
    """What `list_runs` gives, and why each run folder that is left out cannot be read."""
    if status is not None and status not in STATUSES:
        raise ConfigError(unknown("status", status, STATUSES))
    runs, skipped = [], []
    for folder in run_folders(root):
        if experiment is not None and folder.parent.name != experiment:
            continue
        try:
            run = Run.read(folder)
        except RunError as error:
            skipped.append(error)
            continue
        if status is None or run.status == status:
            runs.append(run)
    runs.sort(key=lambda run: (run.started, run.uuid), reverse=True)
    return runs, skipped


def run_folders(root: str | os.PathLike | None = None) -> Iterator[Path]:
    """Every folder under `root` that is named as a run's, readable or not."""
    for experiment in _subfolders(places.root(root)):
        if is_experiment(experiment.name):
            yield from (f for f in _subfolders(experiment) if is_uuid(f.name))


def experiments(root: str | os.PathLike | None = None) -> list[str]:
    """Names of the experiments that have runs, sorted."""
    return sorted({folder.parent.name for folder in run_folders(root)})


def find(uuid_or_prefix: str, root: str | os.PathLike | None = None) -> Run:
    """The run with this UUID, or the only one that begins so; `RUN@step` picks a checkpoint.

    Raises:
        RunError: there is none (the nearest are listed), or more than one (they are listed), or
            it has no such checkpoint.
    """
    prefix, step = parse(uuid_or_prefix)
    run = _read(_locate(prefix, root))
    if step is not None:
        run.step = run.resolve_step(step)
    return run


def find_whole(text: str, root: str | os.PathLike | None = None) -> Run:
    """`find`, for what is done to a whole run: `RUN@step` is refused. Raises RunError."""
    return _read(find_folder(text, root))


def find_folder(text: str, root: str | os.PathLike | None = None) -> Path:
    """The folder of the run that `find_whole` finds, also where its run.json cannot be read.

    Raises RunError.
    """
    name, step = parse(text)
    if step is not None:
        raise RunError(f"{text!r} names a step, but this is about the whole run: say {name!r}")
    return _locate(name, root)


def by_uuid(uuid: str, root: str | os.PathLike | None = None) -> Run | None:
    """The run with exactly this UUID, or None."""
    for folder in run_folders(root):
        if folder.name == uuid:
            try:
                return Run.read(folder)
            except RunError:
                return None
    return None


def why_absent(uuid: str, root: str | os.PathLike | None = None) -> str:
    """Why `by_uuid` finds no run: it is not in this store, or it is and cannot be read."""
    for folder in run_folders(root):
        if folder.name == uuid:
            try:
                Run.read(folder)
            except RunError as error:
                return f"in this store, but {error}"
    return "not in this store"


def children(run: Run) -> list[Run]:
    """The runs whose teacher `run` was, alone or in an ensemble, newest first."""
    return [r for r in list_runs(run.path.parent.parent) if run.uuid in teachers(r.info)]


def remove(
    run: Run | Path | str, force: bool = False, root: str | os.PathLike | None = None
) -> None:
    """Delete a run, or the folder of one, with its checkpoints.

    Raises:
        RunError: it is running, or no folder of a run; or, where `force` is not given, it is the
            teacher of others (they are listed), or its run.json cannot be read.
    """
    folder = run.path if isinstance(run, Run) else run
    folder = find_folder(folder, root) if isinstance(folder, str) else folder
    if not places.is_uuid(folder.name):
        raise RunError(f"{folder} is no run's folder, and is not removed")
    if not force:
        check_removable(folder)
    held = lock.hold(folder)
    try:
        with files.explained(folder):
            files.remove_folder(folder)
    finally:
        held.release()


def check_removable(folder: Path, beside: Iterable[Path] = ()) -> Run:
    """The run in `folder`, which is removed without force. Raises RunError as `remove` does.

    Its students among the runs in the folders `beside` do not keep it: they are removed before.
    """
    run = _read(folder)
    gone = {other.name for other in beside}
    students = [student for student in children(run) if student.uuid not in gone]
    if students:
        raise RunError(
            f"run {run.label} is the teacher of {len(students)}; remove them first, or force it:"
            + _lines([s.path for s in students])
        )
    return run


def _locate(prefix: str, root: str | os.PathLike | None) -> Path:
    wanted = normal(prefix)
    folders = list(run_folders(root))
    matches = [f for f in folders if wanted and f.name.startswith(wanted)]
    if len(matches) > 1:
        raise RunError(f"{prefix!r} begins {len(matches)} runs; give more of it:{_lines(matches)}")
    if not matches:
        raise RunError(_unknown_run(prefix, wanted, folders, places.root(root)))
    return matches[0]


def _read(folder: Path) -> Run:
    try:
        return Run.read(folder)
    except RunError as error:
        root = folder.parent.parent
        place = "" if root == places.root() else f" --runs {shlex.quote(str(root))}"
        raise RunError(
            f"{error}; mend it, or remove the run: distill rm {folder.name[:8]} --force{place}"
        ) from error


def _unknown_run(prefix: str, wanted: str, folders: list[Path], root: Path) -> str:
    unknown_run = f"unknown run {prefix!r} in {root}"
    if not folders:
        return f"{unknown_run}: " + ("there are no runs" if root.is_dir() else _NO_FOLDER)
    close = _nearest_runs(wanted, folders)
    if close:
        return f"{unknown_run}; the nearest are:{_lines(close)}"
    of_experiment = [f for f in folders if f.parent.name == prefix]
    newest = sorted(of_experiment or folders, key=_started, reverse=True)[:3]
    if of_experiment:
        return f"{prefix!r} is an experiment, not a run; its newest runs are:{_lines(newest)}"
    return f"{unknown_run}; none of {len(folders)} is like it, the newest are:{_lines(newest)}"


def _nearest_runs(wanted: str, folders: list[Path]) -> list[Path]:
    """At most three runs whose UUID begins almost like `wanted`."""
    by_name = {folder.name: folder for folder in folders}
    alike = sorted(by_name, key=lambda name: -_common(name, wanted))[:3]
    names = [name for name in alike if _common(name, wanted) >= 2]
    by_start = {name[: len(wanted)]: name for name in by_name}
    names += [by_start[start] for start in nearest(wanted, by_start)]
    return [by_name[name] for name in dict.fromkeys(names)][:3]


def _common(a: str, b: str) -> int:
    """How many characters `a` and `b` have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))  # noqa: B905


def _lines(folders: list[Path]) -> str:
    """One indented line for each of the first runs, newest first: UUID, experiment, start."""
    lines = []
    for folder in sorted(folders, key=_started, reverse=True)[:_SHOWN]:
        started = _started(folder)
        when = f"started {started[:19]}" if started else "unreadable"
        lines.append(f"\n  {folder.name}  {folder.parent.name}  {when}")
    if len(folders) > _SHOWN:
        lines.append(f"\n  … and {len(folders) - _SHOWN} more; `distill runs` lists them")
    return "".join(lines)


def _started(folder: Path) -> str:
    try:
        return Run.read(folder).started
    except RunError:
        return ""


def _subfolders(parent: Path) -> Iterator[Path]:
    try:
        entries = list(os.scandir(parent))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir():
            yield Path(entry.path)
