"""ANTs as engine: rigid, affine and SyN, each stage with the schedule that the configuration states.

The stages are run one by one because ANTsPy's combined presets (`SyNRA` and others) carry linear schedules of their own
and silently ignore the ones that are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.images.antspy import AntsImage, deterministic_ants
from popatlas.images.io import require_whole
from popatlas.registration.engines.ants.settings import AntsSettings
from popatlas.registration.types import Attempt, Deformation, settings_of
from popatlas.transforms.itk import read_displacement, write_displacement

if TYPE_CHECKING:
    from popatlas.registration.pair import Pair

AFFINE_SHRINK = (6, 4, 2, 1)
AFFINE_SIGMAS = (3, 2, 1, 0)


def register_linear(
    fixed: AntsImage, moving: AntsImage, kind: str, initial: str | None, iterations: Sequence[int], prefix: Path
) -> Path:
    """Run one linear stage and return its transform file.

    Parameters
    ----------
    fixed, moving : ANTsImage
        Brain images.
    kind : str
        "Rigid" or "Affine".
    initial : str or None
        Transform file to start from; None aligns the centres of mass.
    iterations : sequence of int
        Iterations at shrink factors 6, 4, 2, 1.
    prefix : Path
        Start of the output file names.
    """
    ants = deterministic_ants()
    result = ants.registration(
        fixed,
        moving,
        kind,
        initial_transform=initial,
        outprefix=f"{prefix}{kind}",
        aff_metric="mattes",
        aff_iterations=tuple(iterations),
        aff_shrink_factors=AFFINE_SHRINK,
        aff_smoothing_sigmas=AFFINE_SIGMAS,
    )
    return Path(result["fwdtransforms"][0])


def search_start(fixed: AntsImage, moving: AntsImage, prefix: Path) -> str:
    """Return a start found by ANTs' multi-start affine search (rotations of +-30 degrees on each axis)."""
    ants = deterministic_ants()
    path = f"{prefix}search.mat"
    ants.affine_initializer(fixed, moving, search_factor=15, radian_fraction=0.1, txfn=path)
    return path


def deform_ants(pair: Pair, attempt: Attempt, affine: Path, folder: Path, threads: int) -> Deformation:
    """Run SyN from an affine (Avants et al., 2008); `threads` is not used: ANTs repeats itself with one thread only.

    Parameters
    ----------
    pair : Pair
        Images.
    attempt : Attempt
        With `AntsSettings`.
    affine : Path
        Affine, fixed to moving points.
    folder : Path
        Existing folder for the fields.
    """
    schedule = settings_of(attempt, AntsSettings)
    result = deterministic_ants().registration(
        pair.fixed,
        pair.moving,
        "SyNOnly",
        initial_transform=str(affine),
        outprefix=str(folder / "stage-SyN"),
        syn_metric=schedule.metric,
        syn_sampling=schedule.sampling,
        reg_iterations=schedule.iterations,
        grad_step=schedule.gradient_step,
        flow_sigma=schedule.flow_sigma,
        total_sigma=schedule.total_sigma,
    )
    warp, inverse_warp = Path(result["fwdtransforms"][0]), Path(result["invtransforms"][1])
    for path in (warp, inverse_warp):
        require_whole(path)
        write_displacement(path, *read_displacement(path), rounded=True)
    return Deformation(warp=warp, inverse_warp=inverse_warp)
