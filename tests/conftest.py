"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# One thread a worker: two workers share two cores. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# A test must not depend on what a developer's shell says
os.environ.pop("DISTILLATION_RUNS", None)


def _archive() -> Path | None:
    given = os.environ.get("DISTILLATION_DATA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-jpeg.tar.xz"
    for path in (Path(given) if given else None, beside):
        if path is not None and path.exists():
            return path
    return None


@pytest.fixture(scope="session")
def cifar_archive() -> Path:
    """All of CIFAR-10 as it lies beside the checkout, or where DISTILLATION_DATA says."""
    path = _archive()
    if path is None:
        pytest.skip("no CIFAR-10 archive: set DISTILLATION_DATA to one")
    return path


@pytest.fixture(autouse=True)
def one_thread():
    """Every test begins with one torch thread and leaves the global settings as they were."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
