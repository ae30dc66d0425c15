"""Balls, and how well two masks agree."""

from __future__ import annotations

import numpy as np

from popatlas.config.load import default_content

LPS = np.diag([-1.0, -1.0, 1.0])
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def n4_options(**changes: object) -> dict[str, object]:
    return default_content()["preprocess"]["n4"] | changes


def ball(shape=(36, 36, 36), radius=12.0) -> np.ndarray:
    return np.linalg.norm(np.indices(shape) - (np.array(shape).reshape(3, 1, 1, 1) - 1) / 2, axis=0) < radius


def dice(one: np.ndarray, two: np.ndarray) -> float:
    return 2 * float((one & two).sum()) / float(one.sum() + two.sum())
