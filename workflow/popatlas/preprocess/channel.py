"""Extra channels (T2w, FLAIR, ...): rigid alignment to the T1w of the session, one interpolation."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from popatlas.images.antspy import AntsImage, deterministic_ants
from popatlas.images.place import read_mask_on
from popatlas.preprocess.bias import correct_bias
from popatlas.preprocess.conform import load_single_volume
from popatlas.preprocess.levels import settle
from popatlas.preprocess.settings import N4Settings


def align_channel(
    channel: Path | str,
    reference: Path | str,
    mask: Path | str,
    n4: N4Settings,
    folder: Path,
    subject: str = "",
) -> tuple[AntsImage, Path]:
    """Align a channel to the preprocessed T1w and resample it once onto its grid.

    Parameters
    ----------
    channel : path
        Raw image.
    reference, mask : path
        Preprocessed T1w and its brain mask.
    n4 : N4Settings
        The configuration's `preprocess.n4`.
    folder : Path
        Temporary folder.
    subject : str
        Named in errors.

    Returns
    -------
    image : AntsImage
        Channel on the T1w grid.
    transform : Path
        Rigid transform, ITK; T1w points to channel points.
    """
    from popatlas.registration.engines.ants.core import AFFINE_SIGMAS

    corrected = correct_bias(settle(load_single_volume(channel, subject), channel, subject)[0], n4)
    nib.save(corrected, folder / "channel.nii.gz")
    ants = deterministic_ants()
    fixed, moving = ants.image_read(str(reference)), ants.image_read(str(folder / "channel.nii.gz"))
    inside = read_mask_on(mask, reference, subject, names=("T1w", "its brain mask")).data
    wide = ants.iMath(fixed.new_image_like(inside.astype(np.float32)), "MD", 4)
    result = ants.registration(
        fixed,
        moving,
        "Rigid",
        initial_transform=_better_start(fixed, moving, wide, folder),
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
    resampled: AntsImage = ants.apply_transforms(fixed, moving, [str(transform)], interpolator="bSpline")
    # a B-spline overshoots at edges: no value may leave the range of the image
    return resampled.new_image_like(np.clip(resampled.numpy(), moving.min(), moving.max())), transform


def _better_start(fixed: AntsImage, moving: AntsImage, mask: AntsImage, folder: Path) -> str:
    """Return the better of two starts by mutual information: the scanner's coordinates, and centres of mass on each other.

    Images of one session mostly agree in scanner coordinates, while their fields of view, and so their centres of mass,
    may not; images from different scanners or with a lost header agree only in the latter.
    """
    ants = deterministic_ants()
    shift = np.asarray(ants.get_center_of_mass(moving)) - np.asarray(ants.get_center_of_mass(fixed))
    starts = []
    for name, translation in (("scanner", np.zeros(3)), ("centres", shift)):
        transform = ants.new_ants_transform(dimension=3, transform_type="Euler3DTransform")
        transform.set_fixed_parameters(np.append(ants.get_center_of_mass(fixed), 0.0))
        transform.set_parameters(np.concatenate([np.zeros(3), translation]))
        path = str(folder / f"{name}.mat")
        ants.write_transform(transform, path)
        moved = ants.apply_transforms(fixed, moving, [path])
        kind = "MattesMutualInformation"
        starts.append((ants.image_similarity(fixed, moved, kind, fixed_mask=mask, moving_mask=mask), path))
    return str(min(starts)[1])
