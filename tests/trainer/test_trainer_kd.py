"""KDTrainer: what a training with a teacher leaves behind."""

import copy

import pytest
import torch
from torch import nn
from trainer_kit import NormNet, Recorder, distilled, effect_of, loaders, make, trained, weights

from distillation import KDModule, KDTrainer, runs
from distillation.checkpoint import fingerprint
from distillation.errors import ConfigError, ShapeError, TeacherError
from distillation.losses import KDLogitsLoss, MGDLoss, StaticLossBalancer
from distillation.models.digits import DigitsSmallModel
from distillation.references import Reference, note
from distillation.trainer import Callback, Trainer


def load(trainer, name):
    return torch.load(trainer.checkpoints_dir / name, weights_only=True)


def same(state, module):
    own = module.state_dict()
    return state.keys() == own.keys() and all(torch.equal(state[k], own[k]) for k in own)


# -- checkpoints


def test_latest_holds_the_whole_kd_module_and_best_the_student_alone(tmp_path):
    student, teacher = make(), make(width=32, seed=1)
    trainer = distilled(tmp_path, student, teacher)
    latest = load(trainer, "ckpt_latest.pth")["net"]
    assert same({k[8:]: v for k, v in latest.items() if k.startswith("student.")}, student)
    assert same({k[8:]: v for k, v in latest.items() if k.startswith("teacher.")}, teacher)
    assert same(load(trainer, "ckpt_best.pth")["net"], student)


def test_with_ema_best_is_the_averaged_student(tmp_path):
    trainer = distilled(tmp_path, ema=True, ema_params={"decay": 0.9, "decay_type": "constant"})
    assert same(load(trainer, "ckpt_best.pth")["net"], trainer.ema_model)
    assert not same(load(trainer, "ckpt_best.pth")["net"], trainer.net.student)
    assert not any("teacher" in name for name in load(trainer, "ckpt_latest.pth")["ema_net"])


@effect_of("save_teacher")
def test_the_teachers_part_can_be_left_out(tmp_path):
    trainer = distilled(tmp_path, save_teacher=False)
    assert {k.split(".")[0] for k in load(trainer, "ckpt_latest.pth")["net"]} == {"student"}


# -- the guest


def test_the_teacher_is_bit_identical_and_gets_its_flags_back(tmp_path):
    teacher, student = make(NormNet, seed=1), make(NormNet)
    teacher.train()
    teacher.norm.eval()
    before = fingerprint(teacher)
    distilled(tmp_path, student, teacher, ema=True, max_epochs=2)
    assert fingerprint(teacher) == before
    assert teacher.training and not teacher.norm.training
    assert all(p.requires_grad for p in teacher.parameters())
    assert student.training


def test_the_student_in_the_callers_hand_is_the_one_that_was_trained(tmp_path):
    student = make()
    trainer = distilled(tmp_path, student)
    assert trainer.net.student is student
    assert not torch.equal(weights(student), weights(make()))


def test_a_second_training_uses_the_second_models(tmp_path):
    train, valid = loaders()
    trainer = KDTrainer("kd", tmp_path)
    params = {"max_epochs": 1, "silent_mode": True}
    first, second = make(), make(width=20, seed=3)
    for student in (first, second):
        trainer.train(
            student=student,
            teacher=make(width=32, seed=1),
            training_params=params,
            train_loader=train,
            valid_loader=valid,
        )
    assert trainer.net.student is second
    assert len(runs.list(tmp_path)) == 2
    assert load(trainer, "ckpt_best.pth")["net"]["features.weight"].shape[0] == 20


@pytest.mark.parametrize("given_as", ["uuid", "prefix", "run", "loaded model"])
def test_a_run_is_a_teacher_and_becomes_the_parent(tmp_path, given_as):
    net = note(DigitsSmallModel(), Reference.of(DigitsSmallModel))
    plain = trained(tmp_path, net, max_train_batches=1)
    assert plain.run.info["model"]["target"] == "distillation.models.digits:DigitsSmallModel"
    teacher = {
        "uuid": plain.run.uuid,
        "prefix": plain.run.uuid[:8],
        "run": plain.run,
        "loaded model": plain.run.load_model(),
    }[given_as]
    trainer = distilled(tmp_path, teacher=teacher, max_train_batches=1)
    assert trainer.run.parent_uuid == plain.run.uuid
    assert trainer.run.info["teacher"]["fingerprint"] == fingerprint(net)
    assert fingerprint(trainer.net.teacher) == fingerprint(net)


def test_members_of_an_ensemble_are_named_in_the_same_store(tmp_path):
    nets = [note(DigitsSmallModel(), Reference.of(DigitsSmallModel)) for _ in range(2)]
    named = [trained(tmp_path, net, max_train_batches=1).run.uuid for net in nets]
    trainer = distilled(tmp_path, teacher=named, max_train_batches=1)
    members = trainer.run.info["teacher"]["made_by"]["members"]
    assert [member["uuid"] for member in members] == named


def test_student_and_teacher_must_be_two(tmp_path):
    net = make()
    with pytest.raises(TeacherError):
        distilled(tmp_path, net, net)
    assert all(p.requires_grad for p in net.parameters())


# -- losses and metrics


def test_components_are_recorded_and_can_be_watched(tmp_path):
    recorder = Recorder()
    trainer = distilled(
        tmp_path,
        loss=KDLogitsLoss(nn.CrossEntropyLoss(), distillation_loss_coeff=0.25, temperature=4.0),
        metric_to_watch="Distillation Loss",
        phase_callbacks=[recorder],
        valid_metrics_list=["Accuracy"],
    )
    _, results = recorder.results[0]
    assert list(results) == [
        "Accuracy",
        "KDLogitsLoss/Loss",
        "KDLogitsLoss/Task Loss",
        "KDLogitsLoss/Distillation Loss",
    ]
    total, task, kd = list(results.values())[1:]
    assert total == pytest.approx(0.75 * task + 0.25 * kd, rel=1e-5)
    summary = trainer.run.summary
    assert summary["loss.valid"] == total
    assert summary["loss.task_loss.valid"] == task
    assert trainer.run.checkpoint("best").info["best"]["value"] == kd


def test_metrics_are_of_the_student(tmp_path):
    class Right(nn.Module):
        """Knows every answer: the class is written into the image by the loader below."""

        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(10))

        def forward(self, x):
            return nn.functional.one_hot(x[:, 0, 0, 0].long(), 10) * 9.0 + self.bias

    batches = []
    for batch in loaders()[0].batches(0):
        x = batch.images.clone()
        x[:, 0, 0, 0] = batch.labels.float()
        batches.append((x, batch.labels))
    trainer = KDTrainer("kd", tmp_path)
    params = {"max_epochs": 1, "initial_lr": 0.0, "silent_mode": True}
    metrics = {"train_metrics_list": ["Accuracy"], "valid_metrics_list": ["Accuracy"]}
    student = make()
    trainer.train(
        student=student,
        teacher=Right(),
        training_params={**params, **metrics},
        train_loader=batches,
        valid_loader=batches,
    )
    with torch.no_grad():
        hits = torch.cat([(student(x).argmax(1) == y).double() for x, y in batches])
    assert trainer.results["accuracy.valid"] == pytest.approx(hits.mean().item())
    assert trainer.results["accuracy.train"] < 0.9


def test_losses_between_layers_train_the_student_and_themselves(tmp_path):
    loss = MGDLoss(8, 16)
    before = weights(loss)
    trainer = distilled(
        tmp_path,
        make(NormNet),
        make(NormNet, width=16, seed=1),
        kd={
            "kd_arch_params": {
                "criterion": {("conv", "conv"): loss},
                "loss_balancer": StaticLossBalancer(0.5),
            }
        },
        ema=True,
    )
    assert not torch.equal(weights(loss), before)
    summary = trainer.run.summary
    expected = 0.5 * summary["loss.mgdloss_0.valid"] + 0.5 * summary["loss.task_loss.valid"]
    assert summary["loss.valid"] == pytest.approx(expected, rel=1e-5)


def test_hugging_face_batches_and_outputs_need_no_adapter(tmp_path):
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Text(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.embed = nn.Embedding(20, width)
            self.head = nn.Linear(width, 3)

        def forward(self, input_ids, attention_mask):
            mask = attention_mask.unsqueeze(-1)
            return Output(self.head((self.embed(input_ids) * mask).sum(1) / mask.sum(1)))

    ids = torch.arange(96).view(12, 8) % 20
    batch = {"input_ids": ids, "attention_mask": torch.ones(12, 8), "labels": ids[:, 0] % 3}
    trainer = KDTrainer("text", tmp_path)
    trainer.train(
        student=make(Text, width=8),
        teacher=make(Text, width=16, seed=1),
        training_params={
            "max_epochs": 15,
            "initial_lr": 1.0,
            "silent_mode": True,
            "valid_metrics_list": ["Accuracy"],
            "criterion_params": {"distillation_loss_coeff": 0.1},
        },
        train_loader=[batch],
        valid_loader=[batch],
    )
    values = trainer.run.curve("accuracy.valid")[1]
    assert values[-1] > values[0]


# -- refused


def call(tmp_path, **arguments):
    train, _ = loaders()
    params = {"max_epochs": 1, "silent_mode": True}
    arguments = {"training_params": params, "train_loader": train, **arguments}
    return KDTrainer("kd", tmp_path).train(**arguments)


def test_model_together_with_student_or_teacher_is_refused(tmp_path):
    net = KDModule(student=make(), teacher=make(seed=1))
    for more in ({"student": make()}, {"teacher": make()}, {"kd_arch_params": {"a": 1}}):
        with pytest.raises(ConfigError, match=next(iter(more))):
            call(tmp_path, model=net, **more)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"student": nn.Linear(1, 1)}, "needs teacher"),
        ({"model": nn.Linear(1, 1)}, "must be a KDModule"),
        ({"student": nn.Linear(1, 1), "teacher": nn.Linear(1, 1), "train_loader": None}, "loader"),
        (
            {
                "student": nn.Linear(1, 1),
                "teacher": nn.Linear(1, 1),
                "kd_arch_params": {"teacher_input_adaptor": None},
            },
            "did you mean 'teacher_input_adapter'",
        ),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, arguments, said):
    with pytest.raises(ConfigError, match=said):
        call(tmp_path, **arguments)
    assert not runs.list(tmp_path)


@pytest.mark.parametrize(
    "loss", ["CrossEntropyLoss", nn.CrossEntropyLoss(), nn.functional.cross_entropy]
)
def test_a_loss_of_plain_training_is_told_before_the_first_step(tmp_path, loss):
    teacher = make(seed=1)
    with pytest.raises(ConfigError, match=r"Give KDLogitsLoss\(task_loss_fn="):
        distilled(tmp_path, teacher=teacher, loss=loss)
    assert not runs.list(tmp_path)
    assert all(p.requires_grad for p in teacher.parameters())


def test_an_unknown_argument_is_refused(tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'studnet'"):
        call(tmp_path, studnet=make(), teacher=make(seed=1))
    with pytest.raises(TypeError, match="unexpected keyword argument 'ckpt_rootdir'"):
        KDTrainer("kd", ckpt_rootdir=tmp_path)


def test_a_class_count_mismatch_is_told_before_the_first_step(tmp_path):
    student = make()
    before = weights(student)
    with pytest.raises(ShapeError):
        distilled(tmp_path, student, make(classes=12, seed=1))
    assert torch.equal(weights(student), before)


def test_a_forward_without_kd_output_is_told(tmp_path):
    class Bare(KDModule):
        def forward(self, x):
            return self.student(x)

    with pytest.raises(ConfigError, match="must return a KDOutput"):
        distilled(tmp_path, kd={"kd_architecture": Bare})


# -- a crash


def test_an_error_leaves_a_crashed_run_and_the_callers_flags(tmp_path):
    class Fails(Callback):
        def on_train_batch_end(self, context):
            raise ValueError("in a callback")

    student, teacher = make(), make(width=32, seed=1)
    student.classifier.eval()
    state = copy.deepcopy(torch.get_rng_state())
    with pytest.raises(ValueError, match="in a callback"):
        distilled(tmp_path, student, teacher, phase_callbacks=[Fails()])
    assert runs.list(tmp_path)[0].status == "crashed"
    assert student.training and not student.classifier.training
    assert teacher.training and all(p.requires_grad for p in teacher.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_plain_training_records_how_the_model_is_made(tmp_path):
    assert isinstance(trained(tmp_path).net, nn.Module)
    assert Trainer("x", tmp_path).checkpoints_dir is None
