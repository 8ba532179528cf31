"""The short storage forms, and how wrong they are: top-k is biased, sampled ids are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table_case import make_teacher

from distillation.errors import ConfigError, ShapeError, TeacherError
from distillation.losses import LogitsDistillationLoss
from distillation.table import (
    Dense,
    Sampled,
    SampledDistillationLoss,
    SampledTargets,
    TeacherTable,
    TopK,
)
from distillation.table.codecs import codec_of

CLASSES = 100


def teacher_logits(rows=1, classes=CLASSES, seed=0):
    """A long tail: a few likely classes, and much probability in many unlikely ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator) * 2.5


def keys(n, view=0):
    return np.arange(n), np.full(n, view)


def through(codec, logits, view=0):
    entries = codec.encode(logits, *keys(len(logits), view))
    assert entries.dtype == np.float16
    assert entries.shape == (len(logits), codec.width(tuple(logits.shape[1:])))
    return codec.decode(entries, tuple(logits.shape[1:]))


def test_dense_reads_back_the_half_floats():
    logits = teacher_logits(5)
    assert torch.equal(through(Dense(), logits), logits.half().float())


def test_top_k_keeps_the_k_largest_and_the_mass_of_the_rest():
    logits = teacher_logits(8)
    read = through(TopK(5), logits)
    top = logits.topk(5).indices
    assert torch.equal(read.topk(5).indices, top)
    assert torch.equal(read.gather(1, top), logits.gather(1, top).half().float())
    assert torch.allclose(read.logsumexp(1), logits.logsumexp(1), atol=2e-3)


@pytest.mark.parametrize("classes", [300, 70_000])
def test_sampled_ids_are_a_pure_function_of_seed_and_key(classes):
    logits = teacher_logits(4, classes)
    first = through(Sampled(12, seed=1), logits)
    assert torch.equal(first.ids, through(Sampled(12, seed=1), logits).ids)
    assert not torch.equal(first.ids, through(Sampled(12, seed=2), logits).ids)
    assert not torch.equal(first.ids, through(Sampled(12, seed=1), logits, view=1).ids)
    assert first.ids.shape == (4, 12)
    assert 0 <= int(first.ids.min()) <= int(first.ids.max()) < classes
    assert torch.equal(through(TopK(7), logits).topk(7).indices, logits.topk(7).indices)


def gradients(codec, loss, logits, student, draws):
    """Gradients of the student's logits over many entries of one image, [draws, classes]."""
    student = student.expand(draws, -1).clone().requires_grad_()
    targets = through(codec, logits.expand(draws, -1))
    (loss(student, targets) * draws).backward()
    return student.grad


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_sampled_targets_are_unbiased_and_top_k_is_not(temperature):
    draws, k = 20_000, 12
    logits, student = teacher_logits(), teacher_logits(seed=1)
    exact_loss = LogitsDistillationLoss(temperature=temperature)
    exact = gradients(Dense(), exact_loss, logits, student, 1)[0]

    sampled = gradients(
        Sampled(k, temperature), SampledDistillationLoss(temperature), logits, student, draws
    )
    # Each class's mean lies within five standard errors of the exact gradient.
    error = (sampled.mean(0) - exact).abs()
    assert (error <= 5 * sampled.std(0) / draws**0.5 + 2e-4).all()

    top = gradients(TopK(k), exact_loss, logits, student, 1)[0]
    assert (top - exact).norm() > 3 * (sampled.mean(0) - exact).norm()


def test_the_estimated_loss_has_the_expectation_of_the_exact_one():
    draws = 20_000
    logits, student = teacher_logits(), teacher_logits(seed=1).expand(draws, -1)
    exact = LogitsDistillationLoss(temperature=2.0)(student[:1], logits)
    targets = through(Sampled(12, temperature=2.0), logits.expand(draws, -1))
    estimate = SampledDistillationLoss(temperature=2.0)(student, targets)
    assert estimate.item() == pytest.approx(exact.item(), rel=1e-2)


@given(k=st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_sampled_probabilities_sum_to_one_and_need_k_plus_one_half_floats(k):
    targets = through(Sampled(k), teacher_logits(3))
    assert torch.allclose(targets.probabilities().sum(1), torch.ones(3))
    assert Sampled(k).width((CLASSES,)) == k + 1


def test_sampled_targets_move_as_a_whole():
    targets = through(Sampled(3), teacher_logits(2)).to(device="meta", dtype=torch.float64)
    assert targets.ids.is_meta and targets.ids.dtype is torch.int64
    assert targets.entropy.is_meta and targets.entropy.dtype is torch.float64


@pytest.mark.parametrize("codec", [Dense(), TopK(3), Sampled(5, temperature=2.0, seed=9)])
def test_a_codec_is_made_again_from_its_description(codec):
    assert codec_of(codec.describe()) == codec


def test_wrong_options_and_shapes_are_named():
    with pytest.raises(ConfigError, match="k must be greater than 0, got 0"):
        TopK(0)
    with pytest.raises(ConfigError, match="more than 10 classes, got 10"):
        TopK(10).width((10,))
    with pytest.raises(ConfigError, match=r"\[batch, 10, 4, 4\]; use Dense"):
        Sampled(3).width((10, 4, 4))
    with pytest.raises(ConfigError, match="unknown storage form 'top_k'; did you mean 'top-k'"):
        codec_of({"form": "top_k", "k": 3})


def test_the_loss_wants_sampled_targets_of_its_own_temperature():
    logits = teacher_logits(2)
    loss = SampledDistillationLoss(temperature=2.0)
    with pytest.raises(ShapeError, match=r"takes the SampledTargets .* got Tensor"):
        loss(logits, logits)
    with pytest.raises(ConfigError, match="drawn at temperature 1, the loss has 2"):
        loss(logits, through(Sampled(3), logits))
    with pytest.raises(ShapeError, match="do not fit"):
        loss(logits[:, :50], through(Sampled(3, temperature=2.0), logits))


def test_a_table_of_sampled_ids_trains_a_student(inputs, tmp_path, loader):
    batch = loader.batch(0, 0)
    student = torch.zeros(64, 10, requires_grad=True)
    with TeacherTable(make_teacher(), tmp_path, inputs, codec=Sampled(12)) as table:
        targets = table(batch.images, sample=batch.sample, view=batch.view)
        assert isinstance(targets, SampledTargets)
        SampledDistillationLoss()(student, targets).backward()
    assert student.grad.abs().sum() > 0


def test_logits_that_do_not_fit_are_refused_in_every_form():
    logits = torch.tensor([[0.0, 70000.0, 1.0, 2.0]])
    for codec in (Dense(), TopK(2), Sampled(2)):
        with pytest.raises(TeacherError, match="does not fit a half float"):
            codec.encode(logits, *keys(1))
