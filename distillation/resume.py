"""What a training needs to go on exactly: the engine's state, to and from a checkpoint."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object

from distillation.checkpoint import load_strict, read_checkpoint
from distillation.errors import CheckpointError
from distillation.rng import get_rng_state, set_rng_state

_CHECK_EVERY = 16  # updates between two questions to the other processes


def _hyperparameters(optimizer: Any) -> list[dict[str, Any]]:
    if optimizer is None:  # an engine that only evaluates
        return []
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def _plain(value: Any) -> Any:
    """A copy made of what a weights_only file may hold."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(v) for v in value)
    return copy.deepcopy(value)


class Resumable:
    """The part of the engine that saves and loads."""

    _epoch_rng: dict[str, Any] | None = None
    _step_rng: dict[str, Any] | None = None
    _saved: float = 0.0
    saved_state: dict[str, Any] | None = None  # what the last checkpoint holds, for `on_checkpoint`

    def _remember_hyperparameters(self) -> None:
        # As given, before any step: on resume, what differs from this was changed by the caller
        self._given = {
            "optimizer": _plain(_hyperparameters(self.optimizer)),
            "scheduler": _plain(self.scheduler.state_dict()) if self.scheduler else None,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights, as plain values and tensors."""
        ranks = [{"rng": get_rng_state(), "epoch_rng": self._epoch_rng}]
        if self.accelerator.num_processes > 1:
            ranks = gather_object(ranks)
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "samples": self.samples,
            "update": self.update,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "scaler": self.scaler.state_dict(),
            "given": self._given,
            "ranks": ranks,
            "meters": [self.epoch_meters.state_dict(), self.step_meters.state_dict()],
            "best": self.best,
            "metrics": self.metrics,
            "states": {name: s.state_dict() for name, s in self.states.items()},
        }

    def save(self, best: bool = False) -> None:
        """Write a checkpoint of this moment (between two updates)."""
        self._saved = time.monotonic()
        state = self.state_dict()  # collective: every process takes part
        if self.recorder is not None and self.accelerator.is_main_process:
            weights = {name: module.state_dict() for name, module in self.modules.items()}
            info = {"epoch": self.epoch, "batch": self.batch, "best": self.best}
            self.recorder.save_checkpoint(self.samples, weights, state, info, best=best)
        self.saved_state = state
        self.hooks.on_checkpoint(self, best)

    def load_last(self) -> bool:
        """Take up the recorder's last checkpoint; False when there is none yet.

        Only the first process has the recorder; it tells the others where the checkpoint lies.
        """
        folder: list[str | None] = [None]
        if self.recorder is not None:
            step = self.recorder.last_step()
            self.recorder.rewind(step)
            if step is not None:
                folder = [str(self.recorder.path / "checkpoints" / str(step))]
        if self.accelerator.num_processes > 1:
            folder = broadcast_object_list(folder)
        if folder[0] is None:
            return False
        checkpoint = read_checkpoint(folder[0])
        self.load_state_dict(checkpoint.weights, checkpoint.state)
        return True

    def load_state_dict(self, weights: dict[str, dict[str, torch.Tensor]], state: dict) -> None:
        """Go on from `state`; hyper-parameters that were given anew win over those in it."""
        if set(weights) != set(self.modules) or set(state["states"]) != set(self.states):
            raise CheckpointError(
                f"the checkpoint holds {sorted(weights)} and {sorted(state['states'])}, the "
                f"training needs {sorted(self.modules)} and {sorted(self.states)}"
            )
        ranks = state["ranks"]
        if len(ranks) != self.accelerator.num_processes:
            raise CheckpointError(
                f"the run was trained by {len(ranks)} processes and cannot go on exactly with "
                f"{self.accelerator.num_processes}"
            )
        for name, module in self.modules.items():
            load_strict(module, weights[name], what=f"{name} of the checkpoint")
        self._load_optimizer(state)
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.samples, self.update = state["samples"], state["update"]
        self.best, self.metrics = state["best"], state["metrics"]
        for meters, saved in zip(
            (self.epoch_meters, self.step_meters), state["meters"], strict=True
        ):
            meters.load_state_dict(saved)
        for name, owner in self.states.items():
            owner.load_state_dict(state["states"][name])
        mine = ranks[self.accelerator.process_index]
        self._epoch_rng, self._step_rng = mine["epoch_rng"], mine["rng"]
        set_rng_state(self._step_rng)

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        given, before = self._given, state["given"]
        self.optimizer.load_state_dict(state["optimizer"])
        pairs = zip(given["optimizer"], before["optimizer"], strict=True)
        for group, (now, then) in zip(self.optimizer.param_groups, pairs, strict=True):
            reached = group["lr"]
            group.update({k: v for k, v in now.items() if v != then.get(k)})
            start, was = now.get("initial_lr", now["lr"]), then.get("initial_lr", then["lr"])
            if self.scheduler is not None and was:
                group["lr"] = reached * start / was  # the new rate, as far as the schedule has come
        if self.scheduler is not None and state["scheduler"] is not None:
            now, then = given["scheduler"], before["scheduler"] or {}
            changed = {k: v for k, v in now.items() if v != then.get(k)}
            self.scheduler.load_state_dict({**state["scheduler"], **changed})

    # -- when ----------------------------------------------------------------------------------

    def _save_is_due(self) -> bool:
        due = self._signals.received or time.monotonic() - self._saved > self.save_seconds
        if self.accelerator.num_processes == 1:
            return due
        if self.update % _CHECK_EVERY:  # processes must agree, and asking costs a round trip
            return False
        flag = torch.tensor(float(due), device=self.device)
        return bool(self.accelerator.reduce(flag, reduction="sum").item())

    def _is_best(self, metrics: dict[str, float]) -> bool:
        if self.watch is None or self.watch not in metrics:
            return False
        value, sign = metrics[self.watch], 1.0 if self.watch_mode == "max" else -1.0
        if value != value or (self.best and sign * value <= sign * self.best["value"]):
            return False
        self.best = {"value": value, "step": self.samples, "epoch": self.epoch}
        return True
