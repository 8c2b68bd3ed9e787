"""From a stored picture to the pixels of a model's colour space: upright, and converted rightly or refused."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from mlrun.data.images.collections import Stored
from mlrun.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

# Alpha that is multiplied into the colours, which only its plain form converts.
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


def decoded(picture: Stored, mode: str) -> Image:
    """Return the picture in Pillow's colour space `mode` (L or RGB), turned as its EXIF orientation says.

    Raises:
        UserError: it is broken, too large to be one, or its values have no known range.
    """
    from PIL import Image, ImageOps

    try:
        if isinstance(picture.content, np.ndarray):
            return converted(Image.fromarray(picture.content), mode)
        source = BytesIO(picture.content) if isinstance(picture.content, bytes) else picture.content
        with Image.open(source) as opened:
            opened.load()
            format = opened.format
            ImageOps.exif_transpose(opened, in_place=True)
            return converted(opened, mode, format)
    except Exception as error:  # decoders of a dozen formats raise whatever they meet
        reason = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
        raise UserError(f"data: the picture {picture.name} cannot be read ({reason}); repair or remove it") from error


def converted(picture: Image, mode: str, format: str | None = None) -> Image:
    """Return the picture in another colour space; alpha is dropped, and 16 bits become 8.

    Raises:
        ValueError: its values have no known range, so that no conversion is right.
    """
    from PIL import Image

    if picture.mode.startswith("I;16") or (picture.mode == "I" and format in {"PNG", "PPM"}):
        levels = np.asarray(picture).astype(np.int64)
        picture = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    if picture.mode in {"I", "F"}:
        raise ValueError(f"pixels of Pillow's mode {picture.mode} have no known range; store 8 or 16 bits")
    if picture.mode in _PREMULTIPLIED:
        picture = picture.convert(_PREMULTIPLIED[picture.mode])
    if picture.mode == "LAB":
        picture = picture.convert("RGB")
    return picture if picture.mode == mode else picture.convert(mode)
