"""What an image model is given: size and normalisation of the pixels, here and for Hugging Face. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# What Hugging Face reads of a model's pixels, and the number by which it and Pillow know bicubic resampling.
PREPROCESSOR, BICUBIC = "preprocessor_config.json", 3


@dataclass(frozen=True)
class Frame:
    """What the model is given: side in pixels, mean and deviation per channel, and the share kept in evaluation."""

    side: int
    mean: list[float]
    std: list[float]
    eval_crop: float

    @property
    def mode(self) -> str:
        """Return Pillow's name of the colour space."""
        return {1: "L", 3: "RGB"}[len(self.mean)]

    @property
    def fill(self) -> int | tuple[int, ...]:
        """Return the mean colour, for what an operation moves in from outside."""
        values = tuple(round(255 * mean) for mean in self.mean)
        return values if len(values) > 1 else values[0]

    @property
    def shorter(self) -> int:
        """Return the length that the shorter side of an evaluated picture is resized to."""
        return round(self.side / self.eval_crop)

    def hf_preprocessor(self) -> dict[str, Any]:
        """Return the preprocessor_config.json with which `transformers` makes the pixels of `evaluated`.

        The processor is CLIP's: those of ViT and DeiT squeeze a picture that is not square.
        """
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": self.mode == "RGB",
            "do_resize": True,
            "size": {"shortest_edge": self.shorter},
            "resample": BICUBIC,
            "do_center_crop": True,
            "crop_size": {"height": self.side, "width": self.side},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def normal(self, picture: Image) -> np.ndarray:
        """Return the picture as normalised float32 (C, H, W)."""
        pixels_HWC = np.asarray(picture).reshape(picture.height, picture.width, -1)
        image_CHW = np.empty((len(self.mean), picture.height, picture.width), np.float32)
        # A channel at a time and in place: whole pictures of floats that are soon dropped took most of the time.
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            image_HW = image_CHW[channel]
            np.divide(pixels_HWC[..., channel], np.float32(255), out=image_HW)
            np.subtract(image_HW, np.float32(mean), out=image_HW)
            np.divide(image_HW, np.float32(std), out=image_HW)
        return image_CHW

    def visible(self, image_CHW: np.ndarray) -> np.ndarray:
        """Return the colours of a normalised picture, uint8 (H, W, C): the inverse of `normal`."""
        column = (len(self.mean), 1, 1)
        shares_CHW = image_CHW * np.reshape(self.std, column) + np.reshape(self.mean, column)
        return np.clip(np.rint(255 * shares_CHW), 0, 255).astype(np.uint8).transpose(1, 2, 0)
