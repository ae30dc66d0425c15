"""Extra channels (T2w, FLAIR, ...): rigid alignment to the T1w of the session, one interpolation.

A channel is aligned alone, by its mutual information with the T1w, or together with all other channels of its session: as a
group whose common anatomy they share (X-CoReg, `popatlas.groupwise.xcoreg`), so that a contrast that shows little of the T1w
is held by those that show more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

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
    *,
    group: bool = False,
    others: Sequence[Path | str] = (),
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
    group : bool
        Align it as one of a group: T1w, channel and `others`.
    others : sequence of path
        Raw images of the other channels of the session, where a group is aligned.

    Returns
    -------
    image : AntsImage
        Channel on the T1w grid.
    transform : Path
        Rigid transform, ITK; T1w points to channel points.
    """
    ants = deterministic_ants()
    raw = (channel, *others) if group else (channel,)
    moved = [_corrected(path, n4, folder / f"channel-{number}.nii.gz", subject) for number, path in enumerate(raw)]
    fixed, moving = ants.image_read(str(reference)), ants.image_read(str(moved[0]))
    inside = read_mask_on(mask, reference, subject, names=("T1w", "its brain mask")).data
    wide = ants.iMath(fixed.new_image_like(inside.astype(np.float32)), "MD", 4)
    if group:
        starts = [_better_start(fixed, ants.image_read(str(path)), wide, folder / path.name.split(".")[0]) for path in moved]
        ants.image_write(wide, str(folder / "wide.nii.gz"))
        transform = _in_group([Path(reference), *moved], folder / "wide.nii.gz", starts, folder)
    else:
        transform = _alone(fixed, moving, wide, folder)
    resampled: AntsImage = ants.apply_transforms(fixed, moving, [str(transform)], interpolator="bSpline")
    # a B-spline overshoots at edges: no value may leave the range of the image
    return resampled.new_image_like(np.clip(resampled.numpy(), moving.min(), moving.max())), transform


def _corrected(path: Path | str, n4: N4Settings, target: Path, subject: str) -> Path:
    nib.save(correct_bias(settle(load_single_volume(path, subject), path, subject)[0], n4), target)
    return target


def _alone(fixed: AntsImage, moving: AntsImage, wide: AntsImage, folder: Path) -> Path:
    """Return the rigid transform of one channel, by its mutual information with the T1w."""
    from popatlas.registration.engines.ants.core import AFFINE_SIGMAS

    result = deterministic_ants().registration(
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
    return Path(result["fwdtransforms"][0])


def _in_group(images: Sequence[Path], wide: Path, starts: Sequence[str], folder: Path) -> Path:
    """Return the rigid transform from the first image, the T1w, to the second, after all were registered as one group.

    Parameters
    ----------
    images : sequence of Path
        The T1w, then the channels.
    wide : Path
        Where the T1w may be trusted.
    starts : sequence of str
        Affines from the T1w to each channel, ITK.
    folder : Path
        Temporary folder.
    """
    from popatlas.groupwise.xcoreg.core import coregister
    from popatlas.groupwise.xcoreg.files import millimetres
    from popatlas.groupwise.xcoreg.settings import XCoRegSettings
    from popatlas.images.grid import Grid
    from popatlas.images.scan import read_volume
    from popatlas.registration.engines.io import between_voxels
    from popatlas.transforms.itk import write_affine

    grids = [Grid.from_file(path) for path in images]
    common = grids[0]
    still = torch.eye(common.ndim, common.ndim + 1)[None]
    matrices = [still, *(between_voxels(Path(start), common, grid) for start, grid in zip(starts, grids[1:], strict=True))]
    masks = [read_volume(wide), *[None] * len(starts)]
    volumes = [read_volume(path) for path in images]
    found = coregister(volumes, XCoRegSettings(motion="rigid"), shape=common.shape, matrices=matrices, masks=masks)
    to_reference, to_channel = (millimetres(found.matrices[number], common, grids[number]) for number in (0, 1))
    transform = folder / "group.mat"
    write_affine(transform, to_channel @ torch.linalg.inv(to_reference))
    return transform


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
        folder.mkdir(exist_ok=True)
        path = str(folder / f"{name}.mat")
        ants.write_transform(transform, path)
        moved = ants.apply_transforms(fixed, moving, [path])
        kind = "MattesMutualInformation"
        starts.append((ants.image_similarity(fixed, moved, kind, fixed_mask=mask, moving_mask=mask), path))
    return str(min(starts)[1])
