"""training_params: what is written down about them holds, and every one has an effect."""

import ast
import dataclasses
import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from distillation.errors import ConfigError
from distillation.trainer.params import PAGE, TrainingParams, docs_page

FIELDS = {f.name: f for f in dataclasses.fields(TrainingParams)}
ROOT = Path(__file__).resolve().parents[2]


def params(**values):
    return TrainingParams.from_any({"max_epochs": 20, **values})


def test_the_page_is_the_one_that_the_schema_makes():
    assert (ROOT / PAGE).read_text(encoding="utf-8") == docs_page()


def test_every_field_has_a_test_of_its_effect():
    shown = set()
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(path.stem)
        for name, test in inspect.getmembers(module, inspect.isfunction):
            if name.startswith("test_"):
                shown.update(getattr(test, "effects", ()))
    assert sorted(FIELDS.keys() - shown) == []
    assert sorted(shown - FIELDS.keys()) == []


@pytest.mark.parametrize("name", FIELDS)
def test_the_example_is_valid(name):
    example = FIELDS[name].metadata["spec"].example
    try:
        value = ast.literal_eval(example)
    except ValueError:
        if "lambda" in example:
            value = eval(example)
        else:
            pytest.skip(f"{example} is an object of the user's")
    if name in ("resume_path",):
        assert isinstance(value, str)
    with_others = {
        "ema_params": {"ema": True},
        "torch_compile_mode": {"torch_compile": True},
        "lr_updates": {"lr_mode": "Step"},
        "step_lr_update_freq": {"lr_mode": "Step"},
    }
    more = with_others.get(name, {})
    assert getattr(params(**{name: value, **more}), name) == value


@pytest.mark.parametrize("name", FIELDS)
def test_a_default_is_of_its_own_type(name):
    if name == "max_epochs":
        return
    value = getattr(params(), name)
    assert getattr(params(**{name: value}), name) == value


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match="'inital_lr'; did you mean 'initial_lr'"):
        params(inital_lr=0.1)


def test_a_missing_name_is_told():
    with pytest.raises(ConfigError, match="'max_epochs' is missing"):
        TrainingParams.from_any({})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_epochs", 0),
        ("max_epochs", 2.5),
        ("max_epochs", True),
        ("max_epochs", "3"),
        ("batch_accumulate", 0),
        ("initial_lr", -0.1),
        ("initial_lr", {}),
        ("initial_lr", {"a": "0.1"}),
        ("ema", "yes"),
        ("mixed_precision", "int8"),
        ("warmup_mode", "cubic"),
        ("cosine_final_lr_ratio", 1.5),
        ("clip_grad_norm", 0),
        ("lr_updates", [1.5]),
        ("save_ckpt_epoch_list", [0]),
        ("average_best_models", 0),
        ("phase_callbacks", "all"),
        ("optimizer_params", [0.9]),
    ],
)
def test_a_wrong_value_is_told_with_its_name_and_what_is_valid(name, value):
    with pytest.raises(ConfigError, match=f"'{name}'.* Valid: "):
        params(**{name: value})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lr_warmup_epochs": 1, "lr_warmup_steps": 5}, "exclude each other"),
        ({"lr_warmup_epochs": 15, "lr_cooldown_epochs": 6}, "exceed 'max_epochs'"),
        ({"save_ckpt_epoch_list": [3, 21]}, "names epoch 21"),
        ({"resume": True, "resume_path": "x"}, "exclude each other"),
    ],
)
def test_parameters_that_contradict_each_other_are_told(values, said):
    with pytest.raises(ConfigError, match=said):
        params(**values)


def test_an_omegaconf_config_is_taken():
    config = OmegaConf.create({"max_epochs": 3, "initial_lr": {"a": 0.1, "default": "${.a}"}})
    assert TrainingParams.from_any(config).initial_lr == {"a": 0.1, "default": 0.1}


def test_something_else_than_a_dict_is_refused():
    with pytest.raises(ConfigError, match="must be a dict, not list"):
        TrainingParams.from_any([("max_epochs", 3)])


def test_two_parameter_sets_share_no_default():
    params().train_metrics_list.append("Accuracy")
    assert params().train_metrics_list == []


@given(st.dictionaries(st.text(min_size=1), st.integers(), min_size=1))
def test_any_other_key_is_named(values):
    unknown = [key for key in values if key not in FIELDS]
    if unknown:
        with pytest.raises(ConfigError) as caught:
            params(**values)
        assert any(repr(key) in str(caught.value) for key in unknown) or "Valid" in str(
            caught.value
        )


@pytest.mark.parametrize(
    ("name", "ours"), [("sg_logger", "trackers"), ("ckpt_name", "resume_path")]
)
def test_what_supergradients_calls_otherwise_is_told(name, ours):
    with pytest.raises(ConfigError, match=f"'{name}' is here '{ours}'"):
        params(**{name: "x"})


def test_numbers_of_numpy_become_pythons():
    given = params(
        max_epochs=np.int64(2),
        initial_lr={"default": np.float64(0.1)},
        save_ckpt_epoch_list=[np.int32(1)],
        optimizer_params={"weight_decay": np.float32(0.5), "betas": (np.float64(0.9), 0.99)},
        ema=np.bool_(True),
    )
    numbers = [given.max_epochs, given.initial_lr["default"], *given.save_ckpt_epoch_list]
    numbers += [given.optimizer_params["weight_decay"], *given.optimizer_params["betas"], given.ema]
    assert list(map(type, numbers)) == [int, float, int, float, float, float, bool]


def test_epochs_of_drops_without_the_schedule_that_drops_are_refused():
    with pytest.raises(ConfigError, match="'lr_updates' has no effect without 'lr_mode': 'Step'"):
        params(lr_updates=[1])
