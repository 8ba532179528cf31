"""Capture under checkpointing, in-place operations, copies and `torch.compile`."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from distillation.capture import Capture, Tap, purge
from distillation.errors import DistillationError


class Net(nn.Module):
    """Two convolution-free blocks; `shared` runs twice in each forward."""

    def __init__(self, width: int = 4, reentrant: bool | None = None):
        super().__init__()
        self.stem = nn.Linear(3, width)
        self.shared = nn.Linear(width, width)
        self.block = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, 2)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.shared(self.shared(self.stem(x)))
        if self.reentrant is None:
            x = self.block(x)
        else:
            x = checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.head(x)


HEAD, SHARED, BLOCK = (Tap("student", name) for name in ("head", "shared", "block.0"))


@pytest.fixture
def x():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def hooks_of(model):
    return [
        table
        for layer in model.modules()
        for table in (
            *(layer._forward_hooks, layer._forward_pre_hooks),
            *(layer._forward_hooks_with_kwargs, layer._forward_pre_hooks_with_kwargs),
        )
        if table
    ]


# Activation checkpointing ---------------------------------------------------------------------


def gradients(model, x, tap):
    """Gradients of task loss plus a loss on `tap`, captured."""
    model.zero_grad()
    with Capture({"student": model}, [tap]) as capture:
        with capture.recording():
            y = model(x)
        record = capture.take()
        (y.square().mean() + record.tensor(tap).square().mean()).backward()
        assert capture.record is None
        assert len(record.calls(tap)) == 1
    return [p.grad.clone() for p in model.parameters()]


def test_recomputation_is_not_recorded_and_gradients_are_the_plain_ones(x):
    model = Net()
    plain = gradients(model, x, BLOCK)
    model.reentrant = False
    for a, b in zip(plain, gradients(model, x, BLOCK), strict=True):
        assert torch.equal(a, b)


def test_recomputation_of_the_last_batch_is_not_recorded_into_the_next(x):
    model = Net(reentrant=False)
    with Capture({"student": model}, [BLOCK]) as capture:
        first = model(x)
        with capture.recording() as record:
            model(x)
        first.sum().backward()
        assert len(record.calls(BLOCK)) == 1


@pytest.mark.parametrize("tap", [HEAD, Tap("student", "stem")])
def test_layers_outside_a_reentrant_checkpoint_have_the_plain_gradients(x, tap):
    model = Net()
    plain = gradients(model, x, tap)
    model.reentrant = True
    for a, b in zip(plain, gradients(model, x, tap), strict=True):
        assert torch.equal(a, b)


def test_the_input_of_a_reentrantly_checkpointed_block_has_the_plain_gradients(x):
    model, tap = Net(), Tap("student", "block", "input")
    plain = gradients(model, x, tap)
    model.reentrant = True
    for a, b in zip(plain, gradients(model, x, tap), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [("block.0", "output"), ("block.1", "output"), ("block", "output"), ("block.1", "input")],
)
def test_a_reentrant_checkpoint_never_drops_a_gradient_silently(x, layer, kind):
    model = Net(reentrant=True)
    with Capture({"student": model}, [("student", layer, kind)]) as capture:
        with pytest.raises(DistillationError, match="use_reentrant=False"), capture.recording():
            model(x)
        assert capture.record is None


def test_reentrant_checkpoints_are_allowed_where_no_gradient_is_meant(x):
    model = Net(reentrant=True)
    with Capture({"student": model}, [BLOCK]) as capture:
        with torch.no_grad(), capture.recording() as record:
            model(x)
        assert BLOCK in record
        model.eval()
        with capture.recording() as record:
            model(x)
        assert BLOCK in record


def test_a_trainable_layer_under_no_grad_is_named(x):
    class Half(Net):
        def forward(self, x):
            with torch.no_grad():
                x = self.stem(x)
            return self.head(x)

    model = Half()
    tap = Tap("student", "stem")
    with Capture({"student": model}, [tap]) as capture:
        with pytest.raises(DistillationError, match="trainable parameters"), capture.recording():
            model(x)
        model.stem.requires_grad_(False)
        with capture.recording() as record:
            model(x)
        assert torch.equal(record.tensor(tap), model.stem(x))


# In-place operations --------------------------------------------------------------------------


def in_place_model():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))


def test_an_output_changed_in_place_afterwards_is_an_error(x):
    model, tap = in_place_model(), Tap("student", "0")
    with Capture({"student": model}, [tap]) as capture, capture.recording() as record:
        model(x)
    with pytest.raises(DistillationError, match="clone=True"):
        record.tensor(tap)


def test_clone_keeps_what_the_layer_gave_and_its_gradient(x):
    model, tap = in_place_model(), Tap("student", "0")
    with Capture({"student": model}, [tap], clone=True) as capture, capture.recording() as record:
        model(x)
    assert torch.equal(record.tensor(tap), model[0](x))
    record.tensor(tap).sum().backward()
    assert model[0].weight.grad is not None


# Copies, compilation --------------------------------------------------------------------------


def test_a_deepcopy_has_dead_hooks_until_it_is_rebound(x):
    model = Net()
    capture = Capture({"student": model}, [HEAD, SHARED])
    twin = copy.deepcopy(model)
    with capture.recording() as record:
        twin(x)
    assert HEAD not in record
    rebound = capture.rebind({"student": twin})
    with rebound.recording() as record:
        y = twin(x)
    assert record.tensor(HEAD) is y
    rebound.remove()
    assert hooks_of(twin) == []
    assert hooks_of(model) != []
    with pytest.raises(DistillationError, match="rebind"):
        copy.deepcopy(capture)
    with pytest.raises(DistillationError, match="rebind"):
        pickle.dumps(capture)


def test_a_pickled_model_comes_back_with_dead_hooks_that_purge_removes(x):
    model = Net()
    capture = Capture({"student": model}, [HEAD, ("student", "head", "input")])
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    assert torch.equal(twin(x), model(x))
    assert purge(twin) == 2
    assert hooks_of(twin) == []
    assert purge(model) == 0
    capture.remove()


class Distilled(nn.Module):
    """What a distiller's forward does: teacher, then student, both under one capture."""

    def __init__(self, student, teacher, capture, by_context):
        super().__init__()
        self.student, self.by_context = student, by_context
        self.guests = (teacher, capture)

    def forward(self, x):
        teacher, capture = self.guests
        if self.by_context:
            with capture.recording():
                with torch.no_grad():
                    teacher(x)
                return self.student(x)
        capture.arm()
        with torch.no_grad():
            teacher(x)
        y = self.student(x)
        capture.disarm()
        return y


@pytest.mark.parametrize("by_context", [True, False])
def test_a_compiled_forward_records_without_a_graph_break_in_each_thread(x, by_context):
    torch._dynamo.reset()
    student, teacher = Net(), Net(6).requires_grad_(False)
    feature = Tap("teacher", "head", "input")
    capture = Capture({"student": student, "teacher": teacher}, [SHARED, feature])
    compiled = torch.compile(
        Distilled(student, teacher, capture, by_context), fullgraph=True, backend="aot_eager"
    )
    held = []

    def work(inputs):
        compiled(inputs)
        record = capture.take()
        wanted = student.shared(student.shared(student.stem(inputs)))
        held.append(torch.allclose(record.tensor(SHARED), wanted))
        held.append(len(record.calls(SHARED)) == 2 and capture.record is None)
        held.append(record.tensor(feature).requires_grad is False)
        record.tensor(SHARED).sum().backward()
        held.append(student.stem.weight.grad is not None)

    work(x)
    work(2 * x)
    thread = threading.Thread(target=work, args=(3 * x,))
    thread.start()
    thread.join()
    assert held == [True] * 12
    capture.remove()


def test_a_layer_in_a_checkpointed_block_is_recorded_by_a_compiled_forward(x, monkeypatch):
    option = "skip_fwd_side_effects_in_bwd_under_checkpoint"
    monkeypatch.setattr(torch._dynamo.config, option, True)
    torch._dynamo.reset()
    student, teacher = Net(reentrant=False), Net().requires_grad_(False)
    capture = Capture({"student": student, "teacher": teacher}, [BLOCK])
    model = Distilled(student, teacher, capture, True)
    torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    record = capture.take()
    record.tensor(BLOCK).sum().backward()
    assert len(record.calls(BLOCK)) == 1
    assert student.stem.weight.grad is not None
    capture.remove()
