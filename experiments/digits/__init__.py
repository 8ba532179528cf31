r"""
# Handwritten digits

1,797 images of 8×8 pixels, from the [UCI repository](https://doi.org/10.24432/C50P49), which come
with scikit-learn: real data that is always at hand. The same job as on
[CIFAR-10](../cifar10/index.html), in seconds.
"""

from labml.configs import option

from distillation.data import CropFlip, digits
from experiments.classification import (
    ClassificationConfigs,
    make_train_loader,
    training_images,
)

NAME = "digits"
EVALUATION = {"dataset": "digits"}


class DigitsConfigs(ClassificationConfigs):
    """
    ## Configurations

    This extends from
    [`ClassificationConfigs`](../classification.html), with the images of digits.
    """

    images: tuple = "_digits_images"
    train_loader: object = "_digits_train_loader"
    # Passes over the training images
    epochs: int = 20
    # Images a step
    batch_size: int = 64
    # The images are so small that a second thread costs more than it does
    threads: int = 1

    _experiment = NAME
    _parts = (*ClassificationConfigs._parts, "data")
    _refused = {"data": "the digits come with scikit-learn; it says where CIFAR-10 lies"}


@option(DigitsConfigs.images)
def _digits_images(c: DigitsConfigs):
    """
    ### Training images, held out images, test images
    """
    train, test = digits()
    return training_images(c, train, test)


@option(DigitsConfigs.train_loader)
def _digits_train_loader(c: DigitsConfigs):
    """
    ### Pad by one pixel and crop at random

    These are nine views of an image. A digit is not flipped.
    """
    return make_train_loader(c, CropFlip(padding=1, size=8, flip=False))
