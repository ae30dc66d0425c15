"""The linear stage of a registration: a start, then rigid, then affine, by our engine or by ANTs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.transforms.affine import Matrix, read_affine

if TYPE_CHECKING:
    from popatlas.registration.engines import Rung
    from popatlas.registration.inputs import Scan
    from popatlas.registration.pair import Pair

# iterations of ANTs' rigid and affine stages at shrink factors 6, 4, 2, 1
ANTS_ITERATIONS = (200, 100, 50, 20)


def align(pair: Pair, rung: Rung, folder: Path, kinds: tuple[str, ...] = ("rigid", "affine")) -> Path:
    """Return the file of the affine (ITK) that brings two brains together.

    Parameters
    ----------
    pair : Pair
        Images and masks.
    rung : Rung
        Start and engine.
    folder : Path
        Existing folder for the transform files.
    kinds : tuple of str
        Stages, in order: rigid, affine.
    """
    from popatlas.transforms.itk import write_affine

    start = find_start(pair, rung.start, folder)
    if rung.linear == "affine":
        matrix = _align_ours(pair, start, kinds)
        path = folder / "stage-affine.mat"
        write_affine(path, matrix)
        return path
    from popatlas.registration.ants import register_linear

    initial: str | None = None
    if rung.start != "mass":  # ANTs itself starts from the centres of mass
        write_affine(folder / "start.mat", start)
        initial = str(folder / "start.mat")
    for kind in kinds:
        initial = str(
            register_linear(pair.fixed, pair.moving, kind.capitalize(), initial, ANTS_ITERATIONS, folder / "stage-")
        )
    return Path(str(initial))


def find_start(pair: Pair, start: str, folder: Path) -> Matrix:
    """Return the matrix to start from, fixed to moving points in LPS millimetres; see `Rung.start`."""
    if start == "search":
        from popatlas.registration.ants import search_start

        return read_affine(search_start(pair.fixed, pair.moving, folder / "stage-"))
    fixed, moving = pair.scans()
    begin = STARTS[start]
    return begin(fixed, moving)


def _mass(fixed: Scan, moving: Scan) -> Matrix:
    from popatlas.registration.starts import centre_of_mass

    return centre_of_mass(fixed, moving)


def _moments(fixed: Scan, moving: Scan) -> Matrix:
    from popatlas.registration.starts import moments

    return moments(fixed, moving)


def _global(fixed: Scan, moving: Scan) -> Matrix:
    from popatlas.registration.csngf import search

    return search(fixed, moving).matrix


STARTS: Mapping[str, Callable[[Scan, Scan], Matrix]] = {"mass": _mass, "moments": _moments, "global": _global}


def _align_ours(pair: Pair, start: Matrix, kinds: tuple[str, ...]) -> Matrix:
    from popatlas.registration.affine_engine import register

    # without the brain masks: in a stripped brain the outline is what aligns best, and a mask would take it away
    fixed, moving = (replace(scan, mask=None) for scan in pair.scans())
    return register(fixed, moving, kinds=kinds, initial=start).matrix
