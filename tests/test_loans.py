"""Loans: a caller's flags are borrowed, counted, and given back."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref

import pytest
import torch
from torch import nn

from distillation.errors import ConfigError, TeacherError
from distillation.loans import Loan


def model_with_mixed_flags():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    model[1][0].eval()
    model[0].weight.requires_grad_(False)
    return model


def flags(model):
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
    )


def all_off(model):
    return not any(itertools.chain(*flags(model)))


def test_a_loan_turns_everything_off_and_gives_each_flag_back():
    model = model_with_mixed_flags()
    before = flags(model)
    loan = Loan(model)
    assert all_off(model)
    loan.end()
    assert flags(model) == before
    model.train()
    loan.end()
    assert model.training


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_overlapping_loans_end_in_any_order(order):
    inner = model_with_mixed_flags()
    outer = nn.Sequential(inner, nn.Linear(2, 2))
    before = flags(outer)
    loans = [Loan(inner), Loan(outer), Loan(inner[1])]
    models = [inner, outer, inner[1]]
    for position, index in enumerate(order):
        loans[index].end()
        for still in order[position + 1 :]:
            assert all_off(models[still])
    assert flags(outer) == before


def test_follow_freezes_and_train_does_not():
    model = model_with_mixed_flags()
    before = flags(model)
    loan = Loan(model, "follow")
    assert flags(model) == (before[0], [False] * 4)
    model.eval()
    loan.end()
    assert flags(model) == before
    loan = Loan(model, "train")
    assert flags(model) == before
    loan.end()


def test_two_modes_at_once_are_refused_and_change_nothing():
    model = model_with_mixed_flags()
    loan = Loan(model[1], "train")
    before = flags(model)
    with pytest.raises(TeacherError, match=r"'1'.*mode 'train'.*mode 'eval'"):
        Loan(model)
    assert flags(model) == before
    loan.end()
    Loan(model).end()
    with pytest.raises(ConfigError, match="did you mean 'eval'"):
        Loan(model, "evl")


def test_a_models_own_train_method_is_used_in_both_directions():
    class Merging(nn.Linear):
        calls = ()

        def train(self, mode=True):
            self.calls = (*self.calls, mode)
            return super().train(mode)

    model = Merging(2, 2)
    loan = Loan(model)
    second = Loan(model)
    loan.end()
    assert set(model.calls) == {False}
    second.end()
    assert model.calls[-1] is True and model.training


def test_an_error_in_the_models_own_eval_gives_everything_back():
    class Failing(nn.Linear):
        def train(self, mode=True):
            if not mode:
                raise ValueError("no evaluation here")
            return super().train(mode)

    model = nn.Sequential(nn.Linear(1, 1), Failing(2, 2))
    before = flags(model)
    with pytest.raises(ValueError, match="no evaluation"):
        Loan(model)
    assert flags(model) == before
    Loan(model, "follow").end()


def test_a_loan_does_not_keep_the_model_alive():
    model = model_with_mixed_flags()
    loan, alive = Loan(model), weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    loan.end()


def test_a_loan_that_ends_inside_the_bookkeeping_is_settled_after_it():
    """As when the garbage collector finalizes one borrower while another borrows."""
    inner = model_with_mixed_flags()
    before = flags(inner)
    ending = Loan(inner)

    class Collecting(nn.Module):
        def train(self, mode=True):
            ending.end_later()
            assert all_off(inner)
            return super().train(mode)

    loan = Loan(Collecting())
    assert flags(inner) == before
    loan.end()


def test_many_threads_borrow_and_return_one_model():
    model = model_with_mixed_flags()
    before, wrong = flags(model), []

    def work():
        for _ in range(50):
            loan = Loan(model)
            if not all_off(model):
                wrong.append("not off")
            loan.end_later()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert flags(model) == before
    assert torch.is_grad_enabled()
