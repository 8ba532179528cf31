"""The toolkit's dict contract: models that take whole batches and `temperature=`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from toolkit_kit import Accuracy, datasets, net, train_loader, training, valid_loader, weights
from torch import nn

from distillation.errors import ConfigError


class Contract(nn.Module):
    """As the toolkit's examples have it."""

    def __init__(self, inner, own=()):
        super().__init__()
        self.inner, self.own = inner, own
        self.temperatures = []

    def forward(self, x, y=None, temperature=1):
        self.temperatures.append(temperature)
        logits = self.inner(x) / temperature
        output = {
            "logits": logits,
            "prob": F.softmax(logits, dim=-1),
            "log_prob": F.log_softmax(logits, dim=-1),
        }
        if self.own:
            output["loss"] = {name: logits.square().mean() for name in self.own}
        return output


class Named(Contract):
    """Takes the keys of a dict batch."""

    def forward(self, pixels, labels, temperature):
        return super().forward(pixels, labels, temperature)


class Whole(Contract):
    """Takes a dict batch in one piece."""

    def forward(self, batch, temperature):
        return super().forward(batch["pixels"], batch["labels"], temperature)


def quiet(width=16, seed=0):
    """Without dropout, so that two trainings draw nothing."""
    made = net(width, seed)
    made[2].p = 0.0
    return made


def as_dict(items):
    x, y = torch.utils.data.default_collate(items)
    return {"pixels": x, "labels": y}


OPTIONS = {"temperature": 4, "optimize_method": "sgd", "learning_rate": 0.1}


def trained(root, student, teacher, **options):
    training(root, student, teacher, **{**OPTIONS, **options}).start_kd_training()
    return weights(student)


@pytest.mark.parametrize("kinds", ["both", "student", "teacher"])
def test_models_of_the_contract_learn_what_plain_ones_learn(tmp_path, kinds):
    plain = trained(tmp_path, quiet(), quiet(32, seed=1))
    student, teacher = quiet(), quiet(32, seed=1)
    one = Contract(student) if kinds != "teacher" else student
    other = Contract(teacher) if kinds != "student" else teacher
    torch.testing.assert_close(trained(tmp_path, one, other), plain, rtol=1e-5, atol=1e-6)


def test_the_temperature_reaches_both_models(tmp_path):
    student, teacher = Contract(quiet()), Contract(quiet(32, seed=1))
    trained(tmp_path, student, teacher)
    assert set(student.temperatures) == set(teacher.temperatures) == {4.0}


@pytest.mark.parametrize("kind", [Named, Whole])
def test_a_dict_batch_reaches_the_models(tmp_path, kind):
    plain = trained(tmp_path, quiet(), quiet(32, seed=1))
    student = kind(quiet())
    loader = train_loader(collate_fn=as_dict)
    teacher = kind(quiet(32, seed=1))
    learned = trained(tmp_path, student, teacher, train_data_loader=loader)
    torch.testing.assert_close(learned, plain, rtol=1e-5, atol=1e-6)


def test_cross_entropy_is_taken_on_logits_that_are_not_divided(tmp_path):
    student = Contract(quiet())
    x, y = datasets()[0].tensors
    expected = F.cross_entropy(student.inner(x), y).item()
    started = training(
        tmp_path,
        student,
        Contract(quiet(32, seed=1)),
        train_data_loader=train_loader(64),
        max_epoch=1,
        temperature=4,
        final_loss_coeff_dict={"ce_loss": 1.0},
    )
    started.start_kd_training()
    assert started.run.summary["loss.ce_loss.train"] == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_the_student_returns_has_a_coefficient(tmp_path):
    student = Contract(quiet(), own=["size_loss"])
    started = training(
        tmp_path,
        student,
        Contract(quiet(32, seed=1)),
        train_data_loader=train_loader(64),
        max_epoch=1,
        final_loss_coeff_dict={"kd_loss": 1.0, "size_loss": 0.5},
    )
    x, _ = datasets()[0].tensors
    expected = student.inner(x).square().mean().item()
    started.start_kd_training()
    row = started.run.summary
    assert row["loss.size_loss.train"] == pytest.approx(expected, rel=1e-5)
    total = row["loss.kd_loss.train"] + 0.5 * expected
    assert row["loss.train"] == pytest.approx(total, rel=1e-5)


def test_the_students_own_cross_entropy_goes_before_ours(tmp_path):
    student = Contract(quiet(), own=["ce_loss"])
    started = training(
        tmp_path,
        student,
        Contract(quiet(32, seed=1)),
        train_data_loader=train_loader(64),
        max_epoch=1,
        final_loss_coeff_dict={"ce_loss": 1.0},
    )
    x, _ = datasets()[0].tensors
    expected = student.inner(x).square().mean().item()
    started.start_kd_training()
    assert started.run.summary["loss.ce_loss.train"] == pytest.approx(expected, rel=1e-5)


def test_a_coefficient_of_no_loss_is_refused_at_the_first_batch(tmp_path):
    student = Contract(quiet(), own=["size_loss"])
    before = weights(student)
    started = training(
        tmp_path,
        student,
        Contract(quiet(32, seed=1)),
        final_loss_coeff_dict={"kd_loss": 1.0, "sise_loss": 0.5},
    )
    with pytest.raises(ConfigError, match="'sise_loss'; did you mean 'size_loss'"):
        started.start_kd_training()
    assert torch.equal(weights(student), before)


def test_an_output_without_logits_is_refused(tmp_path):
    class Empty(Contract):
        def forward(self, x, y=None, temperature=1):
            return {"hidden": super().forward(x, y, temperature)["logits"]}

    started = training(tmp_path, Empty(quiet()), quiet(32, seed=1))
    with pytest.raises(ConfigError, match=r"student returned a dict without logits.*hidden"):
        started.start_kd_training()


def test_tempered_logits_beside_logits_are_taken_as_such(tmp_path):
    class Both(Contract):
        def forward(self, x, y=None, temperature=1):
            logits = self.inner(x)
            return {"logits": logits, "tempered_logits": logits / temperature}

    plain = trained(tmp_path, quiet(), quiet(32, seed=1))
    learned = trained(tmp_path, Both(quiet()), Both(quiet(32, seed=1)))
    torch.testing.assert_close(learned, plain, rtol=1e-5, atol=1e-6)


def test_the_pipeline_gets_the_student_itself(tmp_path):
    class Prob(Accuracy):
        def run_inference_pipeline(self, model, data_loader):
            hits = sum((model(x)["prob"].argmax(1) == y).sum().item() for x, y in data_loader)
            return {"inference_result": hits / len(data_loader.dataset)}

    started = training(
        tmp_path,
        Contract(quiet()),
        quiet(32, seed=1),
        val_data_loaders={"v": valid_loader()},
        inference_pipeline=Prob(),
    )
    assert len(started.start_kd_training()["v"]) == 2


class Undivided(Contract):
    """Softened probabilities beside logits that are not."""

    def forward(self, x, y=None, temperature=1):
        logits = self.inner(x)
        log_prob = F.log_softmax(logits / temperature, dim=-1)
        return {"logits": logits, "log_prob": log_prob, "prob": log_prob.exp()}


@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_logits_that_the_probabilities_contradict_are_an_error(tmp_path, whose):
    student, teacher = Contract(quiet()), Contract(quiet(32, seed=1))
    wrong = Undivided((student if whose == "student" else teacher).inner)
    student, teacher = (wrong, teacher) if whose == "student" else (student, wrong)
    with pytest.raises(ConfigError, match=f"the {whose}'s log_prob is the softmax of logits / 4"):
        trained(tmp_path, student, teacher)
