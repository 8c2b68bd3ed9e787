"""A picture on a terminal: two rows of pixels are one row of half blocks, in colour. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

UPPER = "\N{UPPER HALF BLOCK}"
COLUMNS = 64  # of a picture at most


def show(pixels_HWC: np.ndarray, console: Console) -> None:
    """Print a picture, uint8 with one or three channels; nothing where a console has no colours, as a file has none."""
    if console.color_system is not None:
        console.print(halves(pixels_HWC, min(COLUMNS, console.width)))


def halves(pixels_HWC: np.ndarray, columns: int) -> Text:
    """Return a picture in at most so many columns: the upper pixel is the character's colour, the lower its ground."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    rows = _fitted(pixels_HWC, columns)
    text = Text()
    for upper_WC, lower_WC in zip(rows[0::2], rows[1::2], strict=True):
        if text:
            text.append("\n")
        for pair in zip(upper_WC.tolist(), lower_WC.tolist(), strict=True):
            fore, ground = (Color.from_rgb(*pixel) for pixel in pair)
            text.append(UPPER, Style(color=fore, bgcolor=ground))
    return text


def _fitted(pixels_HWC: np.ndarray, columns: int) -> np.ndarray:
    """Return a picture in three colours, no wider than the columns, with an even number of rows."""
    from PIL import Image

    height, width, channels = pixels_HWC.shape
    picture = Image.fromarray(pixels_HWC[..., 0] if channels == 1 else pixels_HWC).convert("RGB")
    across = min(width, columns)
    down = max(2, 2 * round(height * across / width / 2))
    return np.asarray(picture.resize((across, down)) if (across, down) != (width, height) else picture)
