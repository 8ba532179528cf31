"""`train_from_config`: a training written down as a recipe."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from recipe_kit import plain, recipe

from distillation import KDTrainer, NormalizationAdapter, Trainer, models, runs
from distillation.errors import CheckpointError, ConfigError, RunError, TrustError
from distillation.trainer import Callback
from distillation.trainer.recipes import train_from_config


def distilled(root, **changes):
    return train_from_config(KDTrainer, recipe(root, **changes))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A root with a teacher's run and the student's, from `recipe`."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("runs")
    distilled(root)
    return root


@pytest.fixture(scope="module")
def teacher(store):
    return runs.list(store, experiment="kd_teacher")[0]


def of_run(run):
    return {"teacher_training_hyperparams": None, "teacher_checkpoint_params": run}


def test_the_teacher_is_trained_first_and_is_the_parent(store, teacher):
    (student,) = runs.list(store, experiment="kd")
    assert student.parent_uuid == teacher.uuid
    assert teacher.status == student.status == "completed"
    assert teacher.info["model"]["target"].endswith("DigitsLargeModel")


def test_the_best_teacher_on_held_out_images_teaches(store, teacher):
    (student,) = runs.list(store, experiment="kd")
    assert student.info["teacher"]["made_by"]["step"] == teacher.best_step


def test_the_run_says_what_the_recipe_was_and_how_to_evaluate_it(store):
    (student,) = runs.list(store, experiment="kd")
    assert student.config["recipe"]["student_architecture"] == "digits_small_model"
    assert student.config["training_params"]["loss"] == "KDLogitsLoss"
    assert student.info["evaluation"] == {"dataset": "digits"}
    assert {"accuracy.valid", "accuracy.test"} <= student.summary.keys()
    assert student.facts["input_shape"] == [1, 8, 8]
    assert student.facts["macs"] > 0


def test_the_class_method_gives_net_and_results(tmp_path, teacher):
    cfg = recipe(tmp_path, **of_run({"checkpoint_path": str(teacher.path)}))
    net, results = KDTrainer.train_from_config(OmegaConf.create(cfg))
    assert type(net).__name__ == "KDModule"
    assert 0 <= results["accuracy.valid"] <= 1


def test_a_recipe_is_reproducible(tmp_path, store, teacher):
    by_run = of_run({"checkpoint_path": teacher.uuid[:12]})
    one, other = (
        distilled(store, experiment_name=name, **by_run).net.student.state_dict()
        for name in ("one", "other")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("named", ["uuid", "step", "file"])
def test_a_trained_teacher_is_named_by_its_run(store, teacher, named):
    path = {
        "uuid": teacher.uuid,
        "step": f"{teacher.uuid[:8]}@{teacher.checkpoints[-1]}",
        "file": str(teacher.path / "ckpt" / "ckpt_best.pth"),
    }[named]
    before = len(runs.list(store, experiment="kd_teacher"))
    trainer = distilled(store, experiment_name="named", **of_run({"checkpoint_path": path}))
    assert trainer.run.parent_uuid == teacher.uuid
    assert len(runs.list(store, experiment="kd_teacher")) == before


def test_a_students_checkpoint_is_where_it_starts(store, teacher):
    student = runs.list(store, experiment="kd")[0]
    zero = {"max_epochs": 1, "initial_lr": 0.0, "silent_mode": True}
    trainer = distilled(
        store,
        experiment_name="started",
        training_hyperparams=zero,
        student_checkpoint_params={"checkpoint_path": student.uuid, "strict_load": True},
        **of_run({"checkpoint_path": teacher.uuid}),
    )
    before, after = student.load_model(), trainer.net.student
    assert torch.equal(before.fc.weight, after.fc.weight)


def test_a_student_that_does_not_fit_its_checkpoint_is_an_error(store, teacher):
    with pytest.raises(CheckpointError, match="does not fit DigitsSmallModel"):
        distilled(
            store,
            student_checkpoint_params={"checkpoint_path": teacher.uuid},
            **of_run({"checkpoint_path": teacher.uuid}),
        )


def test_objects_take_the_place_of_names(tmp_path):
    train, test = (
        torch.utils.data.TensorDataset(torch.randn(16, 1, 8, 8), torch.arange(16) % 10)
        for _ in range(2)
    )
    trainer = distilled(
        tmp_path,
        dataset=None,
        train_dataloader=torch.utils.data.DataLoader(train, 8),
        val_dataloader=torch.utils.data.DataLoader(test, 8),
        student_architecture=models.get("digits_small_model"),
        teacher_architecture=models.get("digits_large_model"),
        teacher_training_hyperparams=None,
    )
    assert trainer.run.config["train_loader"]["class"] == "DataLoader"


def test_the_teachers_inputs_go_through_the_adapter(store, teacher):
    seen = {}

    class Spy(Callback):
        def on_training_start(self, context):
            seen["adapter"] = context.net.teacher_input_adapter

    adapter = {
        "_target_": "distillation.NormalizationAdapter",
        "mean_original": [0.3],
        "std_original": [0.4],
        "mean_required": [0.5],
        "std_required": [0.5],
    }
    params = recipe(store)["training_hyperparams"]
    trainer = distilled(
        store,
        experiment_name="adapted",
        arch_params={"teacher_input_adapter": adapter},
        training_hyperparams={**params, "phase_callbacks": [Spy()]},
        **of_run({"checkpoint_path": teacher.uuid}),
    )
    assert isinstance(seen["adapter"], NormalizationAdapter)
    first = runs.list(store, experiment="kd")[0]
    assert trainer.run.summary["loss.train"] != first.summary["loss.train"]


def test_a_teacher_without_weights_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="the teacher has no weights"):
        distilled(tmp_path, teacher_training_hyperparams=None)
    assert runs.list(tmp_path) == []


# Resume


def test_resume_goes_on_in_the_same_run_with_the_same_teacher(tmp_path):
    longer = {**recipe(tmp_path)["training_hyperparams"], "max_epochs": 2}
    whole = distilled(tmp_path / "whole", training_hyperparams=longer)
    first = distilled(tmp_path)
    again = distilled(tmp_path, training_hyperparams=longer, resume=True)
    assert again.run.uuid == first.run.uuid
    assert len(runs.list(tmp_path, experiment="kd_teacher")) == 1
    one, other = whole.net.student.state_dict(), again.net.student.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_resume_goes_on_with_a_teacher_that_was_interrupted(tmp_path):
    class Interrupt(Callback):
        def on_train_loader_start(self, context):
            if context.epoch == 1:
                raise KeyboardInterrupt

    teachers = {**recipe(tmp_path)["teacher_training_hyperparams"], "max_epochs": 2}
    with pytest.raises(KeyboardInterrupt):
        distilled(
            tmp_path,
            teacher_training_hyperparams={**teachers, "phase_callbacks": [Interrupt()]},
        )
    assert [run.status for run in runs.list(tmp_path)] == ["interrupted"]
    trainer = distilled(tmp_path, teacher_training_hyperparams=teachers, resume=True)
    (teacher,) = runs.list(tmp_path, experiment="kd_teacher")
    assert teacher.status == "completed"
    assert len(teacher.curve("accuracy.valid")[0]) == 2
    assert trainer.run.parent_uuid == teacher.uuid


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(RunError, match="the experiment 'kd' has no run"):
        distilled(tmp_path, resume=True)


# Plain recipes


def test_a_plain_recipe_trains_one_model(tmp_path):
    trainer = train_from_config(Trainer, plain(tmp_path, arch_params={"num_classes": 10}))
    assert trainer.run.parent_uuid is None
    assert trainer.run.load_model().fc.out_features == 10


def test_training_params_is_another_spelling(tmp_path):
    cfg = plain(tmp_path)
    cfg["training_params"] = cfg.pop("training_hyperparams")
    train_from_config(Trainer, cfg)
    with pytest.raises(ConfigError, match="two names of one thing"):
        train_from_config(Trainer, {**cfg, "training_hyperparams": cfg["training_params"]})


# What does not fit


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"student_architectur": "x"}, "'student_architectur'; did you mean 'student_arch"),
        ({"experiment_name": None}, "has no experiment_name"),
        ({"teacher_architecture": None}, "has no teacher_architecture"),
        ({"student_architecture": "digits_smal_model"}, "did you mean 'digits_small_model'"),
        ({"student_arch_params": {"num_clases": 10}}, "'num_clases'; did you mean 'num_classes'"),
        ({"student_checkpoint_params": {"path": "x"}}, "student_checkpoint_params: 'path'"),
        ({"training_hyperparams": {"max_epoch": 1}}, "'max_epoch'; did you mean 'max_epochs'"),
        (
            {"training_hyperparams": {"max_epochs": 1, "criterion_params": {"temprature": 2}}},
            "'temprature'; did you mean 'temperature'",
        ),
        (
            {"training_hyperparams": {"max_epochs": 1, "optimizer": "SDG"}},
            "'SDG'; did you mean 'SGD'",
        ),
        (
            {"training_hyperparams": {"max_epochs": 1, "metric_to_watch": "Acuracy"}},
            "unknown metric_to_watch 'Acuracy'",
        ),
        (
            {"training_hyperparams": {"max_epochs": 1, "loss": "CrossEntropyLoss"}},
            r"Give KDLogitsLoss\(",
        ),
        ({"training_hyperparams": None}, "has no training_hyperparams"),
        ({"arch_params": {"teacher_adapter": None}}, "'teacher_adapter'; did you mean 'teacher_in"),
        ({"architecture": "kd_modul"}, "'kd_modul'"),
        ({"trust": ["os"]}, "not for the recipe to say"),
        ({"allow_targets": ["os"]}, "not for the recipe to say"),
        ({"multi_gpu": "DDP"}, "unknown key in the recipe: 'multi_gpu'"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_trained(tmp_path, changes, match):
    with pytest.raises(ConfigError, match=match):
        distilled(tmp_path, **changes)
    assert runs.list(tmp_path) == []


def test_each_trainer_takes_its_own_kind_of_recipe(tmp_path):
    with pytest.raises(ConfigError, match="train it with KDTrainer"):
        train_from_config(Trainer, recipe(tmp_path))
    with pytest.raises(ConfigError, match="train this one with Trainer"):
        train_from_config(KDTrainer, plain(tmp_path))


def test_a_target_that_is_not_allowed_is_refused_before_the_teacher_is_trained(tmp_path):
    hidden = {"task_loss_fn": {"_target_": "os.getcwd"}}
    params = {**recipe(tmp_path)["training_hyperparams"], "criterion_params": hidden}
    with pytest.raises(TrustError, match=r"criterion_params\.task_loss_fn.*'os\.getcwd'"):
        distilled(tmp_path, training_hyperparams=params)
    assert runs.list(tmp_path) == []


def test_a_value_left_open_is_named(tmp_path):
    cfg = OmegaConf.create({**recipe(tmp_path), "comment": "???"})
    with pytest.raises(ConfigError, match=r"not complete: .*comment"):
        train_from_config(KDTrainer, cfg)
