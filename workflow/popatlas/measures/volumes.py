"""Volumes of labels in millilitres."""

from __future__ import annotations

import numpy as np
import pandas as pd

from popatlas.images.arrays import FloatArray, IntArray
from popatlas.measures.overlap import LabelPair


def voxel_ml(affine: FloatArray) -> float:
    """Return the volume of a voxel in millilitres from a (4, 4) affine in mm."""
    return float(abs(np.linalg.det(np.asarray(affine, dtype=float)[:3, :3]))) / 1000.0


def volumes(labels: IntArray, affine: FloatArray) -> pd.DataFrame:
    """Return the volume of each label.

    Parameters
    ----------
    labels : int ndarray
        Label image, 0 is background.
    affine : (4, 4) ndarray
        Voxel to mm.

    Returns
    -------
    DataFrame
        Columns ``label`` and ``volume`` (ml), sorted by label; background left out.
    """
    values, counts = np.unique(labels, return_counts=True)
    inside = values != 0
    return pd.DataFrame({"label": values[inside].astype(np.int64), "volume": counts[inside] * voxel_ml(affine)})


def volume_errors(pair: LabelPair) -> dict[str, pd.Series]:
    """Return ``volume_error`` (percent) and ``volume_error_ml`` of each label of a pair: fused minus reference."""
    excess = pair.overlaps["n_prediction"] - pair.overlaps["n_reference"]
    return {
        "volume_error": 100.0 * excess / pair.overlaps["n_reference"],
        "volume_error_ml": excess * voxel_ml(pair.affine),
    }
