"""Recipes in YAML files: found, composed, overridden; and those that are shipped."""

from __future__ import annotations

import sys

import pytest
import torch
from PIL import Image

from distillation import KDTrainer, Trainer, models
from distillation.errors import ConfigError, DataError
from distillation.trainer.params import TrainingParams
from distillation.trainer.recipe_files import compose, names
from distillation.trainer.recipes import distils, train_from_config
from distillation.trainer.targets import check_targets, make

KINDS = {
    "digits": KDTrainer,
    "digits_small": Trainer,
    "cifar10_large_small": KDTrainer,
    "cifar10_small": Trainer,
    "cifar10_resnet": KDTrainer,
    "cifar100_resnet56_resnet20": KDTrainer,
    "imagenet_resnet50_kd": KDTrainer,
}
CLASSES = {"cifar100_resnet56_resnet20": 100, "imagenet_resnet50_kd": 1000}


def test_these_are_shipped():
    assert names() == sorted(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_a_shipped_recipe_is_whole(name):
    config = compose(name).config
    check_targets(config)
    assert distils(config) == (KINDS[name] is KDTrainer)
    for key in ("training_hyperparams", "teacher_training_hyperparams"):
        if config.get(key):
            TrainingParams.from_any(make(config[key]))


@pytest.mark.parametrize("name", KINDS)
def test_the_models_of_a_shipped_recipe_are_made(name):
    config = compose(name).config
    roles = ("student_", "teacher_") if distils(config) else ("",)
    for role in roles:
        with torch.device("meta"):
            model = models.get(
                config[f"{role}architecture"], arch_params=config[f"{role}arch_params"]
            )
        head = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
        assert head.out_features == CLASSES.get(name, 10)


@pytest.mark.parametrize("name", [n for n in KINDS if not n.startswith("digits")])
def test_without_data_a_shipped_recipe_says_how_to_provide_it(name, tmp_path, monkeypatch):
    monkeypatch.delenv("DISTILLATION_DATA", raising=False)
    values = [f"dataset.data_dir={tmp_path / 'nothing'}", f"ckpt_root_dir={tmp_path}"]
    with pytest.raises(DataError, match=r"data_dir|DISTILLATION_DATA"):
        train_from_config(KINDS[name], compose(name, values).config)


def test_the_teacher_of_imagenet_gets_its_own_normalization():
    adapter = make(compose("imagenet_resnet50_kd").config["arch_params"])["teacher_input_adapter"]
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    image = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(adapter((image - mean) / std), (image - 0.5) / 0.5)


def test_the_recipe_of_imagenet_trains_on_folders_of_pictures(tmp_path):
    # Smaller models and pictures, the teacher's weights from a file; all else as shipped
    for part in ("train", "val"):
        for number, kind in enumerate(("cat", "dog")):
            folder = tmp_path / "data" / part / kind
            folder.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (40, 36), (number * 200, 50, i)).save(folder / f"{i}.png")
    small = {"num_classes": 2, "image_size": [32, 32], "depth": 1}
    teacher = models.get("vit_tiny_patch16_224", arch_params=small)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    values = [
        f"dataset={{data_dir: {tmp_path / 'data'}, image_size: 32, batch_size: 2, num_workers: 0}}",
        "student_architecture=resnet20",
        "student_arch_params.num_classes=2",
        "teacher_architecture=vit_tiny_patch16_224",
        "teacher_arch_params={num_classes: 2, image_size: [32, 32], depth: 1}",
        "teacher_checkpoint_params.pretrained_weights=null",
        f"teacher_checkpoint_params.checkpoint_path={tmp_path / 'teacher.pth'}",
        "training_hyperparams.max_epochs=2",
        "training_hyperparams.lr_warmup_epochs=1",
        "training_hyperparams.silent_mode=true",
        f"ckpt_root_dir={tmp_path / 'runs'}",
    ]
    trainer = train_from_config(KDTrainer, compose("imagenet_resnet50_kd", values).config)
    assert trainer.run.status == "completed"
    assert type(trainer.net.teacher_input_adapter).__name__ == "NormalizationAdapter"
    assert trainer.ema_model is not None
    assert (trainer.checkpoints_dir / "average_model.pth").exists()


# Overrides


def test_a_value_is_overridden_and_a_new_one_added():
    values = [
        "training_hyperparams.criterion_params.temperature=4",
        "training_hyperparams.ema=true",
        "comment=first",
        "~teacher_training_hyperparams",
    ]
    config = compose("digits", values).config
    assert config["training_hyperparams"]["criterion_params"]["temperature"] == 4
    assert config["training_hyperparams"]["ema"] is True
    assert config["comment"] == "first"
    assert "teacher_training_hyperparams" not in config


def test_interpolations_follow_an_override():
    config = compose("digits", ["training_hyperparams.seed=7"]).config
    assert config["teacher_training_hyperparams"]["seed"] == 7


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("max_epochs", "'max_epochs' is not key=value"),
        ("hydra.run.dir=/tmp/x", "Hydra only composes"),
        ("training_hyperparams.seed=1,2", "one training has one value"),
        ("~nothing.at.all", "nothing.at.all"),
    ],
)
def test_an_override_that_means_nothing_is_refused(value, match):
    with pytest.raises(ConfigError, match=match):
        compose("digits", [value])


def test_trust_is_said_on_the_command_line_only(tmp_path):
    assert compose("digits").trust == ()
    assert compose("digits", ["+trust=mine"]).trust == ("mine",)
    composed = compose("digits", ["trust=[mine,yours.f]", "+trust=third"])
    assert composed.trust == ("mine", "yours.f", "third")
    assert "trust" not in composed.config


# Files


def test_a_file_of_yours_builds_on_a_shipped_one(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "defaults: [digits, _self_]\nexperiment_name: mine\ndataset: {batch_size: 16}\n"
    )
    for config in (
        compose("mine", folder=tmp_path).config,
        compose(str(tmp_path / "mine.yaml")).config,
    ):
        assert config["experiment_name"] == "mine"
        assert config["dataset"]["batch_size"] == 16
        assert config["dataset"]["name"] == "digits"


def test_a_shipped_recipe_is_found_beside_yours(tmp_path):
    assert compose("digits", folder=tmp_path).config["experiment_name"] == "digits_kd"


@pytest.mark.parametrize("name", ["digit", "nothing/digits.yaml"])
def test_an_unknown_recipe_is_an_error_with_the_nearest(name):
    with pytest.raises(ConfigError, match=r"unknown recipe .*'digits'"):
        compose(name)


def test_composing_leaves_no_trace_and_makes_nothing(tmp_path, monkeypatch):
    # What Hydra would make of a file itself, and a package that its search path would import
    package = tmp_path / "sly"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    recipe = tmp_path / "recipes"
    recipe.mkdir()
    (recipe / "mine.yaml").write_text(
        "defaults: [digits, _self_]\n"
        "hydra:\n"
        "  searchpath: ['pkg://sly']\n"
        "  callbacks: {c: {_target_: sly.Callback}}\n"
        "  launcher: {_target_: sly.Launcher}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert "hydra" not in compose("mine", folder=recipe).config
    assert "sly" not in sys.modules
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recipes", "sly"]
