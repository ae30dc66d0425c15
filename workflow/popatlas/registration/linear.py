"""The linear stage of a registration: a start, then rigid, then affine, by our engine or by ANTs; the pose is looked at.

Each start can settle in a wrong pose, upside down for example. So what it leads to is judged (`registration.pose`), and
where it is not clearly right, other starts are asked, cheap ones first; the best one is taken. A pair whose first start is
right pays for one judgement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from popatlas.images.scan import Scan
from popatlas.registration.engines.affine import register
from popatlas.registration.engines.ants.core import register_linear, search_start
from popatlas.registration.global_search.csngf import search
from popatlas.registration.initialisation import centre_of_mass, moments
from popatlas.registration.pair import Pair
from popatlas.registration.pose import Pose, poses_of
from popatlas.registration.types import Attempt
from popatlas.transforms.affine import Matrix, read_affine
from popatlas.transforms.itk import write_affine

# iterations of ANTs' rigid and affine stages at shrink factors 6, 4, 2, 1
ANTS_ITERATIONS = (200, 100, 50, 20)
OTHERS = ("moments", "turned", "global")  # starts that are asked where the first one did not lead to a clear pose
SAME = 1e-3  # largest difference of the entries of two starts that are one
STARTS: Mapping[str, Callable[[Scan, Scan], Matrix]] = {
    "mass": centre_of_mass,
    "moments": moments,
    "global": lambda fixed, moving: search(fixed, moving).matrix,
}


@dataclass(frozen=True)
class Aligned:
    """What a linear stage found.

    Attributes
    ----------
    matrix : (D+1, D+1) ndarray
        Fixed to moving, LPS millimetres.
    pose : Pose
        How sure it is.
    start : str
        Where it came from: that of the attempt, or another one.
    begin : (D+1, D+1) ndarray or None
        The matrix of that start, where it is known.
    """

    matrix: Matrix
    pose: Pose
    start: str
    begin: Matrix | None = None


def align(pair: Pair, attempt: Attempt, folder: Path, kinds: tuple[str, ...] = ("rigid", "affine")) -> Path:
    """Return the file of the affine (ITK) that `find_affine` finds.

    Parameters
    ----------
    pair : Pair
        Images and masks.
    attempt : Attempt
        Start and engine.
    folder : Path
        Existing folder for the transform files.
    kinds : tuple of str
        Stages, in order: rigid, affine.
    """
    return write_aligned(find_affine(pair, attempt, folder, kinds), folder)


def write_aligned(found: Aligned, folder: Path) -> Path:
    """Write an affine as `affine.mat` (ITK) and return its file."""
    path = folder / "affine.mat"
    write_affine(path, found.matrix)
    return path


def find_affine(pair: Pair, attempt: Attempt, folder: Path, kinds: tuple[str, ...] = ("rigid", "affine")) -> Aligned:
    """Bring two brains together by the start of an attempt and, where that leads to no clear pose, by others.

    Parameters
    ----------
    pair, attempt, folder, kinds
        See `align`.

    Returns
    -------
    Aligned
        The first clear pose, or the most distinct one. What was found from a start is kept with the pair (`Pair.asked`).
    """
    tried: list[Aligned] = []
    begun: list[Matrix] = []
    for start in dict.fromkeys((attempt.start, *OTHERS)):
        key = (attempt.linear, kinds, start)
        if key not in pair.asked:
            begin = tried[-1].pose.turned if start == "turned" else find_start(pair, start, folder)
            if any(np.allclose(begin, before, atol=SAME) for before in begun):
                continue
            begun.append(begin)
            pair.asked[key] = _settle(pair, attempt, start, begin, folder, kinds)
        tried.append(pair.asked[key])
        if tried[-1].pose.clear:
            break
        print(f"from {start}: no clear pose, {tried[-1].pose}", flush=True)
    return max(tried, key=lambda found: found.pose.distinct)


def _settle(pair: Pair, attempt: Attempt, start: str, begin: Matrix, folder: Path, kinds: tuple[str, ...]) -> Aligned:
    """Align from a start, which need not be that of the attempt, and judge the pose.

    Where sizes differ too much for a rigid transform to tell, it is judged by an affine.
    """
    if attempt.linear == "affine":
        matrix = _align_ours(pair, begin, kinds)
    else:
        matrix = _align_ants(pair, start, begin, folder, kinds)
    pose = poses_of(pair).judge(matrix)
    if not pose.clear and "affine" not in kinds:
        pose = poses_of(pair).judge(_align_ours(pair, matrix, ("affine",)))
    return Aligned(matrix, pose, start, begin)


def find_start(pair: Pair, start: str, folder: Path) -> Matrix:
    """Return the matrix to start from, fixed to moving points in LPS millimetres; see `Attempt.start`."""
    if start == "search":
        return read_affine(search_start(pair.fixed, pair.moving, folder / "stage-"))
    fixed, moving = pair.scans()
    begin = STARTS[start]
    return begin(fixed, moving)


def _align_ours(pair: Pair, begin: Matrix, kinds: tuple[str, ...]) -> Matrix:
    # without the brain masks: in a stripped brain the outline is what aligns best, and a mask would take it away
    fixed, moving = (replace(scan, mask=None) for scan in pair.scans())
    return register(fixed, moving, kinds=kinds, initial=begin).matrix


def _align_ants(pair: Pair, start: str, begin: Matrix, folder: Path, kinds: tuple[str, ...]) -> Matrix:
    initial: str | None = None
    if start != "mass":  # ANTs itself starts from the centres of mass
        initial = str(folder / "start.mat")
        write_affine(initial, begin)
    for kind in kinds:
        initial = str(
            register_linear(pair.fixed, pair.moving, kind.capitalize(), initial, ANTS_ITERATIONS, folder / "stage-")
        )
    return read_affine(str(initial))
