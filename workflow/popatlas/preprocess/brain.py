"""Brain extraction: a pretrained network, a template, or nothing for images that are stripped already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from popatlas.errors import InputError
from popatlas.images.antspy import AntsImage, deterministic_ants
from popatlas.images.arrays import RealArray
from popatlas.preprocess.head import head_window
from popatlas.preprocess.network import DeepBet

Mask = npt.NDArray[np.uint8]
Extractor = Callable[[nib.Nifti1Image], Mask]

ATLAS_RESOLUTION_MM = 2.0
# Scalp and skull above the brain, the part of the head that the brain fills, and what MNI152's mask leaves out
SCALP_MM, UPPER_HEAD_MM, RIM_MM = 12.0, 80.0, 4.0
# Pitch (radians) and scale of each start; one that is too large can settle on the scalp as if it were the brain's edge
STARTS = ((-0.2, 0.88), (0.2, 0.88), (0.0, 1.0))
LPS = np.array([-1.0, -1.0, 1.0])


def tidy_mask(mask: RealArray, dilate: int = 0) -> Mask:
    """Return the largest component of a mask with holes filled, dilated (or eroded) by voxels.

    Parameters
    ----------
    mask : (x, y, z) ndarray
        Non-zero is brain.
    dilate : int
        Iterations of a 6-neighbour dilation; negative for erosion.

    Returns
    -------
    (x, y, z) ndarray of uint8
    """
    from scipy.ndimage import binary_dilation, binary_erosion, binary_fill_holes, label

    components = np.asarray(label(mask > 0)[0])  # type: ignore[index]
    if not components.any():
        return np.zeros(mask.shape, np.uint8)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    filled = binary_fill_holes(components == sizes.argmax())
    if dilate > 0:
        filled = binary_dilation(filled, iterations=dilate)
    elif dilate < 0:
        filled = binary_erosion(filled, iterations=-dilate)
    return np.asarray(filled, dtype=np.uint8)


def foreground(image: nib.Nifti1Image) -> Mask:
    """Return the voxels above 0 of a skull-stripped image (method `none`)."""
    mask = tidy_mask(np.asarray(image.dataobj) > 0)
    if mask.mean() > 0.9:
        raise InputError(
            "the image has no empty background, so it is not skull-stripped",
            remedy="set preprocess.brain.method to deepbet or template",
        )
    return mask


def deepbet_extractor(threshold: float, dilate: int, *, gpu: bool) -> Extractor:
    """Load deepbet once and return a function that finds the brain of an image (Fisch et al., 2024); see `network`.

    Parameters
    ----------
    threshold : float
        Probability above which a voxel is brain.
    dilate : int
        Voxels added to the mask, negative to remove.
    gpu : bool
        Use CUDA; the caller checks that it is there.
    """
    return DeepBetExtractor(DeepBet(threshold, gpu=gpu), dilate)


class DeepBetExtractor:
    """Finds the brain of an image of any field of view, in which the head may lie in any way.

    Attributes
    ----------
    note : str
        What was unusual about the last image; empty when nothing was.
    """

    def __init__(self, network: DeepBet, dilate: int) -> None:
        self.network, self.dilate, self.note = network, dilate, ""

    def __call__(self, image: nib.Nifti1Image) -> Mask:
        """Return the mask on the grid of the image; empty when no brain was found."""
        canonical = nib.as_closest_canonical(image)
        values = np.nan_to_num(np.asarray(canonical.dataobj, dtype=np.float32))
        found = self.network.find(values, np.linalg.norm(canonical.affine[:3, :3], axis=0))
        self.note = found.note if found else ""
        mask = tidy_mask(found.mask if found else np.zeros(values.shape), self.dilate)
        turn = ornt_transform(axcodes2ornt("RAS"), io_orientation(image.affine))
        return np.asarray(apply_orientation(mask, turn), dtype=np.uint8)


def cuda_visible() -> bool:
    """Tell whether torch sees a CUDA device."""
    import torch

    return bool(torch.cuda.is_available())


def deepbet_weights() -> dict[str, str]:
    """Return the SHA-256 of each weight file that deepbet's wheel carries."""
    from deepbet.utils import DATA_PATH

    from popatlas.images.io import sha256

    return {path.name: sha256(path) for path in sorted((Path(DATA_PATH) / "models").glob("*.pt"))}


def extract_by_template(image_file: Path | str) -> Mask:
    """Find the brain by registering the MNI152 brain to the head: the classical fallback.

    The MNI152 brain (no skull) is placed below the top of the head in several pitches and sizes; the best similarity
    transform by Mattes MI goes on to an affine registration and a quick SyN. The metric is taken within the brain and 4
    voxels round it: there the template is empty and the head's CSF and skull are dark, and without this rim the brain
    grows into the head. The carried mask then takes the tissue of the next 4 mm. The
    network is better and faster. The image must reach up to the top of the scalp.

    Parameters
    ----------
    image_file : path
        Preprocessed whole head, axes close to RAS.

    Returns
    -------
    (x, y, z) ndarray of uint8
        Mask on the grid of the image; the same for the same image.
    """
    import tempfile

    from scipy.ndimage import binary_closing

    from popatlas.groupwise.template import reference_brain
    from popatlas.images.io import save_image

    ants = deterministic_ants()
    whole = nib.load(image_file)
    window = head_window(np.asarray(whole.dataobj, dtype=np.float32), np.linalg.norm(whole.affine[:3, :3], axis=0))
    image = whole.slicer[window]
    values = np.asarray(image.dataobj, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        data, affine = reference_brain(ATLAS_RESOLUTION_MM)
        inside = tidy_mask(binary_closing(data > 0.05, iterations=2))
        save_image(data, affine, Path(folder) / "brain.nii.gz")
        save_image(inside, affine, Path(folder) / "mask.nii.gz")
        scaled = np.clip(values / np.percentile(values, 99.5), 0, 1)
        save_image(scaled, image.affine, Path(folder) / "head.nii.gz", np.float32)
        names = ("head.nii.gz", "brain.nii.gz", "mask.nii.gz")
        head, brain, mask = (ants.image_read(str(Path(folder) / name)) for name in names)
        corners = np.argwhere(inside)[:, :3] @ affine[:3, :3].T + affine[:3, 3]
        low, high = corners.min(0), corners.max(0)
        centre = _expected_brain_centre(values, image.affine, (high[2] - low[2]) / 2)
        transforms = _head_to_brain(head, brain, mask, centre, (low + high) / 2, Path(folder))
        carried = ants.apply_transforms(head, mask, transforms, whichtoinvert=[True, False], interpolator="linear")
    found = np.zeros(whole.shape, np.uint8)
    found[window] = _take_rim(values, carried.numpy() > 0.5, float(min(head.spacing)))
    return found


def _expected_brain_centre(
    values: RealArray, affine: npt.NDArray[np.float64], half_height_mm: float
) -> npt.NDArray[np.float64]:
    """Return where the brain should be, RAS mm: below the top of the head, in the middle of what is up there."""
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_otsu

    inside = tidy_mask(gaussian_filter(values, 1) > 0.6 * threshold_otsu(values))
    points = np.argwhere(inside) @ affine[:3, :3].T + affine[:3, 3]
    top = np.percentile(points[:, 2], 99.9)
    upper = points[points[:, 2] > top - UPPER_HEAD_MM]
    return np.array([upper[:, 0].mean(), upper[:, 1].mean(), top - SCALP_MM - half_height_mm])


def _head_to_brain(
    head: AntsImage,
    brain: AntsImage,
    mask: AntsImage,
    centre: npt.NDArray[np.float64],
    origin: npt.NDArray[np.float64],
    folder: Path,
) -> list[str]:
    """Register the head (moving) to the MNI brain (fixed, masked) and return the inverse transforms."""
    ants = deterministic_ants()
    rim = ants.iMath(mask, "MD", 4)
    linear = {"mask": rim, "mask_all_stages": True, "aff_metric": "mattes", "aff_random_sampling_rate": 0.5}
    starts = []
    for number, (pitch, scale) in enumerate(STARTS):
        start = ants.new_ants_transform(dimension=3, transform_type="Similarity3DTransform")
        start.set_fixed_parameters(origin * LPS)
        start.set_parameters(np.concatenate([[np.sin(pitch / 2), 0.0, 0.0], (centre - origin) * LPS, [scale]]))
        ants.write_transform(start, str(folder / f"start{number}.mat"))
        similar = ants.registration(
            brain,
            head,
            "Similarity",
            initial_transform=str(folder / f"start{number}.mat"),
            outprefix=str(folder / f"similar{number}"),
            aff_iterations=(100, 50),
            aff_shrink_factors=(4, 2),
            aff_smoothing_sigmas=(3, 1),
            **linear,
        )["fwdtransforms"]
        moved = ants.apply_transforms(brain, head, similar)
        kind = "MattesMutualInformation"
        starts.append((ants.image_similarity(brain, moved, kind, fixed_mask=rim, moving_mask=rim), similar[0]))
    affine = ants.registration(
        brain,
        head,
        "Affine",
        initial_transform=min(starts)[1],
        outprefix=str(folder / "affine"),
        aff_iterations=(200, 100, 50),
        aff_shrink_factors=(4, 2, 1),
        aff_smoothing_sigmas=(3, 1, 0),
        **linear,
    )
    result = ants.registration(
        brain,
        head,
        "SyNOnly",
        initial_transform=affine["fwdtransforms"][0],
        mask=rim,
        outprefix=str(folder / "syn"),
        syn_metric="mattes",
        syn_sampling=32,
        reg_iterations=(60, 30, 0),
    )
    return [str(path) for path in result["invtransforms"]]


def _take_rim(values: RealArray, mask: npt.NDArray[np.bool_], spacing_mm: float) -> Mask:
    """Add the voxels of the next millimetres that are as bright as brain: not dark skull, not bright fat."""
    from scipy.ndimage import binary_dilation, binary_erosion, binary_opening

    def voxels(millimetres: float) -> int:
        return max(1, round(millimetres / spacing_mm))

    core = binary_erosion(mask, iterations=voxels(6))
    if not core.any():
        return tidy_mask(mask)
    dark, bright = np.percentile(values[core], [2, 98])
    tissue = (values > 0.5 * dark) & (values < bright)
    grown = mask | (binary_dilation(mask, iterations=voxels(RIM_MM)) & tissue)
    return tidy_mask(binary_opening(grown, iterations=voxels(2)))
