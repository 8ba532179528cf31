"""Decoded data sets, kept on disk by the content they were decoded from.

    <cache>/cifar10/<content key>.safetensors     images and labels of both splits, with a digest
    <cache>/cifar10/sources/<hash of path>.json   what the source at a path was decoded to

The content key is the hash of the source's bytes. Reading all of them at every start would cost
more than the decoded data, so the second file remembers, for a path with this size and this time
of modification, what its content key was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from distillation.checkpoint import atomic_json, load_tensors, read_metadata, save_tensors
from distillation.data import sources
from distillation.data.images import ImageSet
from distillation.data.mapped import MappedImages
from distillation.errors import CheckpointError, DataError

_FORMAT = 1  # part of every key: raise it when the same source would be decoded otherwise

_SPLITS = ("train", "test")

Sets = tuple[ImageSet, ImageSet]


def root(cache: str | os.PathLike | None = None) -> Path:
    """The cache's folder: the argument, else DISTILLATION_CACHE, else `distillation` in
    XDG_CACHE_HOME, else in ~/.cache."""
    if cache is not None:
        return Path(cache)
    if os.environ.get("DISTILLATION_CACHE"):
        return Path(os.environ["DISTILLATION_CACHE"])
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "distillation"


class Cache:
    """The decoded copies of one data set, e.g. "cifar10". Several processes may use it at once.

    With `mapped` the images stay in their file, whose pages all processes share; it is read once to
    compare its digest.
    """

    def __init__(
        self, name: str, folder: str | os.PathLike | None = None, *, mapped: bool = False
    ) -> None:
        self.folder, self.mapped = root(folder) / name, mapped

    def get(self, source: Path, decode: Callable[[Path], Sets]) -> Sets:
        """What `decode(source)` gives, from the cache if the content of `source` is known.

        A copy in the cache that is damaged is made again. Raises `DataError` when the cache
        cannot be written, and whatever `decode` raises; nothing is left in the cache then.
        """
        known = self._known_key(source)
        if known is not None and (found := self._load(known)) is not None:
            return found
        with self.locked():
            stamp = sources.stamp(source)
            key = f"{sources.content_key(source)[:32]}-{_FORMAT}"
            found = self._load(key)
            if found is None:
                found = decode(source)
                self._save(key, found, source.name)
                if self.mapped:
                    found = self._load(key)
            self._remember(source, stamp, key)
        return found

    def complete(self, train: int, test: int) -> list[Path]:
        """The decoded copies that hold this many images, in the order of their names."""
        sizes = {"train": str(train), "test": str(test)}
        found = []
        for file in sorted(self.folder.glob(f"*-{_FORMAT}.safetensors")):
            try:
                if sizes.items() <= read_metadata(file).items():
                    found.append(file)
            except CheckpointError:
                continue  # damaged: it is made again when its source is named
        return found

    def load(self, file: Path) -> Sets:
        """The two sets in a file that `complete` gave. Raises `DataError` if it is damaged."""
        found = self._load(file.stem)
        if found is None:
            raise DataError(f"{file} is damaged; remove it, and name the source of the data")
        return found

    def origin(self, file: Path) -> str:
        """Where a decoded copy came from, as its source was called then."""
        return read_metadata(file).get("source", "unknown")

    def _load(self, key: str) -> Sets | None:
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            notes, tensors = read_metadata(path), load_tensors(path)
        except CheckpointError:
            return None
        classes, mean, std = (json.loads(notes[name]) for name in ("classes", "mean", "std"))
        if self.mapped:
            for split in _SPLITS:
                name = f"{split}.images"
                tensors[name] = MappedImages.of_safetensors(path, name)
        return tuple(
            ImageSet(
                tensors[f"{split}.images"],
                tensors[f"{split}.labels"],
                tuple(classes),
                notes[f"{split}.fingerprint"],
                tuple(mean),
                tuple(std),
            )
            for split in _SPLITS
        )

    def _save(self, key: str, sets: Sets, source: str) -> None:
        train, test = sets
        tensors, notes = {}, {"source": source}
        for split, images in (("train", train), ("test", test)):
            tensors[f"{split}.images"], tensors[f"{split}.labels"] = images.images, images.labels
            notes[split], notes[f"{split}.fingerprint"] = str(len(images)), images.fingerprint
        for name in ("classes", "mean", "std"):
            notes[name] = json.dumps(getattr(train, name))
        with self._explained():
            save_tensors(self._path(key), tensors, notes)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _entry(self, source: Path) -> Path:
        name = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:32]
        return self.folder / "sources" / f"{name}.json"

    def _known_key(self, source: Path) -> str | None:
        try:
            entry = json.loads(self._entry(source).read_text())
        except (OSError, ValueError):
            return None
        key, stamp = entry.get("key"), entry.get("stamp")
        return key if isinstance(key, str) and stamp == sources.stamp(source) else None

    def _remember(self, source: Path, stamp: str, key: str) -> None:
        with self._explained():
            atomic_json(
                self._entry(source), {"source": str(source.resolve()), "stamp": stamp, "key": key}
            )

    @contextmanager
    def locked(self):
        """Keep other processes out of this cache; for one that must not do something twice."""
        with self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _explained(self):
        try:
            yield
        except (CheckpointError, OSError) as error:
            raise DataError(
                f"the data cache {self.folder} cannot be written ({error}); set DISTILLATION_CACHE "
                "to a folder that can"
            ) from error
