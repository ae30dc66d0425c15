"""What a registration is asked to do and what it gives: rungs of the ladder, and files of transforms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from popatlas.transforms.chain import Chain, Field

from popatlas.similarity.registry import ONE_CONTRAST

OF_OTHERS = ("cc", "wncc")  # metrics of ANTs and greedy that need two images of one contrast
RECEIPT = "receipt.json"  # in the folder of a scan, beside the files that a batch predicted


@dataclass(frozen=True)
class Deformation:
    """Files of a deformable stage, and whether its optimisation diverged (the fields are then the last good ones)."""

    warp: Path
    inverse_warp: Path
    diverged: bool = False


@dataclass(frozen=True)
class Registration:
    """Files of one registration."""

    affine: Path
    warp: Path
    inverse_warp: Path
    diverged: bool = False


@dataclass(frozen=True)
class Made:
    """Files (in the attempt's temporary folder) and images of a registration.

    Attributes
    ----------
    files : Registration
        The transforms.
    forward, inverse : Chain
        From fixed to moving points, and back.
    warps : pair of Field
        Their deformations alone.
    composed, logjacobian : Path
        The whole way as one field, and the logarithm of its Jacobian determinant.
    warped, warped_mask : ANTsImage
        Moving brain and mask on the fixed grid.
    """

    files: Registration
    forward: Chain
    inverse: Chain
    warps: tuple[Field, Field]
    composed: Path
    logjacobian: Path
    warped: Any
    warped_mask: Any


@dataclass(frozen=True)
class Rung:
    """One way to try: where to start, and which engine with which preset.

    Attributes
    ----------
    start : str
        "mass" (centres of mass), "moments" (and principal axes), "global" (search over rotations and shifts) or "search"
        (ANTs' multi-start search).
    linear : str
        Engine of the rigid and affine stage: "affine" (ours) or "ants".
    engine : str
        Name in `popatlas.registration.engines.registry.ENGINES`.
    preset : mapping
        Settings of the engine.
    """

    start: str
    linear: str
    engine: str
    preset: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.engine} from {self.start}"


def assumes_one_contrast(rung: Rung) -> bool:
    """Tell whether the deformable stage compares intensities in a way that needs them to go together.

    A local correlation is squared, but at the border of the brain, where the background is dark in every contrast, it needs
    the same sign as within. What a network learnt is not known: its refinement tells what it is meant for.
    """
    similarity = rung.preset.get("similarity", rung.preset.get("metric", ""))
    return str(similarity).lower() in (*ONE_CONTRAST, *OF_OTHERS)
