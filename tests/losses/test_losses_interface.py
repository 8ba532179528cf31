"""What a loss takes, how keywords are given out, and what all modules here have in common."""

import copy
import functools

import pytest
import torch
from loss_cases import logits
from torch import nn

from distillation import losses
from distillation.errors import ConfigError
from distillation.losses import accepts, route

MAPS = (torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4))
LOGITS = (torch.zeros(4, 10), torch.ones(4, 10))
LABELS = torch.zeros(4, dtype=torch.long)


def every_loss():
    """(module, positional arguments, keywords) for each loss of the package."""
    for loss in (
        losses.LogitsDistillationLoss(2.0),
        losses.ReverseKLLoss(2.0),
        losses.JensenShannonLoss(2.0),
        losses.SoftCrossEntropyLoss(2.0),
        losses.LogitsMSELoss(),
        losses.CosineLoss(),
        losses.LabmlSoftTargetsLoss(),
    ):
        yield loss, LOGITS, {}
    yield losses.LogitsDistillationLoss(ignore_index=0), LOGITS, {"target": LABELS}
    yield losses.MFTLoss(), LOGITS, {"target": LABELS, "mask": LABELS == 0}
    yield losses.MGDLoss(3, 3), MAPS, {}
    yield losses.ChannelWiseKnowledgeDistillationLoss(), MAPS, {}
    target = torch.zeros(2, 4, 4, dtype=torch.long)
    loss = losses.ChannelWiseKnowledgeDistillationLoss(ignore_index=1)
    yield loss, MAPS, {"target": target}


def every_balancer():
    yield losses.StaticLossBalancer(0.5)
    yield losses.UncertaintyLossBalancer(1)
    yield losses.ScheduledLossBalancer(0.5, steps=3, shape="cosine")


class TestAccepts:
    def test_keywords_beyond_the_first_two(self):
        class Own(nn.Module):
            def forward(self, a, b, target, *, epoch=None):
                return a

        assert accepts(Own()) == {"target", "epoch"}

    def test_the_second_positional_is_the_teacher_whatever_it_is_called(self):
        assert accepts(nn.MSELoss()) == set()

    def test_functions_and_partials_are_losses(self):
        def own(a, b, *, target):
            return a

        assert accepts(own) == {"target"}
        assert accepts(functools.partial(own, target=1)) == {"target"}

    def test_kwargs_take_all(self):
        class Own(nn.Module):
            def forward(self, *outputs, epoch=0, **kwargs):
                return outputs[0]

        taken = accepts(Own())
        assert "epoch" in taken
        assert "anything" in taken
        assert set(taken) == {"epoch"}

    def test_a_forward_set_on_the_instance_counts(self):
        loss = nn.MSELoss()
        loss.forward = lambda a, b, *, epoch: a
        assert accepts(loss) == {"epoch"}

    def test_a_compiled_loss_takes_what_the_loss_takes(self):
        assert accepts(torch.compile(losses.MFTLoss())) == {"target", "mask"}

    @pytest.mark.parametrize(
        ("loss", "names"),
        [
            (losses.LogitsDistillationLoss(), {"mask"}),
            (losses.LogitsDistillationLoss(ignore_index=0), {"mask", "target"}),
            (losses.MFTLoss(), {"mask", "target"}),
            (losses.MGDLoss(1, 1), {"generator"}),
            (losses.LabmlSoftTargetsLoss(), set()),
        ],
    )
    def test_of_the_losses_here(self, loss, names):
        assert accepts(loss) == names


def test_a_loss_of_ones_own_has_a_projector_and_keywords():
    class Hint(losses.DistillationLoss):
        """FitNets' hint with a weight per epoch: the whole of what a new loss needs."""

        def __init__(self, student: int, teacher: int) -> None:
            super().__init__()
            self.projector = nn.Linear(student, teacher)

        def forward(self, student_output, teacher_output, *, epoch):
            gap = self.projector(student_output) - teacher_output.detach()
            return gap.square().mean() / (1 + epoch)

    hint = Hint(4, 6)
    given = route({"Hint_0": hint}, {"epoch": 1})
    hint(torch.randn(2, 4), torch.randn(2, 6), **given["Hint_0"]).backward()
    assert hint.projector.weight.grad is not None
    assert hint.constructor_arguments == ((4, 6), {})


def test_the_base_class_says_that_forward_is_missing():
    with pytest.raises(NotImplementedError, match="DistillationLoss has no forward"):
        losses.DistillationLoss()(1, 2)


class TestRoute:
    def test_each_loss_gets_what_it_takes(self):
        criterion = {"MFTLoss_0": losses.MFTLoss(), "MSELoss_1": nn.MSELoss()}
        assert route(criterion, {"target": 1}) == {"MFTLoss_0": {"target": 1}, "MSELoss_1": {}}

    def test_a_keyword_that_none_takes_is_an_error_with_the_nearest(self):
        criterion = {"MFTLoss_0": losses.MFTLoss(), "MSELoss_1": nn.MSELoss()}
        with pytest.raises(
            ConfigError, match=r"'taget'; did you mean 'target'.*MFTLoss_0, MSELoss"
        ):
            route(criterion, {"taget": 1})

    def test_a_loss_with_kwargs_gets_all(self):
        def own(a, b, **kwargs):
            return a

        assert route({"own_0": own}, {"x": 1, "y": 2}) == {"own_0": {"x": 1, "y": 2}}


@pytest.mark.parametrize(("loss", "args", "keywords"), list(every_loss()))
class TestEveryLoss:
    def test_never_reads_a_value(self, loss, args, keywords):
        """Meta tensors have shapes and no values: a host sync in forward or backward would fail."""
        loss = copy.deepcopy(loss).to("meta")
        args = [a.to("meta").requires_grad_() for a in args]
        value = loss(*args, **{key: tensor.to("meta") for key, tensor in keywords.items()})
        value.backward()
        assert value.shape == ()

    def test_traces_into_one_graph(self, loss, args, keywords):
        torch._dynamo.reset()
        compiled = torch.compile(loss, backend="eager", fullgraph=True)
        torch.manual_seed(0)
        value = compiled(*args, **keywords)
        torch.manual_seed(0)
        assert torch.equal(value, loss(*args, **keywords))

    def test_takes_the_keywords_that_it_says(self, loss, args, keywords):
        assert all(key in accepts(loss) for key in keywords)

    def test_can_be_copied_and_says_how_it_was_made(self, loss, args, keywords):
        args_made, kwargs_made = copy.deepcopy(loss).constructor_arguments
        again = type(loss)(*args_made, **kwargs_made)
        assert repr(again) == repr(loss)

    def test_a_test_case_exists_for_each_public_loss(self, loss, args, keywords):
        tried = {type(case[0]) for case in every_loss()}
        public = {getattr(losses, name) for name in losses.__all__}
        kinds = {
            c for c in public if isinstance(c, type) and issubclass(c, losses.DistillationLoss)
        }
        assert kinds - {losses.DistillationLoss} == tried


@pytest.mark.parametrize("balancer", list(every_balancer()))
class TestEveryBalancer:
    def test_never_reads_a_value(self, balancer):
        balancer = copy.deepcopy(balancer).to("meta")
        loss = torch.zeros((), device="meta", requires_grad=True)
        balancer({"A_0": loss, losses.STUDENT_LOSS_KEY: loss}).backward()

    def test_traces_into_one_graph_once(self, balancer):
        torch._dynamo.reset()
        balancer = copy.deepcopy(balancer)
        plain = copy.deepcopy(balancer)
        compiled = torch.compile(balancer, backend="eager", fullgraph=True)
        named = {"A_0": torch.tensor(2.0), losses.STUDENT_LOSS_KEY: torch.tensor(3.0)}
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(4):
                assert torch.equal(compiled(named), plain(named))

    def test_says_how_it_was_made(self, balancer):
        args, kwargs = balancer.constructor_arguments
        assert repr(type(balancer)(*args, **kwargs)) == repr(balancer)


def test_a_compiled_loss_trains_like_the_plain_one():
    s, t = logits(8, 10).requires_grad_(), logits(8, 10, seed=1)
    loss = losses.LogitsDistillationLoss(4.0)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    (a,) = torch.autograd.grad(compiled(s, t), s)
    (b,) = torch.autograd.grad(loss(s, t), s)
    torch.testing.assert_close(a, b)
