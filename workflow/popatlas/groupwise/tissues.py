"""Tissue probabilities of a template from the brains that were registered to it, without an atlas from elsewhere.

Each brain is divided into its tissues by a mixture of Gaussians that knows nothing of places; the mean of these posteriors
is the first map. With it as prior all brains are divided again, so that noise of one brain no longer counts. Such maps are
the priors of Ashburner and Friston (NeuroImage 2005;26:839-851, doi:10.1016/j.neuroimage.2005.02.018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.groupwise.mixture import segment
from popatlas.groupwise.settings import TISSUES, MixtureSettings
from popatlas.images.arrays import FloatArray

ENOUGH = 4  # brains from which their mean is a better prior than none
MUCH = 0.3  # share of CSF that is more than the ventricles and the sulci of a brain have
Brain = tuple[Tensor, Tensor]  # image and mask, both (*shape)


def tissue_maps(
    brains: Sequence[Callable[[], Brain]],
    plan: MixtureSettings | None = None,
    progress: Callable[[str], None] | None = None,
) -> Tensor:
    """Return the probability of each of `TISSUES` on the grid of a template.

    Parameters
    ----------
    brains : sequence of callable
        Return a T1w brain on that grid and its mask, both (*shape); one is in memory at a time.
    plan : MixtureSettings, optional
        Of the mixtures; one Gaussian for each tissue, and amounts, when left out.
    progress : callable, optional
        Called with a line of text for each pass.

    Returns
    -------
    (3, *shape) Tensor
        Mean over the brains that cover a voxel; 0 where none does.

    Raises
    ------
    InputError
        Without brains, and from `popatlas.groupwise.mixture.segment` when none of them can be divided.
    """
    if not brains:
        raise InputError("tissue maps of no brain", remedy="give the brains that were registered to the template")
    chosen = plan or MixtureSettings(components=1, amounts=True)
    found: Tensor | None = None
    for turn in range(2 if len(brains) >= ENOUGH else 1):
        found = _mean_posterior(brains, found, chosen, progress)
        if progress is not None:
            shares = found.flatten(1).double().sum(1)
            told = ", ".join(f"{float(share / shares.sum()):.3f}" for share in shares)
            progress(f"pass {turn + 1} over {len(brains)} brains: shares of the tissues {told}")
    assert found is not None
    return found


def _mean_posterior(
    brains: Sequence[Callable[[], Brain]],
    prior: Tensor | None,
    plan: MixtureSettings,
    progress: Callable[[str], None] | None,
) -> Tensor:
    """Return the mean over the brains that can be divided; the error of the last one where none can."""
    total = seen = torch.zeros(())
    fault: InputError | None = None
    for number, read in enumerate(brains):
        image, mask = read()
        inside = mask > 0
        given = torch.full((len(TISSUES), *image.shape), 1 / len(TISSUES)) if prior is None else prior
        try:
            total = total + segment(image[None], given, inside, plan).posterior
        except InputError as error:
            fault = error
            if progress is not None:
                progress(f"brain {number + 1} is left out of the maps: {error.message}")
            continue
        seen = seen + inside
    if fault is not None and not seen.ndim:
        raise fault
    return total / seen.clamp(min=1)


def not_brighter(image: FloatArray, tissues: FloatArray) -> str:
    """Return in words which tissue (3, *shape) of an image (*shape) is not brighter than the one before, as in a T1w.

    Empty when each is.
    """
    means = [float((one * image).sum(dtype=np.float64) / max(one.sum(dtype=np.float64), 1e-9)) for one in tissues]
    steps = zip(pairwise(TISSUES), pairwise(means), strict=True)
    return ", ".join(f"{bright} is not brighter than {dark}" for (dark, bright), (low, high) in steps if high <= low)


def not_deeper(tissues: FloatArray, spacing: Sequence[float]) -> str:
    """Return in words which tissue lies as deep in the brain as white matter; empty when none does that should not.

    Parameters
    ----------
    tissues : (3, *shape) ndarray
        Probability of each tissue, 0 outside of the brain.
    spacing : sequence of float
        Voxel size, mm.
    """
    from scipy.ndimage import distance_transform_edt

    depth = np.asarray(distance_transform_edt(tissues.sum(0) > 0, sampling=spacing))
    amounts = [max(float(one.sum(dtype=np.float64)), 1e-9) for one in tissues]
    csf, gm, wm = (float((one * depth).sum(dtype=np.float64)) / amount for one, amount in zip(tissues, amounts, strict=True))
    if wm <= gm:
        return f"WM lies no deeper than GM ({wm:.1f} and {gm:.1f} mm)"
    if wm <= csf and amounts[0] > MUCH * sum(amounts):  # ventricles lie deep, but are not that much of a brain
        return f"WM lies no deeper than CSF ({wm:.1f} and {csf:.1f} mm)"
    return ""
