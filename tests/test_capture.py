"""Capture: outputs and inputs of named layers, on several models and in several threads."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from distillation.capture import Capture, Tap, find_layer
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
    together = threading.Barrier(3)  # every thread is armed while the others forward

    def meet(*_):
        together.wait(10)

    handle = student.shared.register_forward_pre_hook(meet)
    records = [None] * 3
    with Capture({"student": student, "teacher": teacher}, taps) as capture:

        def work(index):
            with capture.recording():
                student((index + 1) * x)
                teacher((index + 1) * x)
            records[index] = capture.take()

        threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    handle.remove()
    for index, record in enumerate(records):
        assert torch.equal(record.tensor(HEAD), student((index + 1) * x))
        assert torch.equal(record.tensor(taps[2]), teacher((index + 1) * x))
        assert [len(record.calls(tap)) for tap in taps] == [1, 2, 1]


def test_a_capture_armed_again_inside_itself_goes_on_afterwards(x):
    model = Net()
    with Capture({"student": model}, [HEAD]) as capture:
        with capture.recording() as outer:
            with capture.recording() as inner:
                model(2 * x)
            assert capture.record is outer
            model(x)
        assert capture.take() is outer
        assert torch.equal(outer.tensor(HEAD), model(x))
        assert torch.equal(inner.tensor(HEAD), model(2 * x))
        assert len(outer.calls(HEAD)) == len(inner.calls(HEAD)) == 1


def test_find_layer_reads_names_of_shared_layers_too():
    model = nn.Sequential(nn.Linear(2, 2))
    model.append(model[0])
    assert find_layer(model, "1") is model[0]
    assert find_layer(model, "") is model
