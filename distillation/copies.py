"""Copies of a model for measurements and files, which leave its teacher alone."""

from __future__ import annotations

import copy

from torch import nn


def student_copy(model: nn.Module) -> nn.Module:
    """A deep copy of `model`, the student alone where it, or a part of it, is distilled.

    `copy.deepcopy` of a converted model shares the teacher, which would be moved and cast with the
    copy, and run by it. What carries a teacher has a method `_leave_teacher`, which takes it off.

    Raises:
        ConfigError: a `KDModule`, which is a pair; the copy of its student is one of `net.student`.
    """
    made = copy.deepcopy(model)
    for module in list(made.modules()):
        leave = getattr(type(module), "_leave_teacher", None)
        if leave is not None:
            leave(module)
    return made
