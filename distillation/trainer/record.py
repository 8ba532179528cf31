"""The run of a training in the run store: made, found again, and gone on with."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import nn

from distillation import references, runs
from distillation.errors import RunError, TeacherError
from distillation.models.facts import model_facts
from distillation.runs import Run
from distillation.runs.store import find_whole
from distillation.trainer.params import TrainingParams


def run_to_resume(params: TrainingParams, experiment: str, root: Path | None) -> Run | None:
    """The run that `resume` or `resume_path` names; None for a new one.

    Raises `RunError` when there is none.
    """
    if params.resume_path is not None:
        return _run_at(params.resume_path, root)
    if not params.resume:
        return None
    found = runs.list(root, experiment=experiment)
    if not found:
        others = sorted({run.experiment for run in runs.list(root)})
        have = f"; there are runs of {', '.join(others)}" if others else ""
        raise RunError(
            f"resume=True, but the experiment {experiment!r} has no run in {runs.root(root)}{have}."
        )
    return found[0]


def _run_at(path: Any, root: Path | None) -> Run:
    place = Path(path)
    if not place.exists():
        if isinstance(path, str) and len(place.parts) == 1 and place.suffix == "":
            return find_whole(path, root)
        raise RunError(f"resume_path {str(path)!r} is neither a run's UUID nor an existing path.")
    for folder in (place.resolve(), *place.resolve().parents):
        if (folder / "run.json").exists():
            return Run.read(folder)
    raise RunError(
        f"resume_path {str(path)!r} lies in no run's folder, so there is no record to go on with. "
        "Give a run's UUID, its folder or a checkpoint inside it."
    )


def checkpoint_file(params: TrainingParams) -> Path | None:
    """The checkpoint file that `resume_path` names, when it names one."""
    if params.resume_path is None:
        return None
    path = Path(params.resume_path)
    return path if path.is_file() and path.suffix == ".pth" else None


def how_made(model: nn.Module) -> references.Reference | None:
    """How to make this model again: as noted, or by its class when that takes no arguments."""
    noted = references.noted(model)
    if noted is not None:
        return noted
    cls = type(model)
    try:
        takes = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        return None
    return references.Reference.of(cls) if not takes else None


def check_teacher(run: Run, source: Any, allowed: bool) -> None:
    """Raise `TeacherError` when the run began with another teacher."""
    before = (run.info.get("teacher") or {}).get("fingerprint")
    if before is None or allowed or before == source.fingerprint:
        return
    raise TeacherError(
        f"run {run.uuid[:8]} began with another teacher (fingerprint {before[:12]}, now "
        f"{source.fingerprint[:12]}). Give the same one, or set allow_changed_teacher=True."
    )


def note_facts(recorder: Any, task: Any, accelerator: Any) -> None:
    """The input shape for run.json; with it, of a model of `models.get`, what the model costs.

    Counting operations takes a forward pass of a copy, which a model of the user's own is spared.
    """
    if task.input_shape is None or not accelerator.is_main_process:
        return
    facts = {"input_shape": list(task.input_shape)}
    ours = references.noted(task.student) is not None and task.params.forward_adapter is None
    if ours and accelerator.num_processes == 1:
        facts = model_facts(task.student, task.input_shape)
    recorder.update(facts=facts)


class Follower:
    """A run as the processes beside the main one see it: they read, they do not write."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.uuid = self.path.name

    def last_step(self) -> int | None:
        """The step of the last complete checkpoint."""
        present = Run.read(self.path).checkpoints
        return present[-1] if present else None

    def load_checkpoint(self, step: Any = "last") -> Any:
        """Read a checkpoint."""
        return Run.read(self.path).checkpoint(step)

    def rewind(self, step: int | None, drop: Any = None) -> None:
        """The main process does it."""

    def log(self, step: int, epoch: float, values: Any) -> None:
        """The main process does it."""

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *exc: object) -> None:
        pass
