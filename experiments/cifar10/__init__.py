r"""
# CIFAR-10

60,000 colour images of 32×32 pixels in ten classes
([Krizhevsky 2009](https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf)): 50,000 to train
on and 10,000 to test on.
"""

from labml.configs import option

from distillation.data import CropFlip, cifar10
from experiments.classification import (
    ClassificationConfigs,
    make_train_loader,
    training_images,
)

NAME = "cifar10"
EVALUATION = {"dataset": "cifar10"}


class CIFAR10Configs(ClassificationConfigs):
    """
    ## Configurations

    This extends from
    [`ClassificationConfigs`](../classification.html), with the images of CIFAR-10.
    """

    images: tuple = "_cifar10_images"
    train_loader: object = "_cifar10_train_loader"
    # Images a step; chosen, as the optimizer's values, on 5,000 held out training images
    batch_size: int = 64

    _experiment = NAME


@option(CIFAR10Configs.images)
def _cifar10_images(c: CIFAR10Configs):
    """
    ### Training images, held out images, test images
    """
    train, test = cifar10(c.data or None)
    return training_images(c, train, test)


@option(CIFAR10Configs.train_loader)
def _cifar10_train_loader(c: CIFAR10Configs):
    r"""
    ### Pad by four pixels, crop at random, flip every other image

    These are $81 \cdot 2 = 162$ views of an image.
    """
    return make_train_loader(c, CropFlip(padding=4, size=32, flip=True))
