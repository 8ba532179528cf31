"""CIFAR-10 (Krizhevsky 2009), from wherever it lies."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from distillation.data import pictures, sources
from distillation.data.cache import Cache
from distillation.data.images import ImageSet
from distillation.errors import DataError

VARIABLE = "DISTILLATION_DATA"
TRAIN, TEST = 50_000, 10_000

_WAYS = f"""Ways to provide CIFAR-10:
  --data PATH         (path= in Python) names the data; PATH is one of:
                      - a folder with train/<class>/*.png and test/<class>/*.png (or .jpg),
                        possibly one folder further down; the classes are called
                        {", ".join(pictures.CLASSES[:5])},
                        {", ".join(pictures.CLASSES[5:])}
                      - torchvision's folder {sources.BATCHES}, or the folder that holds it
                      - either of these as an archive: .tar.xz, .tar.gz, .tar or .zip, such as
                        cifar-10-python.tar.gz from the data set's own page
  {VARIABLE}=PATH   the same as an environment variable
  torchvision         on a machine with a network: torchvision.datasets.CIFAR10(FOLDER,
                      download=True), then copy FOLDER/{sources.BATCHES} here and name it
The data is decoded once and then found in the cache, without any of these."""


def cifar10(
    path: str | os.PathLike | None = None,
    cache: str | os.PathLike | None = None,
    *,
    download: bool = True,
    mapped: bool = False,
) -> tuple[ImageSet, ImageSet]:
    """(training images, test images): uint8, three channels, 32×32 pixels, ten classes.

    Looked for in this order: `path`; the environment variable DISTILLATION_DATA; a copy of the
    whole data set in the cache (see `distillation.data.cache.root`); torchvision's download,
    unless `download=False`. A path is a folder `cifar-10-batches-py`, a folder with
    `train/<class>/*` and `test/<class>/*`, an archive of either, or a folder that holds one of
    these. It may hold part of CIFAR-10, as long as it has all ten classes in both splits and the
    same number of pictures of each.

    Mean and std are those of the training images that were found.

    The data is decoded once and kept in the cache, keyed by the source's content. With `mapped` the
    images stay in the cache's file and are read a batch at a time (`MappedImages`): processes that
    train side by side share one copy. Batches and fingerprint are the same.

    Raises `DataError`: there is no data (the message lists the ways to provide it); the source
    is damaged, or not CIFAR-10 (the file is named); the cache cannot be written; the cache holds
    several different copies of CIFAR-10 and nothing says which is meant.
    """
    store = Cache("cifar10", cache, mapped=mapped)
    named = path if path is not None else os.environ.get(VARIABLE) or None
    if named is not None:
        said_by = "--data" if path is not None else VARIABLE
        return store.get(_located(Path(named).expanduser(), said_by), _decode)
    copies = store.complete(TRAIN, TEST)
    if len(copies) == 1:
        return store.load(copies[0])
    if copies:
        listed = "; ".join(f"{file.name} from {store.origin(file)}" for file in copies)
        raise DataError(
            f"{store.folder} holds {len(copies)} different copies of CIFAR-10: {listed}. Say "
            f"which is meant with --data or {VARIABLE}, or remove the others"
        )
    if not download:
        raise DataError(f"there is no CIFAR-10 in the cache {store.folder}.\n{_WAYS}")
    with store.locked():  # one process downloads, others find what it has
        downloaded = _downloaded(store.folder / "torchvision")
    return store.get(downloaded, _decode)


def _located(path: Path, said_by: str) -> Path:
    try:
        return sources.locate(path)
    except DataError as error:
        raise DataError(f"{said_by}: {error}.\n{_WAYS}") from error


def _decode(source: Path) -> tuple[ImageSet, ImageSet]:
    splits = pictures.decode(sources.read(source))
    train = ImageSet.of(*splits["train"], pictures.CLASSES)
    return train, ImageSet.of(*splits["test"], pictures.CLASSES, train.mean, train.std)


def _downloaded(folder: Path) -> Path:
    """Let torchvision fetch CIFAR-10 into this folder; it compares the checksums itself."""
    import distillation.torchvision_guard  # noqa: F401

    before = socket.getdefaulttimeout()
    try:
        from torchvision.datasets import CIFAR10

        socket.setdefaulttimeout(30)  # where packets vanish, torchvision would wait for ever
        folder.mkdir(parents=True, exist_ok=True)
        CIFAR10(str(folder), download=True)
    except Exception as error:  # no torchvision, no network, no space, a wrong checksum
        raise DataError(
            f"no CIFAR-10 was given, none is in the cache, and torchvision's download failed "
            f"({type(error).__name__}: {error}).\n{_WAYS}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return folder / sources.BATCHES
