"""What a training needs to go on exactly: the engine's state, to and from a checkpoint."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object

from distillation.checkpoint import load_strict, read_checkpoint
from distillation.errors import CheckpointError, ConfigError, unknown
from distillation.hyperparameters import as_given, plain, take_up
from distillation.replay import length_of, own_generators
from distillation.rng import get_rng_state, set_rng_state

_CHECK_EVERY = 16  # updates between two questions to the other processes


class Resumable:
    """The part of the engine that saves and loads."""

    _epoch_rng: dict[str, Any] | None = None
    _step_rng: dict[str, Any] | None = None
    _saved: float = 0.0
    interrupted: bool = False
    _epoch_trained: bool = False  # every batch of this epoch, but not yet its evaluation
    _evaluation_seconds: float | None = None
    part_names: Mapping[str, str] = {}  # what users call a module or state, where it is not so
    saved_state: dict[str, Any] | None = None  # what the last checkpoint holds, for `on_checkpoint`

    def _remember_hyperparameters(self) -> None:
        self._given = as_given(self.optimizer, self.scheduler)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights, as plain values and tensors."""
        # Between two epochs nothing but its state says how far a loader's own generator has come
        own = [g.get_state() for g in own_generators(self.train_loader)]
        states = {name: s.state_dict() for name, s in self.states.items()}
        apart = [name for name, s in self.states.items() if getattr(s, "per_process", False)]
        # Sums of an epoch that is not over are of each process's own batches
        ranks = [
            {
                "rng": get_rng_state(),
                "epoch_rng": self._epoch_rng,
                "loader": own,
                "meters": [self.epoch_meters.state_dict(), self.step_meters.state_dict()],
                "states": {name: states.pop(name) for name in apart},
            }
        ]
        if self.accelerator.num_processes > 1:
            ranks = gather_object(ranks)
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "batches": length_of(self.train_loader),
            "epoch_trained": self._epoch_trained,
            "extra": self._extra,
            "samples": self.samples,
            "update": self.update,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": plain(self.scheduler.state_dict()) if self.scheduler else None,
            "scaler": self.scaler.state_dict(),
            "given": self._given,
            "ranks": ranks,
            "best": self.best,
            "metrics": self.metrics,
            "states": states,
        }

    def save(self, best: bool = False) -> None:
        """Write a checkpoint of this moment (between two updates)."""
        self._saved = time.monotonic()
        self._settle_samples()
        state = self.state_dict()  # collective: every process takes part
        main = self.recorder is not None and self.accelerator.is_main_process
        collective = any(getattr(m, "collective", False) for m in self.modules.values())
        weights: dict[str, Any] = {}
        if main or collective:  # shards are gathered by all processes together
            weights = {name: module.state_dict() for name, module in self.modules.items()}
        if main:
            info = {"epoch": self.epoch, "batch": self.batch, "best": self.best}
            self.recorder.save_checkpoint(self.samples, weights, state, info, best=best)
        self.saved_state = state
        self.hooks.on_checkpoint(self, best)

    def load_last(self) -> bool:
        """Take up the recorder's last checkpoint; False when there is none yet.

        Only the first process has the recorder; it tells the others where the checkpoint lies.
        """
        if self.recorder is None and self.accelerator.num_processes == 1:
            raise ConfigError("fit(resume=True) needs the recorder of the run to go on with")
        folder: list[str | None] = [None]
        main = self.recorder is not None and self.accelerator.is_main_process
        if main:
            step = self.recorder.last_step()
            if step is not None:
                folder = [str(self.recorder.path / "checkpoints" / str(step))]
        if self.accelerator.num_processes > 1:
            folder = broadcast_object_list(folder)
        if folder[0] is not None:
            checkpoint = read_checkpoint(folder[0])
            self.load_state_dict(checkpoint.weights, checkpoint.state)
        unnoted = [False]
        if main:
            # Only now: a checkpoint that cannot be used costs no rows
            self.recorder.rewind(step, self._will_be_logged)
            if self.best and self.best["step"] == step != self.recorder.run.best_step:
                unnoted = [True]  # killed after it was written, before it was noted as best
        if self.accelerator.num_processes > 1:
            unnoted = broadcast_object_list(unnoted)
        if unnoted[0]:
            self.save(best=True)
        return folder[0] is not None

    def _will_be_logged(self, row: dict[str, Any]) -> bool:
        """Whether this row, of the checkpoint's step, is written (again) after the evaluation."""
        means = any(name.endswith(".train_step") for name in row)
        return self._epoch_trained and row["step"] == self.samples and not means

    def load_state_dict(self, weights: dict[str, dict[str, torch.Tensor]], state: dict) -> None:
        """Go on from `state`; hyper-parameters that were given anew win over those in it."""
        ranks = state["ranks"]
        if len(ranks) != self.accelerator.num_processes:
            raise CheckpointError(
                f"the run was trained by {len(ranks)} processes and cannot go on exactly with "
                f"{self.accelerator.num_processes}"
            )
        mine = ranks[self.accelerator.process_index]
        # In older checkpoints the first process's stand for all
        meters = mine["meters"] if "meters" in mine else state["meters"]
        states = {**state["states"], **mine.get("states", {})}
        self._refuse_other_parts({*weights, *states})
        for name, module in self.modules.items():
            load_strict(module, weights[name], what=f"{name} of the checkpoint")
        take_up(self.optimizer, self.scheduler, state, self._given, state["update"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.batch = state["epoch"], self._same_share(state)
        self._epoch_trained, self._extra = state.get("epoch_trained", False), state.get("extra", {})
        self._take_samples(state["samples"])
        self.update = state["update"]
        self.best, self.metrics = state["best"], state["metrics"]
        for meter, saved in zip((self.epoch_meters, self.step_meters), meters, strict=True):
            meter.load_state_dict(saved)
        for name, owner in self.states.items():
            owner.load_state_dict(states[name])
        self._epoch_rng, self._step_rng = mine["epoch_rng"], mine["rng"]
        set_rng_state(self._step_rng)
        generators = own_generators(self.train_loader)
        if len(generators) != len(mine["loader"]):
            raise CheckpointError(
                f"the loader has {len(generators)} generators of its own, the run was trained "
                f"with {len(mine['loader'])}; its order cannot be taken up"
            )
        for generator, saved in zip(generators, mine["loader"], strict=True):
            generator.set_state(saved)

    def _refuse_other_parts(self, held: set[str]) -> None:
        """Raise `CheckpointError` when the run was trained with other parts than there are now."""
        wanted = {*self.modules, *self.states}
        named = [
            [self.part_names.get(part, part) for part in sorted(parts)]
            for parts in (wanted - held, held - wanted)
        ]
        missing, more = (", ".join(map(repr, dict.fromkeys(names))) for names in named)
        if missing or more:
            what = ", and ".join(
                [f"without {missing}, which this training has"] * bool(missing)
                + [f"with {more}, which this training has not"] * bool(more)
            )
            raise CheckpointError(
                f"the run was trained {what}, so it cannot go on exactly: set it as it was then, "
                "or begin a new run"
            )

    def _same_share(self, state: dict[str, Any]) -> int:
        """Batch to go on with; where the epoch has other batches, after the same share of it."""
        batch, before, now = state["batch"], state["batches"], length_of(self.train_loader)
        if not batch or before == now or not before or now is None:
            return batch
        share = batch * now // before
        warnings.warn(
            f"an epoch has {now} batches, not {before} as before: going on at batch {share}, "
            f"which is where batch {batch} was",
            stacklevel=2,
        )
        return share

    # -- when ----------------------------------------------------------------------------------

    def _save_is_due(self) -> bool:
        due = time.monotonic() - self._saved > self.save_seconds
        if self.accelerator.num_processes > 1:
            if self.update % _CHECK_EVERY:  # they must agree, and asking costs a round trip
                return False
            flag = torch.tensor(float(due), device=self.device)
            due = bool(self.accelerator.reduce(flag, reduction="sum").item())
        return self._stop_is_asked() or due

    def _save_before_evaluation(self) -> None:
        """At the end of an epoch's training, where its evaluation may outlast `save_seconds`.

        So a kill costs no training beside the evaluation itself. How long that takes is known from
        the one before; the first one is taken for half of `save_seconds`.
        """
        if self.stop_training or not self.valid_loaders or not self._validates():
            return
        expected = self._evaluation_seconds
        expected = self.save_seconds / 2 if expected is None else expected
        due = time.monotonic() - self._saved + expected > self.save_seconds
        if self.accelerator.num_processes > 1:
            flag = torch.tensor(float(due), device=self.device)
            due = bool(self.accelerator.reduce(flag, reduction="sum").item())
        if self._stop_is_asked() or due:
            self._epoch_trained = True
            self.save()
            if self.interrupted:
                raise KeyboardInterrupt

    def _stop_is_asked(self) -> bool:
        """Whether a signal has come, to this process or to another one."""
        self.interrupted = self._signals.received
        if self.accelerator.num_processes > 1:
            flag = torch.tensor(float(self.interrupted), device=self.device)
            self.interrupted = bool(self.accelerator.reduce(flag, reduction="sum").item())
        return self.interrupted

    def _is_best(self, metrics: dict[str, float]) -> bool:
        if self.watch not in metrics:
            return False
        value, sign = metrics[self.watch], 1.0 if self.watch_mode == "max" else -1.0
        if value != value or (self.best and sign * value <= sign * self.best["value"]):
            return False
        self.best = {"value": value, "step": self.samples, "epoch": self.epoch}
        return True

    def _refuse_unmeasured(self, metrics: dict[str, float]) -> None:
        """Raise `ConfigError` when an epoch with its evaluation has not measured `watch`.

        Hooks may add metrics of any name, so nothing can tell before.
        """
        if self.watch is not None and self.watch not in metrics:
            raise ConfigError(unknown("metric to watch:", self.watch, metrics))
