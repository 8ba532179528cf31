"""Wrong options and wrong shapes are named."""

import math

import pytest
import torch
from loss_cases import LOSSES, WITH_TEMPERATURE, make

from distillation import losses
from distillation.errors import ConfigError, ShapeError


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, "5", None, True])
@pytest.mark.parametrize("name", WITH_TEMPERATURE)
def test_temperature_must_be_positive(name, temperature):
    with pytest.raises(ConfigError, match="temperature must be a finite number greater than 0"):
        make(name, temperature)


def test_functions_check_the_temperature_too():
    with pytest.raises(ConfigError, match="temperature"):
        losses.kl_divergence(torch.zeros(1, 2), torch.zeros(1, 2), temperature=0.0)


@pytest.mark.parametrize("name", LOSSES)
def test_an_unknown_reduction_is_named_with_the_nearest(name):
    with pytest.raises(ConfigError, match=r"unknown reduction 'batchmeen'; .*'batchmean'"):
        make(name, reduction="batchmeen")


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((4, 10), (4, 100), "the student has 10 classes and the teacher 100"),
        ((4, 10), (5, 10), r"differ in shape: student \(4, 10\), teacher \(5, 10\)"),
        ((4, 10), (4, 1, 10), "number of dimensions"),
        ((), (), "no class dimension"),
        ((4, 0), (4, 0), "no classes"),
    ],
)
def test_shapes_that_do_not_fit_are_named(name, student, teacher, message):
    with pytest.raises(ShapeError, match=message):
        make(name)(torch.zeros(student), torch.zeros(teacher))


def test_a_class_dimension_that_is_not_there():
    with pytest.raises(ShapeError, match="no class dimension 2"):
        losses.LogitsDistillationLoss(dim=2)(torch.zeros(2, 3), torch.zeros(2, 3))


def test_an_output_that_is_no_tensor_is_named():
    with pytest.raises(ShapeError, match="the teacher's output is a tuple"):
        losses.LogitsDistillationLoss()(torch.zeros(2, 3), (torch.zeros(2, 3),))


@pytest.mark.parametrize("name", LOSSES)
def test_an_unknown_argument_is_named_with_the_nearest(name):
    with pytest.raises(ConfigError, match=r"unknown argument of \w+: 'reductoin'; .*'reduction'"):
        make(name, reductoin="mean")


def test_an_unknown_loss_of_the_package_is_named_with_the_nearest():
    with pytest.raises(AttributeError, match=r"distillation\.losses: .*'LogitsDistillationLoss'"):
        losses.LogitDistillationLoss  # noqa: B018


def test_integer_logits_are_refused():
    with pytest.raises(ShapeError, match=r"the student's output has dtype torch\.int64"):
        losses.LogitsDistillationLoss()(torch.zeros(2, 3).long(), torch.zeros(2, 3))


@pytest.mark.parametrize("option", ["dim", "ignore_index"])
def test_integer_options_must_be_integers(option):
    with pytest.raises(ConfigError, match=f"{option} must be an integer, not 1.5"):
        losses.LogitsDistillationLoss(**{option: 1.5})
