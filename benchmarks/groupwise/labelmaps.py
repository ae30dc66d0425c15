"""Anatomies of real people: label maps in the numbers of FreeSurfer, merged to background, CSF, grey and white matter.

Background is whatever is no brain: skull, skin, and fluid more than 5 mm away from it. The maps are hard; the means of their
blocks at 2 mm are shares, as those of the wheel.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy.ndimage import binary_dilation
from torch import Tensor

from popatlas.images.io import load_image
from popatlas.transforms.fieldops import block_mean

CSF = (4, 5, 14, 15, 24, 43, 44, 72)
GREY = (3, 8, 10, 11, 12, 13, 17, 18, 26, 42, 47, 49, 50, 51, 52, 53, 54, 58)
WHITE = (2, 7, 16, 25, 28, 30, 41, 46, 57, 60, 62, 85, 136, 137, 163, 164)  # vessels and small parts within it, too
THALAMUS = (10, 49)
RIM_MM = 5


def label_maps(data: Path | None) -> list[Path]:
    """Return the label maps that lie in a folder, none without one."""
    return [] if data is None else sorted(data.glob("*seg*.nii.gz"))


def merged(file: Path, ndim: int, spacing: int, margin: int) -> Tensor:
    """Return the shares of the tissues (1, 4, *shape) in a head, or in its axial slice through the middle of the thalami.

    Parameters
    ----------
    file : Path
        Label map at 1 mm.
    ndim : int
        2 for the slice, 3 for the head.
    spacing : int
        Voxels that are averaged along each axis: millimetres of a voxel.
    margin : int
        Voxels of background round the brain.
    """
    labels = np.asarray(nib.as_closest_canonical(load_image(file)).dataobj).astype(int)
    brain = np.isin(labels, GREY + WHITE)
    near = binary_dilation(brain, iterations=RIM_MM)
    voxels = np.argwhere(near)
    box = tuple(slice(low, high + 1) for low, high in zip(voxels.min(0), voxels.max(0), strict=True))
    inside = labels[box] * near[box]
    if ndim == 2:
        inside = inside[..., round(float(np.argwhere(np.isin(inside, THALAMUS))[:, 2].mean()))]
    maps = np.stack([np.isin(inside, numbers) for numbers in (CSF, GREY, WHITE)]).astype(np.float32)
    tissues = block_mean(torch.from_numpy(maps)[None], [spacing] * ndim)
    tissues = torch.nn.functional.pad(tissues, [margin] * (2 * ndim))
    return torch.cat([1 - tissues.sum(1, keepdim=True), tissues], 1)
