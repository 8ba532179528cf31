"""Activation checkpoints around a whole student: its forward runs twice, or without a graph."""

from __future__ import annotations

import sys

import torch
from torch import nn

from distillation.capture import inside_autograd_function
from distillation.errors import DistillationError


def in_backward() -> bool:
    """Whether autograd is running, so that a forward pass now is one that a checkpoint repeats."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def refuse_reentry(student: nn.Module) -> None:
    """Raise `DistillationError` where the student in training is run inside an autograd function.

    A reentrant checkpoint does that. What the student gives there has no gradient; only what the
    checkpoint returns has one, and that never passes through here.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not student.training:
        return
    if inside_autograd_function(sys._getframe(1)):
        raise DistillationError(
            "the whole student runs inside an autograd function, as a reentrant activation "
            "checkpoint is: its output has no gradient there, and the loss would train nothing. "
            "Use checkpoint(..., use_reentrant=False)."
        )
