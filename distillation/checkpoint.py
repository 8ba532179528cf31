"""Safe, atomic, checksummed files: every weight that is written or read passes here.

Weights are safetensors; everything else (optimizer, schedule, RNG state) is what `torch.load` reads
with `weights_only=True`, and is read back so before it takes its name. Nothing that is loaded can
run code. A checkpoint is a folder that appears whole:

    1000/model.safetensors  ema.safetensors  state.pt  manifest.json   (sha256 and size of each)

One flipped byte anywhere is found and the file is named.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from distillation import files
from distillation.errors import CheckpointError, nearest
from distillation.files import MANIFEST, atomic_json, atomic_write, dumps
from distillation.tensor_files import fingerprint, load_tensors, read_metadata, save_tensors

__all__ = [
    "Checkpoint",
    "atomic_json",
    "atomic_write",
    "fingerprint",
    "load_state",
    "load_strict",
    "load_tensors",
    "read_checkpoint",
    "read_metadata",
    "save_state",
    "save_tensors",
    "write_checkpoint",
]

_STATE = "state.pt"
_FORMAT = 1
_NO_COMMENT = b"\0\0"  # how a zip archive without a comment ends
_SEAL = b"sha256:"
_SEAL_LENGTH = len(_SEAL) + 64
_PLAIN = (Tensor, torch.Size, torch.dtype, torch.device)
_NUMBERS_AND_TEXT = (bool, int, float, complex, str, bytes)


# States -------------------------------------------------------------------------------------


def save_state(path: str | os.PathLike, state: object) -> None:
    """Write plain containers, numbers, strings and tensors with `torch.save`, atomically.

    The file is read back with `weights_only=True` before it takes its name.

    Raises:
        CheckpointError: something in `state` is neither of those (its place is named), or the
            write failed (the older file is unchanged then).
    """
    path = Path(path)
    with files.replacing(path) as temporary:
        with temporary.open("wb") as file:
            target = _Watched(file)
            try:
                torch.save(state, target)
            except (RuntimeError, TypeError, AttributeError, pickle.PicklingError) as error:
                if target.error is not None:  # torch hides why a write failed
                    raise target.error from error
                raise CheckpointError(_unsafe(path, state, error)) from error
        _seal(temporary)
        try:
            torch.load(temporary, map_location="meta", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(_unsafe(path, state, error)) from error


def load_state(
    path: str | os.PathLike, map_location: object = "cpu", *, verify: bool = True
) -> object:
    """Read what `save_state` wrote, with `weights_only=True`: nothing in the file can run code.

    Raises:
        CheckpointError: the file is missing, damaged (its checksums are compared), or holds
            something that is not plain.
    """
    path = Path(path)
    try:
        if verify:
            _check_seal(files.existing(path))
        return torch.load(files.existing(path), map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is refused: {str(error).splitlines()[0]}") from error
    except CheckpointError:
        raise
    except Exception as error:  # a damaged archive fails in as many ways as it has bytes
        raise files.damaged(path, f"{type(error).__name__}: {error}") from error


def _seal(path: Path) -> None:
    """Put the SHA-256 of the archive into its comment, where torch and zip tools ignore it.

    The records' own checksums do not cover the archive's directory, and torch does not compare
    them at all.
    """
    with path.open("rb+") as file:
        file.seek(-len(_NO_COMMENT), os.SEEK_END)
        if file.read() != _NO_COMMENT:
            raise CheckpointError(f"torch.save has written an unexpected archive for {path}")
        file.seek(-len(_NO_COMMENT), os.SEEK_END)
        file.write(_SEAL_LENGTH.to_bytes(2, "little"))
    digest = files.sha256_of(path)
    with path.open("ab") as file:
        file.write(_SEAL + digest.encode())


def _check_seal(path: Path) -> None:
    """Compare the digest in the comment; an archive without one (foreign) by its checksums."""
    length = max(path.stat().st_size - _SEAL_LENGTH, 0)
    with path.open("rb") as file:
        file.seek(length)
        seal = file.read()
    if seal.startswith(_SEAL):
        if files.sha256_of(path, length).encode() != seal.removeprefix(_SEAL):
            raise files.damaged(path, "its content is not what was written")
        return
    with zipfile.ZipFile(path) as archive:
        if archive.comment:
            raise files.damaged(path, "the archive's comment is not what was written")
        record = archive.testzip()
    if record is not None:
        raise files.damaged(path, f"the record {record!r} is not what was written")


class _Watched:
    """A file that remembers why a write failed."""

    def __init__(self, file) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _unsafe(path: Path, state: object, error: Exception) -> str:
    found = _first_unsafe(state, "state")
    if found is None:
        return f"cannot save {path}: {str(error).splitlines()[0]}"
    where, kind = found
    return (
        f"cannot save {path}: {where} is a {kind}, which cannot be loaded safely; "
        "keep plain containers, numbers, strings and tensors"
    )


def _first_unsafe(value: object, where: str) -> tuple[str, str] | None:
    """Where in a nested state the first value stands that weights_only does not load."""
    kind = type(value)
    if kind.__module__ in ("builtins", "collections") and isinstance(value, Mapping):
        if kind.__name__ not in ("dict", "OrderedDict", "Counter"):
            return where, kind.__name__
        inner = [(f"{where}[{k!r}]", v) for k, v in value.items()]
        inner += [(f"the key {k!r} of {where}", k) for k in value]
    elif kind in (list, tuple, set):
        inner = [(f"{where}[{i}]", v) for i, v in enumerate(value)]
    elif value is None or isinstance(value, _PLAIN) or kind in _NUMBERS_AND_TEXT:
        return None
    else:
        return where, f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    for place, item in inner:
        found = _first_unsafe(item, place)
        if found is not None:
            return found
    return None


# Checkpoints --------------------------------------------------------------------------------


@dataclass
class Checkpoint:
    """What a checkpoint folder holds: `weights` by name ("model", "ema"), `state` and `info`."""

    weights: dict[str, dict[str, Tensor]]
    state: object = None
    info: dict = field(default_factory=dict)
    manifest: dict = field(default_factory=dict)


def write_checkpoint(
    folder: str | os.PathLike,
    weights: Mapping[str, Mapping[str, Tensor]],
    state: object = None,
    info: Mapping | None = None,
) -> None:
    """Write a checkpoint folder that appears whole or not at all.

    `weights` are state dicts by name, each becomes `<name>.safetensors`; `state` is plain (see
    `save_state`); `info` is JSON. A folder that is there already is replaced; until the new one is
    complete the old one is what `read_checkpoint` reads.

    Raises:
        CheckpointError: the disk is full, or something cannot be saved; the old one is unchanged.
    """
    folder = Path(folder)
    for name in weights:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise CheckpointError(
                f"weights name {name!r} makes no file name; use letters, digits, _"
            )

    def fill(temporary: Path) -> None:
        for name, tensors in weights.items():
            save_tensors(temporary / f"{name}.safetensors", tensors)
        save_state(temporary / _STATE, state)
        listed = {
            file.name: {"sha256": files.sha256_of(file), "bytes": file.stat().st_size}
            for file in sorted(temporary.iterdir())
        }
        manifest = {"format": _FORMAT, "files": listed, "info": files.jsonable(dict(info or {}))}
        atomic_write(temporary / MANIFEST, _manifest_text(manifest))

    files.replace_folder(folder, fill)


def read_checkpoint(
    folder: str | os.PathLike,
    *,
    names: Collection[str] | None = None,
    state: bool = True,
    verify: bool = True,
    device: str | torch.device = "cpu",
) -> Checkpoint:
    """Read a checkpoint folder: all weights, or only `names`, and the state unless `state=False`.

    Raises:
        CheckpointError: there is none, a file is missing or not as it was written (it is named),
            or one of `names` is not in it (those that are, are listed).
    """
    folder = Path(folder)
    place = files.locate(folder)
    if place is None:
        raise CheckpointError(f"there is no checkpoint at {folder}")
    manifest = _read_manifest(place / MANIFEST)
    listed = manifest["files"]
    valid = [f.removesuffix(".safetensors") for f in listed if f.endswith(".safetensors")]
    chosen = valid if names is None else list(names)
    for name in chosen:
        if name not in valid:
            raise CheckpointError(f"{folder} has no weights {name!r}; it has {sorted(valid)}")
    weights = {}
    for name in chosen:
        file = _checked(place, f"{name}.safetensors", listed, verify)
        weights[name] = load_tensors(file, device, verify=False)
    loaded = None
    if state:
        loaded = load_state(_checked(place, _STATE, listed, verify), verify=False)
    return Checkpoint(weights, loaded, manifest["info"], manifest)


def _manifest_text(manifest: dict) -> str:
    digest = hashlib.sha256(dumps(manifest).encode()).hexdigest()
    return dumps({**manifest, "sha256": digest}, indent=2) + "\n"


def _read_manifest(path: Path) -> dict:
    """The manifest, whose own digest and exact text are compared too."""
    try:
        text = path.read_bytes().decode()
        manifest = json.loads(text)
        manifest.pop("sha256")
        whole = _manifest_text(manifest) == text and manifest["format"] == _FORMAT
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise files.damaged(path, str(error)) from error
    if not whole:
        raise files.damaged(path, "its content is not what was written")
    return manifest


def _checked(folder: Path, name: str, listed: Mapping[str, dict], verify: bool) -> Path:
    path = folder / name
    if name not in listed or not path.is_file():
        raise CheckpointError(f"{path} is missing; the checkpoint is incomplete")
    size = path.stat().st_size
    if size != listed[name]["bytes"]:
        raise files.damaged(path, f"it has {size} bytes, {listed[name]['bytes']} were written")
    if verify and files.sha256_of(path) != listed[name]["sha256"]:
        raise files.damaged(path, "its sha256 is not the one in the manifest")
    return path


# Modules ------------------------------------------------------------------------------------


def load_strict(
    module: nn.Module, state_dict: Mapping[str, Tensor], *, what: str = "checkpoint"
) -> nn.Module:
    """Load weights by name: every name on both sides, every shape the same. Returns `module`.

    Raises:
        CheckpointError: lists missing and unexpected names and shapes that differ; `module` is
            unchanged then. `what` is what the message calls the state dict.
    """
    own = module.state_dict()
    missing = [k for k in own if k not in state_dict]
    unexpected = [k for k in state_dict if k not in own]
    problems = []
    if missing:
        problems.append("missing " + _some(missing))
    if unexpected:
        problems.append("unexpected " + _some([_with_nearest(k, missing) for k in unexpected]))
    differing = [d for k in own if k in state_dict and (d := _difference(k, own[k], state_dict[k]))]
    if differing:
        problems.append("different " + _some(differing))
    if problems:
        raise CheckpointError(
            f"{what} does not fit {type(module).__name__}: " + "; ".join(problems) + "."
        )
    try:
        module.load_state_dict(state_dict, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{what} does not fit {type(module).__name__}: {error}") from error
    return module


def _difference(name: str, own: object, given: object) -> str | None:
    if not isinstance(own, Tensor) or not isinstance(given, Tensor):
        return None  # extra state: the module's own business
    if own.shape != given.shape:
        return f"{name} (shape {tuple(given.shape)}, the model has {tuple(own.shape)})"
    if own.is_floating_point() != given.is_floating_point():
        return f"{name} (dtype {given.dtype}, the model has {own.dtype})"
    return None


def _with_nearest(name: str, valid: list[str]) -> str:
    close = nearest(name, valid, n=1)
    return f"{name} (did you mean {close[0]}?)" if close else name


def _some(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
