"""RandAugment (Cubuk et al. 2019) as DeiT trains with it: timm's `rand-m9-mstd0.5-inc1`.

Own code because timm's needs torchvision, and kornia's reads torch's global generator (so a sample would
depend on its neighbours) and has another table of magnitudes. Numbers are those of timm/data/auto_augment.py.
A magnitude runs from 0 to 10.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from PIL import Image, ImageEnhance, ImageOps

if TYPE_CHECKING:
    import numpy as np

Picture = Image.Image
Fill = int | tuple[int, ...]
Operation = Callable[[Picture, float, Fill], Picture]

_TOP = 10.0
_CHANCE = 0.5  # each chosen operation is applied with this probability


def _affine(picture: Picture, matrix: tuple[float, ...], fill: Fill) -> Picture:
    transform, resample = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    return picture.transform(picture.size, transform, matrix, resample=resample, fillcolor=fill)


def _table(picture: Picture, values: list[int]) -> Picture:
    """Map each pixel value through a table of 256."""
    return picture.point(values * len(picture.getbands()))


def rotate(picture: Picture, part: float, fill: Fill) -> Picture:
    return picture.rotate(30 * part, resample=Image.Resampling.BICUBIC, fillcolor=fill)


def shear_x(picture: Picture, part: float, fill: Fill) -> Picture:
    return _affine(picture, (1, 0.3 * part, 0, 0, 1, 0), fill)


def shear_y(picture: Picture, part: float, fill: Fill) -> Picture:
    return _affine(picture, (1, 0, 0, 0.3 * part, 1, 0), fill)


def translate_x(picture: Picture, part: float, fill: Fill) -> Picture:
    return _affine(picture, (1, 0, 0.45 * part * picture.width, 0, 1, 0), fill)


def translate_y(picture: Picture, part: float, fill: Fill) -> Picture:
    return _affine(picture, (1, 0, 0, 0, 1, 0.45 * part * picture.height), fill)


def autocontrast(picture: Picture, part: float, fill: Fill) -> Picture:
    return ImageOps.autocontrast(picture)


def equalize(picture: Picture, part: float, fill: Fill) -> Picture:
    return ImageOps.equalize(picture)


def invert(picture: Picture, part: float, fill: Fill) -> Picture:
    return ImageOps.invert(picture)


def posterize(picture: Picture, part: float, fill: Fill) -> Picture:
    dropped = 4 + int(4 * part)  # bits; the top magnitude leaves none
    return _table(picture, [value >> dropped << dropped for value in range(256)])


def solarize(picture: Picture, part: float, fill: Fill) -> Picture:
    threshold = 256 - int(256 * part)
    return _table(picture, [value if value < threshold else 255 - value for value in range(256)])


def solarize_add(picture: Picture, part: float, fill: Fill) -> Picture:
    added = int(110 * part)
    return _table(picture, [min(255, value + added) if value < 128 else value for value in range(256)])


def color(picture: Picture, part: float, fill: Fill) -> Picture:
    return ImageEnhance.Color(picture).enhance(_factor(part))


def contrast(picture: Picture, part: float, fill: Fill) -> Picture:
    return ImageEnhance.Contrast(picture).enhance(_factor(part))


def brightness(picture: Picture, part: float, fill: Fill) -> Picture:
    return ImageEnhance.Brightness(picture).enhance(_factor(part))


def sharpness(picture: Picture, part: float, fill: Fill) -> Picture:
    return ImageEnhance.Sharpness(picture).enhance(_factor(part))


def _factor(part: float) -> float:
    return max(0.1, 1 + 0.9 * part)


# Those of the first group go either way: their part of the range is negated half of the time.
SIGNED: tuple[Operation, ...] = (
    rotate, shear_x, shear_y, translate_x, translate_y, color, contrast, brightness, sharpness,
)  # fmt: skip
OPERATIONS: tuple[Operation, ...] = (*SIGNED, autocontrast, equalize, invert, posterize, solarize, solarize_add)


def randaugment(
    picture: Picture, rng: np.random.Generator, operations: int, magnitude: float, deviation: float, fill: Fill
) -> Picture:
    """Return the picture after `operations` random operations, each of magnitude ~ N(magnitude, deviation)."""
    for choice in rng.integers(len(OPERATIONS), size=operations):
        operation = OPERATIONS[choice]
        part = min(max(rng.normal(magnitude, deviation), 0.0), _TOP) / _TOP
        sign = -1.0 if operation in SIGNED and rng.random() < 0.5 else 1.0
        if rng.random() < _CHANCE:
            picture = operation(picture, sign * part, fill)
    return picture
