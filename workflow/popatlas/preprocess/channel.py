"""Extra channels (T2w, FLAIR, ...): rigid alignment to the T1w of the session, one interpolation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib

from popatlas.preprocess.bias import correct_bias
from popatlas.preprocess.conform import load_single_volume


def align_channel(
    channel: Path | str,
    reference: Path | str,
    mask: Path | str,
    n4: Mapping[str, Any],
    folder: Path,
    subject: str = "",
) -> tuple[Any, Path]:
    """Align a channel to the preprocessed T1w and resample it once onto its grid.

    Parameters
    ----------
    channel : path
        Raw image.
    reference, mask : path
        Preprocessed T1w and its brain mask.
    n4 : mapping
        The configuration's `preprocess.n4`.
    folder : Path
        Temporary folder.
    subject : str
        Named in errors.

    Returns
    -------
    image : ANTsImage
        Channel on the T1w grid.
    transform : Path
        Rigid transform, ITK; T1w points to channel points.
    """
    from popatlas.registration.ants import AFFINE_SIGMAS, deterministic_ants

    corrected = correct_bias(load_single_volume(channel, subject), n4)
    nib.save(corrected, folder / "channel.nii.gz")
    ants = deterministic_ants()
    fixed, moving = ants.image_read(str(reference)), ants.image_read(str(folder / "channel.nii.gz"))
    wide = ants.iMath(ants.image_read(str(mask)), "MD", 4)
    result = ants.registration(
        fixed,
        moving,
        "Rigid",
        mask=wide,
        mask_all_stages=True,
        outprefix=str(folder / "rigid"),
        aff_metric="mattes",
        aff_random_sampling_rate=0.5,
        aff_iterations=(500, 250, 100, 50),
        aff_shrink_factors=(4, 3, 2, 1),
        aff_smoothing_sigmas=AFFINE_SIGMAS,
    )
    transform = Path(result["fwdtransforms"][0])
    return ants.apply_transforms(fixed, moving, [str(transform)], interpolator="bSpline"), transform
