"""Masked generative distillation."""

import numpy as np
import pytest
import torch
from loss_cases import logits

from distillation.errors import ConfigError, ShapeError
from distillation.losses import MGDLoss, accepts


def convolve(x, weight, bias):
    """A convolution with stride 1 that keeps height and width, in NumPy."""
    k = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    out = np.zeros((x.shape[0], weight.shape[0], *x.shape[2:]))
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            window = padded[:, :, i : i + k, j : j + k]
            out[:, :, i, j] = np.einsum("bcij,ocij->bo", window, weight) + bias
    return out


def by_hand(loss, s, t, noise):
    w = {name: value.detach().numpy() for name, value in loss.state_dict().items()}
    x = s.numpy()
    if "align.weight" in w:
        x = convolve(x, w["align.weight"], w["align.bias"])
    x = x * (noise.numpy() >= loss.lambda_mgd)
    x = np.maximum(convolve(x, w["generation.0.weight"], w["generation.0.bias"]), 0)
    x = convolve(x, w["generation.2.weight"], w["generation.2.bias"])
    return loss.alpha_mgd * ((x - t.numpy()) ** 2).mean()


@pytest.mark.parametrize(("students", "teachers"), [(3, 3), (2, 4)])
def test_equals_its_formula(students, teachers):
    loss = MGDLoss(students, teachers, alpha_mgd=0.7, lambda_mgd=0.4).double()
    s, t = logits(2, students, 5, 6), logits(2, teachers, 5, 6, seed=1)
    torch.manual_seed(3)
    noise = torch.rand(2, 1, 5, 6)
    torch.manual_seed(3)
    assert loss(s, t).item() == pytest.approx(by_hand(loss, s, t, noise), rel=1e-10)


def test_gradients_are_those_of_finite_differences_for_features_and_weights():
    loss = MGDLoss(2, 3).double()
    s, t = logits(1, 2, 3, 3).requires_grad_(), logits(1, 3, 3, 3, seed=1)

    def repeatable(student, *weights):
        names = [name for name, _ in loss.named_parameters()]
        generator = torch.Generator().manual_seed(0)
        return torch.func.functional_call(
            loss, dict(zip(names, weights, strict=True)), (student, t), {"generator": generator}
        )

    assert torch.autograd.gradcheck(repeatable, (s, *loss.parameters()))


def test_weights_are_named_as_in_modelopt_so_that_its_state_dicts_load():
    generation = [f"generation.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")]
    assert sorted(MGDLoss(2, 4).state_dict()) == ["align.bias", "align.weight", *sorted(generation)]
    assert sorted(MGDLoss(4, 4).state_dict()) == sorted(generation)


def test_repeats_itself_after_seeding_and_not_otherwise():
    loss = MGDLoss(2, 2)
    s, t = logits(2, 2, 8, 8).float(), logits(2, 2, 8, 8, seed=1).float()
    torch.manual_seed(0)
    first, second = loss(s, t), loss(s, t)
    torch.manual_seed(0)
    assert torch.equal(loss(s, t), first)
    assert not torch.equal(first, second)


def test_a_generator_of_its_own_leaves_the_global_one_alone():
    loss = MGDLoss(2, 2)
    s, t = logits(2, 2, 8, 8).float(), logits(2, 2, 8, 8, seed=1).float()
    before = torch.get_rng_state()
    a = loss(s, t, generator=torch.Generator().manual_seed(5))
    b = loss(s, t, generator=torch.Generator().manual_seed(5))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)
    assert "generator" in accepts(loss)


@pytest.mark.parametrize(("share", "depends"), [(0.0, True), (1.0, False)])
def test_the_masked_share_goes_from_nothing_to_everything(share, depends):
    loss = MGDLoss(2, 2, lambda_mgd=share).double()
    s, t = logits(1, 2, 4, 4).requires_grad_(), logits(1, 2, 4, 4, seed=1)
    loss(s, t).backward()
    assert bool((s.grad != 0).any()) is depends


def test_the_share_is_a_probability_per_position_common_to_all_channels():
    loss = MGDLoss(3, 3, lambda_mgd=0.65).double()
    s, t = logits(4, 3, 64, 64).requires_grad_(), logits(4, 3, 64, 64, seed=1)
    torch.manual_seed(0)
    loss(s, t).backward()
    masked = s.grad == 0
    assert torch.equal(masked.all(1), masked.any(1))
    assert masked.double().mean().item() == pytest.approx(0.65, abs=0.02)


def test_its_weights_are_trained_and_the_teacher_is_not():
    loss = MGDLoss(2, 3)
    s = torch.randn(2, 2, 4, 4, requires_grad=True)
    t = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss(s, t).backward()
    assert t.grad is None
    assert all(p.grad is not None for p in loss.parameters())


def test_half_precision_features_meet_full_precision_weights():
    loss = MGDLoss(2, 3)
    s = torch.randn(2, 2, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    value = loss(s, torch.randn(2, 3, 4, 4, dtype=torch.bfloat16))
    value.backward()
    assert value.dtype == torch.float32
    assert s.grad.dtype == torch.bfloat16


def test_runs_under_autocast():
    loss = MGDLoss(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(torch.randn(2, 2, 4, 4), torch.randn(2, 3, 4, 4))
    assert value.dtype == torch.float32


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((2, 5, 4, 4), (2, 3, 4, 4), r"the student's features .* \(batch, 2, height, width\)"),
        ((2, 2, 4, 4), (2, 2, 4, 4), r"the teacher's features .* \(batch, 3, height, width\)"),
        ((2, 2), (2, 3), "the student's features"),
        ((2, 2, 4, 4), (2, 3, 8, 8), "differ in batch, height or width"),
        ((1, 2, 4, 4), (2, 3, 4, 4), "differ in batch, height or width"),
    ],
)
def test_shapes_that_do_not_fit_are_named(student, teacher, message):
    with pytest.raises(ShapeError, match=message):
        MGDLoss(2, 3)(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_student_channels": 0}, "num_student_channels must be .* at least 1"),
        ({"num_teacher_channels": 2.5}, "num_teacher_channels must be an integer"),
        ({"alpha_mgd": -1}, "alpha_mgd"),
        ({"lambda_mgd": 1.5}, "lambda_mgd must be .* at most 1"),
    ],
)
def test_options_that_make_no_sense_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        MGDLoss(**{"num_student_channels": 2, "num_teacher_channels": 3, **options})
