"""A run as it is read: what `runs.find` and `runs.list` give."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from distillation import files
from distillation.errors import RunError, unknown
from distillation.runs import lock, metrics
from distillation.runs.places import CHECKPOINTS, CONFIG, METRICS, RUN, STATUSES, is_uuid

if TYPE_CHECKING:
    from torch import nn

    from distillation.checkpoint import Checkpoint


class Run:
    """A recorded run.

    `step` is the checkpoint that `load_model` and `checkpoint` take when they are not told: the
    one named in `runs.find("RUN@step")`, else None, which is the last.
    """

    def __init__(self, path: Path, info: dict, step: int | None = None) -> None:
        self.path = path
        self.info = info
        self.step = step

    @classmethod
    def read(cls, path: Path) -> Run:
        """The run in the folder `path`.

        Raises:
            RunError: there is no run.json, or it is not one of ours; says what is wrong with it.
        """
        return cls(path, _read_info(path))

    def __repr__(self) -> str:
        return f"Run({self.uuid[:8]}, {self.experiment}, {self.status})"

    @property
    def label(self) -> str:
        """How messages name the run: short UUID, experiment, start."""
        return f"{self.uuid[:8]} ({self.experiment}, started {self.started[:19]})"

    uuid = property(lambda self: self.info["uuid"], doc="32 hex characters")
    experiment = property(lambda self: self.path.parent.name, doc="the experiment it belongs to")
    name = property(lambda self: self.info.get("name"), doc="its name, or None")
    comment = property(lambda self: self.info.get("comment") or "", doc="a remark")
    started = property(lambda self: self.info["started"], doc="UTC, ISO 8601")
    ended = property(lambda self: self.info.get("ended"), doc="UTC, ISO 8601, or None")
    seed = property(lambda self: self.info.get("seed"), doc="the random seed, or None")
    parent_uuid = property(lambda self: self.info.get("parent"), doc="the teacher's, or None")
    facts = property(lambda self: self.info.get("facts") or {}, doc="parameters, macs, …")

    @property
    def summary(self) -> dict[str, float | None]:
        """The last value of each metric; None where it was not a number."""
        return self.info.get("summary") or {}

    @property
    def status(self) -> str:
        """running, completed, interrupted or crashed.

        A run that says running but that no process holds was killed: interrupted.
        """
        recorded = self.info["status"]
        if recorded != "running" or not lock.is_free(self.path):
            return recorded
        with suppress(RunError):  # it may have ended between the two looks
            recorded = _read_info(self.path)["status"]
        return "interrupted" if recorded == "running" else recorded

    @cached_property
    def config(self) -> dict:
        """Every configuration value; empty if none was recorded."""
        try:
            return json.loads((self.path / CONFIG).read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise RunError(f"{self.path / CONFIG} is damaged: {error}") from error

    @cached_property
    def metrics(self) -> list[dict]:
        """The rows of metrics.jsonl, oldest first."""
        return metrics.read(self.path / METRICS)

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric; NaN where a value was not a number.

        Raises:
            RunError: the run has no such metric; those it has are listed.
        """
        rows = [row for row in self.metrics if name in row and name not in metrics.KEYS]
        if not rows:
            valid = metrics.last_values(self.metrics)
            raise RunError(f"run {self.label}: " + unknown("metric", name, valid))
        values = [math.nan if row[name] is None else row[name] for row in rows]
        return [row["step"] for row in rows], values

    @property
    def parent(self) -> Run | None:
        """The run that was the teacher; None if there was none, or if it is not in this store."""
        if self.parent_uuid is None:
            return None
        from distillation.runs import store

        return store.by_uuid(self.parent_uuid, self.path.parent.parent)

    # Checkpoints ----------------------------------------------------------------------------

    @property
    def checkpoints(self) -> list[int]:
        """The steps (in samples) at which there is a complete checkpoint, ascending."""
        return steps(self.path)

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint, if there is one."""
        step = self.info.get("best_step")
        return step if step in self.checkpoints else None

    def resolve_step(self, step: int | str | None = None) -> int:
        """The step of a checkpoint that is there; None is `self.step`, else the last.

        Raises:
            RunError: there is none, or not this one; lists those there are.
        """
        present = self.checkpoints
        if step is None:
            step = "last" if self.step is None else self.step
        if not present:
            raise RunError(f"run {self.label} has no checkpoint; its status is {self.status}")
        if step == "last":
            return present[-1]
        listed = ", ".join(str(s) for s in present)
        if step == "best":
            if self.best_step is None:
                raise RunError(
                    f"run {self.label} has no best checkpoint, because none was chosen on a "
                    f"holdout; there are: {listed}"
                )
            return self.best_step
        if step not in present:
            raise RunError(
                f"run {self.label} has no checkpoint at step {step}; there are: {listed}"
            )
        return int(step)

    def checkpoint(
        self,
        step: int | str | None = None,
        *,
        names: Iterable[str] | None = None,
        state: bool = True,
        device: str = "cpu",
    ) -> Checkpoint:
        """Read the checkpoint at `step` (a number, "last" or "best").

        Raises:
            RunError: there is no such checkpoint.
            CheckpointError: it is damaged; the file is named.
        """
        from distillation.checkpoint import read_checkpoint

        folder = self.path / CHECKPOINTS / str(self.resolve_step(step))
        names = None if names is None else list(names)
        return read_checkpoint(folder, names=names, state=state, device=device)

    def weight_names(self, step: int | str | None = None) -> list[str]:
        """The names of the weights in the checkpoint at `step`: "model", perhaps "ema"."""
        place = files.locate(self.path / CHECKPOINTS / str(self.resolve_step(step)))
        suffix = ".safetensors"
        return sorted(p.name.removesuffix(suffix) for p in place.glob(f"*{suffix}"))

    def load_model(
        self,
        step: int | str | None = None,
        *,
        model: nn.Module | None = None,
        weights: str = "auto",
        trust: Iterable = (),
        device: str = "cpu",
    ) -> nn.Module:
        """The trained model at `step`, in eval mode.

        It is built as run.json says and the weights are loaded by name, or they are loaded into
        `model`, where the run did not record how its model is made. `weights="auto"` takes the
        moving average ("ema") where there is one, else "model".

        Raises:
            RunError: there is no such checkpoint, or the model's making is not recorded.
            TrustError: the model is made by code that must be allowed first, with `trust`.
            CheckpointError: the checkpoint is damaged or does not fit the model.
        """
        from distillation.runs.rebuild import load_model

        return load_model(self, step, model=model, weights=weights, trust=trust, device=device)


def steps(folder: Path) -> list[int]:
    """The steps at which the run in `folder` has a complete checkpoint, ascending."""
    return sorted(int(name) for name in files.folders(folder / CHECKPOINTS) if name.isdecimal())


def _read_info(path: Path) -> dict:
    file = path / RUN
    try:
        info = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path} is no complete run: it has no {RUN}") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}") from error
    wrong = _wrong(path, info)
    if wrong:
        raise RunError(f"{file} is not a run's: {wrong}")
    return info


def _wrong(path: Path, info: object) -> str | None:
    if not isinstance(info, dict):
        return "it holds no object"
    if not is_uuid(path.name) or info.get("uuid") != path.name:
        return f"its uuid is {info.get('uuid')!r}"
    if info.get("status") not in STATUSES:
        return f"its status is {info.get('status')!r}"
    if not isinstance(info.get("started"), str):
        return f"it started at {info.get('started')!r}"
    for key, kinds in (("summary", dict), ("facts", dict), ("parent", str)):
        if not isinstance(info.get(key), (kinds, type(None))):
            return f"its {key} is {info[key]!r}"
    return None
