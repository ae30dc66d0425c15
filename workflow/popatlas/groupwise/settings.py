"""Settings of the methods for groups and tissues, without what the methods load."""

from __future__ import annotations

from typing import Literal

from popatlas.settings import option, settings

TISSUES = ("CSF", "GM", "WM")  # from dark to bright in a T1w


@settings
class MixtureSettings:
    """How tissues are found."""

    components: int = option(2, "Gaussians of each class in each contrast", ge=1, le=8)
    amounts: bool = option(
        False,
        "Weigh the prior by how much of each class the subject has (Ashburner and Friston, 2005)",
    )
    iterations: int = option(40, "Most updates of the mixtures, after the moves", ge=1)
    rounds: int = option(20, "How often moves and one update of the mixtures take turns", ge=1, le=100)
    tolerance: float = option(1e-5, "The updates end when the log-likelihood of a voxel gains less", ge=0)
    slices: Literal["none", "shift", "affine"] = option(
        "none", "Moves of each slice within its plane, of all contrasts but the first"
    )
    slice_axis: int = option(2, "Axis across the slices", ge=0, le=2)
    deform: bool = option(False, "Deform the prior, by control points with bending energy")
    spacing: float = option(12.0, "Distance of those control points, voxels", gt=1)
    bending: float = option(0.01, "Weight of their bending energy", ge=0)
    rate: float = option(0.2, "Step of the moves, voxels", gt=0)
    steps: int = option(20, "Steps of the moves in a round", ge=1)
