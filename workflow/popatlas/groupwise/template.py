"""Unbiased template: average of the registered images, moved to the mean shape of the group.

Joshi et al. (2004) and Avants et al. (2010): at each iteration every member is registered to the current template, the
warped images are averaged, and the average is deformed by the inverse of the mean of the transforms, so that the mean
deformation from template to members vanishes. Pose is not touched: it comes from the rigid alignment to the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.images.arrays import BoolArray, RealArray
from popatlas.measures.correlation import correlation
from popatlas.transforms.affine import Matrix, mean_affine, read_affine, stretch_about
from popatlas.transforms.displacement import field_array, field_image, invert_field, mean_field

if TYPE_CHECKING:
    import SimpleITK as sitk

# Room round the brain, so that members larger than the reference fit on the template grid
MARGIN_MM = 16.0


@dataclass(frozen=True)
class Iteration:
    """What one template iteration did."""

    iteration: int
    members: int
    mean_update_mm: float
    max_update_mm: float
    mean_similarity: float
    min_similarity: float
    template_change: float
    sharpness: float

    def row(self) -> dict[str, float | int]:
        """Return the convergence table's row."""
        return dict(self.__dict__)


def read_image(path: Path | str) -> sitk.Image:
    """Read a scalar image as float32."""
    import SimpleITK as sitk

    try:
        return sitk.ReadImage(str(path), sitk.sitkFloat32)
    except RuntimeError as error:
        raise InputError(f"cannot read image: {error}", file=path, remedy="delete the file and run again") from error


def as_array(image: sitk.Image) -> RealArray:
    """Return the voxels of an image, shape (z, y, x)."""
    import SimpleITK as sitk

    return np.asarray(sitk.GetArrayFromImage(image))


def reference_brain(resolution_mm: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Return the MNI152 brain of the nilearn wheel on an isotropic grid with room round it.

    It gives pose and field of view only; its shape does not enter the template.

    Parameters
    ----------
    resolution_mm : float
        Voxel size, millimetres.

    Returns
    -------
    data : (x, y, z) ndarray
        Intensities 0 to 1.
    affine : (4, 4) ndarray
        Voxel to RAS millimetres.
    """
    from nibabel.processing import resample_from_to
    from nilearn.datasets import load_mni152_template

    source = load_mni152_template(resolution=1)
    voxels = np.asarray(source.dataobj, dtype=np.float32)
    inside = np.argwhere(voxels > 0)
    corners = np.array([inside.min(0), inside.max(0)]) @ source.affine[:3, :3].T + source.affine[:3, 3]
    low, high = corners.min(0) - MARGIN_MM, corners.max(0) + MARGIN_MM
    shape = np.ceil((high - low) / resolution_mm).astype(int) + 1
    affine = np.diag([resolution_mm, resolution_mm, resolution_mm, 1.0])
    affine[:3, 3] = low
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(voxels, 0.42 * max(resolution_mm - 1.0, 0.0))
    image = type(source)(blurred, source.affine)
    resampled = resample_from_to(image, (tuple(int(n) for n in shape), affine), order=1)
    data = np.asarray(resampled.dataobj, dtype=np.float32)
    return np.clip(data / np.percentile(data[data > 0], 99), 0, None), affine


def mean_image(paths: Sequence[Path | str]) -> sitk.Image:
    """Return the voxelwise mean of images on one grid; images are read one at a time."""
    total = read_image(paths[0])
    for path in paths[1:]:
        total = total + read_image(path)
    return total / float(len(paths))


def sharpen(image: sitk.Image, weight: float) -> sitk.Image:
    """Return the image plus `weight` times its difference from a blurred copy (sigma one voxel)."""
    import SimpleITK as sitk

    if weight == 0:
        return image
    blurred = sitk.SmoothingRecursiveGaussian(image, image.GetSpacing()[0])
    return sitk.Clamp(image + weight * (image - blurred), lowerBound=0.0)


def sharpness(image: sitk.Image, mask: BoolArray) -> float:
    """Return the mean gradient magnitude inside a mask over the mean intensity, per millimetre."""
    import SimpleITK as sitk

    gradient = as_array(sitk.GradientMagnitude(image))
    level = float(as_array(image)[mask].mean())
    return float(gradient[mask].mean()) / level if level > 0 else 0.0


def mask_centre(mask: sitk.Image) -> npt.NDArray[np.float64]:
    """Return the centroid of a mask, LPS millimetres."""
    inside = np.argwhere(as_array(mask) > 0)
    if not len(inside):
        raise InputError("the template's mask is empty", remedy="look at the brain masks of the members")
    return np.asarray(mask.TransformContinuousIndexToPhysicalPoint(inside.mean(0)[::-1].tolist()))


def mean_shape_transform(
    warps: Sequence[Path | str], affines: Sequence[Matrix], centre: npt.NDArray[np.float64], step: float
) -> tuple[sitk.Transform, npt.NDArray[np.float64]]:
    """Return the resampling transform that moves a template to the mean shape of its members.

    Member i is reached from template point `x` by `A_i (x + u_i(x))`. The mean shape is `M(x) = S (x + mean u(x))` with
    `S` the rotation-free part of the log-Euclidean mean of the affines, about `centre`. The template is resampled
    through the inverse of `M`.

    Parameters
    ----------
    warps : sequence of path
        SyN fields on the template grid, LPS millimetres.
    affines : sequence of (4, 4) ndarray
        Affine parts.
    centre : (3,) ndarray
        Centre of the stretch, LPS millimetres.
    step : float
        Share of the mean deformation that is removed, 0 to 1.

    Returns
    -------
    transform : SimpleITK.Transform
        New template point to old template point.
    update : (z, y, x) ndarray
        Length of the mean deformation `M(x) - x`, millimetres, before the step is applied.
    """
    import SimpleITK as sitk

    mean = mean_field(warps)
    stretch = stretch_about(mean_affine(affines), centre)
    update = np.linalg.norm(_field_of(mean, stretch), axis=-1)
    back = sitk.DisplacementFieldTransform(invert_field(field_image(step * field_array(mean), mean)))
    inverse = np.linalg.inv(stretch_about(mean_affine(affines), centre, power=step))
    linear = sitk.AffineTransform(3)
    linear.SetMatrix(inverse[:3, :3].ravel().tolist())
    linear.SetTranslation(inverse[:3, 3].tolist())
    # SimpleITK applies the last transform of a composite first
    return sitk.CompositeTransform([back, linear]), update


def _field_of(mean: sitk.Image, stretch: Matrix) -> npt.NDArray[np.float64]:
    """Return `S (x + u(x)) - x` at each grid point, shape (z, y, x, 3), LPS millimetres."""
    vectors = field_array(mean)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in vectors.shape[:3]), indexing="ij"), axis=-1)[..., ::-1]
    direction = np.asarray(mean.GetDirection()).reshape(3, 3)
    points = index @ (direction * np.asarray(mean.GetSpacing())).T + np.asarray(mean.GetOrigin())
    return np.asarray((points + vectors) @ stretch[:3, :3].T + stretch[:3, 3] - points)


def update_template(
    iteration: int,
    previous: tuple[Path | str, Path | str],
    warped: Sequence[Path | str],
    masks: Sequence[Path | str],
    transforms: Sequence[tuple[Path | str, Path | str]],
    *,
    shape_step: float,
    sharpen_weight: float,
) -> tuple[sitk.Image, sitk.Image, Iteration]:
    """Make the next template from the members registered to the previous one.

    Parameters
    ----------
    iteration : int
        Number of this iteration, from 1.
    previous : pair of path
        Template and brain mask that the members were registered to.
    warped, masks : sequence of path
        Members and their brain masks on the template grid.
    transforms : sequence of (affine, warp)
        Their transforms.
    shape_step : float
        Share of the mean deformation removed.
    sharpen_weight : float
        Weight of unsharp masking, 0 for none.

    Returns
    -------
    template, mask : SimpleITK.Image
        Next template (float32) and brain mask (uint8): voxels in the masks of at least half of the members.
    Iteration
        Row of the convergence table.
    """
    import SimpleITK as sitk

    old, old_mask = read_image(previous[0]), read_image(previous[1])
    inside = as_array(old_mask) > 0
    similarities = [correlation(as_array(old), as_array(read_image(path)), inside) for path in warped]
    affines = [read_affine(affine) for affine, _ in transforms]
    to_old, update = mean_shape_transform([warp for _, warp in transforms], affines, mask_centre(old_mask), shape_step)
    average = sharpen(mean_image(warped), sharpen_weight)
    template = sitk.Resample(average, old, to_old, sitk.sitkBSpline, 0.0)
    share = sitk.Resample(mean_image(masks), old, to_old, sitk.sitkLinear, 0.0)
    mask = sitk.Cast(share >= 0.5, sitk.sitkUInt8)
    template = sitk.Mask(sitk.Clamp(template, lowerBound=0.0), sitk.BinaryDilate(mask, [1, 1, 1]))
    row = Iteration(
        iteration=iteration,
        members=len(warped),
        mean_update_mm=float(update[inside].mean()),
        max_update_mm=float(update[inside].max()),
        mean_similarity=float(np.mean(similarities)),
        min_similarity=float(np.min(similarities)),
        template_change=1.0 - correlation(as_array(old), as_array(template), inside),
        sharpness=sharpness(template, as_array(mask) > 0),
    )
    return template, mask, row
