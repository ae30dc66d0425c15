"""Intensities as the rest of the preprocessing expects them: background at 0, nothing below it, no stray voxels.

N4 divides, thresholds are shares of what is bright, and deepbet and ANTs scale by extremes. An image whose background is
not at 0 (z-scores, CT-like numbers, an offset under everything) is shifted, and voxels far beyond all others (a thousand
times the brightest tissue, as spikes and burnt-in marks are) are brought back. Ordinary images are left exactly as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.images.io import PathLike

Values = npt.NDArray[np.float32]

SAMPLE_VOXELS = 1 << 20
CONSTANT_SHARE = 0.05  # of the voxels that have one exact value: padding, or the background of a stripped image
LOW, HIGH = 0.5, 99.5  # percentiles between which intensities are ordinary
OUTLIER_SPANS = 5.0  # distance from these, in distances between them, from which a voxel is stray; fat stays below 2
OFFSET, SLIGHT = 0.2, 0.02  # levels of the background, in shares of what is bright: an offset, and of no account
EVEN = 0.25  # spread of air, in shares of its distance to what is bright; of dark tissue, in a crop without air, it is more
EVEN_IN_PADDING = (
    0.1  # the same where the faces of the image are padding: what is dark may then be tissue of a stripped brain
)
AMID = 0.01  # share of the tissue below a background that lies amid its intensities
FLAT_SHELL = 0.05  # spread of a bright background on the faces of the image, in shares of the ordinary range


@dataclass(frozen=True)
class Levels:
    """Where the intensities of an image lie.

    Attributes
    ----------
    low, high : float
        Ordinary intensities, without padding.
    air, bright : float
        Medians of what is darker and brighter than Otsu's threshold, without padding.
    even : bool
        What is darker is as even as air, and it lies on most of the faces of the box round all that is not padding.
    padding : float or None
        The exact value of at least 5 % of the voxels.
    amid : bool
        The padding lies amid the intensities of the tissue, as in the z-scores of a stripped brain.
    shell : tuple of float
        Quartiles of the faces of the image.
    """

    low: float
    high: float
    air: float
    bright: float
    even: bool
    padding: float | None
    amid: bool
    shell: tuple[float, float]

    @property
    def inverted(self) -> bool:
        """The faces of the image are even, and brighter than nearly all that is not padding."""
        first, third = self.shell
        flat = third - first <= FLAT_SHELL * (self.high - self.low)
        return flat and first >= self.high - FLAT_SHELL * (self.high - self.low)

    def base(self, lowest: float) -> float:
        """Return the level that becomes 0; exactly 0 for an image whose background is there, or that shows none."""
        darkest = min(self.low, 0.0) if lowest < 0 else 0.0
        level = self.air if self.even else self.padding
        if self.amid or level is None or (level > self.low and not self.even):
            return darkest
        bound = (OFFSET if lowest >= 0 else SLIGHT) * (self.bright - level)
        return level if abs(level) > bound else 0.0


def measure_levels(data: Values) -> Levels | None:
    """Measure the intensities of an image on a sample of its voxels; None when nearly all of them have one value."""
    from skimage.filters import threshold_otsu

    step = max(1, round((data.size / SAMPLE_VOXELS) ** (1 / 3)))
    sample = data[::step, ::step, ::step].ravel()
    values, counts = np.unique(sample, return_counts=True)
    most = int(counts.argmax())
    padding = float(values[most]) if counts[most] > CONSTANT_SHARE * sample.size else None
    rest = sample if padding is None else sample[sample != padding]
    if rest.size == 0:
        return None
    low, high = (float(value) for value in np.percentile(rest, [LOW, HIGH]))
    ordinary = rest[(rest >= low) & (rest <= high)]
    if high <= low:
        return None
    threshold = threshold_otsu(ordinary)
    dark, bright = ordinary[ordinary <= threshold], float(np.median(ordinary[ordinary > threshold]))
    air, (before, after) = float(np.median(dark)), np.percentile(dark, [16, 84])
    faces = _faces(data[::step, ::step, ::step], padding)
    outside = np.mean((faces <= threshold) & (faces != padding))
    first, third = np.percentile(_faces(data[::step, ::step, ::step], None), [25, 75])
    return Levels(
        low=low,
        high=high,
        air=air,
        bright=bright,
        even=bool(outside > 0.5 and (after - before) / 2 < EVEN * (bright - air)),
        padding=padding,
        amid=padding is not None and float(np.mean(rest < padding)) > AMID,
        shell=(float(first), float(third)),
    )


def _faces(data: Values, padding: float | None) -> Values:
    """Return the voxels on the faces of the box that holds all that is not padding."""
    if padding is not None:
        inside = data != padding
        where = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        data = data[tuple(slice(found[0], found[-1] + 1) for found in where)]
    return np.concatenate([data.take(edge, axis=axis).ravel() for axis in range(3) for edge in (0, -1)])


def settle(
    image: nib.Nifti1Image, file: PathLike | None = None, subject: str = ""
) -> tuple[nib.Nifti1Image, dict[str, float]]:
    """Bring stray voxels back and the background to 0.

    Parameters
    ----------
    image : nibabel.Nifti1Image
        Image as it was read.
    file, subject
        Named in errors.

    Returns
    -------
    image : nibabel.Nifti1Image
        float32, no value below 0; an ordinary image as it was.
    notes : dict
        What was done: clipped_voxels, background; empty when nothing was.

    Raises
    ------
    InputError
        When the background is brighter than the head.
    """
    data = np.asarray(image.dataobj, dtype=np.float32)
    levels = measure_levels(data)
    notes: dict[str, float] = {}
    if levels is None:
        return nib.Nifti1Image(np.maximum(data, 0), image.affine), notes
    if levels.inverted:
        raise InputError(
            f"the background ({levels.shell[0]:.4g}) is brighter than the head (up to {levels.high:.4g}): inverted contrast",
            file=file,
            subject=subject,
            remedy="subtract the image from its maximum, or exclude the scan",
        )
    reach = OUTLIER_SPANS * (levels.high - levels.low)
    stray = (data > levels.high + reach) | (data < levels.low - reach)
    if levels.padding is not None:
        stray &= data != levels.padding
    if stray.any():
        notes["clipped_voxels"] = int(stray.sum())
        data = np.where(stray, np.clip(data, levels.low, levels.high), data)
    if base := levels.base(float(data.min())):
        notes["background"] = round(base, 6)
        background = data == levels.padding if levels.amid else None
        data = data - np.float32(base)
        if background is not None:  # the darkest tissue stays above the background
            data = np.where(background, 0, np.maximum(data, AMID * (levels.high - levels.low)))
    return nib.Nifti1Image(np.maximum(data, 0), image.affine), notes
