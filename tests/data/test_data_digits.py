"""The embedded digits."""

import torch
from sklearn.datasets import load_digits

from distillation.data import digits


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
