"""A teacher to learn from, and a warm process to start experiments from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from experiment_case import Warm, command

from distillation import runs


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> runs.Run:
    """A large model, trained on digits for two epochs; not to be touched."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("trained")
    uuid = command("digits.large", "--epochs", "2", root=root).uuid
    return runs.find(uuid, root=root)


@pytest.fixture
def store(trained, tmp_path) -> Path:
    """A run store of this test, in which the trained large model is."""
    root = tmp_path / "runs"
    shutil.copytree(trained.path, root / "digits" / trained.uuid)
    return root


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Starts experiments that can be killed."""
    server = Warm(tmp_path_factory.mktemp("warm"))
    yield server
    server.close()
