"""References: how a model was made, written down, and what a file may make us call."""

from __future__ import annotations

import copy
import functools
import gc
import json
import os
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import distillation.torchvision_guard  # noqa: F401
from distillation import references
from distillation.errors import ConfigError, TrustError
from distillation.references import Reference, build, note, noted


class Mine(nn.Module):
    def __init__(self, width: int = 2, sizes=(1, 2)):
        super().__init__()
        self.layer = nn.Linear(width, 2)
        self.sizes = sizes

    @classmethod
    def wide(cls, width):
        return cls(width)


class Other(Mine):
    pass


def make(width=2):
    return Mine(width)


HERE = __name__


# Writing down ---------------------------------------------------------------------------------


def test_a_call_is_written_down_and_read_back():
    reference = Reference.of(Mine, 3, sizes=(1, (2, 3), [4]))
    assert reference.target == f"{HERE}:Mine"
    again = Reference.from_json(json.loads(json.dumps(reference.to_json())))
    assert again == reference and hash(again) == hash(reference)
    assert again.kwargs == {"sizes": (1, (2, 3), [4])}
    assert build(again).sizes == (1, (2, 3), [4])


def test_functions_classmethods_and_partials_can_be_written_down():
    assert Reference.of(make, 4) == Reference(f"{HERE}:make", (4,))
    assert Reference.of(Mine.wide, 4) == Reference(f"{HERE}:Mine.wide", (4,))
    assert Reference.of(Other.wide, 4) == Reference(f"{HERE}:Other.wide", (4,))
    partial = functools.partial(functools.partial(make), width=4)
    assert Reference.of(partial) == Reference(f"{HERE}:make", (), {"width": 4})


def local_function():
    def make():
        return Mine()

    return make


@pytest.mark.parametrize(
    "function",
    [
        lambda: Mine(),
        local_function(),
        nn.Linear(1, 1),
        Mine().forward,
        len,
        os.getcwd,
        json.loads,
        functools.partial(lambda: None),
        3,
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_what_cannot_be_found_again_has_no_reference(function):
    assert Reference.of(function) is None


@pytest.mark.parametrize("argument", [torch.zeros(1), float("nan"), object(), {1: 2}, {1, 2}, b"x"])
def test_arguments_that_are_not_plain_have_no_reference(argument):
    assert Reference.of(Mine, argument) is None
    with pytest.raises(ConfigError, match=r"arguments are None|as JSON"):
        Reference(f"{HERE}:Mine", (argument,))


def test_a_shadowed_name_has_no_reference():
    shadowed = types.FunctionType(make.__code__, make.__globals__, "make")
    assert Reference.of(shadowed) is None


def test_a_reference_cannot_be_changed_through_its_arguments():
    sizes = [1]
    reference = Reference(f"{HERE}:Mine", (2, sizes))
    sizes.append(2)
    assert reference.args == (2, [1])


@pytest.mark.parametrize(
    "obj",
    [
        None,
        "os:system",
        [],
        {},
        {"target": None},
        {"target": "nocolon"},
        {"target": "a:b", "args": "xy"},
        {"target": "a:b", "kwargs": [1]},
        {"target": "a:b", "extra": 1},
        {"target": "a:b", "args": [float("inf")]},
        {"target": "a:b", "args": [object()]},
        {"target": "a:b", "args": [functools.reduce(lambda a, _: [a], range(500), 0)]},
    ],
    ids=lambda written: str(written)[:40].split(" object at")[0],
)
def test_a_malformed_reference_is_refused(obj):
    with pytest.raises(TrustError):
        Reference.from_json(obj)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text().filter(lambda k: k != "__tuple__"), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(plain, max_size=3), st.dictionaries(st.text(), plain, max_size=3))
def test_plain_arguments_survive_json(args, kwargs):
    kwargs.pop("__tuple__", None)
    reference = Reference("package.module:name", tuple(args), kwargs)
    again = Reference.from_json(json.loads(json.dumps(reference.to_json(), allow_nan=False)))
    assert again == reference
    assert (again.args, again.kwargs) == (tuple(args), kwargs)


def test_a_note_belongs_to_one_object_and_dies_with_it():
    model = Mine()
    reference = Reference.of(Mine)
    assert noted(model) is None
    assert note(model, reference) is model
    assert noted(model) == reference
    assert noted(copy.deepcopy(model)) is None
    assert noted("no model") is None
    gc.collect()  # what earlier tests left
    before = len(references._notes)
    del model
    gc.collect()
    assert len(references._notes) == before - 1
    with pytest.raises(ConfigError, match="takes a Reference"):
        note(Mine(), "x:y")
    with pytest.raises(ConfigError, match=r"takes an nn\.Module"):
        note("no model", reference)


# Which run the weights are of ------------------------------------------------------------------


def test_the_run_of_a_model_is_remembered_wherever_the_model_goes():
    model = references.note_run(Mine(), "run", 7)
    assert references.noted_run(model.half().to(memory_format=torch.channels_last)) == ("run", 7)
    assert references.noted_run(copy.deepcopy(model)) is None


def test_weights_that_were_changed_are_no_runs_weights():
    trained, loaded = (references.note_run(Mine(), "run", 7) for _ in range(2))
    trained.layer(torch.ones(2)).sum().backward()
    torch.optim.SGD(trained.parameters(), 0.1).step()
    assert references.noted_run(trained) is None
    loaded.load_state_dict(Mine().state_dict())
    assert references.noted_run(loaded) is None
