"""Candidates from files: labels and images of several atlases on the grid of a target, grids and values checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.fusion.candidates import PROPAGATE_AGAIN, Candidates
from popatlas.images.arrays import Kind
from popatlas.images.grid import Grid
from popatlas.images.io import PathLike, load_image
from popatlas.images.labels import read_labels


def read_candidates(
    labels: PathLike,
    target: PathLike | None = None,
    images: PathLike | None = None,
    names: Sequence[str] = (),
    subject: str | None = None,
) -> Candidates:
    """Read the candidates of one target.

    Parameters
    ----------
    labels : path-like
        Candidate labels (x, y, z, n_candidates); an image of 3 axes is one candidate.
    target : path-like, optional
        Image to label.
    images : path-like, optional
        Images of the atlases (x, y, z, n_candidates).
    names : sequence of str
        Names of the candidates.
    subject : str, optional
        Named in messages.

    Returns
    -------
    Candidates

    Raises
    ------
    InputError
        A file that cannot be read, another grid, labels that are not whole numbers, and what Candidates refuses.
    """
    grid = Grid.from_file(labels)
    for what, path in (("target", target), ("candidate images", images)):
        if path is not None:
            _check_grid(Grid.from_file(path), grid, what, labels, subject)
    try:
        return Candidates(
            _stack(read_labels(labels, subject, axes=(3, 4), empty=True).data, labels, subject),
            None if target is None else np.asarray(load_image(target).dataobj),
            None if images is None else _stack(np.asarray(load_image(images).dataobj), images, subject),
            grid.spacing,
            tuple(names),
            subject,
        )
    except InputError as error:
        raise InputError(error.message, file=error.file or labels, subject=subject, remedy=error.remedy) from error


def make_candidates(
    target: PathLike,
    labels: npt.NDArray[np.int32],
    images: npt.NDArray[np.float32],
    names: Sequence[str] = (),
    subject: str | None = None,
) -> Candidates:
    """Return the candidates of one target from labels and images on its grid, as `read_candidates` reads them from files.

    Parameters
    ----------
    target : path-like
        Image to label.
    labels, images : ndarray
        Of each atlas (n_candidates, x, y, z).
    names : sequence of str
        Names of the candidates.
    subject : str, optional
        Named in messages.

    Returns
    -------
    Candidates

    Raises
    ------
    InputError
        What Candidates refuses.
    """
    try:
        data, spacing = np.asarray(load_image(target).dataobj), Grid.from_file(target).spacing
        return Candidates(labels, data, images, spacing, tuple(names), subject)
    except InputError as error:
        raise InputError(error.message, file=error.file or target, subject=subject, remedy=error.remedy) from error


def read_pair(image: PathLike, labels: PathLike, subject: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Read an image and its labels; InputError when their grids differ."""
    _check_grid(Grid.from_file(image), Grid.from_file(labels), "image", labels, subject)
    return np.asarray(load_image(image).dataobj), read_labels(labels, subject, empty=True).data


def _check_grid(grid: Grid, of_labels: Grid, what: str, file: PathLike, subject: str | None) -> None:
    try:
        grid.check_same(of_labels, (what, "labels"), file=file, subject=subject)
    except InputError as error:
        raise InputError(error.message, file=file, subject=subject, remedy=PROPAGATE_AGAIN) from error


def _stack(data: npt.NDArray[Kind], file: PathLike, subject: str | None) -> npt.NDArray[Kind]:
    """Return an image of 3 or 4 axes as stack (n_candidates, x, y, z)."""
    if data.ndim not in (3, 4):
        raise InputError(f"the image has {data.ndim} axes, expected 4", file=file, subject=subject, remedy=PROPAGATE_AGAIN)
    return data[None] if data.ndim == 3 else np.ascontiguousarray(np.moveaxis(data, -1, 0))
