"""torch.compile with a way back."""

import pytest
import torch
from torch import nn

from distillation.compiling import CompiledCall


def test_a_compiled_call_gives_what_the_module_gives():
    module, x = nn.Linear(3, 2), torch.randn(4, 3)
    assert torch.equal(CompiledCall(module, backend="aot_eager")(x), module(x))


def test_a_failure_to_compile_is_said_once_and_the_module_runs_as_it_is():
    def broken_backend(graph, inputs):
        raise RuntimeError("no compiler on this machine")

    module, x = nn.Linear(3, 2), torch.randn(4, 3)
    call = CompiledCall(module, backend=broken_backend)
    with pytest.warns(UserWarning, match="no compiler on this machine"):
        first = call(x)
    assert torch.equal(first, module(x))
    assert torch.equal(call(x), module(x))


def test_an_error_of_the_model_itself_is_raised():
    call = CompiledCall(nn.Linear(3, 2), backend="eager")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        call(torch.randn(4, 5))


def test_training_mode_reaches_the_module():
    module = nn.Dropout(0.5)
    assert CompiledCall(module, backend="eager").eval().module.training is False
