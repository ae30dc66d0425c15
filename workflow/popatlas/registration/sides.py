"""Which side is left? A brain's own asymmetry, compared with that of its mirror image.

Brains are nearly symmetric, but not quite: the right frontal and the left occipital lobe reach further, the left Sylvian
fissure is longer and flatter (Toga and Thompson, Nature Reviews Neuroscience 2003;4:37-48, doi:10.1038/nrn1009; Kong et al.,
PNAS 2018;115:E5154-E5163, doi:10.1073/pnas.1718418115). A brain is registered coarsely to a mirror-symmetric one; what is
left of displacement and log-Jacobian after their mirror image is taken away changes its sign, and nothing else, when the
brain is mirrored. A linear discriminant weighs it. Only shape is looked at, no intensity, so that contrast does not matter.

The symmetric brain (MNI152, 4 mm) and the weights are in `sides.npz`, which `benchmarks.starts.learn` made from 32 adults.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from popatlas.images.filters import gaussian_smooth
from popatlas.images.grid import Grid
from popatlas.images.pyramid import coarsen
from popatlas.images.scan import Scan
from popatlas.registration.engines.affine import AffineSettings
from popatlas.registration.engines.affine import register as register_affine
from popatlas.registration.engines.instance.core import register
from popatlas.registration.engines.instance.settings import InstanceSettings
from popatlas.registration.initialisation import mass_moments, rigid
from popatlas.registration.pose import PoseJudge, Structure, coverage
from popatlas.similarity.mi import MattesMI
from popatlas.transforms.affine import Matrix
from popatlas.transforms.fieldops import ops_for
from popatlas.transforms.linear import voxel_matrix

Array = npt.NDArray[np.float32]

FILE = Path(__file__).with_name("sides.npz")
SPACING = 4.0  # mm, of the symmetric brain and of the copies that are registered to it
LINEAR = AffineSettings(similarity=MattesMI(), sides=(24,), samples=6000, tolerance=0.03)  # coarse: only an odd part counts
SCHEDULE = InstanceSettings(shrink=(2, 1), iterations=(25, 8), field_shrink=(1, 1), fluid=2.0, coarse_fluid=2.0, bulk=0.0)
SMOOTH = 0.7  # voxels (standard deviation)
SIMILAR = 6.0  # distinctness of the pose on the symmetric brain, below which there is no whole brain to tell sides of
WHOLE = 0.9  # share of the symmetric brain that the image must hold
SMALLEST = 1e-2  # Jacobian determinant
# lengths of the two parts of the features, and their ratio, that people's brains have, typical ones being 1: what lies
# outside (a phantom, a brain that a tumour pushes aside) is no evidence
USUAL, BALANCED = (0.5, 1.8), 1.8


@dataclass(frozen=True)
class Reference:
    """The mirror-symmetric brain and the discriminant.

    Attributes
    ----------
    scan : Scan
        Brain and mask; the plane of symmetry is in the middle of the first axis.
    weights : (F,) ndarray
        Of the features; their unit makes a typical score 1.
    scales : pair of float
        Typical length of the displacement's and of the log-Jacobian's part of the features.
    """

    scan: Scan
    weights: Array
    scales: tuple[float, float]


@lru_cache(maxsize=1)
def reference() -> Reference:
    """Return what `sides.npz` holds."""
    with np.load(FILE, allow_pickle=False) as arrays:
        scan = symmetric_scan(arrays["brain"], arrays["affine"])
        displacement, jacobian = (float(value) for value in arrays["scales"])
        return Reference(scan, arrays["weights"].astype(np.float32) * arrays["unit"], (displacement, jacobian))


def symmetric_scan(brain: npt.NDArray[np.uint8], affine: npt.NDArray[np.float64]) -> Scan:
    """Return the symmetric brain, 0 to 255 with an empty background, as a scan; the affine leads to LPS mm."""
    image = torch.from_numpy(brain.astype(np.float32) / 255)[None, None]
    return Scan(image, Grid(brain.shape, affine), (image > 0).float())


def laterality(moving: Scan, fixed: Scan, matrix: Matrix) -> float | None:
    """Return how strongly a brain's asymmetry is that of people.

    Parameters
    ----------
    moving : Scan
        Brain with mask, 3D.
    fixed, matrix : Scan, (4, 4) ndarray
        A brain in a usual pose and the affine from it to `moving`, LPS mm: they tell how `moving` lies.

    Returns
    -------
    float or None
        About 1 for people, the same below 0 for their mirror images, near 0 when both fit as well. None when there is no
        whole brain to be seen, or its asymmetry is not of a usual size.
    """
    known = reference()
    found = features(known.scan, moving, pose_from(known.scan, fixed, matrix))
    if found is None:
        return None
    parts = [part / scale for part, scale in zip(found, known.scales, strict=True)]
    small, large = sorted(float(np.linalg.norm(part)) for part in parts)
    if small < USUAL[0] or large > min(USUAL[1], BALANCED * small):
        return None
    joined = np.concatenate(parts)
    return float(known.weights @ joined / np.linalg.norm(joined))


def pose_from(symmetric: Scan, fixed: Scan, matrix: Matrix) -> Matrix:
    """Return the start from the symmetric brain to the moving one by way of the fixed one, which lies as people do."""
    linear = matrix[:-1, :-1]
    left, _, right = np.linalg.svd(linear)
    centre, where = mass_moments(symmetric)[0], mass_moments(fixed)[0]
    return rigid(left @ right, centre, linear @ where + matrix[:-1, -1])


def features(symmetric: Scan, moving: Scan, start: Matrix) -> tuple[Array, Array] | None:
    """Return the antisymmetric parts of displacement and log-Jacobian in one half of the symmetric brain.

    Parameters
    ----------
    symmetric : Scan
        From `symmetric_scan`.
    moving : Scan
        Brain with mask.
    start : (4, 4) ndarray
        Rigid, from the symmetric to the moving brain, LPS mm.

    Returns
    -------
    tuple of ndarray or None
        Displacement, voxels of the symmetric brain, all three components, and log-Jacobian. None when the moving image does
        not show a whole brain.
    """
    small = coarsen(moving, SPACING, SPACING)
    if small.mask is None or min(small.grid.shape) < 2 * SCHEDULE.shrink[0]:
        return None
    plain = replace(symmetric, mask=None), replace(small, mask=None)
    matrix = register_affine(*plain, kinds=("rigid", "affine"), initial=start, settings=LINEAR).matrix
    judge = PoseJudge(Structure(symmetric, SPACING), Structure(small, SPACING))
    if coverage(symmetric, small, matrix) < WHOLE or not judge.judge(matrix).distinct >= SIMILAR:
        return None
    to_voxel = voxel_matrix(torch.as_tensor(matrix)[None], symmetric.grid, small.grid)[:, :3].float()
    forward = register(symmetric.image, small.image, SCHEDULE, matrix=to_voxel).forward
    determinant = ops_for([forward], 1).jacobian(forward).unsqueeze(1)
    mask = symmetric.mask
    assert mask is not None
    return antisymmetric(forward, mask, vector=True), antisymmetric(determinant.clamp(min=SMALLEST).log(), mask)


def antisymmetric(values: Tensor, mask: Tensor, *, vector: bool = False) -> Array:
    """Return half of what a field (1, C, *shape) differs from its mirror image by, in one half of a mask, smoothed."""
    mirrored = values.flip(2)
    if vector:
        mirrored = torch.cat([-mirrored[:, :1], mirrored[:, 1:]], dim=1)
    odd = gaussian_smooth((values - mirrored) / 2 * mask, SMOOTH)
    half = mask[0, 0] > 0
    half[len(half) // 2 :] = False
    return np.asarray(odd[0, :, half].flatten().numpy(), dtype=np.float32)
