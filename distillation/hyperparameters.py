"""Optimizer and schedule on resume: their saved state, and what was given anew.

What is given anew wins. To tell it from what the training has changed by itself (a schedule the
learning rate, say), a checkpoint also holds the values as they were given, before any step.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from typing import Any

import torch

from distillation.errors import CheckpointError


def plain(value: Any) -> Any:
    """A copy made of what a weights_only file may hold."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(v) for v in value)
    return copy.deepcopy(value)


def as_given(optimizer: Any, scheduler: Any) -> dict[str, Any]:
    """The hyper-parameters of both as they stand now; to be taken before the first step."""
    groups = [] if optimizer is None else optimizer.param_groups  # None: an engine that evaluates
    return {
        "kinds": [_kind(optimizer), _kind(scheduler)],
        "optimizer": [{k: plain(v) for k, v in g.items() if k != "params"} for g in groups],
        "scheduler": plain(scheduler.state_dict()) if scheduler is not None else None,
    }


def take_up(
    optimizer: Any, scheduler: Any, state: dict[str, Any], given: dict[str, Any], updates: int
) -> None:
    """Bring both to where the checkpoint's `state` left them, but for what was given anew.

    `given` is `as_given` of both. A schedule of another kind begins where it would stand after
    `updates` steps; so does one with other values, such as a longer cosine, where torch knows its
    rate at a step (from the rate that a finished cosine has reached, 0, none would rise again).
    Raises CheckpointError for another kind of optimizer or other groups.
    """
    before = state["given"]
    (kind, schedule), (kind_before, schedule_before) = given["kinds"], before["kinds"]
    if kind != kind_before:
        raise CheckpointError(
            f"the run was trained with {kind_before} and cannot go on with {kind}, which has "
            "another state; keep the optimizer, or begin a new run"
        )
    try:
        optimizer.load_state_dict(_run_as_now(state["optimizer"], given["optimizer"]))
    except ValueError as error:
        raise CheckpointError(f"the optimizer's state does not fit: {error}") from error
    same_schedule = schedule == schedule_before
    for group, now, then in zip(
        optimizer.param_groups, given["optimizer"], before["optimizer"], strict=True
    ):
        reached = group["lr"]
        group.update({k: v for k, v in now.items() if not _same(v, then.get(k))})
        if not same_schedule:
            group["lr"] = now["lr"]
        elif schedule is not None:
            # The new rate, as far as the schedule has come
            start, was = now.get("initial_lr", now["lr"]), then.get("initial_lr", then["lr"])
            group["lr"] = reached * start / was if was else now["lr"]
    if schedule is None:
        return
    if same_schedule:
        loaded = merged(state["scheduler"], given["scheduler"], before["scheduler"])
        for name, value in vars(scheduler).items():
            if isinstance(value, Counter):  # a dict in the file; the closed form wants its methods
                loaded[name] = Counter(loaded[name])
        scheduler.load_state_dict(loaded)
        closed_form = getattr(scheduler, "_get_closed_form_lr", None)
        if closed_form and not _same(given["scheduler"], before["scheduler"]):
            for group, rate in zip(optimizer.param_groups, closed_form(), strict=True):
                group["lr"] = rate
        if hasattr(scheduler, "_last_lr"):
            scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
        return
    with warnings.catch_warnings():
        # torch takes these steps for ones before the optimizer's first
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(updates):
            scheduler.step()


def _run_as_now(saved: dict[str, Any], now: list[dict[str, Any]]) -> dict[str, Any]:
    """The saved state under the kernels of now: a fused one keeps its step counts on the GPU."""
    if len(saved["param_groups"]) != len(now):
        return saved
    groups = [
        {**group, **{name: given[name] for name in ("fused", "foreach") if name in given}}
        for group, given in zip(saved["param_groups"], now, strict=True)
    ]
    return {**saved, "param_groups": groups}


def merged(saved: Any, now: Any, then: Any) -> Any:
    """`saved`, but for the parts in which `now` differs from `then`, at any depth."""
    if isinstance(saved, dict) and isinstance(now, dict) and isinstance(then, dict):
        new = {k: v for k, v in now.items() if k not in saved}
        return new | {
            k: merged(v, now[k], then[k]) if k in now and k in then else now.get(k, v)
            for k, v in saved.items()
            if k in now or k not in then
        }
    lists = [v for v in (saved, now, then) if isinstance(v, (list, tuple))]
    if len(lists) == 3 and len({len(v) for v in lists}) == 1:
        return type(saved)(merged(*parts) for parts in zip(*lists, strict=True))
    return saved if _same(now, then) else now


def _same(a: Any, b: Any) -> bool:
    if torch.is_tensor(a) or torch.is_tensor(b):
        return torch.is_tensor(a) and torch.is_tensor(b) and bool(torch.equal(a.cpu(), b.cpu()))
    return bool(a == b)


def _kind(thing: Any) -> str | None:
    return None if thing is None else type(thing).__name__
