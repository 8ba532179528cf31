"""Messages name the offender, the nearest valid names, and where all of them are."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation import errors
from distillation.errors import nearest, unknown


def test_the_examples_in_the_documentation_hold():
    failed, tried = doctest.testmod(errors)
    assert (failed, tried > 0) == (0, True)


def test_the_best_match_comes_first_and_case_does_not_matter():
    assert nearest("Sgd", ["Adam", "SGD", "SGDW"])[0] == "SGD"


def test_nothing_is_suggested_when_nothing_is_like_it():
    assert nearest("zzz", ["temperature"]) == []
    assert "did you mean" not in unknown("key", "zzz", ["temperature"])


def test_the_dashes_of_options_make_them_no_more_alike():
    assert nearest("--epoch", ["--epochs", "--device", "--set", "--seed"]) == ["--epochs"]


def test_beside_a_near_name_a_far_one_is_left_out():
    assert nearest("acuracy.valid", ["ece.valid", "accuracy.valid"]) == ["accuracy.valid"]


def test_few_names_are_listed_many_are_counted():
    few = unknown("key", "x", [f"key_{i}" for i in range(24)])
    assert "'key_23'" in few
    many = unknown("key", "x", [f"key_{i}" for i in range(25)], listed="--help")
    assert many.endswith("25 are valid; --help lists them.")


def test_that_there_is_none_is_said():
    assert unknown("run", "abc", []).endswith("There are none.")


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        ("ConfigError", ValueError),
        ("ShapeError", ValueError),
        ("RunError", LookupError),
        ("CheckpointError", RuntimeError),
        ("DataError", RuntimeError),
        ("TeacherError", RuntimeError),
        ("TrustError", ValueError),
    ],
)
def test_an_error_is_also_what_python_would_raise(error, builtin):
    kind = getattr(errors, error)
    assert issubclass(kind, builtin)
    assert issubclass(kind, errors.DistillationError)


@given(name=st.text(), valid=st.lists(st.text()))
def test_a_suggestion_is_always_valid_and_a_valid_name_is_its_own(name, valid):
    found = nearest(name, valid)
    assert set(found) <= set(valid)
    message = unknown("key", name, valid)
    assert repr(name) in message
    folded = [v.casefold() for v in valid]
    if name in valid and folded.count(name.casefold()) == 1 and name:
        assert found[0] == name
