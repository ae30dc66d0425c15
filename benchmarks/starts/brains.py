"""Brains with labels, real and simulated, and the ways to damage them. Everything is RAS, voxels and millimetres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from scipy.ndimage import uniform_filter1d
from scipy.spatial.transform import Rotation

from benchmarks.dataset import label_box
from popatlas.images import subject as draw
from popatlas.images.deformation import sample
from popatlas.images.io import save_image
from popatlas.images.phantom import head_model
from popatlas.preprocess.bias import correct_bias
from popatlas.preprocess.conform import load_single_volume, resample_isotropic
from popatlas.preprocess.intensity import normalise
from popatlas.preprocess.settings import PreprocessSettings

Vector = Sequence[float] | np.ndarray
# intensities of other contrasts at those of a T1w brain, 0 to 1: CSF, grey and white matter lie near 0.1, 0.55 and 0.9
KNOTS = (0.0, 0.15, 0.35, 0.55, 0.75, 0.9, 1.1, 1.5)
CONTRASTS = {
    "inverted": (1.1, 0.95, 0.75, 0.55, 0.35, 0.2, 0.0, 0.0),
    "T2-like": (1.2, 1.1, 0.85, 0.6, 0.45, 0.35, 0.3, 0.3),
    "PD-like": (0.7, 0.74, 0.88, 1.0, 0.78, 0.67, 0.58, 0.55),
}


@dataclass(frozen=True)
class Brain:
    """A brain without skull: intensities of about 0 to 1, mask and labels on one grid, voxel to RAS mm."""

    name: str
    image: np.ndarray
    mask: np.ndarray
    labels: np.ndarray
    affine: np.ndarray

    def write(self, folder: Path) -> Path:
        """Write `brain.nii.gz` and `mask.nii.gz`, and return the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_image(self.image.astype(np.float32), self.affine, folder / "brain.nii.gz")
        save_image((self.mask > 0).astype(np.uint8), self.affine, folder / "mask.nii.gz")
        return folder

    @property
    def centre(self) -> np.ndarray:
        """Middle of the mask, mm."""
        return np.asarray(self.affine[:3, :3] @ np.argwhere(self.mask > 0).mean(0) + self.affine[:3, 3])

    def moved(self, matrix: np.ndarray) -> Brain:
        """Change the header only: voxels are said to lie where a matrix takes them."""
        return replace(self, affine=matrix @ self.affine)

    def turned(self, degrees: Vector) -> Brain:
        """Turn the header about the middle of the brain, by a rotation vector."""
        return self.moved(turn_about(self.centre, degrees))

    def shifted(self, millimetres: Vector) -> Brain:
        """Move the header."""
        matrix = np.eye(4)
        matrix[:3, 3] = millimetres
        return self.moved(matrix)

    def mirrored(self) -> Brain:
        """Exchange left and right in the header."""
        return self.moved(about(self.centre, np.diag([-1.0, 1.0, 1.0])))

    def cropped(self, axis: int, start: float, stop: float) -> Brain:
        """Keep a part of the extent of the brain along an axis, as a field of view that is too small."""
        where = np.argwhere(self.mask > 0)[:, axis]
        low, high = (int(where.min() + share * (np.ptp(where) + 1)) for share in (start, stop))
        box: list[slice] = [slice(None)] * 3
        box[axis] = slice(low, high)
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, axis] * low
        cut = tuple(box)
        return Brain(self.name, self.image[cut], self.mask[cut], self.labels[cut], affine)

    def recoloured(self, contrast: str) -> Brain:
        """Give the image another contrast, one of `CONTRASTS`."""
        return replace(self, image=np.where(self.mask > 0, np.interp(self.image, KNOTS, CONTRASTS[contrast]), 0))

    def thick(self, axis: int, count: int) -> Brain:
        """Average slices, as thick ones are, and interpolate them back."""
        means = uniform_filter1d(self.image, count, axis=axis, mode="nearest")
        at = np.arange(self.image.shape[axis])
        kept = np.minimum(at // count * count + count // 2, at[-1])
        blocks = uniform_filter1d(np.take(means, kept, axis=axis), count, axis=axis, mode="nearest")
        return replace(self, image=blocks * (self.mask > 0))

    def noisy(self, deviation: float, seed: int) -> Brain:
        """Add noise inside of the mask."""
        noise = np.random.default_rng(seed).normal(0, deviation, self.image.shape)
        return replace(self, image=np.clip(self.image + noise, 0, 1.5) * (self.mask > 0))


def about(point: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Return the matrix (4, 4) of a linear map about a point."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, point - linear @ point
    return matrix


def turn_about(point: np.ndarray, degrees: Vector) -> np.ndarray:
    """Return the matrix (4, 4) of a rotation vector about a point."""
    return about(point, Rotation.from_rotvec(np.asarray(degrees, float), degrees=True).as_matrix())


def simulated(seed: int, number: int, voxel_mm: float, torque: float = 1.0) -> Brain:
    """Draw the brain of a subject of `popatlas simulate`, with the labels of the head model as truth.

    Parameters
    ----------
    seed, number : int
        Of the cohort and of the subject.
    voxel_mm : float
        Voxel size.
    torque : float
        Strength of people's mean asymmetry; 0 for a brain whose left and right cannot be told.
    """
    return boxed(f"simulated-{seed}-{number}", *simulated_head(seed, number, voxel_mm, torque))


def simulated_head(
    seed: int, number: int, voxel_mm: float, torque: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the head of a subject of `popatlas simulate`: image, labels, and affine to RAS mm; see `simulated`."""
    anatomy = draw.draw_anatomy(seed, number, draw.draw_traits(seed, number), torque=torque)
    rng = draw.generator(seed, number, 2, 1)
    scan = draw.draw_scan(rng, draw.draw_pose(rng), voxel_mm)
    points = anatomy.to_mni(scan.anatomy_points())
    labels = sample(head_model().labels, head_model().affine, points, order=0).astype(np.int16)
    return draw.draw_image(rng, points, scan, "T1w"), labels, scan.grid.affine


def boxed(name: str, image: np.ndarray, labels: np.ndarray, affine: np.ndarray, margin: int = 6) -> Brain:
    """Return a brain from a head and its labels: what is labelled, normalised, in a box with some room."""
    box = label_box(labels, margin)
    shifted = affine.copy()
    shifted[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    mask = (labels[box] > 0).astype(np.uint8)
    return Brain(name, normalise(image[box], mask, "robust"), mask, labels[box], shifted)


@lru_cache(maxsize=64)
def labelled(data: Path, scan: str) -> Brain:
    """Return the preprocessed brain of a scan of a BIDS dataset with `derivatives/*/*_dseg`: what has a label."""
    raw = load_single_volume(next(data.glob(f"{scan}/**/anat/{scan}*_T1w.nii.gz")), scan)
    options = PreprocessSettings()
    image = resample_isotropic(correct_bias(raw, options.n4), options.resolution_mm)
    source = nib.load(next(data.glob(f"derivatives/*/{scan}/**/{scan}*_dseg.nii.gz")))
    labels = np.asarray(resample_from_to(source, image, order=0).dataobj).astype(np.int16)
    return boxed(scan, np.asarray(image.dataobj, np.float32), labels, image.affine)


def labelled_scans(data: Path) -> list[str]:
    """Return the scans of a dataset that have labels."""
    return sorted(path.name for path in data.glob("sub-*") if any(data.glob(f"derivatives/*/{path.name}/**/*_dseg.nii.gz")))
