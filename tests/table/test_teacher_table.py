"""A teacher table is its teacher: exact, computed once, never of something else."""

from __future__ import annotations

import copy
import errno
import os

import pytest
import torch
from table_case import make_teacher, make_views
from torch import nn

from distillation.checkpoint import write_checkpoint
from distillation.data import CropFlip, Identity, TensorLoader, digits
from distillation.errors import ConfigError, DataError, ShapeError, TeacherError
from distillation.models.digits import DigitsLargeModel
from distillation.table import Execution, GivenInputs, ImageInputs, TeacherTable, with_table
from distillation.teacher import EnsembleTeacher, FrozenTeacher


def forward(model, images):
    with torch.no_grad():
        return model(images)


def test_an_entry_equals_the_teachers_own_logits_in_fp16_to_the_bit(table, teacher, loader):
    for batch in loader.batches(0):
        cold = table(batch.images, sample=batch.sample, view=batch.view)
        warm = table(batch.images, sample=batch.sample, view=batch.view)
        expected = forward(teacher, batch.images).half()
        assert cold.dtype == torch.float32
        assert torch.equal(cold.half(), expected)
        assert torch.equal(warm, expected.float())


def test_the_teacher_runs_once_for_each_key_and_never_for_another_view(table, teacher, loader):
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        for batch in loader.batches(0):
            table(batch.images, sample=batch.sample, view=batch.view)
    assert (table.misses, table.hits) == (320, 640)
    assert len(calls) == 5 + 1  # 5 batches of 64, and the probe of a new table
    # The same images under other views are new keys.
    batch = loader.batch(0, 0)
    other = (batch.view + 1) % 9
    shifted = loader.images(batch.sample, other)
    logits = table(shifted, sample=batch.sample, view=other)
    assert table.misses == 384
    assert torch.equal(logits, forward(teacher, shifted).half().float())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_entry_does_not_depend_on_who_asked_nor_on_its_neighbours(
    teacher, images, inputs, loader, tmp_path, precision
):
    execution = Execution(precision=precision)
    batch = loader.batch(0, 0)
    with TeacherTable(teacher, tmp_path / "whole", inputs, execution=execution) as whole:
        expected = whole(batch.images, sample=batch.sample, view=batch.view)
    with TeacherTable(teacher, tmp_path / "parts", inputs, execution=execution) as parts:
        # One by one, in crowds of others, within another autocast, in channels_last.
        one = slice(0, 1)
        parts(batch.images[one], sample=batch.sample[one], view=batch.view[one])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            some = slice(1, 20)
            parts(batch.images[some], sample=batch.sample[some], view=batch.view[some])
        turned = batch.images.to(memory_format=torch.channels_last).flip(0)
        got = parts(turned, sample=batch.sample.flip(0), view=batch.view.flip(0))
    assert torch.equal(got.flip(0), expected)


def test_a_batch_of_one_would_not_give_these_bits(teacher, loader):
    """Why misses run in padded batches: the kernels differ by batch size."""
    batch = loader.batch(0, 0)
    together = forward(teacher, batch.images)
    alone = torch.cat([forward(teacher, image[None]) for image in batch.images])
    assert torch.allclose(together, alone, atol=1e-3)
    if torch.equal(together, alone):
        pytest.skip("on this processor they happen to agree")


def test_on_a_gpu_no_kernel_is_chosen_by_timing(teacher, inputs, tmp_path, monkeypatch):
    """What a training asks of cuDNN for its own sake does not reach the teacher."""
    seen = []
    teacher.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.benchmark))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with TeacherTable(teacher, tmp_path, inputs) as table:
        table(sample=torch.tensor([5]), view=torch.tensor([2]))
    assert set(seen) == {False}
    assert torch.backends.cudnn.benchmark


def test_keys_asked_twice_in_one_batch_are_computed_once(table, loader):
    batch = loader.batch(0, 0)
    twice = torch.cat([batch.sample[:3]] * 2), torch.cat([batch.view[:3]] * 2)
    logits = table(sample=twice[0], view=twice[1])
    assert torch.equal(logits[:3], logits[3:])
    assert table.count() == 3 * 9  # and their other views, in the rows that were left


def test_without_keys_the_error_says_how_they_travel(table, loader):
    with pytest.raises(TeacherError, match=r"compute_kd_loss\(…, sample=…, view=…\)"):
        table(loader.batch(0, 0).images)
    with pytest.raises(TeacherError, match=r"batch\.sample and batch\.view"):
        table(loader.batch(0, 0).images, sample=loader.batch(0, 0).sample)


def test_keys_of_another_kind_are_refused(table):
    with pytest.raises(ShapeError, match=r"sample must be an int64 tensor \[batch\]"):
        table(sample=torch.zeros(3), view=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ShapeError, match="sample 320 is outside the table"):
        table(sample=torch.tensor([320]), view=torch.tensor([0]))


def test_images_that_are_not_what_their_keys_say_are_noticed(table, images):
    """A validation loader has keys too, of other data; so have a holdout and a cutout."""
    test = digits()[1].subset(320)
    for other in (
        TensorLoader(test, 64, mean=images.mean, std=images.std),
        TensorLoader(images, 64, mean=(0.0,), std=(1.0,)),
        TensorLoader(images, 64, views=CropFlip(padding=1, size=8, flip=True)),
    ):
        batch = other.batch(1, 0)
        with pytest.raises(TeacherError, match="not what its keys stand for"):
            table(batch.images, sample=batch.sample, view=batch.view.clamp(max=8))


def test_a_student_may_be_meant_to_see_other_images(teacher, images, tmp_path):
    inputs = ImageInputs(images, make_views(), check_images=False)
    own = TensorLoader(images, 64, views=make_views())
    noisy = own.batch(0, 0)._replace(images=torch.randn(64, 1, 8, 8))
    with TeacherTable(teacher, tmp_path, inputs) as table:
        logits = table(noisy.images, sample=noisy.sample, view=noisy.view)
    assert torch.equal(logits, forward(teacher, own.batch(0, 0).images).half().float())


def test_views_without_end_have_no_table(images):
    loader = TensorLoader(images, 64, cutout=2)
    with pytest.raises(ConfigError, match=r"no end of views.*teacher_table=None"):
        ImageInputs.of(loader)


def test_opened_again_it_answers_without_running_the_teacher(table, teacher, inputs, loader):
    batch = loader.batch(0, 0)
    first = table(batch.images, sample=batch.sample, view=batch.view)
    table.release()
    with TeacherTable(None, table.folder, inputs) as again:
        assert torch.equal(again(sample=batch.sample, view=batch.view), first)
        assert again.fingerprint == FrozenTeacher(teacher).fingerprint
        missing = (batch.view + 1) % 9
        with pytest.raises(TeacherError, match=r"64 of the keys .* opened without a teacher"):
            again(sample=batch.sample, view=missing)


def test_tables_of_k_views_share_the_entries_of_the_whole_group(table, teacher, images, loader):
    for batch in loader.batches(0):
        table(batch.images, sample=batch.sample, view=batch.view)
    restricted = ImageInputs(images, make_views().restrict(4, seed=1))
    with TeacherTable(teacher, table.folder, restricted) as same:
        assert same.count() == 320


def with_another_activation():
    """A teacher of the same weights that says something else."""
    teacher = make_teacher()
    teacher.layers[2] = torch.nn.Tanh()
    return teacher


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("teacher architecture", {"teacher": with_another_activation}),
        ("teacher weights", {"teacher": lambda: make_teacher(seed=1)}),
        ("data", {"inputs": lambda: ImageInputs(digits()[0].subset(320, seed=5), make_views())}),
        ("views", {"inputs": lambda: ImageInputs(digits()[0].subset(320, seed=0), Identity())}),
        (
            "normalisation",
            {
                "inputs": lambda: ImageInputs(
                    digits()[0].subset(320, seed=0), make_views(), mean=(0.5,), std=(0.5,)
                )
            },
        ),
        ("precision", {"execution": lambda: Execution(precision="bf16")}),
        ("precision", {"teacher": lambda: FrozenTeacher(make_teacher()).bfloat16()}),
        ("memory format", {"execution": lambda: Execution(channels_last=True)}),
        ("batch size of the fills", {"execution": lambda: Execution(batch_size=32)}),
        ("layers", {"layers": lambda: ["fc"]}),
    ],
)
def test_a_table_of_something_else_is_an_error_that_names_the_part(
    table, inputs, loader, part, change
):
    batch = loader.batch(0, 0)
    table(batch.images, sample=batch.sample, view=batch.view)
    options = {"teacher": make_teacher(), "inputs": inputs, "announce": [].append}
    options |= {name: make() for name, make in change.items()}
    other, inputs = options.pop("teacher"), options.pop("inputs")
    with pytest.raises(TeacherError) as caught:
        TeacherTable(other, table.folder, inputs, **options)
    message = str(caught.value)
    assert f"was made for other {part}:" in message
    assert "on_mismatch='new'" in message
    # By option a new table beside the old one, which stays as it is.
    with TeacherTable(other, table.folder, inputs, on_mismatch="new", **options) as new:
        new(sample=batch.sample, view=torch.zeros_like(batch.view))
        assert new.folder != table.folder
    with TeacherTable(other, table.folder, inputs, on_mismatch="new", **options) as again:
        assert (again.folder, again.count()) == (new.folder, 64)
    assert table.count() == 64


def test_the_device_is_part_of_a_tables_identity(table, teacher, inputs, loader, monkeypatch):
    batch = loader.batch(0, 0)
    table(batch.images, sample=batch.sample, view=batch.view)
    manifest = table.folder / "manifest.json"
    name = table.entries.identity["device"]
    manifest.write_text(manifest.read_text().replace(name, "cuda Some Board"))
    with pytest.raises(TeacherError, match="other device:\n  device: table cuda Some Board, asked"):
        TeacherTable(teacher, table.folder, inputs)


def test_a_teacher_that_looks_at_the_neighbours_is_found_out(images, inputs, tmp_path, loader):
    with pytest.warns(UserWarning, match="batch_statistics"):
        teacher = DigitsLargeModel(batch_statistics=True)
    table = TeacherTable(teacher, tmp_path / "table", inputs)
    batch = loader.batch(0, 0)
    with pytest.raises(TeacherError, match="depends on the other images of its batch"):
        table(batch.images, sample=batch.sample, view=batch.view)
    assert not (tmp_path / "table").exists()


def test_only_a_teacher_in_eval_mode_has_a_table(teacher, inputs, tmp_path):
    with pytest.raises(TeacherError, match="needs teacher_mode='eval'"):
        TeacherTable(FrozenTeacher(teacher, mode="follow"), tmp_path, inputs)


@pytest.mark.parametrize("value", [70000.0, float("nan")])
def test_logits_that_fp16_cannot_hold_are_named(images, inputs, tmp_path, value):
    teacher = make_teacher()
    with torch.no_grad():
        teacher.fc.bias[3] = value
    table = TeacherTable(teacher, tmp_path / "table", inputs)
    with pytest.raises(TeacherError, match=r"of sample 5, view 2 does not fit a half float"):
        table(sample=torch.tensor([5]), view=torch.tensor([2]))
    assert table.count() == 0


def test_minus_infinity_is_kept_as_it_is(inputs, tmp_path):
    teacher = make_teacher()
    with torch.no_grad():
        teacher.fc.bias[3] = float("-inf")
    with TeacherTable(teacher, tmp_path / "table", inputs) as table:
        logits = table(sample=torch.tensor([5]), view=torch.tensor([2]))
    assert logits[0, 3] == float("-inf")


def test_a_teacher_moved_after_the_table_was_opened_is_noticed(teacher, inputs, tmp_path):
    table = TeacherTable(teacher, tmp_path / "table", inputs)
    teacher.double()
    with pytest.raises(TeacherError, match="was moved or cast since"):
        table(sample=torch.tensor([5]), view=torch.tensor([2]))


def test_hidden_layers_are_kept_by_name_and_the_size_is_said_first(
    teacher, inputs, tmp_path, loader
):
    said = []
    layers = ["layers.0", "fc"]  # the first one is changed in place by the activation behind it
    batch = loader.batch(0, 0)
    with TeacherTable(
        teacher, tmp_path / "table", inputs, layers=layers, announce=said.append
    ) as table:
        output = table(batch.images, sample=batch.sample, view=batch.view)
        hidden = forward(teacher.layers[0], batch.images).half().float()
        assert torch.equal(table.recorded["layers.0"], hidden)
        assert torch.equal(table.recorded["fc"], output)
        assert len(said) == 1
        # 320 samples × 9 views × 32 channels × 8 × 8 pixels × 2 bytes
        assert f"layers.0 [32, 8, 8]: {320 * 9 * 32 * 64 * 2:,} bytes" in said[0]
    assert not teacher.layers[0]._forward_hooks
    with pytest.raises(ConfigError, match=r"unknown .*'layers.99'"):
        TeacherTable(teacher, tmp_path / "other", inputs, layers=["layers.99"])


def test_the_order_in_which_layers_are_named_makes_no_other_table(teacher, inputs, tmp_path):
    key, quiet = {"sample": torch.tensor([1]), "view": torch.tensor([2])}, {"announce": [].append}
    with TeacherTable(teacher, tmp_path, inputs, layers=["layers.0", "fc"], **quiet) as table:
        output, layers = table(**key), table.recorded
    with TeacherTable(teacher, tmp_path, inputs, layers=["fc", "layers.0"], **quiet) as again:
        assert torch.equal(again(**key), output)
        assert all(torch.equal(again.recorded[name], layers[name]) for name in layers)
        assert again.misses == 0


def test_an_ensemble_has_a_table(inputs, tmp_path, loader):
    members = [make_teacher(0), make_teacher(1)]
    batch = loader.batch(0, 0)
    with TeacherTable(members, tmp_path / "table", inputs) as table:
        logits = table(batch.images, sample=batch.sample, view=batch.view)
    assert torch.equal(logits, EnsembleTeacher(members)(batch.images).half().float())


def test_the_last_hold_closes_the_table_and_gives_the_teacher_back(teacher, inputs, tmp_path):
    key = {"sample": torch.tensor([1]), "view": torch.tensor([2])}
    table = TeacherTable(teacher, tmp_path / "table", inputs)
    other = table.share()
    logits = table(**key)
    table.release()
    table.release()
    assert torch.equal(other(**key), logits)
    with pytest.raises(TeacherError, match="was released"):
        table(**key)
    assert not any(p.requires_grad for p in teacher.parameters())
    other.release()
    assert all(p.requires_grad for p in teacher.parameters())


def test_two_tables_of_one_folder_see_each_others_entries(teacher, inputs, tmp_path):
    key = {"sample": torch.tensor([1, 2]), "view": torch.tensor([2, 2])}
    first = TeacherTable(teacher, tmp_path / "table", inputs)
    second = TeacherTable(copy.deepcopy(teacher), tmp_path / "table", inputs)
    assert torch.equal(first(**key), second(**key))
    assert (first.misses, second.misses) == (2, 2)  # the second did not know of the folder yet
    third = {"sample": torch.tensor([3]), "view": torch.tensor([0])}
    assert torch.equal(first(**third), second(**third))
    assert (first.misses, second.misses) == (3, 2)
    first.release()
    second.release()


def test_a_damaged_manifest_is_named(table, teacher, inputs):
    table(sample=torch.tensor([1]), view=torch.tensor([2]))
    (table.folder / "manifest.json").write_text('{"format": 1, "identity"')
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        TeacherTable(teacher, table.folder, inputs)


def test_what_somebody_else_calls_a_manifest_is_no_damaged_table(teacher, loader, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    write_checkpoint(checkpoints / "200", {"model": teacher.state_dict()})
    for folder in (checkpoints, checkpoints / "200"):
        with pytest.raises(DataError, match="not that of a teacher table") as told:
            with_table(teacher, folder, loader)
        assert "delete" not in str(told.value)


def test_a_new_table_where_nothing_may_be_written_is_told(table, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "mkdir", refused)
    with pytest.raises(DataError, match=r"no teacher table can be made in .*: Permission denied"):
        table(sample=torch.tensor([1]), view=torch.tensor([2]))


def test_an_empty_batch_on_a_new_table_is_told(table):
    nothing = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ShapeError, match="a batch without a key: the table is new"):
        table(sample=nothing, view=nothing)
    table(sample=torch.tensor([1]), view=torch.tensor([2]))
    assert table(sample=nothing, view=nothing).shape == (0, 10)


class Tokens(nn.Module):
    """A teacher of something other than images, with two inputs."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 7)

    def forward(self, ids, *, mask):
        return (self.embedding(ids) * mask[..., None]).sum(dim=1)


def test_data_that_only_the_caller_knows_runs_on_the_callers_inputs(tmp_path):
    torch.manual_seed(0)
    teacher = Tokens()
    ids, mask = torch.randint(0, 50, (30, 6)), torch.rand(30, 6).round()
    inputs = GivenInputs(30, data="thirty sentences")
    with TeacherTable(teacher, tmp_path / "table", inputs) as table:
        for index in (torch.tensor([3, 4, 5]), torch.tensor([5, 9, 3, 29])):
            logits = table(ids[index], mask=mask[index], sample=index)
            expected = forward(lambda i: teacher(ids[i], mask=mask[i]), index).half().float()
            assert torch.equal(logits, expected)
        assert table.misses == 5
        with pytest.raises(ConfigError, match="came with 2 keys"):
            table(ids[:3], mask=mask[:3], sample=torch.tensor([1, 2]))
