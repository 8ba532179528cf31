"""Weighted means that are accumulated and read once."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distillation.meters import Meters, parameter_statistics

TERMS = st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(1, 100)), min_size=1, max_size=30)


@given(TERMS)
def test_the_mean_is_weighted(terms):
    meters = Meters()
    for value, n in terms:
        meters.add({"loss": value}, n)
    wanted = math.fsum(v * n for v, n in terms) / sum(n for _, n in terms)
    assert meters.compute()["loss"] == pytest.approx(wanted, abs=1e-9)


@given(TERMS, st.integers(0, 30))
def test_it_goes_on_exactly_from_its_state(terms, cut):
    whole, first, second = Meters(), Meters(), Meters()
    for value, n in terms:
        whole.add({"loss": torch.tensor(value)}, n)
    for value, n in terms[:cut]:
        first.add({"loss": torch.tensor(value)}, n)
    second.load_state_dict(first.state_dict())
    for value, n in terms[cut:]:
        second.add({"loss": torch.tensor(value)}, n)
    assert second.compute() == whole.compute()


def test_a_million_small_terms_keep_their_digits():
    meters = Meters()
    meters.add({"x": torch.tensor(1e8)}, 1)
    for _ in range(1000):
        meters.add({"x": torch.tensor(0.1)}, 1)
    assert meters.compute()["x"] * 1001 == pytest.approx(1e8 + 100, abs=1e-3)


def test_what_is_added_keeps_no_graph_and_is_not_changed():
    value = torch.tensor(2.0, requires_grad=True)
    meters = Meters()
    meters.add({"x": value * 3})
    meters.add({"x": value * 3})
    assert meters.compute() == {"x": 6.0}
    state, later = meters.state_dict(), Meters()
    meters.add({"x": 100.0})
    later.load_state_dict(state)
    assert later.compute() == {"x": 6.0}


def test_a_name_that_comes_in_other_company_is_the_same_name():
    meters = Meters()
    meters.add({"a": torch.tensor(1.0), "b": 5.0}, n=1)
    meters.add({"a": torch.tensor(4.0)}, n=2)
    assert meters.compute() == {"a": 3.0, "b": 5.0}


def test_nothing_added_means_no_metrics():
    meters = Meters()
    assert meters.compute() == {}
    meters.add({"x": 1.0}, n=0)
    assert meters.compute() == {}


def test_a_mean_of_no_samples_weighs_nothing_even_if_it_is_no_number():
    meters = Meters()
    meters.add({"x": 2.0}, n=3)
    meters.add({"x": torch.tensor(float("nan"))}, n=0)
    assert meters.compute() == {"x": 2.0}


def test_a_process_without_samples_takes_part_in_the_sum_over_processes():
    meters = Meters()
    meters.add({"x": float("nan")}, n=0)
    other = torch.tensor([[6.0], [3.0]], dtype=torch.float64)
    assert meters.compute(lambda both: both + other) == {"x": 2.0}


def test_reset_forgets():
    meters = Meters()
    meters.add({"x": 1.0})
    meters.reset()
    assert meters.compute() == {}


def test_more_than_one_number_is_refused():
    with pytest.raises(RuntimeError):
        Meters().add({"x": torch.zeros(2)})


def test_sums_and_weights_are_reduced_together():
    meters = Meters()
    meters.add({"a": 1.0, "b": 3.0}, n=2)
    other = torch.tensor([[4.0, 0.0], [2.0, 2.0]], dtype=torch.float64)
    assert meters.compute(lambda both: both + other) == {"a": 1.5, "b": 1.5}


def test_statistics_of_parameters_and_of_those_gradients_that_are_there():
    layer = nn.Linear(2, 1)
    nn.init.constant_(layer.weight, 3.0)
    nn.init.constant_(layer.bias, -1.0)
    layer.weight.grad = torch.tensor([[1.0, -1.0]])
    found = parameter_statistics(layer)
    assert found["param.weight.norm"] == pytest.approx(math.sqrt(18))
    assert (found["param.weight.mean"], found["param.weight.std"]) == (3.0, 0.0)
    assert (found["grad.weight.mean"], found["grad.weight.std"]) == (0.0, 1.0)
    assert found["param.bias.std"] == 0.0  # of one element, not NaN
    assert not any(name.startswith("grad.bias") for name in found)


def test_a_module_without_parameters_has_no_statistics():
    assert parameter_statistics(nn.ReLU()) == {}
