"""Capture: outputs and inputs of named layers, on several models and in several threads."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from distillation.capture import Capture, Tap, find_layer, purge
from distillation.errors import ConfigError, DistillationError


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


def test_outputs_and_inputs_of_two_models_are_recorded_at_once(x):
    student, teacher = Net(4), Net(6)
    taps = [HEAD, ("teacher", "stem"), ("teacher", "head", "input")]
    with Capture({"student": student, "teacher": teacher}, taps) as capture:
        with capture.recording() as record:
            wanted, _ = student(x), teacher(x)
        assert torch.equal(record.tensor(HEAD), wanted)
        assert torch.equal(record.tensor(Tap("teacher", "stem")), teacher.stem(x))
        seen = record.calls(Tap("teacher", "head", "input"))[0]
        assert torch.equal(teacher.head(*seen.args, **seen.kwargs), teacher(x))


def test_a_layer_named_twice_is_recorded_once(x):
    model = Net()
    with Capture({"student": model}, [HEAD, HEAD, tuple(HEAD)]) as capture:
        assert capture.taps == (HEAD,)
        with capture.recording() as record:
            model(x)
        assert len(record.calls(HEAD)) == 1


def test_the_empty_name_is_the_model_itself(x):
    model = Net()
    with Capture({"student": model}, [("student", "")]) as capture:
        with capture.recording() as record:
            y = model(x)
        assert record.tensor(Tap("student", "")) is y


def test_every_call_of_a_layer_is_kept_and_the_last_is_the_default(x):
    model = Net()
    with Capture({"student": model}, [SHARED]) as capture, capture.recording() as record:
        model(x)
    first = model.shared(model.stem(x))
    assert torch.equal(record.tensor(SHARED, call=0), first)
    assert torch.equal(record.tensor(SHARED), model.shared(first))
    assert [t.shape for t in record.tensor(SHARED, call="all")] == [(5, 4), (5, 4)]
    with pytest.raises(ConfigError, match="called 2 time"):
        record.tensor(SHARED, call=2)
    with pytest.raises(ConfigError, match="'first'"):
        record.tensor(SHARED, call="first")


def test_keyword_inputs_are_recorded(x):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Bilinear(3, 3, 2)

        def forward(self, x):
            return self.inner(x, input2=2 * x)

    model = Outer()
    tap = Tap("student", "inner", "input")
    with Capture({"student": model}, [tap]) as capture, capture.recording() as record:
        model(x)
    assert torch.equal(record.tensor(tap, select="input2"), 2 * x)
    assert record.tensor(tap, select=0) is x


def test_nothing_is_recorded_unless_armed(x):
    model = Net()
    with Capture({"student": model}, [HEAD]) as capture:
        model(x)
        assert capture.record is None
        with pytest.raises(DistillationError, match="forward"):
            capture.take()


def test_take_hands_the_record_over_once(x):
    model = Net()
    with Capture({"student": model}, [HEAD]) as capture:
        with capture.recording() as record:
            model(x)
        assert capture.take() is record
        with pytest.raises(DistillationError, match="once for each loss"):
            capture.take()


def test_a_layer_that_did_not_run_is_named(x):
    model = Net()
    model.spare = nn.Linear(1, 1)
    with Capture({"student": model}, [("student", "spare")]) as capture:
        with capture.recording() as record:
            model(x)
        with pytest.raises(DistillationError, match="student layer 'spare': it was not called"):
            record.tensor(Tap("student", "spare"))


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        (("student", "blok.0"), "did you mean 'block.0'"),
        (("studnt", "head"), "did you mean 'student'"),
        (("student", "head", "outputs"), "did you mean 'output'"),
        ("head", "got 'head'"),
        (("student",), "got \\('student',\\)"),
    ],
)
def test_unknown_names_are_refused_and_leave_no_hook(tap, message):
    model = Net()
    with pytest.raises(ConfigError, match=message):
        Capture({"student": model}, [HEAD, tap])
    assert hooks_of(model) == []


def test_an_unknown_trained_model_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'student'"):
        Capture({"student": Net()}, [HEAD], trained=["studnt"])


def test_remove_takes_off_exactly_our_hooks(x):
    model, seen = Net(), []
    handle = model.head.register_forward_hook(lambda *_: seen.append(1))
    capture = Capture({"student": model}, [HEAD, ("student", "head", "input")])
    capture.remove()
    capture.remove()
    model(x)
    assert seen == [1]
    handle.remove()
    assert hooks_of(model) == []


def test_a_dropped_capture_takes_its_hooks_along():
    model = Net()
    capture = Capture({"student": model}, [HEAD])
    assert hooks_of(model)
    del capture
    gc.collect()
    assert hooks_of(model) == []


def test_nothing_is_alive_after_the_loss(x):
    model = Net()
    with Capture({"student": model}, [SHARED]) as capture:
        with capture.recording():
            model(x)
        record = capture.take()
        alive = weakref.ref(record.tensor(SHARED))
        record.tensor(SHARED).sum().backward()
        del record
        gc.collect()
        assert alive() is None


def test_nothing_is_alive_after_an_error(x):
    model, seen = Net(), []
    handle = model.stem.register_forward_hook(lambda m, a, output: seen.append(weakref.ref(output)))
    with Capture({"student": model}, [("student", "stem")]) as capture:
        with pytest.raises(RuntimeError, match="mat1"), capture.recording():
            model.shared(model.stem(x)[:, :1])
        assert capture.record is None
    handle.remove()
    gc.collect()
    assert seen[0]() is None


def test_arming_again_drops_the_last_record_before_the_forward(x):
    model = Net()
    with Capture({"student": model}, [HEAD]) as capture:
        with capture.recording() as record:
            model(x)
        alive = weakref.ref(record.tensor(HEAD))
        del record
        with capture.recording():
            gc.collect()
            assert alive() is None


def test_the_capture_keeps_neither_models_nor_itself_alive(x):
    model = Net()
    capture = Capture({"student": model}, [HEAD])
    with capture.recording():
        model(x)
    alive = weakref.ref(model)
    capture.remove()
    del model, capture
    gc.collect()
    assert alive() is None


def test_two_captures_on_one_teacher_do_not_see_each_other(x):
    teacher, tap = Net(), Tap("teacher", "head")
    with Capture({"teacher": teacher}, [tap]) as one, Capture({"teacher": teacher}, [tap]) as two:
        with one.recording() as first:
            teacher(x)
            with two.recording() as second:
                teacher(2 * x)
        assert len(first.calls(tap)) == 2
        assert torch.equal(second.tensor(tap), teacher(2 * x))


def test_threads_that_share_the_models_get_their_own_records(x):
    student, teacher = Net(), Net()
    taps = [HEAD, SHARED, Tap("teacher", "head")]
    wrong, start = [], threading.Barrier(4)
    with Capture({"student": student, "teacher": teacher}, taps) as capture:

        def work(seed):
            start.wait()
            for step in range(20):
                mine = torch.randn(5, 3, generator=torch.Generator().manual_seed(100 * seed + step))
                with capture.recording():
                    student(mine)
                    teacher(mine)
                record = capture.take()
                same = torch.equal(record.tensor(HEAD), student(mine))
                same &= torch.equal(record.tensor(taps[2]), teacher(mine))
                if not same or len(record.calls(SHARED)) != 2:
                    wrong.append((seed, step))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


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


def test_find_layer_reads_names_of_shared_layers_too():
    model = nn.Sequential(nn.Linear(2, 2))
    model.append(model[0])
    assert find_layer(model, "1") is model[0]
    assert find_layer(model, "") is model
