"""Checkpoints: round trips, damage, full disks, kills."""

from __future__ import annotations

import os
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from checkpoint_cases import listing, value_of, write
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from distillation.checkpoint import (
    fingerprint,
    load_state,
    load_strict,
    load_tensors,
    read_checkpoint,
    read_metadata,
    save_state,
    save_tensors,
    write_checkpoint,
)
from distillation.errors import CheckpointError

# Tensors


@given(
    st.lists(
        st.tuples(
            st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
            st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8]),
            st.lists(st.integers(0, 3), max_size=3),
        ),
        max_size=5,
        unique_by=lambda entry: entry[0],
    )
)
@settings(max_examples=30, deadline=None)
def test_tensors_survive_a_round_trip(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    written = {name: (torch.rand(shape) * 9).to(dtype) for name, dtype, shape in entries}
    save_tensors(path, written)
    read = load_tensors(path)
    assert read.keys() == written.keys()
    for name, tensor in written.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_tied_weights_come_back_tied(tmp_path):
    weight = torch.rand(3, 4)
    save_tensors(tmp_path / "x", {"embedding": weight, "head": weight, "copy": weight.clone()})
    read = load_tensors(tmp_path / "x")
    assert read["head"] is read["embedding"]
    assert read["copy"].data_ptr() != read["embedding"].data_ptr()


def test_views_in_any_layout_come_back_with_their_values(tmp_path):
    weight = torch.rand(6, 5)
    written = {
        "whole": weight,
        "transposed": weight.T,
        "rows": weight[2:4],
        "every second": weight[::2],
        "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "expanded": torch.rand(1).expand(7),
    }
    save_tensors(tmp_path / "x", written)
    read = load_tensors(tmp_path / "x")
    assert all(torch.equal(read[name], tensor) for name, tensor in written.items())


def test_metadata_is_read_without_the_tensors(tmp_path):
    save_tensors(tmp_path / "x", {"w": torch.rand(2)}, {"teacher": "large"})
    assert read_metadata(tmp_path / "x") == {"teacher": "large"}


def test_any_flipped_byte_of_a_tensor_file_is_found(tmp_path):
    save_tensors(tmp_path / "good", {"w": torch.rand(3), "tied": torch.ones(2)}, {"key": "value"})
    content = (tmp_path / "good").read_bytes()
    damaged = tmp_path / "damaged"
    for position in range(len(content)):
        damaged.write_bytes(flipped(content, position))
        with pytest.raises(CheckpointError, match="damaged"):
            load_tensors(damaged)


def test_a_foreign_safetensors_file_is_read(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "x", metadata={"format": "pt"})
    assert torch.equal(load_tensors(tmp_path / "x")["w"], torch.ones(2))


def test_what_is_no_tensor_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="'note' is a str, not a tensor"):
        save_tensors(tmp_path / "x", {"w": torch.ones(1), "note": "text"})
    with pytest.raises(CheckpointError, match="'w' is not a dense tensor"):
        save_tensors(tmp_path / "x", {"w": torch.ones(2).to_sparse()})
    with pytest.raises(CheckpointError, match="complex128"):
        save_tensors(tmp_path / "x", {"w": torch.ones(2, dtype=torch.complex128)})
    assert listing(tmp_path) == []


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no file .*absent"):
        load_tensors(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"there is no file .*absent"):
        load_state(tmp_path / "absent")


# States


def test_a_state_survives_a_round_trip_and_any_torch_reads_it(tmp_path):
    state = {
        "step": 3,
        "rng": torch.get_rng_state(),
        "groups": [{"lr": 0.1, "betas": (0.9, 0.999)}],
        "buffers": OrderedDict(a=torch.rand(2)),
        "nothing": None,
        "bytes": b"\0",
    }
    save_state(tmp_path / "state.pt", state)
    for read in (
        load_state(tmp_path / "state.pt"),
        torch.load(tmp_path / "state.pt", weights_only=True),
        torch.load(tmp_path / "state.pt", weights_only=True, mmap=True),
    ):
        assert torch.equal(read["rng"], state["rng"])
        assert torch.equal(read["buffers"]["a"], state["buffers"]["a"])
        for name in ("step", "groups", "nothing", "bytes"):
            assert read[name] == state[name]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"lr": np.float64(0.1)}, r"state\['a'\]\[0\]\['lr'\] is a numpy.float64"),
        ({"init": lambda: 0}, r"state\['a'\]\[0\]\['init'\] is a function"),
        (defaultdict(list), r"state\['a'\]\[0\] is a defaultdict"),
        (nn.Linear(1, 1), r"state\['a'\]\[0\] is a torch.nn.modules.linear.Linear"),
    ],
)
def test_a_state_that_cannot_be_loaded_safely_is_refused_by_its_place(tmp_path, value, named):
    save_state(tmp_path / "state.pt", "older")
    with pytest.raises(CheckpointError, match=named):
        save_state(tmp_path / "state.pt", {"a": [value]})
    assert load_state(tmp_path / "state.pt") == "older"
    assert listing(tmp_path) == ["state.pt"]


def test_a_foreign_pickle_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="is refused"):
        load_state(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_any_flipped_byte_of_a_state_is_found(tmp_path):
    save_state(tmp_path / "good", {"w": torch.rand(3), "lr": [0.5]})
    content = (tmp_path / "good").read_bytes()
    damaged = tmp_path / "damaged"
    for position in range(len(content)):
        damaged.write_bytes(flipped(content, position))
        with pytest.raises(CheckpointError, match="damaged"):
            load_state(damaged)


def test_a_foreign_state_is_checked_by_the_checksums_of_its_archive(tmp_path):
    torch.save({"w": torch.full((4,), 0.5)}, tmp_path / "x")
    assert torch.equal(load_state(tmp_path / "x")["w"], torch.full((4,), 0.5))
    content = (tmp_path / "x").read_bytes()
    position = content.index(np.float32(0.5).tobytes() * 4)
    (tmp_path / "x").write_bytes(flipped(content, position))
    with pytest.raises(CheckpointError, match="data/0"):
        load_state(tmp_path / "x")


# Checkpoints


def test_a_checkpoint_holds_weights_state_and_info(tmp_path):
    write(tmp_path / "100", 1.5)
    assert value_of(tmp_path / "100") == 1.5
    assert listing(tmp_path / "100") == [
        "ema.safetensors",
        "manifest.json",
        "model.safetensors",
        "state.pt",
    ]


def test_a_checkpoint_is_replaced(tmp_path):
    write(tmp_path / "100", 1.0)
    write(tmp_path / "100", 2.0)
    assert value_of(tmp_path / "100") == 2.0
    assert listing(tmp_path) == ["100"]


def test_only_what_is_asked_for_is_read(tmp_path):
    write(tmp_path / "100", 1.0)
    read = read_checkpoint(tmp_path / "100", names=["ema"], state=False)
    assert list(read.weights) == ["ema"]
    assert read.state is None
    with pytest.raises(CheckpointError, match=r"no weights 'emma'; it has \['ema', 'model'\]"):
        read_checkpoint(tmp_path / "100", names=["emma"])


def test_any_flipped_byte_of_a_checkpoint_is_found_and_its_file_named(tmp_path):
    write(tmp_path / "100", 1.0)
    for file in sorted((tmp_path / "100").iterdir()):
        content = file.read_bytes()
        for position in range(0, len(content), 3):
            file.write_bytes(flipped(content, position))
            with pytest.raises(CheckpointError, match=file.name):
                read_checkpoint(tmp_path / "100")
        file.write_bytes(content[:-1])
        with pytest.raises(CheckpointError, match=file.name):
            read_checkpoint(tmp_path / "100")
        file.write_bytes(content)
    assert value_of(tmp_path / "100") == 1.0


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_a_missing_file_of_a_checkpoint_is_named(tmp_path, name):
    write(tmp_path / "100", 1.0)
    (tmp_path / "100" / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing"):
        read_checkpoint(tmp_path / "100")


def test_a_state_that_cannot_be_saved_leaves_the_older_checkpoint(tmp_path):
    write(tmp_path / "100", 1.0)
    with pytest.raises(CheckpointError, match=r"100/state\.pt: state\['lr'\] is a numpy"):
        write_checkpoint(tmp_path / "100", {}, {"lr": np.float32(1)})
    assert value_of(tmp_path / "100") == 1.0
    assert listing(tmp_path) == ["100"]


def test_a_folder_that_is_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        read_checkpoint(tmp_path / "100")


def test_a_weights_name_must_be_a_file_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"weights name '\.\./model'"):
        write_checkpoint(tmp_path / "100", {"../model": {}})
    assert listing(tmp_path) == []


# Modules


def net(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


def test_weights_are_loaded_by_name(tmp_path):
    source, target = net(), net()
    reordered = dict(reversed(list(source.state_dict().items())))
    assert load_strict(target, reordered) is target
    assert fingerprint(target) == fingerprint(source)


def test_what_does_not_fit_is_listed_and_nothing_is_loaded():
    module = net()
    before = fingerprint(module)
    state = net(width=4).state_dict()
    state["0.wieght"] = state.pop("0.weight")
    state["1.num_batches_tracked"] = torch.tensor(0.0)
    with pytest.raises(CheckpointError) as error:
        load_strict(module, state, what="the teacher")
    message = str(error.value)
    assert message.startswith("the teacher does not fit Sequential: missing 0.weight;")
    assert "unexpected 0.wieght (did you mean 0.weight?)" in message
    assert "0.bias (shape (4,), the model has (3,))" in message
    assert "1.num_batches_tracked (dtype torch.float32, the model has torch.int64)" in message
    assert fingerprint(module) == before


def test_a_fingerprint_depends_on_names_dtypes_shapes_and_values_only():
    weight = torch.rand(4, 6)
    print_ = fingerprint({"a": weight, "b": torch.ones(1)})
    assert fingerprint({"b": torch.ones(1), "a": weight.T.contiguous().T}) == print_
    assert fingerprint({"a": weight.T, "b": torch.ones(1)}) != print_
    assert fingerprint({"a": weight.reshape(6, 4), "b": torch.ones(1)}) != print_
    assert fingerprint({"a": weight.view(torch.int32), "b": torch.ones(1)}) != print_
    assert fingerprint({"c": weight, "b": torch.ones(1)}) != print_
    assert fingerprint({"a": weight.nextafter(weight + 1), "b": torch.ones(1)}) != print_


def test_buffers_count_in_a_modules_fingerprint():
    module = net()
    before = fingerprint(module)
    assert before == fingerprint(module.state_dict())
    module(torch.rand(5, 2))  # moves the running statistics
    assert fingerprint(module) != before


def test_a_compiled_model_has_the_fingerprint_of_the_plain_one():
    module = net()
    assert fingerprint(torch.compile(nn.Sequential(module))) == fingerprint(nn.Sequential(module))


def test_a_fingerprint_is_the_same_tomorrow():
    state = {"w": torch.arange(3, dtype=torch.float32), "n": torch.tensor(7)}
    golden = "3dc491bfe0623d7663286fc7c986e51f5d259095c511d6b6b5d70fa0e9b5e799"
    assert fingerprint(state) == golden


def flipped(content: bytes, position: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= 0xFF
    return bytes(changed)
