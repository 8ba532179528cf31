"""A table over a loader whose pictures a data set makes, random transforms and all."""

from __future__ import annotations

import pytest
import torch
from table_case import make_views
from torch.utils.data import Dataset

from distillation.data import Rendering, ReplayableLoader, TensorLoader
from distillation.errors import ConfigError, ShapeError, TeacherError
from distillation.table import ImageInputs, TeacherTable, with_table, with_tables
from distillation.table.replayed import ReplayedInputs
from distillation.table_option import table_source


class Noisy(Dataset):
    """Images with noise that no two epochs share."""

    def __init__(self, images, strength=0.5):
        self.images, self.strength = images, strength

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        picture = self.images.images[i].float() / 255
        return picture + self.strength * torch.rand_like(picture), int(self.images.labels[i])


def ask(table, loader, epochs=(0, 1)):
    batches = [batch for epoch in epochs for batch in loader.batches(epoch)]
    return torch.cat([table(b.images, sample=b.sample, view=b.view) for b in batches])


@pytest.fixture
def noisy(images):
    return Noisy(images.subset(70))


def test_the_second_student_of_a_stream_finds_every_picture_of_every_epoch(
    teacher, noisy, tmp_path
):
    first = ReplayableLoader(noisy, 32, seed=3)
    with table_source(teacher, "auto", first, epochs=2, root=tmp_path) as table:
        logits = ask(table, first)
        assert table.misses == 2 * 70
        again = ReplayableLoader(noisy, 20, seed=3, num_workers=2)  # a table knows no batches
        with table_source(teacher, "auto", again, epochs=3, root=tmp_path) as found:
            assert found.folder == table.folder
            ask(found, again)
            assert (found.misses, found.hits) == (0, 2 * 70)
    online = torch.cat([teacher(b.images) for e in (0, 1) for b in first.batches(e)])
    assert torch.allclose(logits, online, atol=2e-2)
    assert not torch.allclose(logits[:70].sort(0)[0], logits[70:].sort(0)[0], atol=2e-2)


@pytest.mark.parametrize("other", ["seed", "transform"])
def test_another_stream_has_another_table(teacher, noisy, tmp_path, other):
    dataset = Noisy(noisy.images, 0.4) if other == "transform" else noisy
    loaders = ReplayableLoader(noisy, 32), ReplayableLoader(dataset, 32, seed=int(other == "seed"))
    folders = []
    for loader in loaders:
        with table_source(teacher, "auto", loader, epochs=1, root=tmp_path) as table:
            folders.append(table.folder)
    assert folders[0] != folders[1]


def test_with_a_rendering_it_shares_the_table_of_the_tensor_loader(teacher, images, tmp_path):
    rendering = Rendering(images.mean, images.std, views=make_views(), dtype=torch.bfloat16)
    loader = ReplayableLoader(images, 64, seed=3, rendering=rendering)
    with table_source(teacher, "auto", loader, root=tmp_path) as table:
        logits = ask(table, loader, epochs=[0])
        whole = TensorLoader(images, 64, views=make_views(), seed=3)
        with table_source(teacher, "auto", whole, root=tmp_path) as found:
            assert torch.equal(ask(found, whole, epochs=[0]), logits)
            assert found.misses == 0


def test_filled_ahead_for_all_its_epochs(teacher, images, tmp_path):
    loader = ReplayableLoader(Noisy(images.subset(5)), 5)
    with TeacherTable(teacher, tmp_path, ReplayedInputs(loader)) as table:
        assert table.fill() == 5 * 16
        ask(table, loader, epochs=[0, 15])
        assert table.misses == 0


def test_other_pictures_than_the_keys_say_are_noticed(teacher, noisy, tmp_path):
    loader = ReplayableLoader(noisy, 32)
    other = ReplayableLoader(Noisy(noisy.images, 0.4), 32)
    with TeacherTable(teacher, tmp_path, ReplayedInputs(loader)) as table:
        ask(table, loader, epochs=[0])
        with pytest.raises(TeacherError, match="not what its keys stand for"):
            ask(table, other, epochs=[0])


class FromAnyDtype(torch.nn.Module):
    """A teacher that turns its pictures into float32 itself."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher

    def forward(self, images):
        return self.teacher(images.float() / 16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8])
def test_the_pictures_may_have_any_dtype(teacher, images, tmp_path, dtype):
    items = [(image.to(dtype), 0) for image in images.images[:40]]
    loader = ReplayableLoader(items, 40)
    seeing = FromAnyDtype(teacher).eval()
    with TeacherTable(seeing, tmp_path, ReplayedInputs(loader)) as table:
        logits = ask(table, loader, epochs=[0])
    assert torch.allclose(logits, seeing(loader.batch(0, 0).images), atol=2e-2, rtol=1e-3)


def test_more_epochs_than_the_table_has_room_for_are_told(teacher, noisy, tmp_path):
    loader = ReplayableLoader(noisy, 32)
    with table_source(teacher, tmp_path, loader, epochs=17) as table:
        assert table.inputs.views == 32
        ask(table, loader, epochs=[31])
        with pytest.raises(ShapeError, match=r"view 32 is outside the table.*say with epochs=…"):
            ask(table, loader, epochs=[32])


def test_every_way_to_a_table_is_told_the_epochs(teacher, noisy, tmp_path):
    loader = ReplayableLoader(noisy, 32)
    with with_table(teacher, tmp_path / "one", loader, epochs=17) as table:
        assert table.inputs.views == 32
    tables = with_tables(teacher, tmp_path / "several", {"train": loader}, epochs=17)
    assert tables["train"].inputs.views == 32


def test_endless_views_are_told(images):
    rendering = Rendering(images.mean, images.std, cutout=4)
    with pytest.raises(ConfigError, match="no end of views"):
        ReplayedInputs(ReplayableLoader(images, 64, rendering=rendering))


def test_the_data_set_may_name_itself(noisy):
    class Named(Noisy):
        fingerprint = "noise 0.5 of the digits, v1"

        def __getitem__(self, i):
            raise AssertionError("the data were read")

    inputs = ReplayedInputs(ReplayableLoader(Named(noisy.images), 32))
    assert inputs.identity()["data"] == Named.fingerprint


def test_it_is_what_a_replayable_loader_stands_for(noisy):
    inputs = ImageInputs.of(ReplayableLoader(noisy, 32))
    assert isinstance(inputs, ReplayedInputs)
    assert (inputs.samples, inputs.views) == (70, 16)
