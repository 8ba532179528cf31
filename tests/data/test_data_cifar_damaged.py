"""Sources that are missing, damaged, or not CIFAR-10: each has its message, none leaves a trace."""

import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from cifar_sources import (
    as_folder,
    as_tar,
    as_zip,
    batches,
    below,
    encoded,
    pictures,
    pixels,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distillation.torchvision_guard  # noqa: F401
from distillation.data import cifar10, sources
from distillation.data import pictures as decoder
from distillation.errors import DataError


def refused(source, message, cache):
    """The error matches, names the source, and nothing half-written stays in the cache."""
    with pytest.raises(DataError, match=message) as caught:
        cifar10(source)
    assert str(source) in str(caught.value)
    left = [f.name for f in cache.rglob("*") if f.is_file()] if cache.exists() else []
    assert left in ([], [".lock"])


@pytest.mark.parametrize("name", ["data.tar.xz", "data.tar.gz", "data.tar", "data.zip"])
def test_an_archive_that_is_cut_short(tmp_path, own_cache, name):
    make = as_zip if name.endswith(".zip") else as_tar
    source = make(tmp_path / name, pictures())
    content = source.read_bytes()
    source.write_bytes(content[: len(content) * 2 // 3])
    refused(source, "cannot be read to its end", own_cache)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from([".tar.xz", ".tar.gz", ".tar", ".zip"]), st.data())
def test_whatever_happens_to_an_archive_the_error_is_ours(tmp_path, kind, data):
    """Cut anywhere, or a byte changed anywhere: the same images, or a DataError, nothing else."""
    source = tmp_path / f"data{kind}"
    if not source.exists():
        (as_zip if kind == ".zip" else as_tar)(source, pictures(train=1))
    content = bytearray(source.read_bytes())
    damaged = tmp_path / f"damaged{kind}"
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        damaged.write_bytes(content[:place])
    else:
        content[place] ^= data.draw(st.integers(1, 255))
        damaged.write_bytes(content)
    try:
        decoded = decoder.decode(sources.read(damaged))
    except DataError as error:
        assert str(damaged) in str(error)
    else:
        assert [len(images) for images, _ in decoded.values()] == [10, 10]


def without(files, part):
    return {name: data for name, data in files.items() if part not in name}


WRONG = {
    "a class is missing": (
        without(pictures(), "train/frog"),
        "train has 9 of the 10 classes; no pictures of frog",
    ),
    "a split is missing": (without(pictures(), "test/"), "test has 0 of the 10 classes"),
    "an unknown class": (
        {**pictures(), "train/trucks/0000.png": b""},
        "train: unknown class 'trucks'; did you mean 'truck'",
    ),
    "a picture is missing": (
        without(pictures(), "test/ship")
        | {"test/ship/0000.png": encoded(pixels("test", 8, 0))}
        | {"test/ship/0001.png": encoded(pixels("test", 8, 1))},
        "has 1 pictures, test/ship has 2.*something is missing",
    ),
    "a picture of another size": (
        {**pictures(), "train/cat/0000.png": encoded(pixels("train", 3, 0)[:28, :30])},
        "train/cat/0000.png has 30×28 pixels",
    ),
    "a picture that is none": (
        {**pictures(), "train/cat/0000.png": b"no picture"},
        "train/cat/0000.png cannot be decoded",
    ),
    "a picture that is cut short": (
        {**pictures(), "test/dog/0000.png": encoded(pixels("test", 5, 0))[:1000]},
        "test/dog/0000.png cannot be decoded",
    ),
    "no split folders": (
        {name.split("/", 1)[1]: data for name, data in pictures().items()},
        "none of the known layouts",
    ),
    "two data sets": (
        {**below("a", pictures()), **below("b", pictures())},
        "several data sets: a, b",
    ),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("form", ["folder", "zip"])
def test_not_cifar(tmp_path, own_cache, form, case):
    files, message = WRONG[case]
    if form == "folder":
        refused(as_folder(tmp_path / "data", files), message, own_cache)
    else:
        refused(as_zip(tmp_path / "data.zip", files), message, own_cache)


def test_a_file_that_is_no_archive(tmp_path, own_cache):
    source = tmp_path / "notes.txt"
    source.write_text("no archive at all")
    refused(source, "no archive at all", own_cache)


def test_an_archive_that_is_encrypted(tmp_path, own_cache):
    """The flag alone is enough: the reader has no password."""
    source = as_zip(tmp_path / "data.zip", pictures())
    content = bytearray(source.read_bytes())
    central = content.index(b"PK\x01\x02")
    content[6] |= 1
    content[central + 8] |= 1
    source.write_bytes(content)
    refused(source, "encrypted", own_cache)


def test_several_archives_in_a_folder(tmp_path, own_cache):
    folder = as_folder(tmp_path / "data", {"a.tar.xz": b"", "b.zip": b""})
    refused(folder, "several archives: a.tar.xz, b.zip", own_cache)


def test_a_path_that_does_not_exist_names_the_option_and_the_ways(tmp_path, own_cache, monkeypatch):
    refused(tmp_path / "nowhere", "--data: there is no file or folder(.|\n)*Ways to pro", own_cache)
    monkeypatch.setenv("DISTILLATION_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="DISTILLATION_DATA: there is no file or folder"):
        cifar10()


def test_nothing_to_be_had_is_one_error_with_all_ways(own_cache, monkeypatch):
    """The download goes to a port where nobody listens, as on a machine without a network."""
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(DataError, match="torchvision's download failed") as caught:
        cifar10()
    for way in ("--data", "DISTILLATION_DATA", "train/<class>", "cifar-10-batches-py", ".tar.xz"):
        assert way in str(caught.value)


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    source = as_zip(tmp_path / "data.zip", pictures())
    with pytest.raises(DataError, match=r"cannot be written.*set DISTILLATION_CACHE"):
        cifar10(source, cache=tmp_path / "file")


def test_a_pickle_that_would_run_code_is_refused(tmp_path, own_cache):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "attacked"), "w"))

    files = batches() | {"cifar-10-batches-py/data_batch_3": pickle.dumps(Attack(), protocol=2)}
    source = as_folder(tmp_path / "data", files)
    refused(source, r"data_batch_3 is refused: it asks for \S+open", own_cache)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no pickle", "data_batch_2 cannot be read"),
        (pickle.dumps([1], protocol=2), "data_batch_2 holds a list"),
        (pickle.dumps({"data": 1, "labels": []}), "does not hold uint8 images"),
        (pickle.dumps({"data": np.zeros((1, 3072))}, protocol=2), "refused: .* type 'f8'"),
        (pickle.dumps({"data": np.array([None])}, protocol=2), "refused: .* type 'O8'"),
    ],
)
def test_batches_that_hold_something_else(tmp_path, own_cache, content, message):
    files = batches() | {"cifar-10-batches-py/data_batch_2": content}
    refused(as_folder(tmp_path / "data", files), message, own_cache)


def test_batches_that_are_not_all_there(tmp_path, own_cache):
    source = as_folder(tmp_path / "data", without(batches(), "data_batch_4"))
    refused(source, "cifar-10-batches-py has no data_batch_4", own_cache)


def test_batches_of_another_data_set(tmp_path, own_cache):
    meta = pickle.dumps({"label_names": ["apple"] * 10}, protocol=2)
    files = batches() | {"cifar-10-batches-py/batches.meta": meta}
    refused(as_folder(tmp_path / "data", files), "names the classes", own_cache)


def test_names_that_lead_out_of_an_archive_are_passed_over(tmp_path):
    """Links, absolute names, `..`: not read, not written; the rest is as if they were not there."""
    plain = cifar10(as_tar(tmp_path / "plain.tar", pictures()))
    secret = as_folder(tmp_path / "secret", {"0009.png": encoded(pixels("train", 0, 9))})
    source = tmp_path / "tricks.tar"
    with tarfile.open(source, "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"train/cat/{kind.decode()}.png")
            link.type, link.linkname = kind, str(secret / "0009.png")
            archive.addfile(link)
        tricks = {
            "../train/cat/0008.png": b"out",
            "/train/cat/0008.png": b"out",
            "train/../cat/0008.png": b"out",
            "..\\train\\cat\\0008.png": b"out",
            "__MACOSX/train/cat/._0000.png": b"not a picture",
            "train/cat/.DS_Store": b"not a picture",
        }
        for name, data in {**tricks, **pictures()}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    before = sorted(f for f in tmp_path.iterdir() if f.name != "cache")
    assert [s.fingerprint for s in cifar10(source)] == [s.fingerprint for s in plain]
    assert sorted(f for f in tmp_path.iterdir() if f.name != "cache") == before


def test_a_member_that_would_fill_the_memory_is_refused(tmp_path, own_cache):
    source = tmp_path / "bomb.zip"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/cat/0000.png", bytes(65 << 20))
    refused(source, "train/cat/0000.png has 68,157,440 bytes", own_cache)
