"""Several teachers as one: means of probabilities and of logits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distillation.errors import ConfigError, ShapeError, TeacherError
from distillation.teacher import EnsembleTeacher, FrozenTeacher, TeacherSource, as_teacher


class Fixed(TeacherSource):
    """Logits that are looked up by sample, as a table of outputs would give them."""

    fingerprint = "f" * 64

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, *args, sample=None, view=None, **kwargs):
        return self.logits if sample is None else self.logits[sample]


def logits(seed, shape=(6, 4), dtype=torch.float64):
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


A, B, C = logits(1), logits(2), logits(3)


def test_the_mean_of_probabilities_is_given_as_log_probabilities():
    y = EnsembleTeacher([Fixed(A), Fixed(B), Fixed(C)], [1, 2, 5])()
    wanted = (A.softmax(-1) + 2 * B.softmax(-1) + 5 * C.softmax(-1)) / 8
    torch.testing.assert_close(y.exp(), wanted)


def test_at_a_temperature_the_softened_probabilities_are_averaged():
    y = EnsembleTeacher([Fixed(A), Fixed(B)], temperature=4.0)()
    wanted = ((A / 4).softmax(-1) + (B / 4).softmax(-1)) / 2
    torch.testing.assert_close((y / 4).softmax(-1), wanted)


def test_the_mean_of_logits():
    y = EnsembleTeacher([Fixed(A), Fixed(B)], [3, 1], "logits")()
    torch.testing.assert_close(y, 0.75 * A + 0.25 * B)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5))
def test_weights_are_normalised_whatever_their_scale(weights):
    teachers = [Fixed(logits(seed)) for seed in range(len(weights))]
    ensemble = EnsembleTeacher(teachers, weights)
    assert math.isclose(math.fsum(ensemble.weights), 1.0)
    torch.testing.assert_close(ensemble().exp().sum(-1), torch.ones(6, dtype=torch.float64))
    scaled = EnsembleTeacher(teachers, [7 * w for w in weights])
    torch.testing.assert_close(scaled(), ensemble())


def test_one_teacher_is_its_own_ensemble():
    y = EnsembleTeacher([Fixed(A)])()
    torch.testing.assert_close(y, A.log_softmax(-1))


def test_classes_masked_by_every_teacher_stay_masked_without_nan():
    masked = [z.clone() for z in (A, B)]
    for z in masked:
        z[:, 0] = -math.inf
    y = EnsembleTeacher([Fixed(z) for z in masked])()
    assert torch.isneginf(y[:, 0]).all() and not y.isnan().any()


def test_the_class_dimension_of_dense_prediction():
    one, two = logits(1, (2, 4, 3, 3)), logits(2, (2, 4, 3, 3))
    y = EnsembleTeacher([Fixed(one), Fixed(two)], dim=1)()
    torch.testing.assert_close(y.exp(), (one.softmax(1) + two.softmax(1)) / 2)


def test_half_precision_is_averaged_in_single():
    y = EnsembleTeacher([Fixed(A.half()), Fixed(B.bfloat16())])()
    assert y.dtype is torch.float32


def test_structured_outputs_take_a_selector():
    class Pair(Fixed):
        def __call__(self, *args, **kwargs):
            return {"logits": self.logits, "hidden": self.logits}

    y = EnsembleTeacher([Pair(A), Pair(B)], average="logits", select="logits")()
    torch.testing.assert_close(y, (A + B) / 2)
    with pytest.raises(ConfigError, match=r"output of teacher 0.*choices"):
        EnsembleTeacher([Pair(A), Pair(B)])()


def test_class_counts_that_differ_are_named():
    with pytest.raises(ShapeError, match=r"teacher 0: \(6, 4\), teacher 1: \(6, 5\)"):
        EnsembleTeacher([Fixed(A), Fixed(logits(1, (6, 5)))])()
    with pytest.raises(ShapeError, match="int64"):
        EnsembleTeacher([Fixed(torch.zeros(2, 3, dtype=torch.int64))])()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1]}, "1 weights for 2 teachers"),
        ({"weights": [1, -1]}, "positive"),
        ({"weights": [1, 0]}, "leave a teacher out"),
        ({"weights": [1, math.nan]}, "finite"),
        ({"weights": [1, math.inf]}, "finite"),
        ({"average": "probability"}, "did you mean 'probabilities'"),
        ({"temperature": 0}, "positive"),
        ({"temperature": 2, "average": "logits"}, "does not depend on a temperature"),
    ],
)
def test_wrong_options_are_refused_and_release_everything(options, message):
    model = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=message):
        EnsembleTeacher([model, Fixed(A)], **options)
    assert model.training and model.weight.requires_grad


def test_members_are_frozen_and_given_back():
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    ensemble = EnsembleTeacher([first, FrozenTeacher(second)])
    assert not ensemble(torch.ones(1, 3)).requires_grad
    assert not first.training and not second.training
    ensemble.release()
    assert first.training and second.training
    with pytest.raises(TeacherError, match="released"):
        ensemble(torch.ones(1, 3))
    with pytest.raises(TeacherError, match="released"):
        _ = ensemble.fingerprint


def test_a_shared_ensemble_outlives_the_first_release():
    model = nn.Linear(3, 2)
    one = EnsembleTeacher([model], temperature=3.0)
    two = as_teacher(one)
    one.release()
    assert two.temperature == 3.0 and not model.training
    two.release()
    assert model.training


def test_layers_of_members_have_numbered_names():
    ensemble = EnsembleTeacher([nn.Sequential(nn.Linear(3, 2)), nn.Linear(3, 2)])
    names = dict(ensemble.module.named_modules())
    assert {"0.0", "1"} <= set(names)
    assert EnsembleTeacher([nn.Linear(3, 2), Fixed(A)]).module is None


def test_an_error_in_a_later_member_gives_the_earlier_ones_back():
    model = nn.Linear(3, 2)
    with pytest.raises(ConfigError, match=r"takes an nn\.Module"):
        EnsembleTeacher([model, "not a teacher"])
    assert model.training


def test_the_fingerprint_tells_members_weights_and_average_apart():
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    prints = {
        EnsembleTeacher(members, weights, average).fingerprint
        for members in ([one, two], [two, one], [one, one])
        for weights in ([1, 1], [1, 2])
        for average in ("probabilities", "logits")
    }
    assert len(prints) == 12
    same = EnsembleTeacher([one, two], [2, 2]).fingerprint
    assert same == EnsembleTeacher([one, two]).fingerprint


@pytest.mark.parametrize("move", ["to", "move_like"])
def test_a_model_beside_a_table_is_moved(move):
    model = nn.Linear(3, 2)
    ensemble = EnsembleTeacher([Fixed(A), model])
    getattr(ensemble, move)(torch.float64 if move == "to" else torch.Tensor.double)
    assert model.weight.dtype is torch.float64


def test_casts_modes_and_samples_reach_every_member():
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    ensemble = EnsembleTeacher([FrozenTeacher(one, mode="follow"), two])
    ensemble.train_with(True).double()
    assert one.training and not two.training
    assert one.weight.dtype is two.weight.dtype is torch.float64
    picked = EnsembleTeacher([Fixed(A), Fixed(B)], average="logits")(sample=torch.tensor([2]))
    torch.testing.assert_close(picked, (A + B)[2:3] / 2)


def test_maps_and_sequences_need_to_say_where_the_classes_are():
    maps = logits(4, (2, 5, 3, 3))
    for teacher in (EnsembleTeacher([Fixed(maps)]), EnsembleTeacher([Fixed(maps[..., 0])])):
        with pytest.raises(ShapeError, match=r"dim=1\) for maps .* dim=-1 for sequences"):
            teacher()
    torch.testing.assert_close(EnsembleTeacher([Fixed(maps)], dim=1)().softmax(1), maps.softmax(1))
    assert torch.equal(EnsembleTeacher([Fixed(maps)], average="logits")(), maps)
