"""From a command line to a configuration."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation import runs
from distillation.errors import ConfigError
from distillation.precision import resolve_precision
from experiments.cifar10 import distill as cifar10_distill
from experiments.cifar10 import large as cifar10_large
from experiments.command_line import parse
from experiments.config_check import Field, check, convert_value, fields, resolve
from experiments.digits import distill, large, small

ALL = [
    distill.Configs,
    large.Configs,
    small.Configs,
    cifar10_large.Configs,
    cifar10_distill.Configs,
]
SLOW = settings(max_examples=40, deadline=None)


def config_of(configs, *line, **options):
    return parse(configs, list(line), title="", **options).config


def test_a_short_form_and_a_set_are_one_and_the_same(tmp_path):
    short = config_of(small.Configs, "--epochs", "3", "--batch-size", "8", "--seed", "7")
    long = config_of(small.Configs, "--set", "epochs=3", "--set", "batch_size=8", "--set", "seed=7")
    assert short == long
    assert (short["epochs"], short["batch_size"], short["seed"]) == (3, 8, 7)


def test_the_recipe_of_labml():
    config = config_of(cifar10_large.Configs, "--set", "recipe=labml")
    assert config["optimizer.optimizer"] == "Adam"
    assert config["optimizer.learning_rate"] == 2.5e-4
    assert config["optimizer.weight_decay"] == 0.0
    assert config["schedule"] == "constant"


def test_the_loss_of_labml():
    config = config_of(
        cifar10_distill.Configs, "--teacher", "x", "--set", "loss=labml", has_teacher=True
    )
    named = [config[k] for k in ("temperature", "soft_targets_weight", "label_loss_weight")]
    assert named == [5.0, 100.0, 0.5]


def test_what_is_named_wins_over_a_preset_in_any_order():
    for line in (["loss=labml", "temperature=3"], ["temperature=3", "loss=labml"]):
        given = [part for item in line for part in ("--set", item)]
        config = config_of(distill.Configs, "--teacher", "x", *given, has_teacher=True)
        assert (config["temperature"], config["soft_targets_weight"]) == (3.0, 100.0)


@pytest.mark.parametrize("given", [["--precision", "auto"], ["--set", "precision=auto"]])
def test_the_precision_auto_becomes_that_of_the_device(given):
    config = config_of(small.Configs, *given, "--device", "cpu")
    # So a run says in which one it is computed, and goes on in it
    assert config["precision"] == resolve_precision("auto", "cpu")


def test_the_promised_keys_are_there():
    keys = resolve(cifar10_distill.Configs, {})
    assert {
        "temperature",
        "soft_targets_weight",
        "label_loss_weight",
        "model",
        "optimizer.learning_rate",
        "optimizer.optimizer",
        "loss",
    } <= set(keys)


@pytest.mark.parametrize("configs", ALL, ids=lambda c: c.__module__)
def test_every_default_is_valid_and_survives_json(configs):
    defaults = resolve(configs, {})
    again = json.loads(json.dumps(defaults))
    assert check(configs, again) == defaults


@pytest.mark.parametrize("configs", ALL, ids=lambda c: c.__module__)
def test_every_range_and_choice_is_of_a_key_that_some_experiment_has(configs):
    known = set().union(*(fields(c) for c in ALL))
    for table in (configs._ranges, configs._choices, configs._items):
        assert set(table) <= known
    for meant in configs._presets.values():
        assert {k: v for k, v in meant.items() if k in fields(configs)} == meant
        check(configs, meant)


def test_options_of_one_experiment_do_not_leak_to_another():
    assert fields(small.Configs)["model"].options == ["_small_model"]
    assert fields(large.Configs)["model"].options == ["_large_model"]


def field(kind, default):
    return Field("key", kind, [], default)


@given(st.integers(-(10**12), 10**12))
def test_a_whole_number_comes_back(value):
    assert convert_value(field(int, 1), str(value)) == value
    assert convert_value(field(int, 1), f" {value} ") == value
    as_float = convert_value(field(float, 1.0), str(value))
    assert (as_float, type(as_float)) == (float(value), float)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_comes_back_to_the_last_bit(value):
    assert convert_value(field(float, 1.0), repr(value)) == value


@given(st.lists(st.integers(0, 9), max_size=4))
def test_a_list_comes_back(value):
    assert convert_value(field(list, []), str(value)) == value


@given(st.booleans(), st.sampled_from([str, lambda v: str(v).lower(), lambda v: str(v).upper()]))
def test_a_truth_value_comes_back_in_any_case(value, spell):
    assert convert_value(field(bool, False), spell(value)) is value


@given(st.text())
def test_text_is_taken_as_it_is(value):
    assert convert_value(field(str, ""), value) == value


@given(st.text() | st.text(alphabet="()[]{}-'\"0123456789,.e\\", max_size=12))
def test_any_text_becomes_a_value_of_the_type_or_a_config_error(text):
    for kind, default in ((int, 1), (float, 1.0), (bool, True), (list, [])):
        try:
            value = convert_value(field(kind, default), text)
        except ConfigError as error:
            assert repr(text) in str(error)
            assert kind.__name__ in str(error)
        else:
            assert type(value) is kind


@SLOW
@given(
    st.dictionaries(
        st.sampled_from(sorted(resolve(distill.Configs, {})))
        | st.text(alphabet=string.ascii_letters + "._", max_size=12),
        st.text(max_size=8)
        | st.integers().map(str)
        | st.floats().map(repr)
        | st.lists(st.integers() | st.none() | st.text(max_size=2), max_size=3).map(repr),
        max_size=3,
    )
)
def test_anything_is_checked_or_refused_by_name_and_checking_again_changes_nothing(values):
    try:
        found = check(distill.Configs, values)
    except ConfigError as error:
        assert any(key in str(error) for key in values)
    else:
        assert check(distill.Configs, found) == found
        assert set(resolve(distill.Configs, found)) == set(resolve(distill.Configs, {}))


@SLOW
@given(st.lists(st.text(max_size=12) | st.sampled_from(["--set", "--epochs", "--seed", "3"])))
def test_any_command_line_is_parsed_or_refused(words):
    words = [w for w in words if w not in ("-h", "--help") and not w.startswith("--resume")]
    try:
        options = parse(small.Configs, words, title="")
    except ConfigError:
        return
    assert set(options.config) == set(resolve(small.Configs, {}))


def test_a_recorded_configuration_is_whole(trained):
    run = runs.find(trained.uuid, root=trained.path.parent.parent)
    assert run.config == {**resolve(large.Configs, {}), "epochs": 2}
    assert all(value is not None for value in run.config.values())


def test_help_lists_every_key_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        parse(distill.Configs, ["--help"], title="", has_teacher=True)
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for key, default in resolve(distill.Configs, {}).items():
        assert f"  {key}={default!r}" in shown
    assert "--data" not in shown  # refused here


def test_an_experiment_that_extends_another_leaves_its_defaults_alone():
    above, below = cifar10_distill.Configs, distill.Configs
    before = fields(above)["temperature"].default
    assert fields(below)["temperature"].default != before
    below()
    assert fields(above)["temperature"].default == before
