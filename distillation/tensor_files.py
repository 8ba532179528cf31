"""Named tensors in safetensors files: written whole, with a digest of their content.

Foreign safetensors files are read too; they have no digest. `fingerprint` is the identity of a
model's weights wherever one is compared with another.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from distillation import files
from distillation.errors import CheckpointError

_ALIASES = "distillation.aliases"  # name -> the name under which the same tensor is stored
_DIGEST = "distillation.sha256"


def save_tensors(
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named tensors as safetensors, atomically, with a digest of their content.

    Tensors of any layout in memory are stored contiguously, in their own dtype and shape. Two names
    of one tensor (tied weights) are stored once and come back as one tensor.

    Raises:
        CheckpointError: a value is not a dense tensor with data, or the write failed (the older
            file is unchanged then).
    """
    path = Path(path)
    stored, aliases = _untie(path, tensors)
    notes = {str(k): str(v) for k, v in (metadata or {}).items()}
    notes[_ALIASES] = json.dumps(aliases, sort_keys=True)
    notes[_DIGEST] = _content_digest(stored, notes)
    _write_safetensors(path, stored, notes)


def load_tensors(
    path: str | os.PathLike, device: str | torch.device = "cpu", *, verify: bool = True
) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote (or any other safetensors file, which has no digest).

    Raises:
        CheckpointError: the file is missing, no safetensors, or not as it was written.
    """
    path = Path(path)
    tensors, notes = _read_safetensors(path, device)
    if (_DIGEST in notes) != (_ALIASES in notes):
        raise files.damaged(path, "its header is not as it was written")
    if verify and _DIGEST in notes:
        expected = notes.pop(_DIGEST)
        if _content_digest(tensors, notes) != expected:
            raise files.damaged(path, "its content is not what was written")
    for name, kept in json.loads(notes.get(_ALIASES, "{}")).items():
        tensors[name] = tensors[kept]
    return tensors


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The metadata that was given to `save_tensors`, without reading the tensors."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(files.existing(path), framework="pt") as file:
            notes = dict(file.metadata() or {})
    except (SafetensorError, UnicodeDecodeError) as error:
        raise files.damaged(path, str(error)) from error
    return {k: v for k, v in notes.items() if k not in (_ALIASES, _DIGEST)}


def _untie(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors to store, contiguous on the CPU, and the names that are tied to one of them."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple, str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"cannot save {path}: {name!r} is a {type(tensor).__name__}, not a tensor; "
                "what is no tensor belongs into the state"
            )
        if tensor.layout != torch.strided or tensor.device.type == "meta" or tensor.is_quantized:
            raise CheckpointError(f"cannot save {path}: {name!r} is not a dense tensor with data")
        tensor = tensor.detach()
        if tensor.numel():
            place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset())
            identity = (*place, tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
            if identity in first:
                aliases[name] = first[identity]
                continue
            first[identity] = name
        stored[name] = tensor.to("cpu").contiguous()
    # safetensors refuses tensors that share memory; overlapping views are stored apart.
    seen: set[int] = set()
    for name, tensor in stored.items():
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in seen:
            stored[name] = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(pointer)
    return stored, aliases


def _write_safetensors(path: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with files.replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=notes)
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise CheckpointError(f"cannot save {path}: {error}") from error
            number = int(code.group(1))
            raise OSError(number, os.strerror(number)) from error
        except KeyError as error:
            raise CheckpointError(
                f"cannot save {path}: safetensors has no {error.args[0]}"
            ) from error


def _read_safetensors(
    path: Path, device: str | torch.device
) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(files.existing(path), framework="pt", device=str(device)) as file:
            notes = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, UnicodeDecodeError, RuntimeError) as error:
        raise files.damaged(path, str(error)) from error
    return tensors, notes


def fingerprint(of: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of parameters and persistent buffers.

    The same on every device, whatever the order of the names and the layout in memory, and for a
    model that was compiled (`torch.compile` puts a prefix before its names). Entries that are no
    tensors (a module's extra state) do not count. Tensors that are sharded over processes are
    gathered one by one: a collective call then.
    """
    state = of.state_dict() if isinstance(of, nn.Module) else of
    plain = {k.replace("_orig_mod.", ""): v for k, v in state.items() if isinstance(v, Tensor)}
    return _digest(plain).hexdigest()


def _content_digest(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    digest = _digest(tensors)
    digest.update(json.dumps(dict(notes), sort_keys=True).encode())
    return digest.hexdigest()


def _digest(tensors: Mapping[str, Tensor]):
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            flat = whole.to("cpu").contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy())
    return digest
