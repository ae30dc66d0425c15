"""What goes along with the dimensions of an embedding, and with the types: linear regression on covariates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[np.float64]
TYPES, ALL = "types", "all"  # rows of the table that are of the types, and of all dimensions or covariates together
FEWEST_FREE = 5  # degrees of freedom that a regression has to leave


def design(values: pd.Series) -> Array:
    """Return a covariate as columns about their means: itself, or one for each category but the first."""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        columns = values.to_numpy(dtype=np.float64)[:, None]
    else:
        columns = pd.get_dummies(values.astype(str), drop_first=True).to_numpy(dtype=np.float64)
    return np.asarray(columns - columns.mean(axis=0))


def explained(columns: Array, wanted: Array) -> tuple[float, int]:
    """Return the share of the variance of some columns (subjects, wanted) that others explain, and the rank of these."""
    centred = wanted - wanted.mean(axis=0)
    total = float((centred**2).sum())
    basis, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    basis = basis[:, sizes > 1e-9 * max(sizes[:1].max(initial=0), 1e-300)]
    if total <= 0 or not basis.shape[1]:
        return float("nan") if total <= 0 else 0.0, basis.shape[1]
    return float(((basis.T @ centred) ** 2).sum() / total), basis.shape[1]


def regress(
    points: Mapping[str, Array], shares: Mapping[str, Array], types: npt.NDArray[np.int64], covariates: pd.DataFrame
) -> pd.DataFrame:
    """Regress each dimension, and the types, on each covariate and on all of them together.

    The shares of single dimensions must not be read as shares of the whole: the row of all dimensions of a distance weighs
    them by their variance, and `r2_total` further counts what the embedding has left out.

    Parameters
    ----------
    points : mapping of str to (subjects, dimensions) ndarray
        Distance to coordinates.
    shares : mapping of str to (dimensions,) ndarray
        Share of the whole variance that each dimension has.
    types : (subjects,) ndarray of int
        Type of each subject; 0 lies apart.
    covariates : DataFrame
        A column for each covariate, a row for each subject; subjects that lack a value are left out of what asks for it.

    Returns
    -------
    DataFrame
        Columns distance, dimension (1, 2, ..., all; `types` for the types), covariate, subjects, variance (share of the
        dimension), r2, r2_total, and p of the F test (single dimensions only).
    """
    named = [str(name) for name in covariates]
    names: list[Sequence[str]] = [[name] for name in named]
    rows = []
    for chosen in [*names, *([named] if len(names) > 1 else [])]:
        known = covariates[list(chosen)].notna().all(axis=1).to_numpy()
        columns = np.hstack([design(covariates[name][known]) for name in chosen]) if known.any() else np.zeros((0, 1))
        if known.sum() - columns.shape[1] - 1 < FEWEST_FREE:
            continue
        common = {"covariate": chosen[0] if len(chosen) == 1 else ALL, "subjects": int(known.sum())}
        for distance, place in points.items():
            rows += [common | row for row in _dimensions(distance, place[known], shares[distance], columns)]
        sorted_in = known & (types > 0)
        kinds = pd.get_dummies(pd.Series(types[sorted_in])).to_numpy(dtype=np.float64)
        if kinds.shape[1] > 1:
            own = columns[(types > 0)[known]]
            r2 = explained(own - own.mean(axis=0), kinds)[0]
            rows.append(common | {"distance": ALL, "dimension": TYPES, "subjects": int(sorted_in.sum()), "r2": r2})
    order = ["distance", "dimension", "covariate", "subjects", "variance", "r2", "r2_total", "p"]
    return pd.DataFrame(rows, columns=order)


def _dimensions(distance: str, points: Array, shares: Array, columns: Array) -> list[dict[str, object]]:
    from scipy.stats import f as f_distribution

    rows: list[dict[str, object]] = []
    found = np.zeros(len(shares))
    for place, share in enumerate(shares):
        found[place], rank = explained(columns, points[:, place : place + 1])
        free = len(points) - rank - 1
        ratio = found[place] / max(1 - found[place], 1e-12) * free / max(rank, 1)
        p = float(f_distribution.sf(ratio, rank, free)) if rank else 1.0
        told = {"distance": distance, "dimension": str(place + 1), "variance": float(share), "r2": float(found[place])}
        rows.append(told | {"r2_total": float(found[place] * share), "p": p})
    whole = float(shares.sum())
    total = float(found @ shares)
    rows.append({"distance": distance, "dimension": ALL, "variance": whole, "r2": total / whole, "r2_total": total})
    return rows
