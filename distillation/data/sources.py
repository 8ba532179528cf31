"""Reading pictures out of folders and archives, in memory: nothing is ever unpacked to disk."""

from __future__ import annotations

import hashlib
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from distillation.errors import DataError

SPLITS = ("train", "test")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".zip")
LAYOUTS = (
    "torchvision's folder cifar-10-batches-py; a folder with train/<class>/* and test/<class>/*; "
    "or either of them as .tar.xz, .tar.gz, .tar or .zip"
)
BATCHES = "cifar-10-batches-py"
BATCH_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")

_LARGEST = 64 << 20  # bytes of one member: a batch of CIFAR-10 has 31 MB
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,  # names that are no UTF-8, sizes that are no numbers
    RuntimeError,  # encrypted
    NotImplementedError,  # a compression that zipfile does not know
)


@dataclass(frozen=True, order=True)
class Picture:
    """One undecoded picture: where it belongs, what it is called, its bytes."""

    split: str
    class_name: str
    name: str
    data: bytes = field(repr=False, compare=False)


@dataclass
class Source:
    """What a folder or an archive holds: pictures, or the files of cifar-10-batches-py."""

    path: Path
    pictures: list[Picture]
    batches: dict[str, bytes]


def read(path: Path) -> Source:
    """Read a source whole into memory.

    Hidden files are passed over, and so is everything that lies neither in train/<class> nor
    test/<class> nor in cifar-10-batches-py; these may lie in one folder of any name. Links in
    archives are ignored, and names that would lead out of it.

    Raises `DataError`, naming the file: unreadable or cut short, or none of the known layouts.
    """
    pictures: list[Picture] = []
    batches: dict[str, bytes] = {}
    prefixes: set[tuple[str, ...]] = set()
    with _explained(path):
        for name, load in _members(path):
            parts = _safe_parts(name)
            if parts is None:
                continue
            if parts[-1] in BATCH_FILES and (len(parts) == 1 or parts[-2] == BATCHES):
                batches[parts[-1]] = load()
            elif 3 <= len(parts) <= 4 and parts[-3] in SPLITS:
                prefixes.add(parts[:-3])
                pictures.append(Picture(parts[-3], parts[-2], parts[-1], load()))
    if batches and not pictures:
        return Source(path, [], batches)
    if not pictures:
        raise DataError(f"{path} holds none of the known layouts: {LAYOUTS}")
    if batches or len(prefixes) > 1:
        found = sorted("/".join(p) or "the top" for p in prefixes) + [BATCHES] * bool(batches)
        raise DataError(f"{path} holds several data sets: {', '.join(found)}; name one of them")
    return Source(path, sorted(pictures), {})


def locate(path: Path) -> Path:
    """The folder or archive to read: `path`, or the one archive in a folder that has no splits.

    Raises `DataError` when there is nothing at `path`, or no layout in it.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"there is no file or folder {path}")
    if path.name == BATCHES or any(True for _ in _files(path)):
        return path
    archives = [f for f in sorted(path.iterdir()) if f.is_file() and f.name.endswith(ARCHIVES)]
    if len(archives) == 1:
        return archives[0]
    if archives:
        names = ", ".join(f.name for f in archives)
        raise DataError(f"{path} holds several archives: {names}; name one of them")
    raise DataError(f"{path} holds none of the known layouts: {LAYOUTS}")


def stamp(path: Path) -> str:
    """A cheap mark of a source's state: size and modification time of its file or files."""
    digest = hashlib.sha256()
    if path.is_file():
        status = path.stat()
        digest.update(repr((status.st_size, status.st_mtime_ns)).encode())
    else:
        for name, status in sorted((n, e.stat()) for n, e in _files(path)):
            digest.update(repr((name, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def content_key(path: Path) -> str:
    """Hex digest of a source's content: an archive's bytes, or a folder's names and bytes."""
    digest = hashlib.sha256()
    try:
        if path.is_file():
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        else:
            for name, entry in sorted(_files(path), key=lambda pair: pair[0]):
                data = Path(entry).read_bytes()
                digest.update(f"{name}\0{len(data)}\0".encode())
                digest.update(data)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return digest.hexdigest()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())  # tarfile's has a line for each compression
        raise DataError(
            f"{path} cannot be read to its end ({type(error).__name__}: {reason}). It seems to be "
            f"cut short, damaged, or no archive at all; known are {', '.join(ARCHIVES)}"
        ) from error


def _members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if path.is_dir():
        for name, entry in _files(path):
            yield name, Path(entry).read_bytes
        return
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    yield from _zip_members(path) if is_zip else _tar_members(path)


def _tar_members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            if member.isreg():
                yield member.name, lambda m=member: _tar_data(path, archive, m)


def _tar_data(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    _check_size(path, member.name, member.size)
    file = archive.extractfile(member)
    data = b"" if file is None else file.read()
    if len(data) != member.size:
        raise EOFError(f"{member.name} ends after {len(data)} of {member.size} bytes")
    return data


def _zip_members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield member.filename, lambda m=member: _zip_data(path, archive, m)


def _zip_data(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    _check_size(path, member.filename, member.file_size)
    return archive.read(member)


def _check_size(path: Path, name: str, size: int) -> None:
    if size > _LARGEST:
        raise DataError(f"{path}: {name} has {size:,} bytes; a picture of CIFAR-10 has a few")


def _files(folder: Path) -> Iterator[tuple[str, os.DirEntry]]:
    """(relative name, entry) of the files of a known layout in a folder, or one folder below."""
    for name, entry in _entries(folder):
        if entry.is_file():
            if name in BATCH_FILES:
                yield name, entry
        elif name in SPLITS:
            yield from _split_files(name, entry)
        elif name == BATCHES:
            yield from _batch_files(name, entry)
        elif os.access(entry, os.R_OK | os.X_OK):  # someone else's folder beside is no error
            for inner, below in _entries(Path(entry)):
                if below.is_dir() and inner in SPLITS:
                    yield from _split_files(f"{name}/{inner}", below)
                elif below.is_dir() and inner == BATCHES:
                    yield from _batch_files(f"{name}/{inner}", below)


def _split_files(name: str, split: os.DirEntry) -> Iterator[tuple[str, os.DirEntry]]:
    for class_name, folder in _entries(Path(split)):
        if folder.is_dir():
            for file_name, entry in _entries(Path(folder)):
                if entry.is_file():
                    yield f"{name}/{class_name}/{file_name}", entry


def _batch_files(name: str, folder: os.DirEntry) -> Iterator[tuple[str, os.DirEntry]]:
    for file_name, entry in _entries(Path(folder)):
        if file_name in BATCH_FILES:
            yield f"{name}/{file_name}", entry


def _entries(folder: Path) -> Iterator[tuple[str, os.DirEntry]]:
    with os.scandir(folder) as entries:
        yield from ((e.name, e) for e in entries if not e.name.startswith("."))


def _safe_parts(name: str) -> tuple[str, ...] | None:
    """Parts of a member's name; None for what leads out of the archive, or is hidden."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or not pure.parts or "\0" in name:
        return None
    if any(p.startswith(".") or p in ("__MACOSX", "Thumbs.db") for p in pure.parts):
        return None
    return pure.parts
