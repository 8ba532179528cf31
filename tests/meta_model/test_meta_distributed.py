"""A converted model under DistributedDataParallel and FSDP2, on the CPU with gloo."""

from __future__ import annotations

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from meta_cases import batch, converted, gradients, loss_of, pair
from meta_workers import distributed
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo here")


def test_two_processes_give_the_gradients_of_one(tmp_path):
    """DDP, FSDP2 after the conversion, FSDP2 before it: gradients, state dict, save, export."""
    mp.spawn(distributed, args=(2, str(tmp_path)), nprocs=2, join=True)


def test_one_process_in_ddp():
    model, plain = converted(*pair()), converted(*pair())
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        x, y = batch()
        model.compute_kd_loss(F.cross_entropy(wrapped(x), y)).backward()
        del wrapped
    finally:
        dist.destroy_process_group()
    loss_of(plain, x, y).backward()
    ours, theirs = gradients(model), gradients(plain)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
