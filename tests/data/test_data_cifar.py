"""CIFAR-10 from every form it comes in, decoded once."""

import os
import pickle
import shutil
import subprocess
import sys
import time

import pytest
import torch
from cifar_sources import (
    as_folder,
    as_tar,
    as_zip,
    batches,
    below,
    pictures,
    pixels,
    python2_pickle,
)

from distillation.data import cifar10
from distillation.data.cache import Cache, root
from distillation.data.pictures import CLASSES
from distillation.errors import DataError

FORMS = {
    "folder": lambda p: as_folder(p / "data", pictures()),
    "folder, one further down": lambda p: as_folder(p / "data", below("cifar", pictures())),
    "tar.xz": lambda p: as_tar(p / "data.tar.xz", pictures()),
    "tar.gz": lambda p: as_tar(p / "data.tar.gz", pictures()),
    "tar": lambda p: as_tar(p / "data.tar", pictures()),
    "tar, one further down": lambda p: as_tar(p / "data.tar", below("./cifar", pictures())),
    "zip": lambda p: as_zip(p / "data.zip", pictures()),
    "zip, one further down": lambda p: as_zip(p / "data.zip", below("cifar", pictures())),
    "folder that holds one archive": lambda p: as_tar(p / "data.tar.xz", pictures()).parent,
}


def same(one, two) -> bool:
    return [s.fingerprint for s in one] == [s.fingerprint for s in two]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(tmp_path, form):
    folder = tmp_path / "source"
    folder.mkdir()
    train, test = cifar10(FORMS[form](folder))
    assert (len(train), len(test)) == (20, 10)
    assert train.classes == CLASSES == tuple(sorted(CLASSES))
    assert train.labels.tolist() == [label for label in range(10) for _ in range(2)]
    expected = torch.from_numpy(pixels("train", 3, 1)).permute(2, 0, 1)
    assert torch.equal(train.images[7], expected)
    assert torch.equal(test.images[9], torch.from_numpy(pixels("test", 9, 0)).permute(2, 0, 1))
    assert test.mean == train.mean


@pytest.mark.parametrize("form", ["folder", "folder that holds it", "tar.gz"])
def test_torchvisions_batches(tmp_path, form):
    source = {
        "folder": lambda: as_folder(tmp_path / "data", batches()) / "cifar-10-batches-py",
        "folder that holds it": lambda: as_folder(tmp_path / "data", batches()),
        "tar.gz": lambda: as_tar(tmp_path / "cifar-10-python.tar.gz", batches()),
    }[form]()
    train, test = cifar10(source)
    assert (len(train), len(test)) == (100, 10)
    assert train.labels[:20].tolist() == [label for label in range(10) for _ in range(2)]
    expected = torch.from_numpy(pixels("train", 3, 1)).permute(2, 0, 1)
    assert torch.equal(train.images[7], expected)
    assert same([test], [cifar10(as_zip(tmp_path / "pictures.zip", pictures()))[1]])


def test_pickles_of_python_2(tmp_path):
    """The files on CIFAR-10's own page were written by it."""
    files = batches()
    for name, content in files.items():
        if not name.endswith("meta"):
            batch = pickle.loads(content)
            files[name] = python2_pickle(batch["data"], batch["labels"])
    old = cifar10(as_folder(tmp_path / "old", files))
    assert same(old, cifar10(as_folder(tmp_path / "new", batches())))


def test_jpeg_is_decoded(tmp_path):
    train, _ = cifar10(as_tar(tmp_path / "data.tar", pictures(kind="JPEG")))
    lossless = torch.from_numpy(pixels("train", 0, 0)).permute(2, 0, 1).float()
    error = (train.images[0].float() - lossless).abs().mean()
    assert 0 < float(error) < 60  # noise is the worst case for JPEG; unrelated noise gives 85


def test_a_known_source_is_not_read_again(tmp_path):
    """Same path, size and time of modification: not even a source that is spoilt is noticed."""
    source = as_zip(tmp_path / "data.zip", pictures())
    first, status = cifar10(source), source.stat()
    source.write_bytes(bytes(status.st_size))
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert same(cifar10(source), first)


def test_a_source_that_changed_is_decoded_anew(tmp_path):
    source = as_folder(tmp_path / "data", pictures())
    first = cifar10(source)
    picture = source / "train/cat/0001.png"
    picture.write_bytes((source / "train/cat/0000.png").read_bytes())
    changed = cifar10(source)
    assert changed[0].fingerprint != first[0].fingerprint
    assert changed[1].fingerprint == first[1].fingerprint


def test_the_same_content_elsewhere_is_not_decoded_again(tmp_path, own_cache):
    first = cifar10(as_zip(tmp_path / "one.zip", pictures()))
    shutil.copy(tmp_path / "one.zip", tmp_path / "two.zip")
    assert same(cifar10(tmp_path / "two.zip"), first)
    assert len(list(own_cache.rglob("*.safetensors"))) == 1


@pytest.mark.parametrize("spoil", ["a flipped byte", "half of it", "an entry that is no JSON"])
def test_a_damaged_cache_is_made_again(tmp_path, own_cache, spoil):
    source = as_zip(tmp_path / "data.zip", pictures())
    first = cifar10(source)
    (file,) = own_cache.rglob("*.safetensors")
    (entry,) = own_cache.rglob("*.json")
    content = bytearray(file.read_bytes())
    if spoil == "a flipped byte":
        content[-100] ^= 1
        file.write_bytes(content)
    elif spoil == "half of it":
        file.write_bytes(content[: len(content) // 2])
    else:
        entry.write_text("{")
    assert same(cifar10(source), first)
    assert same(Cache("cifar10").load(file), first)


def test_processes_that_start_together_share_the_work(tmp_path, own_cache):
    source = as_tar(tmp_path / "data.tar.xz", pictures(train=20))
    program = (
        "import sys\n"
        "from distillation.data import cifar10\n"
        "print(*(s.fingerprint for s in cifar10(sys.argv[1])))\n"
    )
    command = [sys.executable, "-c", program, str(source)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].split() for process in running]
    assert said[0] == said[1] == [s.fingerprint for s in cifar10(source)]
    assert len(list(own_cache.rglob("*.safetensors"))) == 1


def test_what_is_asked_for_goes_before_the_environment(tmp_path, monkeypatch):
    one = as_zip(tmp_path / "one.zip", pictures())
    two = as_zip(tmp_path / "two.zip", pictures(train=3))
    monkeypatch.setenv("DISTILLATION_DATA", str(two))
    assert len(cifar10()[0]) == 30
    assert len(cifar10(one)[0]) == 20


def test_where_the_cache_lies(tmp_path, monkeypatch):
    assert root(tmp_path / "given") == tmp_path / "given"
    assert root() == tmp_path / "cache"
    monkeypatch.delenv("DISTILLATION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert root() == tmp_path / "xdg" / "distillation"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert root() == tmp_path / "home" / ".cache" / "distillation"


def test_only_whole_copies_stand_in_for_a_source_that_is_not_named(tmp_path):
    """A tiny copy in the cache must never be taken for CIFAR-10."""
    cifar10(as_zip(tmp_path / "tiny.zip", pictures()))
    with pytest.raises(DataError, match="there is no CIFAR-10 in the cache"):
        cifar10(download=False)
    cache = Cache("cifar10")
    (file,) = cache.complete(train=20, test=10)
    assert cache.complete(train=20, test=20) == []
    assert cache.origin(file) == "tiny.zip"
    assert len(cache.load(file)[0]) == 20


def test_the_real_archive(cifar_archive, own_cache):
    """All 60,000 images; the published channel means; ready in under 2 s the second time."""
    first = cifar10(cifar_archive)
    train, test = first
    assert set(train.counts().values()) == {5000}
    assert set(test.counts().values()) == {1000}
    torch.testing.assert_close(
        torch.tensor(train.mean), torch.tensor([0.4913, 0.4821, 0.4465]), rtol=0, atol=1e-4
    )
    start = time.perf_counter()
    assert same(cifar10(cifar_archive), first)
    assert same(cifar10(download=False), first)  # whole: found in the cache without being named
    assert time.perf_counter() - start < 4
