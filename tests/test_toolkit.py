"""The toolkit door: `KnowledgeDistillationTraining`."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from toolkit_kit import (
    Accuracy,
    after,
    datasets,
    net,
    train_loader,
    training,
    valid_loader,
    weights,
)
from torch import nn

from distillation import runs
from distillation.errors import ConfigError, TeacherError
from distillation.hooks import Hooks
from distillation.kd_module import KDOutput
from distillation.toolkit_models import ToolkitLoss


def test_the_example_of_the_toolkit(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILLATION_RUNS", str(tmp_path))
    train_dataset, val_dataset = datasets()
    from distillation import KnowledgeDistillationTraining

    class TeacherModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net(32, seed=1)

        def forward(self, x):
            return self.net(x)

    class StudentModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x)

    teacher_model = TeacherModel()
    student_model = StudentModel()

    class InferencePipeline:
        def __init__(self):
            pass

        def run_inference_pipeline(self, model, data_loader):
            accuracy = 0
            for x, y in data_loader:
                accuracy += (model(x).argmax(1) == y).float().mean().item() / len(data_loader)
            return {"inference_result": accuracy}

    train_data_loader = torch.utils.data.DataLoader(train_dataset, batch_size=64)
    val_data_loaders = {"validation": torch.utils.data.DataLoader(val_dataset, batch_size=40)}

    training_config = {
        "num_gpu_used": 1,
        "max_epoch": 100,
        "temperature": 2,
        "optimize_method": "adam",
        "scheduler_method": "cosine_anneal",
        "learning_rate": 0.001,
        "num_lr_warm_up_epoch": 5,
        "final_loss_coeff_dict": {"kd_loss": 0.5, "ce_loss": 0.5},
    }

    with pytest.warns(UserWarning, match="num_gpu_used=1, but no GPU is here; training on the CPU"):
        kd_training = KnowledgeDistillationTraining(
            train_data_loader=train_data_loader,
            val_data_loaders=val_data_loaders,
            inference_pipeline=InferencePipeline(),
            student_model=student_model,
            teacher_model=teacher_model,
            **training_config,
        )
    kd_training.start_kd_training()

    results = kd_training.results["validation"]
    assert len(results) == 100
    assert max(results[-10:]) > results[0]
    assert kd_training.get_student_model() is student_model


class StopAfterOneEpoch(Hooks):
    def on_epoch_end(self, engine, metrics):
        engine.stop_training = True


def test_the_case_study_of_the_toolkit(tmp_path, monkeypatch):
    # Data and the teacher's weights apart; it is stopped after the first of its 100 epochs
    monkeypatch.setenv("DISTILLATION_RUNS", str(tmp_path))
    images = torch.utils.data.TensorDataset(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
    train_loader = val_loader = torch.utils.data.DataLoader(images, batch_size=2)
    import distillation.torchvision_guard  # noqa: F401
    from distillation import KnowledgeDistillationTraining

    import torchvision.models as models  # isort: skip

    teacher_model = models.resnet50(pretrained=False)
    student_model = models.resnet18(pretrained=False)

    class ImageNetInferencePipeline:
        def __init__(self):
            self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

        def run_inference_pipeline(self, model, data_loader):
            model.eval()
            correct = 0
            total = 0
            with torch.no_grad():
                for images, labels in data_loader:
                    images, labels = images.to(self.device), labels.to(self.device)
                    outputs = model(images)
                    _, predicted = outputs.max(1)
                    total += labels.size(0)
                    correct += predicted.eq(labels).sum().item()
            accuracy = correct / total
            return {"inference_result": accuracy}

    training_config = {
        "num_gpu_used": 1,
        "max_epoch": 100,
        "temperature": 4,
        "optimize_method": "adam",
        "scheduler_method": "cosine_anneal",
        "learning_rate": 0.001,
        "num_lr_warm_up_epoch": 5,
        "final_loss_coeff_dict": {"kd_loss": 0.7, "ce_loss": 0.3},
        "log_to_comet": True,
        "comet_exp_name": "ResNet50_to_ResNet18_distillation",
    }
    with pytest.warns(UserWarning) as caught:
        kd_training = KnowledgeDistillationTraining(
            train_data_loader=train_loader,
            val_data_loaders={"imagenet_val": val_loader},
            inference_pipeline=ImageNetInferencePipeline(),
            student_model=student_model,
            teacher_model=teacher_model,
            **training_config,
        )
        kd_training.trainer.hooks.append(StopAfterOneEpoch())
        kd_training.start_kd_training()
    assert any("log_to_comet: there is no file ''" in str(w.message) for w in caught)
    assert kd_training.run.comment == "ResNet50_to_ResNet18_distillation"
    assert len(kd_training.results["imagenet_val"]) == 1


# The losses


def test_the_loss_is_the_weighted_sum_of_distillation_and_cross_entropy(tmp_path):
    student, teacher = net().eval(), net(32, seed=1)
    student[2].p = 0.0
    x, y = datasets()[0].tensors
    with torch.no_grad():
        s, t = student(x), teacher.eval()(x)
        kd = F.kl_div(F.log_softmax(s / 3, -1), F.softmax(t / 3, -1), reduction="batchmean") * 9
        expected = {"kd_loss": kd, "ce_loss": F.cross_entropy(s, y)}
        expected["cos_embed_loss"] = 1 - F.cosine_similarity(s, t, dim=-1).mean()
    started = training(
        tmp_path,
        student,
        teacher,
        train_data_loader=train_loader(64),
        max_epoch=1,
        temperature=3,
        final_loss_coeff_dict={"kd_loss": 0.6, "ce_loss": 0.3, "cos_embed_loss": 0.2},
    )
    started.start_kd_training()
    row = started.run.summary
    for name, value in expected.items():
        assert row[f"loss.{name}.train"] == pytest.approx(value.item(), rel=1e-5)
    total = 0.6 * expected["kd_loss"] + 0.3 * expected["ce_loss"] + 0.2 * expected["cos_embed_loss"]
    assert row["loss.train"] == pytest.approx(total.item(), rel=1e-5)


def test_the_classes_of_a_sequence_without_targets_for_them_are_its_last_dimension():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 7, 5).double()
    loss = ToolkitLoss({"kd_loss": 1.0, "cos_embed_loss": 1.0}, 2.0)
    _, items = loss(KDOutput(student, teacher), None)
    q, p = (student / 2).softmax(-1), (teacher / 2).softmax(-1)
    assert float(items[1]) == pytest.approx(float(4 * (p * (p / q).log()).sum() / (2 * 7)))
    expected = 1 - F.cosine_similarity(student, teacher, dim=-1).mean()
    assert float(items[2]) == pytest.approx(float(expected))


def test_the_classes_of_a_map_are_its_second_dimension():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 4, 5).double()
    target = torch.randint(3, (2, 4, 5))
    weights = {"kd_loss": 1.0, "ce_loss": 1.0, "cos_embed_loss": 1.0}
    _, items = ToolkitLoss(weights, 2.0)(KDOutput(student, teacher), target)
    q, p = (student / 2).softmax(1), (teacher / 2).softmax(1)
    rows = 2 * 4 * 5
    kl = 4 * (p * (p / q).log()).sum() / rows
    cosines = (student * teacher).sum(1) / (student.norm(dim=1) * teacher.norm(dim=1))
    expected = torch.stack([kl, F.cross_entropy(student, target), (1 - cosines).mean()])
    torch.testing.assert_close(items[1:].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["kd_los", "celoss", "cosine_embed_loss"])
def test_a_misspelt_coefficient_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=f"final_loss_coeff_dict: '{name}'; did you mean"):
        training(tmp_path, final_loss_coeff_dict={name: 1.0})


@pytest.mark.parametrize("coefficients", [{}, {"kd_loss": "1"}, {"kd_loss": math.nan}])
def test_coefficients_are_numbers(tmp_path, coefficients):
    with pytest.raises(ConfigError, match="final_loss_coeff_dict"):
        training(tmp_path, final_loss_coeff_dict=coefficients)


def test_without_labels_cross_entropy_is_refused(tmp_path):
    images = torch.utils.data.DataLoader(datasets()[0].tensors[0], batch_size=16)
    with pytest.raises(ConfigError, match="ce_loss needs a target"):
        training(tmp_path, train_data_loader=images).start_kd_training()
    after(tmp_path, train_data_loader=images, final_loss_coeff_dict={"kd_loss": 1.0})


# The inference pipeline


def test_every_validation_loader_is_run_once_an_epoch_in_evaluation_mode(tmp_path):
    pipeline = Accuracy()
    loaders = {"validation": valid_loader(), "train_again": train_loader()}
    started = training(tmp_path, val_data_loaders=loaders, inference_pipeline=pipeline, max_epoch=3)
    results = started.start_kd_training()
    assert pipeline.calls == [(False, False, 40), (False, False, 64)] * 3
    assert {name: len(values) for name, values in results.items()} == {
        "validation": 3,
        "train_again": 3,
    }
    assert started.run.curve("inference_result.validation")[1] == results["validation"]
    assert started.student_model.training


def test_the_pipeline_does_not_change_the_training(tmp_path):
    class Random(Accuracy):
        def run_inference_pipeline(self, model, data_loader):
            torch.rand(7)
            return super().run_inference_pipeline(model, data_loader)

    loaders = {"shuffled": train_loader()}
    plain = after(tmp_path)
    watched = after(tmp_path, val_data_loaders=loaders, inference_pipeline=Random())
    assert torch.equal(plain, watched)


@pytest.mark.parametrize(
    ("pipeline", "match"),
    [
        (None, "need an inference_pipeline"),
        (object(), "object has none"),
    ],
)
def test_validation_loaders_need_a_pipeline(tmp_path, pipeline, match):
    with pytest.raises(ConfigError, match=match):
        training(tmp_path, val_data_loaders={"v": valid_loader()}, inference_pipeline=pipeline)


def test_a_pipeline_must_return_an_inference_result(tmp_path):
    class Wrong:
        def run_inference_pipeline(self, model, data_loader):
            return {"accuracy": 1.0}

    started = training(tmp_path, val_data_loaders={"v": valid_loader()}, inference_pipeline=Wrong())
    with pytest.raises(ConfigError, match=r"Wrong.run_inference_pipeline must return .*accuracy"):
        started.start_kd_training()


def test_a_single_validation_loader_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"val_data_loaders must be a dict .* not DataLoader"):
        training(tmp_path, val_data_loaders=valid_loader(), inference_pipeline=Accuracy())


# What is given


def test_an_unknown_argument_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'max_epochs'; did you mean 'max_epoch'"):
        training(tmp_path, max_epochs=3)


@pytest.mark.parametrize("name", ["student_model", "teacher_model", "train_data_loader"])
def test_what_is_missing_is_named(tmp_path, name):
    given = training(tmp_path)
    parts = {
        "train_data_loader": given.train_data_loader,
        "student_model": given.student_model,
        "teacher_model": given.teacher_model,
    }
    with pytest.raises(ConfigError, match=f"{name} is missing"):
        type(given)(**{**parts, name: None})


def test_a_teacher_that_is_the_student_is_refused(tmp_path):
    student = net()
    with pytest.raises(TeacherError):
        training(tmp_path, student, student).start_kd_training()


def test_the_teacher_comes_back_as_it_was(tmp_path):
    teacher = nn.Sequential(net(32, seed=1), nn.BatchNorm1d(10)).train()
    before = copy.deepcopy(teacher.state_dict())
    after(tmp_path, teacher=teacher)
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    assert teacher.training
    assert all(p.requires_grad for p in teacher.parameters())


def test_the_run_is_recorded_with_its_best_checkpoint(tmp_path):
    started = training(tmp_path, max_epoch=3)
    started.start_kd_training()
    (run,) = runs.list(tmp_path)
    best = torch.load(run.path / "ckpt" / "ckpt_best.pth", weights_only=True)["net"]
    losses = run.curve("loss.train")[1]
    assert run.status == "completed"
    assert run.best_step == 64 * (1 + losses.index(min(losses)))
    assert best.keys() == started.student_model.state_dict().keys()


def test_a_run_is_a_teacher(tmp_path):
    from distillation import models

    with runs.create("large", root=tmp_path) as recorder:
        teacher = models.get("digits_small_model")
        recorder.update(model={"target": "distillation.models.digits:DigitsSmallModel"})
        recorder.save_checkpoint(1, {"model": teacher.state_dict()}, {})
    images = torch.utils.data.TensorDataset(torch.randn(8, 1, 8, 8), torch.arange(8))
    started = training(
        tmp_path,
        models.get("digits_small_model"),
        recorder.uuid,
        train_data_loader=torch.utils.data.DataLoader(images, batch_size=4),
    )
    started.start_kd_training()
    assert started.run.parent_uuid == recorder.uuid


def test_the_student_learns_in_place(tmp_path):
    student = net()
    before = weights(student)
    after(tmp_path, student=student)
    assert not torch.equal(weights(student), before)
