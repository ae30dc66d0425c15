"""ANTs as engine: rigid, affine and SyN, each stage with the schedule that the configuration states.

The stages are run one by one because ANTsPy's combined presets (`SyNRA` and others) carry linear schedules of their own
and silently ignore the ones that are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AFFINE_SHRINK = (6, 4, 2, 1)
AFFINE_SIGMAS = (3, 2, 1, 0)


@dataclass(frozen=True)
class Schedule:
    """One preset of the configuration's `register.presets`."""

    metric: str
    sampling: int
    affine_iterations: tuple[int, ...]
    syn_iterations: tuple[int, ...]
    gradient_step: float
    flow_sigma: float
    total_sigma: float

    @classmethod
    def from_config(cls, preset: Mapping[str, Any]) -> Schedule:
        """Build from a validated preset."""
        return cls(
            metric=preset["metric"],
            sampling=preset["sampling"],
            affine_iterations=tuple(preset["affine_iterations"]),
            syn_iterations=tuple(preset["syn_iterations"]),
            gradient_step=preset["gradient_step"],
            flow_sigma=preset["flow_sigma"],
            total_sigma=preset["total_sigma"],
        )


@dataclass(frozen=True)
class Registration:
    """Files of one registration, fixed to moving points: first the warp, then the affine."""

    affine: Path
    warp: Path
    inverse_warp: Path


def deterministic_ants() -> Any:
    """Import ants in its repeatable mode (one ITK thread; `random_seed` alone is ignored by ANTsPy 0.6.3)."""
    import ants

    ants.config.set_ants_deterministic(True)
    return ants


def register_linear(fixed: Any, moving: Any, kind: str, initial: str | None, schedule: Schedule, prefix: Path) -> Path:
    """Run one linear stage and return its transform file.

    Parameters
    ----------
    fixed, moving : ANTsImage
        Brain images.
    kind : str
        "Rigid" or "Affine".
    initial : str or None
        Transform file to start from; None aligns the centres of mass.
    schedule : Schedule
        Gives the iterations at shrink factors 6, 4, 2, 1.
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
        aff_iterations=schedule.affine_iterations,
        aff_shrink_factors=AFFINE_SHRINK,
        aff_smoothing_sigmas=AFFINE_SIGMAS,
    )
    return Path(result["fwdtransforms"][0])


def search_start(fixed: Any, moving: Any, prefix: Path) -> str:
    """Return a start found by ANTs' multi-start affine search (rotations of +-30 degrees on each axis)."""
    ants = deterministic_ants()
    path = f"{prefix}search.mat"
    ants.affine_initializer(fixed, moving, search_factor=15, radian_fraction=0.1, txfn=path)
    return path


def register(fixed: Any, moving: Any, schedule: Schedule, folder: Path, *, search: bool = False) -> Registration:
    """Register two brains: rigid, affine, then SyN (Avants et al., 2008).

    Parameters
    ----------
    fixed, moving : ANTsImage
        Skull-stripped, intensity-normalised images.
    schedule : Schedule
        What each stage does.
    folder : Path
        Existing folder for the transform files.
    search : bool
        Start from a multi-start search instead of the centres of mass.

    Returns
    -------
    Registration
        ITK files; points of `fixed` go through `warp`, then `affine`, to `moving`.
    """
    ants = deterministic_ants()
    prefix = folder / "stage-"
    start = search_start(fixed, moving, prefix) if search else None
    rigid = register_linear(fixed, moving, "Rigid", start, schedule, prefix)
    affine = register_linear(fixed, moving, "Affine", str(rigid), schedule, prefix)
    result = ants.registration(
        fixed,
        moving,
        "SyNOnly",
        initial_transform=str(affine),
        outprefix=f"{prefix}SyN",
        syn_metric=schedule.metric,
        syn_sampling=schedule.sampling,
        reg_iterations=schedule.syn_iterations,
        grad_step=schedule.gradient_step,
        flow_sigma=schedule.flow_sigma,
        total_sigma=schedule.total_sigma,
    )
    return Registration(
        affine=Path(result["fwdtransforms"][1]),
        warp=Path(result["fwdtransforms"][0]),
        inverse_warp=Path(result["invtransforms"][1]),
    )
