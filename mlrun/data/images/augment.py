"""Image augmentation as DeiT (Touvron et al. 2021, table 9), one picture at a time, by one generator per sample.

Pillow does the work: it is exact, in C, and frees the interpreter lock, so that threads help.
Shapes: C channels, H = W = side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlrun.data.images.frame import Frame
from mlrun.errors import mistakes

if TYPE_CHECKING:
    from PIL.Image import Image

_ATTEMPTS = 10
_CROP_RATIO = 4 / 3  # width over height, and its inverse (Szegedy et al. 2014)
_ERASE_AREA = (0.02, 1 / 3)
_ERASE_RATIO = 1 / 0.3  # height over width, and its inverse (Zhong et al. 2017)


@dataclass  # not frozen: OmegaConf takes a frozen dataclass inside another for read-only
class Augment:
    """The switches; the comments in conf/data say what each does. 0, or null for `crop`, is off."""

    crop: float | None = 0.08
    flip: float = 0.5
    operations: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    jitter: float = 0.0
    erase: float = 0.25

    def problems(self) -> list[str]:
        """Return what is out of range."""
        checks = [
            ("crop", self.crop is None or 0 < self.crop <= 1, "null, or over 0 and at most 1"),
            ("flip", 0 <= self.flip <= 1, "0 to 1"),
            ("operations", self.operations >= 0, "0 or more"),
            ("magnitude", 0 <= self.magnitude <= 10, "0 to 10"),
            ("magnitude_std", self.magnitude_std >= 0, "0 or more"),
            ("jitter", 0 <= self.jitter <= 1, "0 to 1"),
            ("erase", 0 <= self.erase <= 1, "0 to 1"),
        ]
        return mistakes("data.augment.", ((name, getattr(self, name), good, allowed) for name, good, allowed in checks))


def evaluated(picture: Image, frame: Frame) -> np.ndarray:
    """Return (C, H, W): the centre square of the picture, its shorter side resized first, as DeiT is evaluated."""
    from PIL.Image import Resampling

    width, height = (frame.shorter * length // min(picture.size) for length in picture.size)
    left, top = (width - frame.side) // 2, (height - frame.side) // 2
    resized = picture.resize((width, height), Resampling.BICUBIC)
    return frame.normal(resized.crop((left, top, left + frame.side, top + frame.side)))


def trained(picture: Image, frame: Frame, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    """Return (C, H, W): a random view of the picture."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    from mlrun.data.images.randaugment import randaugment

    if augment.crop is not None:
        picture = picture.crop(_crop_box(picture.size, augment.crop, rng))
    picture = picture.resize((frame.side, frame.side), Resampling.BICUBIC)
    if rng.random() < augment.flip:
        picture = ImageOps.mirror(picture)
    picture = randaugment(picture, rng, augment.operations, augment.magnitude, augment.magnitude_std, frame.fill)
    if augment.jitter > 0:
        picture = _jittered(picture, augment.jitter, rng)
    image_CHW = frame.normal(picture)
    if rng.random() < augment.erase:
        _erase(image_CHW, rng)
    return image_CHW


def _crop_box(size: tuple[int, int], least: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return a random box (left, top, right, bottom); the largest centred one of legal shape if none was found."""
    width, height = size
    for _ in range(_ATTEMPTS):
        target = width * height * rng.uniform(least, 1)
        ratio = _log_uniform(_CROP_RATIO, rng)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * _CROP_RATIO)), min(height, round(width * _CROP_RATIO))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _log_uniform(most: float, rng: np.random.Generator) -> float:
    """Return a ratio between 1 / most and most, as likely as its inverse."""
    return math.exp(rng.uniform(-math.log(most), math.log(most)))


def _jittered(picture: Image, strength: float, rng: np.random.Generator) -> Image:
    """Return the picture with brightness, contrast and saturation changed, in random order."""
    from PIL import ImageEnhance

    changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for number in rng.permutation(len(changes)):
        picture = changes[number](picture).enhance(rng.uniform(1 - strength, 1 + strength))
    return picture


def _erase(image_CHW: np.ndarray, rng: np.random.Generator) -> None:
    """Fill a random box with noise of the normalised pixels' distribution, in place on our own fresh array."""
    channels, height, width = image_CHW.shape
    for _ in range(_ATTEMPTS):
        target, ratio = height * width * rng.uniform(_ERASE_AREA[0], _ERASE_AREA[1]), _log_uniform(_ERASE_RATIO, rng)
        h, w = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            noise = rng.standard_normal((channels, h, w), np.float32)
            image_CHW[:, top : top + h, left : left + w] = noise
            return
