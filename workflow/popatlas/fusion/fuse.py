"""The one way into label fusion: candidates in, a consensus with its probabilities out, whatever the method.

A candidate without any label where others have some is a failed propagation: it is
left out, gets no weight and is named in the notes of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from popatlas.errors import ConfigError, InputError
from popatlas.fusion.candidates import Candidates
from popatlas.fusion.methods import METHODS
from popatlas.fusion.result import Fusion
from popatlas.fusion.weighted_global import global_similarity
from popatlas.images.arrays import FloatArray, IntArray

# options of the methods with one value, or one row, for each candidate
PER_CANDIDATE = {"parameters", "label_parameters", "quality", "prior"}


def fuse(
    candidates: IntArray | Candidates,
    images: FloatArray | None = None,
    method: str = "majority",
    *,
    target: FloatArray | None = None,
    spacing: Sequence[float] | None = None,
    names: Sequence[str] = (),
    subject: str | None = None,
    select: int = 0,
    select_by: FloatArray | None = None,
    **options: object,
) -> Fusion:
    """Fuse the labels of several atlases on the grid of a target.

    Parameters
    ----------
    candidates : (n_candidates, x, y[, z]) int ndarray or Candidates
        Labels of the atlases; with Candidates the images, spacing, names and subject are taken from there.
    images : (n_candidates, x, y[, z]) float ndarray, optional
        Images of the atlases; methods that look at images need them and `target`.
    method : str
        A key of :data:`popatlas.fusion.methods.METHODS`.
    target : (x, y[, z]) float ndarray, optional
        Image to label.
    spacing : sequence of float, optional
        Voxel size in mm.
    names : sequence of str
        Names of the candidates.
    subject : str, optional
        Named in messages.
    select : int
        Use only that many candidates, the best ones; 0: all.
    select_by : (n_candidates,) float ndarray, optional
        What is best, larger first; the global similarity of the images when left out.
    **options
        Of the method, for example ``ties``. The opinion of a network is about the voxels where the candidates that take part
        differ: they have to be chosen before, see :func:`popatlas.fusion.dataparams.fuse.fuse_by_data_parameters`.

    Returns
    -------
    Fusion
        One atlas weight for each candidate that was given, 0 for those left out.

    Raises
    ------
    ConfigError
        An unknown method.
    InputError
        From Candidates: no candidate, other grids, labels or images that cannot be used; images that are missing.
    """
    if method not in METHODS:
        raise ConfigError(f"no fusion method is called '{method}'. Remedy: use one of {', '.join(METHODS)}")
    if METHODS[method].trained and "parameters" not in options:
        raise ConfigError(
            f"{method} needs `parameters`. Remedy: train them (popatlas.fusion.dataparams.train.train_data_parameters)"
        )
    if not isinstance(candidates, Candidates):
        size = None if spacing is None else tuple(float(length) for length in spacing)
        candidates = Candidates(np.asarray(candidates), target, images, size, tuple(names), subject)
    used, run = choose(candidates, select, select_by), METHODS[method].load()
    if len(used) == len(candidates.labels):
        whole: Fusion = run(candidates, **options)
        return whole
    for name in PER_CANDIDATE & options.keys():  # they follow the choice
        if options[name] is not None:
            options[name] = np.asarray(options[name])[used]
    found: Fusion = run(candidates.pick(used), **options)
    atlas_weights = np.zeros(len(candidates.labels))
    atlas_weights[used] = found.atlas_weights
    left_out = [name for number, name in enumerate(candidates.names) if number not in set(used)]
    return replace(found, atlas_weights=atlas_weights, notes=found.notes | {"left_out": left_out})


def choose(candidates: Candidates, select: int = 0, by: FloatArray | None = None) -> list[int]:
    """Return the numbers of the candidates that take part: not the empty ones, and only the best `select` ones."""
    filled = [number for number in range(len(candidates.labels)) if number not in set(candidates.empty)]
    if select < 0:
        raise ConfigError(f"cannot select {select} atlases. Remedy: set fuse.select to 0 (all) or more")
    if not select or select >= len(filled):
        return filled
    quality = global_similarity(candidates) if by is None else np.asarray(by, dtype=float)
    if quality.shape != (len(candidates.labels),) or not np.isfinite(quality).all():
        raise InputError(
            f"atlas selection needs one finite number for each of {len(candidates.labels)} candidates",
            subject=candidates.subject,
            remedy="give what to select by for each candidate",
        )
    best = sorted(filled, key=lambda number: -quality[number])[:select]
    return sorted(best)
