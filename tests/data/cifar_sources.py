"""Tiny copies of CIFAR-10 in every form it comes in, for the tests of its reader."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from distillation.data.pictures import CLASSES


def pixels(split: str, label: int, i: int) -> np.ndarray:
    """(32, 32, 3) uint8: noise that differs from image to image."""
    seed = [("train", "test").index(split), label, i]
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind)
    return buffer.getvalue()


def pictures(train: int = 2, test: int = 1, kind: str = "PNG") -> dict[str, bytes]:
    """{"train/airplane/0000.png": bytes, …}: so many of each class."""
    return {
        f"{split}/{name}/{i:04}.{kind.lower()}": encoded(pixels(split, label, i), kind)
        for split, n in (("train", train), ("test", test))
        for label, name in enumerate(CLASSES)
        for i in range(n)
    }


def batches(train: int = 2, test: int = 1) -> dict[str, bytes]:
    """The same pictures as `pictures`, as torchvision's files of pickles."""

    def batch(split: str, n: int) -> bytes:
        rows = [(label, pixels(split, label, i)) for label in range(10) for i in range(n)]
        data = np.stack([picture.transpose(2, 0, 1).reshape(-1) for _, picture in rows])
        return pickle.dumps({"data": data, "labels": [label for label, _ in rows]}, protocol=2)

    files = {f"data_batch_{i}": batch("train", train) for i in range(1, 6)}
    files["test_batch"] = batch("test", test)
    files["batches.meta"] = pickle.dumps({"label_names": list(CLASSES)}, protocol=2)
    return {f"cifar-10-batches-py/{name}": data for name, data in files.items()}


def python2_pickle(data: np.ndarray, labels: list[int]) -> bytes:
    """{"data": data, "labels": labels} as Python 2 pickled it: text is bytes (opcodes U and T)."""
    rows, columns = data.shape
    minus_one = b"J\xff\xff\xff\xff"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + 2 * minus_one + b"K\x00tb"
    shape = b"K" + bytes([rows]) + b"M" + columns.to_bytes(2, "little") + b"\x86"
    raw = b"T" + data.size.to_bytes(4, "little") + data.tobytes()
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    array = made + b"(K\x01" + shape + dtype + b"\x89" + raw + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + listed + b"u."


def as_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def as_tar(path: Path, files: dict[str, bytes]) -> Path:
    """A tar file, compressed as the name says; the members carry no times."""
    with tarfile.open(path, "w:" + {".gz": "gz", ".xz": "xz", ".tar": ""}[path.suffix]) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def as_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def below(prefix: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{prefix}/{name}": data for name, data in files.items()}
