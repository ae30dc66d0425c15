"""deepbet (Fisch et al., 2024), given the head it was made for: upright, in a usual field of view.

deepbet stretches the whole field of view to a fixed number of voxels before it looks for the brain. In a field of 350 mm a
brain is then as small as nothing that it was trained with, and the mask grows by up to a fifth or takes the whole head; the
same happens to heads that lie turned. So a longer field is cut to a window round the head first, and where the answer is
no upright brain, the head is searched in all rotations (`pose`), turned, and looked at again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
import numpy.typing as npt

from popatlas.images.arrays import Kind
from popatlas.preprocess.head import (
    ABOVE_MM,
    HEAD_MM,
    USUAL_FIELD_MM,
    Values,
    Window,
    coarse_head,
    head_window,
    window_below,
)
from popatlas.preprocess.pose import Matrix, Pose, find_poses
from popatlas.preprocess.shape import Shape, measure_shape

Mask = npt.NDArray[np.bool_]

UPRIGHT = 35.0  # degrees that a head may be turned: the network answers alike up to 30 to 45
BRAIN_TO_TOP_MM = 85.0  # from the middle of a brain's box to the top of the head
TURNED_MM = 256.0  # side of the cube into which a head is turned by other angles than quarters


@dataclass(frozen=True)
class Finding:
    """A mask on the grid of the image, its shape seen upright, and a note on how it was found."""

    mask: Mask
    shape: Shape
    note: str = ""


class DeepBet:
    """The network, loaded once.

    Parameters
    ----------
    threshold : float
        Probability above which a voxel is brain.
    gpu : bool
        Use CUDA; the caller checks that it is there.
    """

    def __init__(self, threshold: float, *, gpu: bool) -> None:
        from deepbet.bet import BrainExtraction

        self.network, self.threshold = BrainExtraction(no_gpu=not gpu), threshold

    def find(self, values: Values, spacing: npt.NDArray[np.float64]) -> Finding | None:
        """Find the brain in a head that lies in any way, in any field of view.

        Parameters
        ----------
        values : (x, y, z) ndarray
            Head; where it lies as the axes say, they are close to RAS.
        spacing : (3,) ndarray
            Voxel size, mm.

        Returns
        -------
        Finding or None
            None when nothing was found.
        """
        first = self._within(values, spacing, head_window(values, spacing))
        if first is not None and first.shape.is_brain and first.shape.is_upright:
            return first
        coarse = coarse_head(values, spacing)
        for pose in find_poses(coarse) if coarse is not None else ():
            for turned in self._posed(values, spacing, pose):
                if turned is not None and turned.shape.is_brain and turned.shape.is_upright:
                    keeps = first is not None and first.shape.is_brain and pose.angle <= UPRIGHT
                    return first if keeps else turned
        return first

    def _within(self, values: Values, spacing: npt.NDArray[np.float64], window: Window, note: str = "") -> Finding | None:
        """Look into a window of an upright head."""
        part = np.ascontiguousarray(values[window])
        found = self._look(part)
        if found is None:
            return None
        mask = np.zeros(values.shape, dtype=bool)
        mask[window] = found
        return Finding(mask, measure_shape(part, found, spacing), note)

    def _look(self, values: Values) -> Mask | None:
        try:
            found = self.network.run(nib.Nifti1Image(values, np.eye(4)), threshold=self.threshold)[1]
        except (AssertionError, ValueError):  # deepbet: no foreground
            return None
        return np.asarray(found.dataobj) > 0

    def _posed(self, values: Values, spacing: npt.NDArray[np.float64], pose: Pose) -> Iterator[Finding | None]:
        """Look at the head turned upright: by quarter turns, which keep its voxels, where these are enough; then freely."""
        quarter, rest = pose.quarter_turns()
        seen = np.array_equal(quarter, np.eye(3)) and (np.array(values.shape) * spacing <= USUAL_FIELD_MM).all()
        if rest <= UPRIGHT and not seen:
            yield self._quartered(values, spacing, pose, quarter)
        yield self._resampled(values, spacing, pose)

    def _quartered(self, values: Values, spacing: npt.NDArray[np.float64], pose: Pose, quarter: Matrix) -> Finding | None:
        """Look at the head turned by quarters about its axes, and turn the mask back."""
        axes, signs = np.abs(quarter).argmax(0), quarter.sum(0)
        turned, sizes = turned_by(values, axes, signs), spacing[axes]
        lengths = np.array(values.shape) * spacing
        centre = np.where(signs > 0, pose.centre_mm[axes], (lengths - pose.centre_mm)[axes])
        window = window_below(turned.shape, sizes, centre, float(centre[2]) + BRAIN_TO_TOP_MM)
        found = self._within(turned, sizes, window, _note(pose))
        return None if found is None else replace(found, mask=turned_back(found.mask, axes, signs))

    def _resampled(self, values: Values, spacing: npt.NDArray[np.float64], pose: Pose) -> Finding | None:
        """Look at the head in a cube whose axes are those of the person; a rotation that is no quarter turn needs that."""
        from scipy.ndimage import affine_transform

        size = float(spacing.min())
        count = round(TURNED_MM / size)
        to_voxel = pose.rotation * size / spacing[:, None]
        above = pose.rotation @ np.array([0.0, 0.0, BRAIN_TO_TOP_MM + ABOVE_MM - HEAD_MM[2] / 2])
        offset = (pose.centre_mm + above) / spacing - 0.5 - to_voxel @ np.full(3, (count - 1) / 2)
        empty = float(np.percentile(values, 0.5))
        cube = np.asarray(affine_transform(values, to_voxel, offset, (count,) * 3, order=1, cval=empty), dtype=np.float32)
        found = self._look(cube)
        if found is None:
            return None
        shape = measure_shape(cube, found, np.full(3, size))
        back = np.linalg.inv(to_voxel)
        mask = affine_transform(found.astype(np.float32), back, -back @ offset, values.shape, order=1) > 0.5
        return Finding(mask, shape, _note(pose))


def _note(pose: Pose) -> str:
    return f"the head is turned by {pose.angle:.0f} degrees against its header" if pose.angle > UPRIGHT else ""


def turned_by(values: npt.NDArray[Kind], axes: npt.NDArray[np.int64], signs: Matrix) -> npt.NDArray[Kind]:
    """Return an image whose axes are those of the person."""
    flips = tuple(slice(None, None, 1 if sign > 0 else -1) for sign in signs)
    return np.ascontiguousarray(np.transpose(values, axes)[flips])


def turned_back(values: npt.NDArray[Kind], axes: npt.NDArray[np.int64], signs: Matrix) -> npt.NDArray[Kind]:
    """Return an image turned by `turned_by` as it was."""
    flips = tuple(slice(None, None, 1 if sign > 0 else -1) for sign in signs)
    return np.ascontiguousarray(np.transpose(values[flips], np.argsort(axes)))
