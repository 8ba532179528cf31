"""Callbacks: your code at the phases of a training, under SuperGradients' names."""

from __future__ import annotations

import dataclasses
from typing import Any

from distillation.errors import ConfigError, unknown
from distillation.trainer.schema import build, option


@dataclasses.dataclass
class Context:
    """What a callback sees. Fields that a phase has nothing to say about are None.

    Setting `stop_training` ends the training after the present update (in a batch) or epoch.
    """

    experiment_name: str = ""
    net: Any = None  #: the model, or the KDModule
    ema_model: Any = None  #: the averaged student, when there is one
    optimizer: Any = None
    criterion: Any = None
    training_params: Any = None
    train_loader: Any = None
    valid_loader: Any = None
    device: Any = None
    ckpt_dir: Any = None
    run_uuid: str | None = None
    epoch: int = 0
    split: str = "train"  #: whose batches: train, or the validation loader's name
    batch_idx: int | None = None
    batch: Any = None
    inputs: Any = None
    target: Any = None
    preds: Any = None  #: the model's output, or the KDOutput
    loss: Any = None  #: of the batch, a tensor on the device
    metrics_dict: dict[str, float] = dataclasses.field(default_factory=dict)
    stop_training: bool = False


class Callback:
    """Subclass this and override what you need; each method gets a `Context`.

    A callback that remembers something has `state_dict()` and `load_state_dict(state)`, made of
    plain values and tensors, which are saved with the checkpoints.
    """

    def on_training_start(self, context: Context) -> None:
        """Before the first batch, after a checkpoint was loaded."""

    def on_train_loader_start(self, context: Context) -> None:
        """Before the first batch of an epoch."""

    def on_train_batch_start(self, context: Context) -> None:
        """Before a training batch."""

    def on_train_batch_loss_end(self, context: Context) -> None:
        """After the loss, before its gradients."""

    def on_train_batch_backward_end(self, context: Context) -> None:
        """After the gradients of a batch."""

    def on_train_batch_gradient_step_start(self, context: Context) -> None:
        """Before the optimizer, when the group of batches is complete."""

    def on_train_batch_gradient_step_end(self, context: Context) -> None:
        """After the optimizer."""

    def on_train_batch_end(self, context: Context) -> None:
        """After a training batch."""

    def on_train_loader_end(self, context: Context) -> None:
        """After the last batch of an epoch; `metrics_dict` holds its means."""

    def on_validation_loader_start(self, context: Context) -> None:
        """Before a validation."""

    def on_validation_batch_start(self, context: Context) -> None:
        """Before a validation batch."""

    def on_validation_batch_end(self, context: Context) -> None:
        """After a validation batch."""

    def on_validation_loader_end(self, context: Context) -> None:
        """After a validation; `metrics_dict` holds its results."""

    def on_validation_end_best_epoch(self, context: Context) -> None:
        """After a validation that gave the best value of the watched metric so far."""

    def on_test_loader_start(self, context: Context) -> None:
        """Before `test` begins."""

    def on_test_batch_start(self, context: Context) -> None:
        """Before a batch of `test`."""

    def on_test_batch_end(self, context: Context) -> None:
        """After a batch of `test`."""

    def on_test_loader_end(self, context: Context) -> None:
        """After `test`; `metrics_dict` holds its results."""

    def on_average_best_models_validation_start(self, context: Context) -> None:
        """Before the averaged best models are evaluated."""

    def on_average_best_models_validation_end(self, context: Context) -> None:
        """After the averaged best models were evaluated."""

    def on_training_end(self, context: Context) -> None:
        """After the last epoch."""


PHASES = tuple(name for name in vars(Callback) if name.startswith("on_"))


class CallbackList:
    """Calls the callbacks that override a phase; `handles(phase)` tells whether any does."""

    def __init__(self, callbacks: list[Any], context: Context):
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise ConfigError(
                    f"phase_callbacks holds a {type(callback).__name__}, which is no "
                    "distillation.trainer.Callback. Subclass it."
                )
            for name in dir(type(callback)):
                if name.startswith("on_") and name not in PHASES:
                    raise ConfigError(unknown(f"phase of {type(callback).__name__}", name, PHASES))
        self.callbacks, self.context = list(callbacks), context
        self._by_phase = {
            phase: [c for c in callbacks if getattr(type(c), phase) is not getattr(Callback, phase)]
            for phase in PHASES
        }

    def handles(self, *phases: str) -> bool:
        """Whether any callback overrides one of these phases."""
        return any(self._by_phase[phase] for phase in phases)

    def call(self, phase: str, **fields: Any) -> None:
        """Put `fields` into the context and call every callback of this phase, in order."""
        for name, value in fields.items():
            setattr(self.context, name, value)
        for callback in self._by_phase[phase]:
            getattr(callback, phase)(self.context)

    def _named(self) -> dict[str, Any]:
        # by class and how many of it came before, so that others may come and go
        names: dict[str, Any] = {}
        for callback in self.callbacks:
            kind, number = type(callback).__name__, 0
            while f"{kind}.{number}" in names:
                number += 1
            names[f"{kind}.{number}"] = callback
        return names

    def state_dict(self) -> dict[str, Any]:
        """States of the callbacks that have one, by class."""
        named = self._named().items()
        return {name: c.state_dict() for name, c in named if hasattr(c, "state_dict")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give the states back; a callback that is new since then starts fresh."""
        for name, callback in self._named().items():
            if name in state:
                callback.load_state_dict(state[name])


@dataclasses.dataclass
class EarlyStoppingParams:
    """Options of the training parameter `early_stopping`."""

    patience: int = option(
        3, (int,), "Validations without progress.", example="5", valid="an integer of at least 1",
        check=lambda v: v >= 1,
    )  # fmt: skip
    min_delta: float = option(
        0.0, (float,), "Smallest progress.", example="0.001", valid="a number of at least 0",
        check=lambda v: v >= 0,
    )  # fmt: skip
    monitor: str | None = option(
        None, (str, None), "A metric of the validation.", example='"Accuracy"', valid="a name",
    )  # fmt: skip
    mode: str | None = option(
        None, (str, None), "Direction.", example='"min"', valid="min, max or None",
        check=lambda v: v in ("min", "max"),
    )  # fmt: skip


class EarlyStopping(Callback):
    """Ends the training when a validation result has not improved for some validations.

    `monitor` is a name of the validation's results and `greater` its direction. Progress is a
    change of more than `min_delta`; NaN is none. Of several validation loaders it follows
    `split`, by default the first.
    """

    def __init__(
        self,
        monitor: str,
        greater: bool,
        patience: int = 3,
        min_delta: float = 0.0,
        split: str | None = None,
    ):
        self.monitor, self.sign = monitor, 1.0 if greater else -1.0
        self.patience, self.min_delta, self.split = patience, min_delta, split
        self.best: float | None = None
        self.waited = 0

    def on_validation_loader_end(self, context: Context) -> None:
        self.split = self.split or context.split
        if context.split != self.split:
            return
        if self.monitor not in context.metrics_dict:
            raise ConfigError(
                unknown("metric of early_stopping", self.monitor, context.metrics_dict)
            )
        value = self.sign * context.metrics_dict[self.monitor]
        if value == value and (self.best is None or value > self.best + self.min_delta):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.waited >= self.patience:
            context.stop_training = True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]


def early_stopping_params(values: dict[str, Any]) -> EarlyStoppingParams:
    """Checked options; raises `ConfigError` for an unknown one."""
    listed = "early_stopping"
    return build(EarlyStoppingParams, values, kind="early_stopping option", listed=listed)
