"""Places where the training loop calls out; subclass `Hooks` and override what is needed."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distillation.engine import Engine


class Hooks:
    """Every method does nothing; the engine calls them in the order in which they stand here."""

    def on_train_start(self, engine: Engine) -> None:
        """Before the first batch, after a checkpoint was loaded."""

    def on_epoch_start(self, engine: Engine) -> None:
        """Before the first batch of an epoch (also of one that is resumed in the middle)."""

    def on_batch_start(self, engine: Engine, batch: Any) -> None:
        """Before each training batch."""

    def on_batch_end(self, engine: Engine, batch: Any) -> None:
        """After each training batch."""

    def on_update_end(self, engine: Engine) -> None:
        """After each optimizer update, before the gradients are cleared."""

    def on_train_epoch_end(self, engine: Engine, metrics: dict[str, float]) -> None:
        """After the last training batch of an epoch, before the evaluations; `metrics` may be
        added to."""

    def on_validate_start(self, engine: Engine, split: str) -> None:
        """Before the first batch of an evaluation."""

    def on_validate_batch_end(self, engine: Engine, split: str, batch: Any) -> None:
        """After each batch of an evaluation."""

    def on_validate_end(self, engine: Engine, split: str, metrics: dict[str, float]) -> None:
        """After an evaluation; `metrics` may be added to."""

    def on_epoch_end(self, engine: Engine, metrics: dict[str, float]) -> None:
        """After the evaluations, before the checkpoint; `metrics` may be added to."""

    def on_checkpoint(self, engine: Engine, best: bool) -> None:
        """After a checkpoint was written."""

    def on_train_end(self, engine: Engine) -> None:
        """After the last epoch, or after the training was stopped early."""

    def close(self) -> None:
        """After the training, however it ended: let go of what is held."""


class HookList(Hooks):
    """Calls each of several hooks in turn."""

    def __init__(self, hooks: list[Hooks]):
        self.hooks = hooks

    def close(self) -> None:
        """Closes all of them, whatever one raises."""
        with ExitStack() as stack:
            for hook in self.hooks:
                stack.callback(hook.close)


def _fan_out(name: str):
    def call(self: HookList, *args: Any) -> None:
        for hook in self.hooks:
            getattr(hook, name)(*args)

    call.__name__ = name
    call.__doc__ = getattr(Hooks, name).__doc__
    return call


for _name in [n for n in vars(Hooks) if n.startswith("on_")]:
    setattr(HookList, _name, _fan_out(_name))
