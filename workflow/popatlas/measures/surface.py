"""Surface distances per label, in millimetres.

A surface is the set of voxel centres of a label that touch (by a face) a voxel outside of it; a label that reaches
the border of the image has its surface there. Distances run from each surface voxel to the nearest surface voxel of
the other image, spacing respected.

* ``hd95``: the larger of the two directed 95th percentiles;
* ``assd``: mean over the surface voxels of both images (average symmetric surface distance).

Maier-Hein L, Reinke A, Godau P, et al. Metrics reloaded: recommendations for image analysis validation. Nature Methods
2024;21:195-212. doi:10.1038/s41592-023-02151-z
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from popatlas.images.arrays import IntArray
from popatlas.measures.overlap import LabelPair


def surface_distances(
    reference: npt.NDArray[np.bool_], prediction: npt.NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[float, float]:
    """Return (HD95, ASSD) of two masks.

    Parameters
    ----------
    reference, prediction : bool ndarray
        Masks on one grid.
    spacing : sequence of float
        Voxel size in mm along each array axis.

    Returns
    -------
    hd95, assd : float
        Millimetres; NaN when a mask is empty, because no distance exists.
    """
    from scipy.ndimage import binary_erosion, distance_transform_edt

    if not reference.any() or not prediction.any():
        return float("nan"), float("nan")
    edges = [mask & ~binary_erosion(mask) for mask in (prediction, reference)]
    there, back = (distance_transform_edt(~to, sampling=spacing)[start] for start, to in (edges, edges[::-1]))
    hd95 = max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))
    return hd95, float(np.concatenate([there, back]).mean())


def label_surface_distances(
    reference: IntArray, prediction: IntArray, spacing: Sequence[float], labels: Iterable[int]
) -> pd.DataFrame:
    """Measure surface distances of several labels, each inside the box that holds it in either image.

    Parameters
    ----------
    reference, prediction : int ndarray
        Label images on one grid.
    spacing : sequence of float
        Voxel size in mm.
    labels : iterable of int
        Labels to measure.

    Returns
    -------
    DataFrame
        Columns ``label``, ``hd95``, ``assd`` (mm; NaN where an image lacks the label).
    """
    from scipy.ndimage import find_objects

    wanted = np.asarray(sorted(labels), dtype=np.int64)
    numbered = [_number(image, wanted) for image in (reference, prediction)]
    boxes = [find_objects(image, max_label=len(wanted)) for image in numbered]
    rows = []
    for index, label in enumerate(wanted):
        first, second = boxes[0][index], boxes[1][index]
        values = (float("nan"), float("nan"))
        if first is not None and second is not None:
            box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))
            values = surface_distances(numbered[0][box] == index + 1, numbered[1][box] == index + 1, spacing)
        rows.append((int(label), *values))
    return pd.DataFrame(rows, columns=["label", "hd95", "assd"])


def surfaces(pair: LabelPair) -> dict[str, pd.Series]:
    """Return ``hd95`` and ``assd`` of each label of a pair, see `label_surface_distances`."""
    table = label_surface_distances(pair.reference, pair.fused, pair.spacing, pair.labels)
    return {name: table[name] for name in ("hd95", "assd")}


def _number(image: IntArray, wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Renumber the wanted (sorted) labels to 1, 2, ... and everything else to 0."""
    if len(wanted) == 0:
        return np.zeros(image.shape, dtype=np.int32)
    position = np.minimum(np.searchsorted(wanted, image), len(wanted) - 1)
    return np.where(wanted[position] == image, position + 1, 0).astype(np.int32)
