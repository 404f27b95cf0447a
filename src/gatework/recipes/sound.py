"""Receives sound files, hands on spectrograms as the ear has them: log-mel, in decibels."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import ceil, gcd
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy.signal import resample_poly

from . import RecipeError

WINDOW, HOP = 0.025, 0.01  # seconds
LOWEST_RATE, HIGHEST_RATE = 4000, 16_000  # samples per second; above 8 kHz speech has nothing that tells words apart
SUFFIXES = tuple("." + form.lower() for form in soundfile.available_formats())


def header(path: str):
    """Rate and length of a sound file. Raises RecipeError if it is none."""
    if not Path(path).is_file():
        raise RecipeError(f"there is no sound file {path}; give its path, as seen from the current folder")
    try:
        return soundfile.info(path)
    except (soundfile.SoundFileError, OSError) as error:
        raise RecipeError(f"{path} is no sound that can be read ({error}); give WAV, FLAC or another format of "
                          "libsndfile") from error


def common_rate(paths: Iterable[str]) -> int:
    """Samples per second at which all of these files can be heard: the lowest rate there is, 16,000 at most."""
    rate, path = min((header(path).samplerate, path) for path in paths)
    if rate < LOWEST_RATE:
        raise RecipeError(f"{path} has {rate} samples per second; speech needs {LOWEST_RATE} or more. Take it from the "
                          "data, or record it again")
    return min(rate, HIGHEST_RATE)


def read_sound(path: str, rate: int) -> np.ndarray:
    """Samples [n], float32, of a file of at least `rate` samples per second; channels are averaged."""
    found = header(path)
    if found.samplerate < rate:
        raise RecipeError(f"{path} has {found.samplerate} samples per second, the model hears {rate}: what is missing "
                          f"cannot be made up. Record at {rate} or more, or train with such files among the others")
    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    if not len(samples) or not np.isfinite(samples).all():
        raise RecipeError(f"{path} {'holds values that are not finite' if len(samples) else 'is empty'}; record it "
                          "again, or take it from the data")
    common = gcd(found.samplerate, rate)
    return resample_poly(samples.mean(1), rate // common, found.samplerate // common)


def mel(hertz):
    """The mel scale, in which steps of the same size sound so (O'Shaughnessy, 1987)."""
    return 2595 * np.log10(1 + hertz / 700)


@lru_cache
def filters(rate: int, size: int, bands: int) -> np.ndarray:
    """Triangles [size // 2 + 1, bands] over the frequencies of a Fourier transform of `size` samples: each rises from
    the middle of the band before and falls to that of the next."""
    middles = 700 * (10 ** (np.linspace(0, mel(rate / 2), bands + 2) / 2595) - 1)
    at = np.fft.rfftfreq(size, 1 / rate)[:, None]
    left, middle, right = middles[:-2], middles[1:-1], middles[2:]
    return np.clip(np.minimum((at - left) / (middle - left), (right - at) / (right - middle)), 0, None)


def log_mel(samples: np.ndarray, rate: int, bands: int) -> np.ndarray:
    """Log-mel spectrogram [T, bands] of samples [n], in decibels, every 10 ms; what is 80 dB below the loudest is
    silence.

    >>> log_mel(np.sin(np.arange(8000, dtype=np.float32)), 8000, 40).shape
    (101, 40)
    """
    window, hop = round(rate * WINDOW), round(rate * HOP)
    size = 2 ** ceil(np.log2(window))
    power = torch.stft(torch.from_numpy(samples), size, hop, window, torch.hann_window(window), pad_mode="constant",
                       return_complex=True).abs().square().T
    decibels = 10 * np.log10(np.maximum(power.numpy() @ filters(rate, size, bands), 1e-10))
    return np.maximum(decibels, decibels.max() - 80).astype(np.float32)


def standardise(frames: np.ndarray) -> np.ndarray:
    """A spectrogram with mean 0 and standard deviation 1: loudness does not matter."""
    return (frames - frames.mean()) / max(frames.std(), 1e-3)
