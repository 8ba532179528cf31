"""The embedded digits."""

import subprocess
import sys

import pytest
import torch
from sklearn.datasets import load_digits

from distillation.data import digits
from distillation.errors import DataError


def test_digits_are_split_stratified_and_fixed():
    train, test = digits()
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.shape[1:] == (1, 8, 8)
    assert all(abs(n - 36) <= 1 for n in test.counts().values())
    assert train.fingerprint == digits()[0].fingerprint
    assert train.fingerprint != digits(seed=1)[0].fingerprint


def test_digits_are_scikit_learns_rounded_to_a_byte():
    """The sets hold exactly the 1,797 images; ⌊(255·v + 8) / 16⌋ keeps all 17 levels apart."""
    train, test = digits()
    ours = torch.cat([train.images, test.images]).flatten(1)
    levels = (ours.double() * 16 / 255).round().to(torch.int64)
    theirs = torch.from_numpy(load_digits().data).to(torch.int64)
    assert sorted(map(tuple, levels.tolist())) == sorted(map(tuple, theirs.tolist()))
    assert torch.equal(((levels * 255 + 8) // 16).to(torch.uint8), ours)
    assert ours.unique().numel() == 17


def test_the_test_split_is_normalised_like_the_training_split():
    train, test = digits()
    assert test.mean == train.mean
    assert test.std == train.std


def test_digits_that_scikit_learn_keeps_elsewhere_are_the_same(monkeypatch):
    fingerprints = [part.fingerprint for part in digits()]
    monkeypatch.setattr(sys.modules["distillation.data.digits"], "_FILE", "elsewhere.csv.gz")
    assert [part.fingerprint for part in digits()] == fingerprints


def test_scikit_learn_is_not_imported_for_them():
    """That takes a second, longer than some trainings of the digits."""
    script = "from distillation.data import digits; digits(); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    loaded = done.stdout.split()
    assert "torch" in loaded and "sklearn" not in loaded, done.stderr


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        digits()
