"""Subjects as points: ISOMAP on given distances, and how many dimensions the distances have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.groupwise.types.settings import FEWEST, TypesSettings

Array = npt.NDArray[np.float64]
FEWEST_EACH = 10  # subjects for each dimension of an embedding
SCALES = (0.01, 0.1)  # shares of the pairs between which the correlation dimension is fitted


@dataclass(frozen=True)
class Embedding:
    """An embedding of subjects.

    Attributes
    ----------
    points : (subjects, dimensions) ndarray
        Coordinates, the dimension of the largest variance first.
    shares : (dimensions,) ndarray
        Share of the total variance of the geodesic distances that each dimension has.
    dimension : float
        Correlation dimension of the distances.
    neighbours : int
        Of the graph.
    """

    points: Array
    shares: Array
    dimension: float
    neighbours: int


def check_distances(distance: Array) -> None:
    """Refuse what is no matrix of distances between enough subjects.

    Raises
    ------
    InputError
        Too few subjects, values that are missing or negative, no symmetry, or all distances 0.
    """
    if distance.ndim != 2 or distance.shape[0] != distance.shape[1]:
        raise InputError(f"{distance.shape} is no matrix of distances", remedy="give a row and a column for each subject")
    if len(distance) < FEWEST:
        message = f"there are {len(distance)} subjects, types are looked for among {FEWEST} or more"
        raise InputError(message, remedy="add subjects, or switch types off")
    if not np.isfinite(distance).all() or (distance < 0).any():
        raise InputError("a distance is missing or negative", remedy="leave out the subjects that have no values")
    if not np.allclose(distance, distance.T, atol=1e-9) or np.abs(np.diag(distance)).max() > 1e-6:
        raise InputError("the distances are not symmetric, or not 0 on the diagonal", remedy="give distances")
    if distance.max() <= 1e-12:
        raise InputError("all subjects are alike, all distances are 0", remedy="use another distance")


def correlation_dimension(distance: Array) -> float:
    """Return the correlation dimension: the slope of log C(r) over log r, C(r) the share of pairs closer than r.

    Grassberger and Procaccia, Physica D 1983;9:189-208, fitted where C is from 1 to 10 %. With few points it is too low
    for many dimensions.
    """
    pairs = np.sort(distance[np.triu_indices(len(distance), 1)])
    pairs = pairs[pairs > 0]
    low, high = (int(share * len(pairs)) for share in SCALES)
    rank = np.arange(low, max(high, low + 3), dtype=np.float64)
    near = pairs[low : low + len(rank)]
    if len(near) < 3 or near[-1] / near[0] < 1 + 1e-9:
        return float("nan")
    return float(np.polyfit(np.log(near), np.log(rank[: len(near)] + 1), 1)[0])


def embed(distance: Array, plan: TypesSettings) -> Embedding:
    """Embed subjects by ISOMAP (Tenenbaum et al., Science 2000;290:2319-2323).

    Parameters
    ----------
    distance : (subjects, subjects) ndarray
        Metric distances.
    plan : TypesSettings
        Dimensions and neighbours.

    Returns
    -------
    Embedding

    Raises
    ------
    InputError
        See `check_distances`; or the graph of the neighbours that were asked for falls apart.
    """
    from sklearn.manifold import Isomap

    check_distances(distance)
    count = len(distance)
    distance = np.array(distance)
    np.fill_diagonal(distance, 0)
    neighbours = _neighbours(distance, plan.neighbours)
    dimension = correlation_dimension(distance)
    wanted = plan.dimensions if np.isnan(dimension) else round(dimension)
    kept = max(1, min(plan.dimensions, wanted, count // FEWEST_EACH))
    model = Isomap(n_neighbors=neighbours, n_components=kept, metric="precomputed").fit(distance)
    points = np.asarray(model.embedding_, dtype=np.float64)
    return Embedding(points, points.var(axis=0) * count / _spread(model.dist_matrix_), dimension, neighbours)


def _neighbours(distance: Array, asked: int) -> int:
    """Return the number of neighbours: what is asked for, or the fewest from 3 of 8 subjects on that join all."""
    most = len(distance) - 1
    if asked:
        pieces = _pieces(distance, min(asked, most))
        if pieces > 1:
            message = f"the graph of {asked} neighbours falls into {pieces} pieces"
            raise InputError(message, remedy="raise neighbours, or leave it 0 for as many as are needed")
        return min(asked, most)
    begin = min(max(5, round(0.375 * len(distance))), most)
    return next(number for number in range(begin, most + 1) if number == most or _pieces(distance, number) == 1)


def _pieces(distance: Array, neighbours: int) -> int:
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(distance)
    apart = distance + np.diag(np.full(count, np.inf))
    near = np.argpartition(apart, neighbours - 1, axis=1)[:, :neighbours]
    joined = (np.ones(near.size), (np.repeat(np.arange(count), neighbours), near.ravel()))
    return int(connected_components(csr_matrix(joined, shape=(count, count)), directed=False)[0])


def _spread(geodesic: Array) -> float:
    """Return the sum of the positive eigenvalues of the centred squared distances: the whole variance, times subjects."""
    squared = np.asarray(geodesic, dtype=np.float64) ** 2
    mean = squared.mean(axis=0)
    centred = -0.5 * (squared - mean[:, None] - mean[None] + squared.mean())
    values = np.linalg.eigvalsh(centred)
    return float(values[values > 0].sum())
