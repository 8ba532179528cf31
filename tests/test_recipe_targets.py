"""What a `_target_` in a recipe may call: checked at any depth, before anything is made."""

from __future__ import annotations

import functools
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation import NormalizationAdapter
from distillation.errors import ConfigError, TrustError
from distillation.trainer.targets import check_targets, make

ALLOWED = [
    "distillation.NormalizationAdapter",
    "distillation.losses.KDLogitsLoss",
    "distillation.models.get",
    "distillation.data.digits",
    "distillation.data.CropFlip",
    "torch.nn.CrossEntropyLoss",
    "torch.nn.functional.cross_entropy",
    "torch.optim.AdamW",
    "torch.optim.lr_scheduler.StepLR",
    "torch.utils.data.DataLoader",
    "torchvision.models.resnet18",
    "torchvision.transforms.Compose",
    "torchvision.datasets.FakeData",
    "timm.loss.LabelSmoothingCrossEntropy",
    "torchmetrics.MeanMetric",
]
REFUSED = [
    *("os.system", "builtins.eval", "subprocess.Popen", "pickle.loads", "shutil.rmtree"),
    *("torch.load", "torch.hub.load", "torch.utils.cpp_extension.load"),
    *("distillation.runs.remove", "distillation.files.remove_folder", "distillation.convert"),
    *("torchvision.io.write_file", "torchvision.datasets.utils.download_url"),
    *("timm.create_model", "numpy.load", "yaml.unsafe_load"),
    # Names that lead out of an allowed module
    *("torch.utils.data.dataloader.os.system", "torch.nn.modules.module.torch.load"),
    *("distillation.models.registry.os.system", "distillation.data.cache.os.remove"),
    # Methods, private names, instances and modules
    *("torch.nn.Module.load_state_dict", "torch.nn.functional._verify_batch_size"),
    *("torch.nn.functional", "distillation.losses.STUDENT_LOSS_KEY"),
]


@pytest.mark.parametrize("target", ALLOWED)
def test_models_losses_data_and_metrics_may_be_made(target):
    check_targets({"a": [{"b": {"_target_": target}}]})


@pytest.mark.parametrize("target", REFUSED)
def test_all_else_is_refused_without_being_called(target):
    with pytest.raises(TrustError) as error:
        check_targets({"a": [{"b": {"_target_": target}}]})
    assert str(error.value).startswith(f"a[0].b: the recipe's _target_ '{target}'")
    assert f"allow_targets=['{target}']" in str(error.value)


PARTS = ["os", "sys", "system", "torch", "nn", "utils", "data", "load", "distillation", "losses"]
PARTS += ["models", "registry", "get", "runs", "remove", "functional", "dataloader", "modules"]
PARTS += ["__init__", "__globals__", "__builtins__", "eval", "loads", "Module", "importlib"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=5))
def test_no_path_through_modules_leads_to_other_code(parts):
    try:
        made = make({"_target_": ".".join(parts), "_partial_": True})
    except (TrustError, ConfigError):
        return
    assert made.func.__module__.startswith(("torch.nn", "torch.utils.data", "distillation."))
    assert not made.func.__name__.startswith("__")


def test_a_target_inside_a_target_is_checked_before_the_outer_one_is_made():
    made = []
    module = types.ModuleType("recipe_probe")
    module.Probe = type("Probe", (), {"__init__": lambda self, **_: made.append(self)})
    module.Probe.__module__ = "recipe_probe"
    sys.modules["recipe_probe"] = module
    try:
        config = {"_target_": "recipe_probe.Probe", "inner": {"_target_": "os.getcwd"}}
        with pytest.raises(TrustError, match=r"inner: .*'os\.getcwd'"):
            make({"x": config}, allow=["recipe_probe"])
        with pytest.raises(TrustError, match="inner"):
            check_targets({"x": config}, allow=["recipe_probe"])
        assert made == []
    finally:
        del sys.modules["recipe_probe"]


def test_a_target_of_supergradients_is_refused_with_ours():
    target = "super_gradients.training.utils.kd_trainer_utils.NormalizationAdapter"
    with pytest.raises(TrustError, match=r"Did you mean distillation\.NormalizationAdapter\?"):
        check_targets({"teacher_input_adapter": {"_target_": target}})


def test_a_misspelt_name_is_an_error_with_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean distillation\.NormalizationAdapter"):
        check_targets({"a": {"_target_": "distillation.NormalisationAdapter"}})


@pytest.mark.parametrize("target", [3, "no dots at all", "a..b", ""])
def test_what_is_no_name_is_an_error(target):
    with pytest.raises(ConfigError, match="_target_ must be"):
        check_targets({"a": {"_target_": target}})


@pytest.mark.parametrize("allow", [["fractions"], ["fractions.Fraction"]])
def test_the_user_may_allow_more(allow):
    made = make({"a": {"_target_": "fractions.Fraction", "_args_": [1, 2]}}, allow=allow)
    assert made["a"] == pytest.approx(0.5)
    with pytest.raises(TrustError):
        check_targets({"a": {"_target_": "decimal.Decimal"}}, allow=allow)


def test_objects_are_made_inside_out():
    made = make(
        {
            "adapter": {
                "_target_": "distillation.NormalizationAdapter",
                "mean_original": [0.5],
                "std_original": [1.0],
                "mean_required": [0.0],
                "std_required": [1.0],
            },
            "loss": {
                "_target_": "distillation.losses.KDLogitsLoss",
                "task_loss_fn": {"_target_": "torch.nn.CrossEntropyLoss", "label_smoothing": 0.1},
            },
            "plain": [1, {"two": 3}],
        }
    )
    assert isinstance(made["adapter"], NormalizationAdapter)
    assert made["loss"].task_loss_fn.label_smoothing == 0.1
    assert made["plain"] == [1, {"two": 3}]


def test_a_partial_is_not_called():
    made = make({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5})
    assert isinstance(made, functools.partial)
    assert made([torch.nn.Parameter(torch.ones(1))]).defaults["lr"] == 0.5


def test_wrong_arguments_are_an_error_that_names_the_place():
    with pytest.raises(ConfigError, match=r"arch\.x: torch\.nn\.Linear cannot be made"):
        make({"arch": {"x": {"_target_": "torch.nn.Linear", "in_feature": 3}}})


def test_other_special_keys_are_refused():
    with pytest.raises(ConfigError, match="'_recursive_' is not known"):
        check_targets({"a": {"_target_": "torch.nn.Linear", "_recursive_": False}})
