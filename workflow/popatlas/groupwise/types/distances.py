"""Distances between subjects: of label maps, of label profiles, and of deformations. All are metrics.

Sulcal types of a population are told apart by such distances in the abstract of the WBIR workshop that this package follows,
which compares parcellations by normalised mutual information and connection profiles by Hellinger's distance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError

Array = npt.NDArray[np.float64]


def _named(names: Sequence[str] | None, place: int) -> str:
    return names[place] if names else f"subject {place + 1}"


def checked_rows(values: npt.ArrayLike, what: str, names: Sequence[str] | None = None) -> Array:
    """Return rows (subjects, values) as numbers.

    Raises
    ------
    InputError
        They are no table, or a value is not finite.
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise InputError(f"{what}: {rows.shape} is no table of subjects and values", remedy="give a row for each subject")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        remedy = "leave the subject out, or mend its input"
        raise InputError(f"{what}: a value is missing or infinite", subject=_named(names, int(bad[0])), remedy=remedy)
    return rows


def label_distance(labels: npt.ArrayLike, names: Sequence[str] | None = None) -> Array:
    """Return 1 - I(A, B) / H(A, B) for each pair of label maps: 0 for equal ones (up to numbering), 1 for independent ones.

    The normalisation by the joint entropy makes it a metric (Kraskov et al., Europhysics Letters 2005;70(2):278-284).

    Parameters
    ----------
    labels : (subjects, voxels) array of int
        Label of each voxel in a common space.
    names : sequence of str, optional
        Subjects, for messages.

    Returns
    -------
    (subjects, subjects) ndarray

    Raises
    ------
    InputError
        A map has one label only, or a value is missing.
    """
    rows = checked_rows(labels, "labels", names)
    codes, sizes, entropies = [], [], []
    for place, row in enumerate(rows):
        found, code, count = np.unique(row, return_inverse=True, return_counts=True)
        if len(found) < 2:
            remedy = "give label maps that overlap in the common space"
            raise InputError(f"all its voxels have the label {found[0]:g}", subject=_named(names, place), remedy=remedy)
        codes.append(code.astype(np.int64))
        sizes.append(len(found))
        entropies.append(_entropy(count))
    distance = np.zeros((len(rows), len(rows)))
    for i in range(len(rows)):
        for j in range(i):
            joint = _entropy(np.bincount(codes[i] * sizes[j] + codes[j]))
            distance[i, j] = distance[j, i] = np.clip(2 - (entropies[i] + entropies[j]) / joint, 0, 1)
    return distance


def _entropy(counts: npt.NDArray[np.int64]) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def hellinger_distance(profiles: npt.ArrayLike, names: Sequence[str] | None = None) -> Array:
    """Return sqrt(2 (1 - sum sqrt(p q))) for each pair of profiles: 0 for equal ones, sqrt(2) for disjoint ones.

    Parameters
    ----------
    profiles : (subjects, cells) array
        Amounts, not negative, such as volumes of structures; only their shares count.
    names : sequence of str, optional
        Subjects, for messages.

    Returns
    -------
    (subjects, subjects) ndarray

    Raises
    ------
    InputError
        A value is missing or negative, or a profile is empty.
    """
    rows = checked_rows(profiles, "profile", names)
    bad = np.flatnonzero((rows < 0).any(axis=1) | (rows.sum(axis=1) <= 0))
    if len(bad):
        remedy = "give amounts that are not negative, and one above 0"
        raise InputError("its profile has negative values, or is empty", subject=_named(names, int(bad[0])), remedy=remedy)
    return euclidean_distance(np.sqrt(rows / rows.sum(axis=1, keepdims=True)))


def euclidean_distance(rows: Array) -> Array:
    """Return the Euclidean distance of each pair of rows (subjects, values)."""
    from scipy.spatial.distance import pdist, squareform

    return np.asarray(squareform(pdist(rows)))


def deformation_distance(
    log_jacobians: npt.ArrayLike, mass: npt.ArrayLike | None = None, names: Sequence[str] | None = None
) -> Array:
    """Return the root mean square difference of log-Jacobians, without what an affine can do to them.

    Parameters
    ----------
    log_jacobians : (subjects, voxels) array
        Logarithm of the Jacobian determinant of each subject's deformation, in the common space. The mean of each is taken
        off: a change of size, or the determinant of the affine, is no difference of shape.
    mass : (voxels,) array, optional
        Weight of each voxel, all the same when left out.
    names : sequence of str, optional
        Subjects, for messages.

    Returns
    -------
    (subjects, subjects) ndarray

    Raises
    ------
    InputError
        A value is missing, or the weights do not fit.
    """
    rows = checked_rows(log_jacobians, "log-Jacobian", names)
    weight = np.ones(rows.shape[1]) if mass is None else np.asarray(mass, dtype=np.float64)
    if weight.shape != rows.shape[1:] or not np.isfinite(weight).all() or (weight < 0).any() or weight.sum() <= 0:
        raise InputError("the weights of the voxels do not fit", remedy="give one for each voxel, not negative")
    weight = weight / weight.sum()
    return euclidean_distance((rows - (rows @ weight)[:, None]) * np.sqrt(weight))
