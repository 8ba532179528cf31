"""Images in a mapped file: the batches of images in memory, without their memory."""

import copy
import os
import pickle
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from cifar_sources import as_tar, pictures
from torch.utils.data import DataLoader

from distillation.data import (
    CropFlip,
    ImageSet,
    MappedImages,
    TensorLoader,
    cifar10,
    gather,
    make_loader,
    map_images,
)
from distillation.errors import ConfigError, DataError
from distillation.table import ImageInputs


@pytest.fixture(scope="module")
def colour() -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (70, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet.of(images, torch.arange(70) % 10, "0123456789")


def written(folder, images: ImageSet, form: str):
    """(path, further arguments of `map_images`): the images in a file of this form."""
    pixels = images.images.numpy()
    if form == "NHWC.npy":
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    if form.endswith(".npy"):
        np.save(folder / form, pixels)
        return folder / form, {}
    path = folder / "images.bin"
    path.write_bytes(b"some header" + pixels.tobytes())
    return path, {"shape": pixels.shape, "offset": 11}


@pytest.fixture(params=["NCHW.npy", "NHWC.npy", "bytes"])
def mapped(request, tmp_path, colour) -> ImageSet:
    path, options = written(tmp_path, colour, request.param)
    return map_images(path, colour.labels, colour.classes, **options)


def equal(one, two) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_mapped_set_is_the_set_in_memory(mapped, colour):
    """Same fingerprint, so that a teacher's table made with one serves the other."""
    assert not mapped.in_memory
    assert mapped.images.shape == colour.images.shape
    for name in ("fingerprint", "mean", "std", "classes"):
        assert getattr(mapped, name) == getattr(colour, name)
    assert torch.equal(torch.cat(list(mapped.images.chunks())), colour.images)


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_are_those_of_images_in_memory_to_the_bit(mapped, colour, channels_last):
    options = {
        "views": CropFlip(2, 8),
        "views_per_image": 5,
        "cutout": 3,
        "channels_last": channels_last,
        "dtype": torch.bfloat16,
        "seed": 6,
    }
    made, expected = (TensorLoader(images, 20, **options) for images in (mapped, colour))
    assert made.fingerprint == expected.fingerprint
    for one, two in zip(made.batches(3), expected.batches(3), strict=True):
        assert equal(one, two)
        assert one.images.stride() == two.images.stride()
    keys = one.sample.flip(0), one.view.flip(0)
    assert torch.equal(made.images(*keys), one.images.flip(0))
    assert equal(made.part(1, 2).batch(3, 0), expected.part(1, 2).batch(3, 0))


def test_a_teachers_table_makes_its_pictures_from_the_file(mapped, colour):
    """And is the same table as that of the images in memory."""
    inputs, expected = (
        ImageInputs.of(TensorLoader(images, 20, views=CropFlip(2, 8), channels_last=True))
        for images in (mapped, colour)
    )
    assert inputs.identity() == expected.identity()
    keys = np.array([69, 0, 7]), np.array([3, 49, 12])
    assert torch.equal(inputs.render(*keys), expected.render(*keys))


def test_cuts_read_nothing_and_are_those_of_the_set_in_memory(mapped, colour):
    for cut in (
        lambda images: images.split(20, seed=1)[0].subset(30, seed=2),
        lambda images: images.without_classes(["3", "4"]),
    ):
        part, expected = cut(mapped), cut(colour)
        assert isinstance(part.images, MappedImages)
        assert part.fingerprint == expected.fingerprint
        assert torch.equal(part.images[:], expected.images)
        assert part[5][1] == expected[5][1]
        loaders = (TensorLoader(images, 16, views=CropFlip(1, 8)) for images in (part, expected))
        assert all(equal(a, b) for a, b in zip(*loaders, strict=True))


def test_copies_map_the_file_anew(mapped):
    part = mapped.subset(40)
    for again in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):
        assert len(pickle.dumps(again.images)) < 2000  # 40 images have 7,680 bytes
        assert torch.equal(again.images[:], part.images[:])


def test_workers_of_a_dataloader_read_the_file(mapped, colour):
    loader = DataLoader(
        mapped, 20, num_workers=1, multiprocessing_context="spawn", persistent_workers=False
    )
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(images, colour.images)
    assert torch.equal(labels, colour.labels)


def test_a_set_larger_than_memory_makes_batches(tmp_path):
    """A file twice as large as this machine's memory, nearly all of it a hole."""
    size = 3 * 64 * 64
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = 2 * memory // size
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(count * size)
        file.seek((count - 1) * size)
        file.write(b"\xff" * size)
    images = map_images(
        path,
        torch.zeros(count, dtype=torch.int64),
        "a",
        shape=(count, 3, 64, 64),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        fingerprint="nearly all black",
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loader = TensorLoader(images, 64, views=CropFlip(4, 64), shuffle=False)
    assert loader.batch(0, 1).images.shape == (64, 3, 64, 64)
    ends = torch.tensor([count - 1, 0])
    assert loader.images(ends, torch.zeros(2, dtype=torch.int64)).amax((1, 2, 3)).tolist() == [1, 0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_what_was_reckoned_is_kept_until_the_file_changes(tmp_path, colour):
    path, _ = written(tmp_path, colour, "NCHW.npy")
    first = map_images(path, colour.labels, cache=tmp_path / "cache")
    (entry,) = (tmp_path / "cache" / "mapped").iterdir()
    entry.write_text(entry.read_text().replace(first.fingerprint, "kept"))
    assert map_images(path, colour.labels, cache=tmp_path / "cache").fingerprint == "kept"
    changed = colour.images.clone()
    changed[69] = 255
    np.save(path, changed.numpy())
    os.utime(path, ns=(0, 0))
    again = map_images(path, colour.labels, cache=tmp_path / "cache")
    assert again.fingerprint == ImageSet.of(changed, colour.labels, colour.classes).fingerprint


def test_a_file_that_changes_under_a_copy_is_refused(tmp_path, colour):
    path, _ = written(tmp_path, colour, "NCHW.npy")
    images = map_images(path, colour.labels).images
    os.utime(path, ns=(0, 0))
    with pytest.raises(DataError, match="has changed since it was mapped"):
        copy.deepcopy(images)


def test_a_dataset_is_written_to_a_file_once(tmp_path, colour):
    """`gather(file=…)` decodes into a file; another process maps it by its name alone."""

    class Named(list):
        classes = tuple("abcdefghij")

    items = Named(colour[i] for i in range(len(colour)))
    made = gather(items, file=tmp_path / "set.npy")
    assert not made.in_memory
    assert made.classes == Named.classes
    assert made.fingerprint == gather(items).fingerprint
    program = "import sys; from distillation.data import map_images; "
    program += "print(map_images(sys.argv[1]).fingerprint)"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "set.npy")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == made.fingerprint
    made_loader = make_loader(made, 16, seed=2)
    assert equal(made_loader.batch(1, 1), make_loader(gather(items), 16, seed=2).batch(1, 1))


def test_a_gathering_that_fails_leaves_the_old_file(tmp_path, colour):
    good = [(image, 0) for image in colour.images[:4]]
    made = gather(good, file=tmp_path / "set.npy")
    with pytest.raises(DataError, match="item 4 of list has shape"):
        gather([*good, (colour.images[0][:, 1:], 0)], file=tmp_path / "set.npy")
    assert map_images(tmp_path / "set.npy").fingerprint == made.fingerprint
    assert sorted(p.name for p in tmp_path.glob("*set*")) == ["set.labels.npz", "set.npy"]


def test_cifar10_may_stay_in_the_caches_file(tmp_path):
    source = as_tar(tmp_path / "data.tar", pictures())
    decoded = cifar10(source, tmp_path / "other")
    for _ in ("decoded", "found"):
        for made, expected in zip(
            cifar10(source, tmp_path / "cache", mapped=True), decoded, strict=True
        ):
            assert made.images.path.suffix == ".safetensors"
            assert made.fingerprint == expected.fingerprint
            assert torch.equal(made.images[:], expected.images)


def test_files_that_cannot_be_mapped_are_named(tmp_path, colour):
    path, options = written(tmp_path, colour, "bytes")
    with pytest.raises(ConfigError, match=r"images.bin is no .npy file: give shape="):
        map_images(path, colour.labels)
    with pytest.raises(DataError, match=r"has 13,451 bytes; images of shape .* end at 13,452"):
        map_images(path, colour.labels, shape=options["shape"], offset=12)
    with pytest.raises(DataError, match=r"no images\.labels\.npz beside it: give labels="):
        map_images(path, **options)
    with pytest.raises(DataError, match=r"labels must be int64 of shape \(70,\)"):
        map_images(path, colour.labels[:5], **options)
    with pytest.raises(DataError, match="cannot be mapped"):
        map_images(tmp_path / "none.npy", colour.labels)
    with pytest.raises(ConfigError, match="does not say which are the channels"):
        map_images(path, colour.labels, shape=(70, 3, 64, 1), offset=11)
    np.save(tmp_path / "float.npy", np.zeros((2, 3, 4, 4)))
    with pytest.raises(DataError, match="holds float64; images are uint8"):
        map_images(tmp_path / "float.npy", [0, 1])
    (tmp_path / "cut.npy").write_bytes((written(tmp_path, colour, "NCHW.npy")[0]).read_bytes()[:99])
    with pytest.raises(DataError, match=r"cut.npy cannot be mapped"):
        map_images(tmp_path / "cut.npy", colour.labels)


def test_rows_are_whole_numbers(mapped):
    with pytest.raises(IndexError, match=r"not torch.bool; see Tensor.nonzero\(\)"):
        mapped.images[torch.tensor([True, False])]
