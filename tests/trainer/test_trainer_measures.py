"""What a trainer's evaluations say of a student and its teacher, and where it is written."""

import json

import pytest
import torch
from torch import nn
from trainer_kit import Net, distilled, images, loaders, make, trained

from distillation.dashboard.catalogue import Catalogue
from distillation.dashboard.transfer import transfer
from distillation.data import TensorLoader, digits
from distillation.models import DigitsLargeModel, DigitsSmallModel
from distillation.references import noted_run
from distillation.trainer import Callback, KDTrainer, Trainer


def written(trainer):
    return json.loads((trainer.run.path / "evaluation.json").read_text())


def logits(model):
    _, test = loaders()
    batch = next(iter(test))
    with torch.no_grad():
        return model.eval()(batch.images).double(), batch.labels


def logits_accuracy(model):
    found, labels = logits(model)
    return (found.argmax(1) == labels).double().mean().item()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A teacher that was trained here, and a student of two epochs."""
    root = tmp_path_factory.mktemp("runs")
    teacher = make(width=32, seed=1)
    first = trained(root, teacher, max_epochs=3)
    return first, distilled(root, teacher=teacher, max_epochs=2), teacher


def test_what_is_written_is_what_the_models_say(pair):
    _, student, teacher = pair
    (mine, labels), (theirs, _) = logits(student.net.student), logits(teacher)
    told = written(student)
    agreeing = (mine.argmax(1) == theirs.argmax(1)).double().mean().item()
    assert told["agreement"] == pytest.approx(agreeing)
    kl = (theirs.softmax(1) * (theirs.log_softmax(1) - mine.log_softmax(1))).sum(1).mean().item()
    assert told["kl"] == pytest.approx(kl, rel=1e-4)
    assert told["accuracy"] == pytest.approx((mine.argmax(1) == labels).double().mean().item())
    assert sum(map(sum, told["confusion"])) == told["images"] == 64
    assert told["classes"] == [str(digit) for digit in range(10)]
    assert (told["split"], told["epoch"], told["step"]) == ("valid", 2, 256)


def test_each_epoch_has_its_measures_among_the_metrics(pair):
    _, student, _ = pair
    for name in ("ece", "agreement", "kl"):
        steps, values = student.run.curve(f"{name}.valid")
        assert steps == [128, 256]
        assert values[-1] == pytest.approx(written(student)[name])


def test_a_teacher_that_guesses_is_warned_of_once(tmp_path):
    train, test = (TensorLoader(part, 120) for part in digits())
    trainer = KDTrainer("student", ckpt_root_dir=tmp_path)
    with pytest.warns(UserWarning, match="chance is 10.0%: is it trained") as caught:
        trainer.train(
            student=DigitsSmallModel(),
            teacher=DigitsLargeModel(),
            training_params={"max_epochs": 2, "initial_lr": 0.01, "silent_mode": True},
            train_loader=train,
            valid_loader=test,
        )
    assert len([w for w in caught if "chance" in str(w.message)]) == 1


def test_a_teacher_that_is_trained_is_not_warned_of(tmp_path, recwarn):
    train, test = (TensorLoader(part, 120) for part in digits())
    params = {"max_epochs": 2, "initial_lr": 0.05, "silent_mode": True}
    teacher = DigitsLargeModel()
    Trainer("teacher", tmp_path).train(teacher, params, train_loader=train, valid_loader=test)
    trainer = KDTrainer("student", ckpt_root_dir=tmp_path)
    models = {"student": DigitsSmallModel(), "teacher": teacher}
    trainer.train(**models, training_params=params, train_loader=train, valid_loader=test)
    assert not [w for w in recwarn if "chance" in str(w.message)]
    assert written(trainer)["teacher_accuracy"] > 0.5


def test_a_plain_training_has_no_measures_of_a_teacher(pair):
    first, _, _ = pair
    assert written(first)["agreement"] is None
    assert "ece.valid" in first.results
    assert "kl.valid" not in first.results


def test_a_teacher_that_was_trained_here_is_the_students_parent(pair):
    first, student, _ = pair
    assert student.run.parent_uuid == first.run.uuid


def test_the_dashboard_compares_student_and_teacher(pair):
    first, student, _ = pair
    listing = Catalogue(first.run.path.parent.parent).listing()
    told = transfer(listing, [listing.entries[student.run.uuid]])
    assert [(run["uuid"], run["role"]) for run in told["runs"]] == [
        (first.run.uuid, "teacher"),
        (student.run.uuid, "distilled"),
    ]
    assert all(run["evaluation"] for run in told["runs"])


def test_a_teacher_that_was_trained_on_by_hand_has_no_run(tmp_path):
    teacher = make(width=32, seed=1)
    trained(tmp_path, teacher)
    with torch.no_grad():
        teacher.classifier.bias.add_(1.0)
    assert distilled(tmp_path, teacher=teacher).run.parent_uuid is None


def test_the_classes_have_the_names_of_a_dataset(tmp_path):
    class Named(torch.utils.data.TensorDataset):
        classes = [f"digit {i}" for i in range(10)]

    _, test = images()
    pixels = test.images.float().div(255)
    named = Named(pixels, test.labels)
    train, _ = loaders()
    valid = torch.utils.data.DataLoader(torch.utils.data.Subset(named, range(32)), 16)
    trainer = Trainer("named", tmp_path)
    trainer.train(make(), {"max_epochs": 1, "silent_mode": True}, train, valid)
    assert written(trainer)["classes"] == Named.classes


def test_samples_that_the_loss_ignores_are_left_out(tmp_path):
    _, test = images()
    labels = test.labels.clone()
    labels[:24] = -100
    ignoring = torch.utils.data.TensorDataset(test.images.float().div(255), labels)
    trainer = Trainer("ignoring", tmp_path)
    trainer.train(
        make(),
        {"max_epochs": 1, "silent_mode": True},
        loaders()[0],
        torch.utils.data.DataLoader(ignoring, 32),
    )
    assert written(trainer)["images"] == 40


class Pixels(nn.Module):
    """An autoencoder's output: no classes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x):
        return self.layer(x.flatten(1))


def test_outputs_of_another_kind_are_trained_and_not_measured(tmp_path):
    pixels = images()[0].images.float().div(255)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(pixels, pixels.flatten(1)), 32
    )
    trainer = Trainer("pixels", tmp_path)
    params = {"max_epochs": 1, "silent_mode": True, "loss": nn.MSELoss()}
    results = trainer.train(Pixels(), params, loader, loader)
    assert "loss.valid" in results
    assert not any(name.startswith(("ece", "kl", "agreement")) for name in results)
    assert not (trainer.run.path / "evaluation.json").exists()


def test_a_teacher_of_other_outputs_is_not_compared(tmp_path):
    class First(nn.Module):
        """Learns from the first ten of the teacher's outputs."""

        def forward(self, output, target):
            mine, theirs = output
            return nn.functional.mse_loss(mine, theirs.flatten(1)[:, :10])

    class Rows(Net):
        def forward(self, x):
            return super().forward(x)[:, None].expand(-1, 2, -1)

    train, test = loaders()
    trainer = KDTrainer("rows", tmp_path)
    trainer.train(
        student=make(),
        teacher=make(Rows, seed=1),
        training_params={"max_epochs": 1, "silent_mode": True, "loss": First()},
        train_loader=train,
        valid_loader=test,
    )
    told = written(trainer)
    assert told["agreement"] is None and told["kl"] is None
    assert told["images"] == 64


def test_the_users_own_metric_of_that_name_stays(tmp_path):
    import torchmetrics

    class Ece(torchmetrics.MeanMetric):
        def update(self, output, target):
            super().update(torch.tensor(0.25))

    trainer = trained(tmp_path, valid_metrics_list=[Ece()])
    assert trainer.results["ece.valid"] == 0.25


def test_the_average_of_the_best_epochs_does_not_take_the_last_ones_place(tmp_path):
    trainer = trained(tmp_path, max_epochs=3, average_best_models=2)
    told = written(trainer)
    assert told["epoch"] == 3
    assert told["accuracy"] == pytest.approx(logits_accuracy(trainer.net))
    assert not any("ece.average" in name for name in trainer.results)


def test_of_a_run_with_averaged_weights_these_are_the_teacher(tmp_path):
    teacher = make(width=32, seed=1)
    first = trained(tmp_path, teacher, ema=True)
    assert distilled(tmp_path, teacher=teacher).run.parent_uuid is None
    student = distilled(tmp_path, teacher=first.ema_model)
    assert student.run.parent_uuid == first.run.uuid


def test_a_training_that_was_broken_off_leaves_weights_of_no_run(tmp_path):
    class Breaks(Callback):
        def on_train_loader_end(self, context):
            raise RuntimeError("broken off")

    teacher = make(width=32, seed=1)
    trained(tmp_path, teacher)
    with pytest.raises(RuntimeError, match="broken off"):
        trained(tmp_path, teacher, phase_callbacks=[Breaks()])
    assert noted_run(teacher) is None


def test_two_splits_are_measured_and_the_watched_one_is_written(tmp_path):
    train, test = loaders()
    few = TensorLoader(images()[1].subset(16, seed=0), 16, shuffle=False)
    trainer = Trainer("two", tmp_path)
    params = {"max_epochs": 1, "silent_mode": True}
    trainer.train(make(), params, train, {"few": few, "all": test})
    assert {"ece.few", "ece.all"} <= set(trainer.results)
    assert (written(trainer)["split"], written(trainer)["images"]) == ("few", 16)
