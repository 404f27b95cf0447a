"""Texts of pictures without reading them in order: bytes [height, W] of each, all of one height."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

SLICES = 20_000  # so many slices are learned from: more take minutes and tell little more


def scaled(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """[height * width], from 0 to 1."""
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)).ravel() / 255


def nearest_picture(pictures: Sequence[np.ndarray], texts: Sequence[str], new: Sequence[np.ndarray]) -> list[str]:
    """The text of the training picture that is nearest, all scaled to 48 x 16 pixels."""
    model = NearestNeighbors(n_neighbors=1).fit([scaled(p, 48, 16) for p in pictures])
    nearest = model.kneighbors([scaled(p, 48, 16) for p in new], return_distance=False)
    return [texts[k] for k in nearest[:, 0]]


def equal_slices(pictures: Sequence[np.ndarray], texts: Sequence[str], new: Sequence[np.ndarray]) -> list[str]:
    """How many characters there are, by a random forest on the picture's width and where its columns are bright; then
    as many equal slices, each read by logistic regression on 14 x 14 pixels."""
    counts = RandomForestClassifier(random_state=0).fit([outline(p) for p in pictures], [len(t) for t in texts])
    known = [(s, c) for p, t in zip(pictures, texts) for s, c in zip(slices(p, len(t)), t)][:SLICES]
    characters = LogisticRegression(max_iter=100, tol=1e-3).fit([s for s, _ in known], [c for _, c in known])
    lengths = counts.predict([outline(p) for p in new])
    return ["".join(characters.predict(slices(p, n))) if n else "" for p, n in zip(new, lengths)]


def outline(picture: np.ndarray) -> np.ndarray:
    return np.append(scaled(picture, 64, 1), picture.shape[1] / picture.shape[0])


def slices(picture: np.ndarray, count: int) -> list[np.ndarray]:
    edges = np.linspace(0, picture.shape[1], count + 1)
    return [scaled(picture[:, int(a):max(int(b), int(a) + 1)], 14, 14) for a, b in zip(edges, edges[1:])]
