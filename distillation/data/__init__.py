"""Data: whole-tensor image sets, numbered views of them, and loaders that can be replayed."""

from distillation.data.cifar import cifar10
from distillation.data.digits import digits
from distillation.data.gathering import gather, make_loader
from distillation.data.images import ImageSet
from distillation.data.mapped import MappedImages
from distillation.data.on_disk import map_images
from distillation.data.order import Batch, EpochLoader
from distillation.data.rendering import Rendering
from distillation.data.replayable import ReplayableLoader
from distillation.data.tensor_loader import TensorLoader
from distillation.data.views import CropFlip, Cutout, Identity, Restricted, Views
from distillation.errors import no_other

__all__ = [
    "Batch",
    "CropFlip",
    "Cutout",
    "EpochLoader",
    "Identity",
    "ImageSet",
    "MappedImages",
    "Rendering",
    "ReplayableLoader",
    "Restricted",
    "TensorLoader",
    "Views",
    "cifar10",
    "digits",
    "gather",
    "make_loader",
    "map_images",
]

__getattr__ = no_other(__name__, __all__)
