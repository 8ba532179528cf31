"""torch.compile with a way back."""

import copy

import pytest
import torch
from torch import nn

from distillation.compiling import CompiledCall, compile_in_place
from distillation.errors import ConfigError


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


def test_compiled_in_place_it_falls_back_alike_and_stays_the_module_it_is():
    calls = []

    def backend(graph, inputs):
        calls.append(len(inputs))
        if any(5 in tensor.shape for tensor in inputs):
            raise RuntimeError("no kernel for five")
        return graph.forward

    module, x = nn.Sequential(nn.Linear(3, 2)), torch.randn(4, 3)
    names, expected = list(module.state_dict()), module(x)
    compile_in_place(module, backend=backend, dynamic=False)
    assert torch.equal(module(x), expected)
    assert calls
    assert list(module.state_dict()) == names
    with pytest.warns(UserWarning, match="runs uncompiled"):
        module(torch.randn(5, 3))
    count = len(calls)
    assert torch.equal(module(x), expected)
    assert len(calls) == count
    assert copy.deepcopy(module)._compiled_call_impl is None
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "reduce-overhed"}, "did you mean 'reduce-overhead'"),
        ({"bckend": "eager"}, "did you mean 'backend'"),
        ({"backend": "inducto"}, "did you mean 'inductor'"),
        ({"mode": "default", "options": {"trace.enabled": True}}, "a mode or options, not both"),
    ],
)
def test_what_torch_does_not_take_is_told(options, said):
    with pytest.raises(ConfigError, match=said):
        compile_in_place(nn.Linear(2, 2), **options)
