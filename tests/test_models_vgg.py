"""The large and the small models: their size, their layers, their normalization."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from distillation import convert
from distillation.errors import ConfigError, ShapeError
from distillation.losses import MGDLoss
from distillation.models.digits import DigitsLargeModel, DigitsSmallModel
from distillation.models.facts import model_facts, multiply_accumulates, parameter_count
from distillation.models.vgg import LargeModel, SmallModel


def kinds(model: nn.Module) -> str:
    """One letter a layer, a space after each pooling."""
    letters = {
        nn.Dropout: "d",
        nn.Conv2d: "c",
        nn.BatchNorm2d: "b",
        nn.ReLU: "r",
        nn.MaxPool2d: " ",
    }
    return "".join(letters[type(layer)] for layer in model.layers).strip()


def widths(model: nn.Module) -> list[int]:
    return [layer.out_channels for layer in model.layers if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize(("model", "count"), [(LargeModel, 14_728_266), (SmallModel, 437_034)])
def test_the_number_of_parameters_is_the_published_one(model, count):
    assert parameter_count(model()) == count


def test_the_layers_of_the_large_model():
    model = LargeModel()
    assert kinds(model) == " ".join(["dcbr" * n for n in (2, 2, 3, 3, 3)])
    assert widths(model) == [64, 64, 128, 128, *[256] * 3, *[512] * 6]
    assert {layer.p for layer in model.layers if isinstance(layer, nn.Dropout)} == {0.1}


def test_the_layers_of_the_small_model():
    model = SmallModel()
    assert kinds(model) == " ".join(["cbr" * n for n in (2, 2, 1, 1, 1)])
    assert widths(model) == [32, 32, 64, 64, 128, 128, 128]


def test_the_digits_pair_is_of_the_same_manner():
    large, small = DigitsLargeModel(), DigitsSmallModel()
    assert kinds(large) == "cbrdcbr dcbrdcbr dcbr"
    assert kinds(small) == "cbr cbr cbr"
    assert parameter_count(large) > 8 * parameter_count(small)


@pytest.mark.parametrize("model", [SmallModel, LargeModel])
def test_logits_of_cifar_images(model):
    assert model(num_classes=7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_in_evaluation_an_image_does_not_depend_on_the_others():
    torch.manual_seed(0)
    model, images = SmallModel().eval(), torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(model(images)[:1], model(images[:1]), rtol=1e-4, atol=1e-5)


def test_with_batch_statistics_it_does_and_a_warning_says_so():
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="depend on the other images") as caught:
        model = SmallModel(batch_statistics=True)
    assert caught[0].filename == __file__
    model, images = model.eval(), torch.randn(4, 3, 32, 32)
    assert (model(images)[:1] - model(images[:1])).abs().max() > 1e-2
    assert parameter_count(model) == 437_034
    assert not list(model.buffers())


def test_running_statistics_are_the_default_and_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = LargeModel()
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 13


@pytest.mark.parametrize(
    "shape", [(2, 1, 32, 32), (2, 3, 31, 32), (3, 32, 32), (2, 3, 32, 16)], ids=str
)
def test_images_of_a_wrong_shape_are_named(shape):
    with pytest.raises(ShapeError, match=r"SmallModel takes images \[batch, 3, height ≥ 32"):
        SmallModel()(torch.zeros(shape))


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize("model", [LargeModel, DigitsLargeModel])
def test_a_dropout_that_cannot_be_is_named(model, dropout):
    with pytest.raises(ConfigError, match="dropout"):
        model(dropout=dropout)


def test_one_class_is_no_classification():
    with pytest.raises(ConfigError, match="num_classes"):
        SmallModel(num_classes=1)


def test_multiply_accumulates_are_those_of_the_convolutions_and_the_last_layer():
    # 3×3 kernels: pixels · 9 · channels in · channels out
    wanted = 64 * 9 * 1 * 16 + 16 * 9 * 16 * 32 + 4 * 9 * 32 * 32 + 32 * 10
    assert multiply_accumulates(DigitsSmallModel(), (1, 8, 8)) == wanted


def test_of_a_converted_model_the_student_is_measured():
    student, teacher = DigitsSmallModel(), DigitsLargeModel().double()
    alone = model_facts(student, (1, 8, 8))
    convert(student, teacher_model=teacher, criterion={("layers", "layers"): MGDLoss(32, 128)})
    assert model_facts(student, (1, 8, 8)) == alone
    assert teacher.fc.weight.dtype == torch.float64


def test_measuring_a_model_leaves_it_as_it_was():
    model = DigitsSmallModel().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    facts = model_facts(model, (1, 8, 8))
    assert facts["bytes"] == sum(t.numel() * t.element_size() for t in before.values())
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
