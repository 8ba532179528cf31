"""What a training step calls back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from distillation.meters import parameter_statistics, vector


class StepCalls:
    """The part of the engine that a step sees: precision, gradients, the update, metrics."""

    def autocast(self) -> AbstractContextManager:
        """Context for the forward pass in the chosen precision."""
        if self.accelerator.mixed_precision == "no":
            return nullcontext()
        return self.accelerator.autocast()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of `loss`, a mean over the samples of this batch."""
        self.scaler.scale(loss if self._weight is None else loss * self._weight).backward()

    def optimizer_step(self) -> None:
        """Clip, update and advance the schedule, when the group of micro-batches is complete."""
        if not self._group_end:
            return
        if self.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.update += 1
        if self.scheduler is not None:
            self.scheduler.step()
        self.hooks.on_update_end(self)

    @property
    def group_is_complete(self) -> bool:
        """Whether this batch is the last of its group, so that `optimizer_step` will update."""
        return self._group_end

    def zero_grad(self) -> None:
        """Clear the gradients, when the group of micro-batches is complete."""
        if self._group_end:
            self.optimizer.zero_grad(set_to_none=True)

    def log(self, values: Mapping[str, torch.Tensor | float], n: int = 1) -> None:
        """Add the means of `n` samples to the metrics of the current split; no host sync."""
        if not values:
            return
        names, terms = tuple(values), vector(values) * n
        self.epoch_meters.add_terms(names, terms, n)
        if self.is_train and self.log_every:
            self.step_meters.add_terms(names, terms, n)

    def log_parameters(self, name: str = "model") -> None:
        """Norm, mean and standard deviation of every parameter and gradient, in the epoch's row."""
        self._extra.update(parameter_statistics(self.modules[name]))
