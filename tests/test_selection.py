"""From structured outputs to the one tensor that a loss takes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from distillation.errors import ConfigError
from distillation.selection import LayerInput, as_tensor

A, B = torch.zeros(2, 3), torch.ones(2, 5)


class ModelOutput(OrderedDict):
    """Hugging Face's output class in small: a dict whose items are attributes and a tuple too."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)

    def to_tuple(self):
        return tuple(self.values())


class Pair(NamedTuple):
    logits: torch.Tensor
    hidden: torch.Tensor


@dataclass
class Output:
    logits: torch.Tensor
    hidden: tuple


def test_a_tensor_is_itself():
    assert as_tensor(A) is A


@pytest.mark.parametrize(
    "value",
    [(A,), [A, None], {"logits": A, "loss": None}, LayerInput((A,), {"flag": True}), Output(A, ())],
)
def test_the_only_tensor_of_a_container_needs_no_selector(value):
    assert as_tensor(value) is A


@pytest.mark.parametrize(
    ("value", "select"),
    [
        ((A, B), 1),
        ((A, B), -1),
        ({"x": A, "y": B}, "y"),
        ({0: A, 1: B}, 1),
        (ModelOutput(logits=A, hidden=B), "hidden"),
        (ModelOutput(logits=A, hidden=B), 1),
        (ModelOutput(logits=A, hidden_states=(A, B)), ("hidden_states", -1)),
        (Pair(A, B), "hidden"),
        (Output(A, (A, B)), ("hidden", 1)),
        (LayerInput((A,), {"mask": B}), "mask"),
        (LayerInput((A, B), {}), 1),
        ((A, {"deep": B}), lambda value: value[1]["deep"]),
    ],
)
def test_selectors_reach_into_structured_outputs(value, select):
    assert as_tensor(value, select) is B


@pytest.mark.parametrize(
    ("value", "select", "message"),
    [
        ((A, B), None, r"several tensors.*0: float32\[2, 3\], 1: float32\[2, 5\]"),
        (((A,), (B,)), None, "no tensor at its first level"),
        (None, None, "NoneType"),
        ({"logits": A}, "logit", "did you mean 'logits'"),
        ((A, B), 2, "unknown part"),
        (A, "logits", "unknown part"),
        ({"h": (A, B)}, "h", "a tuple, not a tensor.*0: float32"),
        ((A, B), lambda value: value, "not a tensor"),
    ],
)
def test_a_wrong_selection_lists_the_choices(value, select, message):
    with pytest.raises(ConfigError, match=message):
        as_tensor(value, select)
