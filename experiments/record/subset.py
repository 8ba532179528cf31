"""
# A small part of CIFAR-10, for the rehearsal
"""

from pathlib import Path

from PIL import Image

from distillation.data import ImageSet


def write_subset(
    train: ImageSet, test: ImageSet, folder: Path, per_class: tuple[int, int] = (16, 10)
) -> None:
    """
    ## Write the first images of each class as a folder of pictures

    `per_class` are the numbers of training and of test images of each class.
    """
    for split, images, count in (("train", train, per_class[0]), ("test", test, per_class[1])):
        for index, name in enumerate(images.classes):
            place = folder / split / name
            place.mkdir(parents=True)
            for row in (images.labels == index).nonzero().flatten()[:count].tolist():
                picture = images.images[row].permute(1, 2, 0).numpy()
                Image.fromarray(picture).save(place / f"{row}.png")
