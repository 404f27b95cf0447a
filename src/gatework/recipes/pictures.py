"""Receives the file of a picture, hands on its pixels: of one height, in grey or colour, on white where transparent.

Files are opened by Pillow: PNG, JPEG, TIFF, WebP and others.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gatework.recipes import RecipeError


def is_picture(file: Path) -> bool:
    """Whether the ending of a file's name is that of a picture."""
    return file.suffix.lower() in Image.registered_extensions()


def columns_of(file: Path, height: int, color: bool) -> Tensor:
    """A picture scaled to a height, its proportions kept, column by column: bytes [W, 1 or 3, height].

    Raises RecipeError for a file that is no picture, or one of more than 8 bits per pixel and colour.
    """
    try:
        with Image.open(file) as opened:
            opened.load()
            image = opened.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RecipeError(f"{file} is no picture that can be read: {error}") from error
    if image.mode.startswith(("I", "F")):
        raise RecipeError(f"{file} has more than 8 bits per pixel (mode {image.mode}); convert it to 8 bits")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB" if color else "L")
    if image.height != height:
        width = max(1, round(image.width * height / image.height))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, image.width, -1)
    return pixels.permute(1, 2, 0).contiguous()
