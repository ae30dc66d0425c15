"""Bias field correction: N4 (Tustison et al., 2010) by ANTs, with optional non-local means before it."""

from __future__ import annotations

import nibabel as nib
import numpy as np

from popatlas.images.antspy import AntsImage
from popatlas.preprocess.levels import settle
from popatlas.preprocess.settings import N4Settings


def correct_bias(image: nib.Nifti1Image, options: N4Settings, *, denoise: bool = False) -> nib.Nifti1Image:
    """Return an image with its bias field divided out.

    Parameters
    ----------
    image : nibabel.Nifti1Image
        Head or brain, float32. One with values below 0 is shifted first, see :func:`popatlas.preprocess.levels.settle`.
    options : N4Settings
        The configuration's `preprocess.n4`.
    denoise : bool
        Run ANTs' non-local means first.

    Returns
    -------
    nibabel.Nifti1Image
        Same grid; the mean intensity within the fit's mask is kept.
    """
    if not options.enabled and not denoise:
        return image
    import ants

    data = np.asarray(image.dataobj, dtype=np.float32)
    if data.min() < 0:
        data = np.asarray(settle(image)[0].dataobj)
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    # N4 needs voxel sizes only: orientation and origin do not change a bias field
    work = ants.from_numpy(data, spacing=[float(value) for value in spacing])
    if denoise:
        work = ants.denoise_image(work, noise_model="Rician")
    if options.enabled:
        work = _run_n4(work, options)
    return nib.Nifti1Image(np.asarray(work.numpy(), dtype=np.float32), image.affine)


def _run_n4(work: AntsImage, options: N4Settings) -> AntsImage:
    import ants
    from skimage.filters import threshold_otsu

    values = work.numpy()
    inside = values > (threshold_otsu(values) * 0.5 if options.mask == "otsu" else values.min())
    corrected: AntsImage = ants.n4_bias_field_correction(
        work,
        mask=work.new_image_like(inside.astype(np.float32)),
        shrink_factor=options.shrink_factor,
        convergence={"iters": list(options.iterations), "tol": options.tolerance},
        spline_param=options.spline_mm,
    )
    scale = float(values[inside].mean()) / max(float(corrected.numpy()[inside].mean()), 1e-12)
    return corrected * scale
