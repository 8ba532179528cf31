"""A batch is made on the device where the data lives, without a word to the host.

The meta device stands in for a GPU: its tensors have no values, so whatever asks for one fails, and
every operation can be watched for tensors that come from elsewhere.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distillation.data import CropFlip, ImageSet, Rendering, ReplayableLoader, TensorLoader
from distillation.data.moving import to_device


class Devices(TorchDispatchMode):
    """Notes every operation, with the devices of all tensors that it takes or gives."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[str, set[str]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **(kwargs or {}))
        tensors = [v for v in tree_leaves((args, kwargs, given)) if isinstance(v, torch.Tensor)]
        self.calls.append((str(func), {tensor.device.type for tensor in tensors}))
        return given


@pytest.fixture(scope="module")
def colour() -> ImageSet:
    images = torch.zeros(70, 3, 8, 8, dtype=torch.uint8)
    return ImageSet.of(images, torch.arange(70) % 10, "0123456789", (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("options", [{}, {"views_per_image": 4}, {"cutout": 3}])
def test_no_operation_of_a_batch_touches_the_host(colour, channels_last, options):
    loader = TensorLoader(
        colour, 16, views=CropFlip(2, 8), channels_last=channels_last, device="meta", **options
    )
    loader.batch(0, 0)  # tables of offsets, means and deviations move once
    with Devices() as devices:
        for epoch in (0, 1):  # a new epoch's order is made on the device as well
            batch = loader.batch(epoch, 2)
    assert [call for call in devices.calls if call[1] != {"meta"}] == []
    assert ("aten.index_select.default", {"meta"}) in devices.calls
    assert batch.images.shape == (16, 3, 8, 8)
    assert {tensor.device.type for tensor in batch} == {"meta"}


def test_what_does_not_fit_moves_once_and_is_augmented_on_the_device(colour):
    """Three copies a batch: images, labels, sample numbers; views are drawn over there."""
    rendering = Rendering(colour.mean, colour.std, views=CropFlip(2, 8), views_per_image=4)
    loader = ReplayableLoader(colour, 16, rendering=rendering, device="meta")
    loader.batch(0, 0)
    with Devices() as devices:
        batch = loader.batch(0, 1)
    crossing = [name for name, where in devices.calls if len(where) > 1]
    assert crossing == ["aten._to_copy.default"] * 3
    assert {tensor.device.type for tensor in batch} == {"meta"}


def test_a_tensor_that_is_there_already_is_not_copied():
    tensor = torch.arange(3)
    assert to_device(tensor, torch.device("cpu")) is tensor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_of_the_cpu_and_wait_for_nothing(colour):
    options = {"views": CropFlip(2, 8), "views_per_image": 4, "cutout": 3, "seed": 5}
    expected = TensorLoader(colour, 16, **options)
    loader = TensorLoader(colour, 16, device="cuda", **options)
    loader.batch(0, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = loader.batch(1, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for made, value in zip(batch, expected.batch(1, 2), strict=True):
        torch.testing.assert_close(made.cpu(), value)
