"""Overlap of two label images, all labels in one pass.

Taha AA, Hanbury A. Metrics for evaluating 3D medical image segmentation: analysis, selection, and tool. BMC Medical
Imaging 2015;15:29. doi:10.1186/s12880-015-0068-x (definitions of all three measures).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from popatlas.errors import InputError
from popatlas.images.arrays import FloatArray, IntArray, RealArray

if TYPE_CHECKING:
    import pandas as pd


def overlap(reference: IntArray, prediction: IntArray) -> pd.DataFrame:
    """Score every label of two label images on one grid.

    Parameters
    ----------
    reference, prediction : int ndarray
        Same shape; 0 is background and is not scored.

    Returns
    -------
    DataFrame
        One row per label that occurs in either image, sorted: ``label``, ``n_reference``, ``n_prediction`` (voxels),
        ``dice`` = 2|A∩B| / (|A|+|B|), ``jaccard`` = |A∩B| / |A∪B|, ``volume_similarity`` = 1 - ||A|-|B|| / (|A|+|B|).
        All lie in [0, 1]; a label that one image lacks scores 0.

    Raises
    ------
    InputError
        When the shapes differ.
    """
    if reference.shape != prediction.shape:
        raise InputError(
            f"label images have different grids: {reference.shape} and {prediction.shape}",
            remedy="resample one onto the other first",
        )
    values, indices = np.unique(np.stack([reference.ravel(), prediction.ravel()]), return_inverse=True)
    first, second = indices.reshape(2, -1)
    count = len(values)
    n_reference = np.bincount(first, minlength=count)
    n_prediction = np.bincount(second, minlength=count)
    shared = np.bincount(first[first == second], minlength=count)
    total = n_reference + n_prediction
    import pandas as pd

    table = pd.DataFrame(
        {
            "label": values.astype(np.int64),
            "n_reference": n_reference,
            "n_prediction": n_prediction,
            "dice": 2 * shared / total,
            "jaccard": shared / (total - shared),
            "volume_similarity": 1 - np.abs(n_reference - n_prediction) / total,
        }
    )
    return table[table["label"] != 0].reset_index(drop=True)


@dataclass(frozen=True)
class LabelPair:
    """Reference and fused labels on one grid.

    Attributes
    ----------
    reference, fused : (x, y, z) int ndarray
        0 is background.
    affine : (4, 4) ndarray
        Voxel to mm.
    wanted : iterable of int, optional
        Labels to score; all of the reference when left out. One that the reference lacks is not scored.
    min_voxels : int
        Labels with fewer voxels in the reference are not scored.
    """

    reference: IntArray
    fused: IntArray
    affine: FloatArray
    wanted: Iterable[int] | None = None
    min_voxels: int = 1

    @cached_property
    def overlaps(self) -> pd.DataFrame:
        """What `overlap` says of the labels that are scored; InputError when the shapes differ."""
        table = overlap(self.reference, self.fused)
        table = table[table["n_reference"] >= max(self.min_voxels, 1)]
        if self.wanted is not None:
            table = table[table["label"].isin(list(self.wanted))]
        return table.reset_index(drop=True)

    @property
    def labels(self) -> list[int]:
        """Labels that are scored, sorted."""
        return [int(label) for label in self.overlaps["label"]]

    @property
    def spacing(self) -> list[float]:
        """Voxel size in mm along each array axis."""
        sizes: list[float] = np.sqrt((np.asarray(self.affine, dtype=float)[:3, :3] ** 2).sum(axis=0)).tolist()
        return sizes


def overlaps(pair: LabelPair) -> dict[str, pd.Series]:
    """Return ``dice``, ``jaccard`` and ``volume_similarity`` of each label of a pair."""
    return {name: pair.overlaps[name] for name in ("dice", "jaccard", "volume_similarity")}


def dice(first: RealArray, second: RealArray, empty: float = float("nan")) -> float:
    """Return the Dice coefficient of two masks of one shape.

    Parameters
    ----------
    first, second : ndarray
        Nonzero is inside.
    empty : float
        What two empty masks get: NaN where there is nothing to score, 1 where agreeing on nothing is agreeing.
    """
    a, b = first != 0, second != 0
    total = int(a.sum()) + int(b.sum())
    return 2.0 * int((a & b).sum()) / total if total else empty
