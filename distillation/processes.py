"""What changes when several processes train one model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from distillation.meters import Meters


def share_first(tensors: Iterable[torch.Tensor]) -> None:
    """Give every process the first one's tensors."""
    for tensor in tensors:
        whole = tensor.detach().contiguous()  # what a broadcast takes
        torch.distributed.broadcast(whole, 0)
        if not tensor.is_contiguous():
            tensor.detach().copy_(whole)


class ManyProcesses:
    """The part of the engine that speaks with the other processes; alone, it costs nothing."""

    _exact_samples = 0  # `samples` when the processes last added up what they have seen
    _own_samples = 0  # seen by this process since then

    def wrap(self, name: str = "model") -> nn.Module:
        """The module a step should call: wrapped in DDP when there are several processes."""
        if self.accelerator.num_processes > 1 and name not in self.wrapped:
            ids = None if self.device.type == "cpu" else [self.device.index]
            self.wrapped[name] = nn.parallel.DistributedDataParallel(
                self.modules[name], device_ids=ids
            )
            # Wrapped by the first step, in the middle of a group
            self.wrapped[name].require_backward_grad_sync = self._group_end
        return self.wrapped.get(name, self.modules[name])

    def _reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.accelerator.num_processes == 1:
            return tensor
        # Sums that come from a checkpoint lie on the CPU, where NCCL cannot add them
        return self.accelerator.reduce(tensor.to(self.device), reduction="sum")

    def _share_buffers(self) -> None:
        """Give every process the first one's buffers, which are those that a checkpoint holds.

        Batch statistics are of each process's own share, and DDP evens them out only before the
        next training batch.
        """
        if self.accelerator.num_processes > 1:
            for module in self.modules.values():
                for part in module.modules():
                    share_first(part.buffers(recurse=False))

    def _group_total(self, counts: list[int]) -> tuple[torch.Tensor | int | None, list[int]]:
        """Divisor of each micro-batch's samples, and its samples over all processes.

        DDP takes the plain mean over processes, so the divisor is the number of samples of the
        group over all processes, divided by their number. None: the batch is the whole group.

        On a GPU the samples over all processes are an estimate, as if each had as many as this
        one; `_settle_samples` puts that right.
        """
        processes = self.accelerator.num_processes
        if processes == 1:
            return (sum(counts) if len(counts) > 1 else None), counts
        if self.device.type == "cpu":
            everywhere = self._reduce(torch.tensor(counts)).tolist()
            return sum(everywhere) / processes, everywhere
        # On a GPU the exact sum stays there: reading it would stall the step
        total = self._reduce(torch.tensor(float(sum(counts)), device=self.device))
        return total / processes, [n * processes for n in counts]

    def _count(self, own: int, everywhere: int) -> None:
        self._own_samples += own
        self.samples += everywhere

    def _take_samples(self, samples: int) -> None:
        self.samples = self._exact_samples = samples
        self._own_samples = 0

    def _settle_samples(self) -> None:
        """Make `samples` exact, which on a GPU is estimated from one row or checkpoint to the next.

        Collective, and it waits for the device: not for every batch.
        """
        if self.accelerator.num_processes > 1:
            own = torch.tensor(self._own_samples, device=self.device)
            self._take_samples(self._exact_samples + int(self._reduce(own)))

    def _sync_gradients(self, wanted: bool) -> None:
        """Exchange gradients in the backward passes to come, or keep them to this process.

        What DDP's `no_sync` does, which would have to hold forward and backward alike.
        """
        for wrapped in self.wrapped.values():
            wrapped.require_backward_grad_sync = wanted

    def _write_row(self, meters: Meters, split: str) -> None:
        means = meters.compute(self._reduce)
        meters.reset()
        self._settle_samples()
        if self.recorder is not None:
            row = {f"{name}.{split}": value for name, value in means.items()}
            self.recorder.log(self.samples, self.epoch, row)
