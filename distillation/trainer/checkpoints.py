"""`ckpt_latest.pth`, `ckpt_best.pth`, `ckpt_epoch_N.pth` and `average_model.pth`.

All are dicts of plain values and tensors, loaded with `torch.load(path, weights_only=True)`, and
written atomically. `net` of the best and the average is the student alone (its EMA when that is
on); `net` of the others is the whole model, for KDTrainer with `student.` and `teacher.` keys.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import torch

from distillation.checkpoint import load_state, save_state
from distillation.errors import CheckpointError

LATEST, BEST, AVERAGE = "ckpt_latest.pth", "ckpt_best.pth", "average_model.pth"
AVERAGED = 10  #: how many epochs `average_best_models=True` averages


def epoch_file(epoch: int) -> str:
    """Name of the file kept after epoch `epoch`, counted from 1."""
    return f"ckpt_epoch_{epoch}.pth"


@dataclasses.dataclass
class Snapshot:
    """One validated epoch among the best, and where its student's weights are."""

    value: float
    epoch: int


class CheckpointFiles:
    """Writes the files of one run into `folder`; with `writes=False` it only reads them."""

    def __init__(self, folder: Path, run_uuid: str, writes: bool = True):
        self.folder, self.run_uuid, self.writes = folder, run_uuid, writes
        if writes:
            folder.mkdir(parents=True, exist_ok=True)

    def write(
        self,
        name: str,
        net: dict[str, torch.Tensor],
        *,
        epoch: int,
        metrics: dict[str, float],
        **more: Any,
    ) -> None:
        """Write one file: `net`, `epoch` (how many are done), `metrics`, `run`, and `more`."""
        if not self.writes:
            return
        content = {"net": _detached(net), "epoch": epoch, "metrics": dict(metrics)}
        save_state(self.folder / name, {**content, "run": self.run_uuid, **more})

    def step(self, name: str) -> int | None:
        """The step that a file was written at; None when it is not there."""
        path = self.folder / name
        return load_state(path).get("step") if path.exists() else None

    def remove(self, name: str) -> None:
        """Remove one of the files, where it is there."""
        if self.writes:
            (self.folder / name).unlink(missing_ok=True)

    def read(self, name: str) -> dict[str, Any]:
        """One of the files."""
        return load_state(self.folder / name)


class BestSnapshots:
    """Keeps the student's weights of the best `size` validated epochs, on disk, and averages them.

    The list of epochs is its state; the weights are in `snapshot_epoch_N.pth`, so that a training
    which goes on after its end still has them.
    """

    def __init__(self, files: CheckpointFiles, size: int, greater: bool):
        self.files, self.size, self.sign = files, size, 1.0 if greater else -1.0
        self.kept: list[Snapshot] = []

    def offer(self, value: float, epoch: int, weights: dict[str, torch.Tensor]) -> None:
        """Keep this epoch (counted from 1) if it is among the best so far; NaN is not."""
        if value != value:
            return
        self.kept.append(Snapshot(value, epoch))
        self.kept.sort(key=lambda s: (-self.sign * s.value, s.epoch))
        dropped = self.kept[self.size :]
        del self.kept[self.size :]
        if all(s.epoch != epoch for s in dropped):
            self.files.write(_snapshot(epoch), weights, epoch=epoch, metrics={})
        self._delete(dropped)

    def average(self) -> dict[str, torch.Tensor]:
        """Mean of the kept weights; integer buffers are taken from the best epoch."""
        states = [self.files.read(_snapshot(s.epoch))["net"] for s in self.kept]
        mean = {}
        for name, first in states[0].items():
            if first.is_floating_point():
                stack = torch.stack([state[name].double() for state in states])
                mean[name] = stack.mean(0).to(first.dtype)
            else:
                mean[name] = first
        return mean

    def _delete(self, snapshots: list[Snapshot]) -> None:
        for snapshot in snapshots:
            self.files.remove(_snapshot(snapshot.epoch))

    def state_dict(self) -> dict[str, Any]:
        return {"kept": [dataclasses.asdict(s) for s in self.kept]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the epochs kept then, but for those whose weights later ones replaced."""
        kept = [Snapshot(**values) for values in state["kept"]]
        self.kept = [s for s in kept if (self.files.folder / _snapshot(s.epoch)).exists()]
        gone = ", ".join(str(s.epoch) for s in kept if s not in self.kept)
        if gone and self.files.writes:
            warnings.warn(
                f"the weights of epoch {gone} are no longer kept: average_best_models chooses "
                "without them",
                stacklevel=2,
            )


def read_checkpoint_file(path: Path) -> dict[str, Any]:
    """A `ckpt_latest.pth` or `ckpt_epoch_N.pth`, to go on from.

    Raises `CheckpointError` when the file is missing, damaged or one of the student alone.
    """
    content = load_state(path)
    if not isinstance(content, dict) or "state" not in content:
        raise CheckpointError(
            f"{path} holds no state of a training to go on from; {LATEST} and ckpt_epoch_N.pth do."
        )
    return content


def _snapshot(epoch: int) -> str:
    return f"snapshot_epoch_{epoch}.pth"


def _detached(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in state.items()}
