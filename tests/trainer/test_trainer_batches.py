"""Batches of any manners, taken apart."""

from typing import NamedTuple

import pytest
import torch
from trainer_kit import loaders

from distillation.errors import ConfigError
from distillation.trainer.batches import plain_output, take_apart, to_device

X, Y = torch.zeros(3, 2), torch.tensor([0, 1, 2])


def same(parts, args=(), kwargs=None):
    assert len(parts.args) == len(args)
    assert all(a is b for a, b in zip(parts.args, args, strict=True))
    assert parts.kwargs.keys() == (kwargs or {}).keys()
    assert parts.size == 3


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_pair(kind):
    parts = take_apart(kind([X, Y]))
    same(parts, (X,))
    assert parts.target is Y and parts.inputs is X


def test_a_triple_and_several_inputs():
    parts = take_apart(((X, X), Y, {"sample": Y, "view": Y}))
    same(parts, (X, X))
    assert parts.sample is Y and parts.view is Y
    assert len(parts.inputs) == 2


def test_a_bare_tensor_has_no_target():
    assert take_apart(X).target is None


@pytest.mark.parametrize("name", ["images", "x", "input"])
@pytest.mark.parametrize("target", ["labels", "label", "y"])
def test_a_dict_with_one_input(name, target):
    parts = take_apart({name: X, target: Y})
    same(parts, (X,))
    assert parts.target is Y


def test_a_hugging_face_batch_goes_to_the_model_by_name():
    parts = take_apart({"input_ids": X, "attention_mask": X, "labels": Y})
    same(parts, (), {"input_ids": X, "attention_mask": X})
    assert parts.target is Y
    assert parts.inputs.keys() == {"input_ids", "attention_mask"}


def test_our_own_batches_carry_their_keys():
    batch = loaders()[0].batch(0, 0)
    parts = take_apart(batch)
    assert parts.args[0] is batch.images and parts.target is batch.labels
    assert parts.sample is batch.sample and parts.view is batch.view


def test_an_adapter_reads_anything_else_and_keeps_the_keys():
    parts = take_apart({"a": X, "b": Y, "sample": Y, "view": Y}, lambda b: ({"p": b["a"]}, b["b"]))
    same(parts, (), {"p": X})
    assert parts.target is Y and parts.view is Y


class Odd(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor
    third: torch.Tensor
    fourth: torch.Tensor


@pytest.mark.parametrize(
    ("batch", "adapter", "said"),
    [
        ("text", None, "type str .*batch_adapter"),
        (Odd(X, X, X, X), None, "of 4 items"),
        ({"labels": Y}, None, "no inputs, only labels"),
        ({"x": X, "labels": Y, "y": Y}, None, "several targets"),
        ((X, Y), lambda batch: batch[0], "must return"),
    ],
)
def test_what_cannot_be_read_is_told(batch, adapter, said):
    with pytest.raises(ConfigError, match=said):
        take_apart(batch, adapter)


def test_moving_keeps_the_structure_and_what_is_there_already():
    batch = {"a": (X, [Y]), "b": "text", "c": Odd(X, X, X, X)}
    moved = to_device(batch, torch.device("cpu"))
    assert moved["a"][0] is X and moved["a"][1][0] is Y and moved["b"] == "text"
    assert isinstance(moved["c"], Odd)
    assert to_device(X, torch.device("meta")).device.type == "meta"


def test_outputs_with_logits_are_unpacked():
    class Output:
        logits = X

    assert plain_output(X) is X
    assert plain_output(Output()) is X
    assert plain_output({"logits": X, "loss": Y}) is X
    assert plain_output((X, Y)) == (X, Y)
    assert plain_output((X, Y), lambda output: output[1]) is Y
