"""The pixels of one picture, as the preprocessor_config.json beside a model says it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlrun.data.images.augment import evaluated
from mlrun.data.images.collections import Stored
from mlrun.data.images.decode import decoded
from mlrun.data.images.frame import BICUBIC, PREPROCESSOR, Frame
from mlrun.errors import UserError, mistake
from mlrun.files import expanded, read_json
from mlrun.models.axes import Sizes


def pixels(folder: Path, image: str, sizes: Sizes) -> tuple[np.ndarray, Frame]:
    """Return a picture as the model reads it, float32 (C, H, W), and the frame that made it so.

    Raises:
        UserError: no picture is there or it is broken, or the folder does not say how pixels are made.
    """
    path = expanded(image)
    if not path.is_file():
        raise UserError(mistake("sample.image", image, "a picture's file", "correct the path"))
    if not (folder / PREPROCESSOR).is_file():
        raise UserError(f"{folder / PREPROCESSOR}: it is missing, and says how pixels are made; put it there")
    said = read_json(folder / PREPROCESSOR)
    frame = _frame(said, sizes)
    if frame is None:
        fine = f"mean and deviation of {sizes['channel']} channels, and a size of {sizes['image']} pixels"
        raise UserError(f"{folder / PREPROCESSOR}: allowed: {fine}; restore the file")
    picture = decoded(Stored(str(path), 0, str(path)), frame.mode)
    if _squeezes(said):
        return frame.normal(picture.resize((frame.side, frame.side), said.get("resample", BICUBIC))), frame
    return evaluated(picture, frame), frame


def _squeezes(said: Mapping[str, Any]) -> bool:
    """Return whether a picture is brought to the size whatever its shape, as ViT's processors do."""
    size = said.get("size")
    return isinstance(size, int) or (isinstance(size, Mapping) and "height" in size)


def _frame(said: Mapping[str, Any], sizes: Sizes) -> Frame | None:
    """Return what the file says of pixels; None where it does not fit the model."""
    mean, std, side = said.get("image_mean"), said.get("image_std"), sizes["image"]
    if not isinstance(mean, list) or not isinstance(std, list) or not len(mean) == len(std) == sizes["channel"]:
        return None
    size = said.get("size")
    if _squeezes(said):
        length = size if isinstance(size, int) else size["height"]  # type: ignore[index]
        return Frame(side, mean, std, 1.0) if length == side else None
    shorter = size.get("shortest_edge") if isinstance(size, Mapping) else None
    crop = said.get("crop_size")
    length = crop.get("height") if isinstance(crop, Mapping) else crop
    return Frame(side, mean, std, side / shorter) if isinstance(shorter, int) and length == side <= shorter else None
