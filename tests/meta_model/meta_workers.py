"""What the processes of `test_meta_distributed` run."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from meta_cases import (
    Net,
    T,
    assert_same,
    batch,
    converted,
    features,
    loss_of,
    pair,
)
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from distillation import LogitsDistillationLoss, export, restore, save


def distributed(rank: int, world: int, folder: str) -> None:
    """Everything in one process group, since starting processes is what takes the time."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    try:
        data_parallel(rank, world)
        sharded(rank, world, folder, convert_first=True)
        sharded(rank, world, folder, convert_first=False)
        mixed_precision()
        sharded_teacher(folder)
    finally:
        dist.destroy_process_group()


def whole_batch_gradients(criterion, x, y) -> dict:
    """Gradients of one process that sees all rows (batch norm in evaluation)."""
    plain = converted(*pair(), criterion=criterion).eval()
    loss_of(plain, x, y).backward()
    return {name: p.grad for name, p in plain.named_parameters()}


def assert_close(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        assert torch.allclose(found[name], grad, rtol=1e-4, atol=1e-6), name


def gathered(tensors: dict) -> dict:
    """Sharded tensors (parameters, not buffers) as whole ones."""
    return {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}


def data_parallel(rank: int, world: int) -> None:
    x, y = batch(4 * world)
    rows = slice(4 * rank, 4 * rank + 4)
    for criterion in (LogitsDistillationLoss(T), features()):
        wanted = whole_batch_gradients(copy.deepcopy(criterion), x, y)
        model = converted(*pair(), criterion=criterion)
        wrapped = DistributedDataParallel(model).eval()
        for _ in range(2):
            model.zero_grad()
            loss = model.compute_kd_loss(F.cross_entropy(wrapped(x[rows]), y[rows]))
            loss.backward()
        assert_close({name: p.grad for name, p in model.named_parameters()}, wanted)
        twin = converted(*pair(seed=4), criterion=copy.deepcopy(criterion))
        DistributedDataParallel(twin).load_state_dict(wrapped.state_dict(), strict=True)
        assert_same(twin.state_dict(), model.state_dict())
        assert type(export(model)) is Net


def sharded(rank: int, world: int, folder: str, convert_first: bool) -> None:
    x, y = batch(4 * world)
    rows = slice(4 * rank, 4 * rank + 4)
    wanted = whole_batch_gradients(features(), x, y)
    if not convert_first:  # what is sharded before has no losses yet, so these are not sharded
        wanted = whole_batch_gradients(LogitsDistillationLoss(T), x, y)
    student, teacher = pair()
    if convert_first:
        model = converted(student, teacher, criterion=features())
        fully_shard(model.body)
        fully_shard(model)
    else:
        fully_shard(student)
        model = converted(student, teacher)
    assert isinstance(model, FSDPModule) and isinstance(model, Net)
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, x[rows], y[rows]).backward()
        optimizer.step()
    assert_close(gathered({n: p.grad for n, p in model.named_parameters()}), wanted)
    assert not any(hasattr(p, "full_tensor") for p in teacher.parameters())
    model.load_state_dict(model.state_dict(), strict=True)
    path = f"{folder}/{convert_first}.pt"
    save(model, path)
    dist.barrier()
    alone = restore(Net(), path, teacher=pair()[1])
    assert_same({**alone.state_dict()}, gathered(model.state_dict()))
    exported = export(model)
    assert isinstance(exported, FSDPModule) and type(exported).__name__ == "FSDPNet"
    assert "_kd" not in vars(exported) and teacher.training
    exported(x[rows]).sum().backward()


def sharded_teacher(folder: str) -> None:
    """A teacher that FSDP2 has sharded: the loss is the same, and the file knows who it is."""
    x, y = batch(4)
    student, teacher = pair()
    fully_shard(teacher)
    model, plain = converted(student, teacher), converted(*pair())
    assert torch.allclose(loss_of(model, x, y), loss_of(plain, x, y))
    save(model, f"{folder}/teacher.pt")
    dist.barrier()
    alone = restore(Net(), f"{folder}/teacher.pt", teacher=pair()[1])
    assert_same(alone.state_dict(), model.state_dict())


def mixed_precision() -> None:
    """FSDP2 hands the student its inputs in bfloat16; the teacher's weights stay as they are."""
    x, y = batch(4)
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    teacher = pair()[1]
    plain = converted(copy.deepcopy(student), teacher)
    loss = loss_of(plain, x, y)
    loss.backward()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = converted(student, teacher)
    fully_shard(model, mp_policy=policy)
    found = loss_of(model, x, y)
    found.backward()
    assert torch.allclose(found, loss, rtol=0.02)
    for name, grad in gathered({n: p.grad for n, p in model.named_parameters()}).items():
        assert torch.allclose(grad, plain.get_parameter(name).grad, rtol=0.1, atol=0.01), name
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    export(plain)
    export(model)
    assert teacher.training
