"""Pictures with strings of digits, joined from MNIST's images, as a user would have them: PNG files and a table."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import real_data
from PIL import Image

HEIGHT, SIDE = 32, 28


def images(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 28, 28] and digits [N] of "train" or "t10k"."""
    folder = real_data.needed("image_sequences/mnist")
    pixels = np.frombuffer(gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    digits = np.frombuffer(gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return pixels.reshape(-1, SIDE, SIDE), digits


def string_of(chosen: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Images [N, 28, 28] side by side: from 6 pixels of overlap to 10 between them, each a little higher or lower."""
    starts = np.cumsum(SIDE + random.integers(-6, 11, len(chosen))) - SIDE + 6
    picture = np.zeros((HEIGHT, starts[-1] + SIDE + int(random.integers(0, 11))), np.uint8)
    for image, left in zip(chosen, starts):
        top = int(random.integers(0, HEIGHT - SIDE + 1))
        part = picture[top:top + SIDE, left:left + SIDE]
        np.maximum(part, image, out=part)
    return picture


def write_part(folder: Path, pixels: np.ndarray, digits: np.ndarray, count: int, seed: int, longest: int = 5) -> None:
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text"])
        for k in range(count):
            chosen = random.integers(0, len(pixels), random.integers(1, longest + 1))
            Image.fromarray(string_of(pixels[chosen], random)).save(folder / f"{k:05}.png")
            table.writerow([f"{k:05}.png", "".join(map(str, digits[chosen]))])


def write_digits(folder: Path, train: int = 20_000, valid: int = 1000, test: int = 2000, longest: int = 5) -> Path:
    """A folder with train, valid and test; the last 5,000 of MNIST's training images are only in valid, and its test
    images only in test."""
    pixels, digits = images("train")
    write_part(folder / "train", pixels[:-5000], digits[:-5000], train, 1, longest)
    write_part(folder / "valid", pixels[-5000:], digits[-5000:], valid, 2, longest)
    write_part(folder / "test", *images("t10k"), test, 3, longest)
    return folder
