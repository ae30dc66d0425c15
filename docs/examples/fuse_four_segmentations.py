"""Fuse four segmentations of a brain: which voxels are disputed, what each of them weighs, and what each method makes of it.

Three raters are careful, the fourth one is not. A majority vote gives each the same say; STAPLE estimates how good each is
from how often it agrees with the others.
"""

import numpy as np
from scipy.ndimage import map_coordinates

from popatlas.fusion.fuse import fuse
from popatlas.images.deformation import Grid, smooth_velocity
from popatlas.images.miniature import draw_miniature
from popatlas.measures.overlap import overlap

brain = draw_miniature(1)
grid = Grid(brain.labels.shape, brain.affine)


def rated(seed: int, error_mm: float) -> np.ndarray:
    """Return what a rater drew: borders are off by `error_mm` on average, smoothly."""
    shift = smooth_velocity(np.random.default_rng(seed), grid, 10.0, error_mm) / grid.spacing[:, None, None, None]
    return map_coordinates(brain.labels, np.indices(grid.shape) + shift, order=0)


raters = np.stack([rated(1, 2.0), rated(2, 2.0), rated(3, 2.0), rated(4, 8.0)])
for number, labels in enumerate(raters, start=1):
    print(f"rater {number}: Dice {overlap(brain.labels, labels).dice.mean():.3f}")

for method in ("majority", "staple"):
    found = fuse(raters, method=method, spacing=tuple(grid.spacing))
    weights = ", ".join(f"{share:.2f}" for share in found.atlas_weights)
    print(f"{method}: atlas weights {weights}, {found.disputed.mean():.0%} of the voxels disputed")
    print(f"{method}: Dice {overlap(brain.labels, found.dseg).dice.mean():.3f}")
# staple: Dice 0.979
