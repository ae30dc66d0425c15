"""Label files of a training: label maps, and files of four axes with a structure in each volume, which may overlap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.images.arrays import RealArray
from popatlas.images.grid import Grid
from popatlas.images.header import geometry_fault, refuse
from popatlas.images.io import load_image
from popatlas.images.labels import LabelImage, read_labels
from popatlas.images.place import check_place
from popatlas.training.table import TrainingScan

AXES = 4  # axes of a file with a structure in each volume
SAME = "give the files of a pair the same structures in the same order, one in each volume"


def count_structures(path: Path) -> int:
    """Return the number of volumes of a file of structures, 0 for a label map, also for one with a fourth axis of length 1.

    A file that cannot be read is refused by whoever reads it.
    """
    try:
        shape = nib.load(path).shape
    except Exception:
        return 0
    return shape[3] if len(shape) == AXES and shape[3] > 1 else 0


def check_structures(scans: Iterable[TrainingScan]) -> int:
    """Return the largest number of structures of a training, 0 when all labels are label maps; headers are read only.

    Raises
    ------
    InputError
        When two scans that are paired have different numbers of structures, or one of them a label map.
    """
    most = 0
    first: dict[str, tuple[TrainingScan, int]] = {}
    for scan in scans:
        if scan.labels is None or scan.split == "test":
            continue
        count = count_structures(scan.labels)
        other, wanted = first.setdefault(scan.group, (scan, count))
        if count != wanted:
            message = f"{_told(count)}, and {other.name}, with which it is paired, has {_told(wanted)} in {other.labels}"
            raise InputError(message, file=scan.labels, subject=scan.name, remedy=SAME)
        most = max(most, count)
    return most


def _told(count: int) -> str:
    return f"{count} structures" if count else "a label map"


def read_channels(scan: TrainingScan, structures: int = 0) -> tuple[list[npt.NDArray[np.int32]], Grid]:
    """Read the labels of a scan.

    Parameters
    ----------
    scan : TrainingScan
        With labels.
    structures : int
        From two on a label map is divided into so many structures, label 1 being the first, and missing ones are empty.

    Returns
    -------
    channels : list of int32 ndarray
        A label map; or a map of 0 and 1 for each structure.
    grid : Grid
        Of each of them.

    Raises
    ------
    InputError
        The file cannot be read, its values cannot be used, a structure is empty, labels do not lie on the image, or a label
        map has more labels than `structures`.
    """
    assert scan.labels is not None
    image = Grid.from_file(scan.image)
    if not count_structures(scan.labels):
        found = read_labels(scan.labels, scan.name, axes=(2, 3), empty=True)
        if image.ndim == found.grid.ndim and found.data.any():
            check_place(found, scan.name, image=image)
        return (_divided(found, structures, scan) if structures > 1 else [found.data]), found.grid
    channels = list(_read_structures(scan))
    for one in channels:
        if image.ndim == one.grid.ndim:
            check_place(one, scan.name, image=image)
    grid, empty = channels[0].grid, np.zeros_like(channels[0].data)
    return [one.data for one in channels] + [empty] * (structures - len(channels)), grid


def _divided(found: LabelImage, structures: int, scan: TrainingScan) -> list[npt.NDArray[np.int32]]:
    """Return the map of each label of a label map."""
    if found.data.max(initial=0) > structures:
        message = f"label {found.data.max()} of a label map, where the other files have at most {structures} structures"
        raise InputError(message, file=scan.labels, subject=scan.name, remedy=SAME)
    return [np.asarray(found.data == number, dtype=np.int32) for number in range(1, structures + 1)]


def _read_structures(scan: TrainingScan) -> Iterator[LabelImage]:
    """Yield the structures of a file, as 0 and 1."""
    assert scan.labels is not None
    try:
        image = load_image(scan.labels)
        refuse(geometry_fault(image), "file of structures")
        data = np.asarray(image.dataobj)
        whole = LabelImage(scan.labels, np.empty(0, np.int32), np.asarray(image.affine, dtype=np.float64))
        for number in range(data.shape[3]):
            yield replace(whole, data=_structure(data[..., number], f"volume {number + 1} of {data.shape[3]}"))
    except InputError as error:
        raise InputError(error.message, file=scan.labels, subject=scan.name, remedy=error.remedy) from error


def _structure(volume: RealArray, name: str) -> npt.NDArray[np.int32]:
    """Return a volume as 0 and 1: of shares from 0 to 1 those above one half, of two values the larger one."""
    low, high = volume.min(), volume.max()
    if not np.isfinite([low, high]).all() or low < 0:
        raise InputError(f"{name} has values that are negative or not finite", remedy="save it with 0 outside and 1 inside")
    if high > 1 and not np.isin(volume, (0, high)).all():
        message = f"{name} has several values from 0 to {high:g}, and a volume holds one structure"
        raise InputError(message, remedy="save it with 0 outside and 1 inside; a label map has no fourth axis")
    inside = volume > 0.5 * max(high, 1)
    if not inside.any():
        remedy = "draw the structure, or leave its volume out of both files of the pair"
        raise InputError(f"{name} is empty", remedy=remedy)
    return np.asarray(inside, dtype=np.int32)
