"""Brain extraction: a pretrained network, a template, or nothing for images that are stripped already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError

Mask = npt.NDArray[np.uint8]
Extractor = Callable[[nib.Nifti1Image], Mask]


def tidy_mask(mask: npt.NDArray[Any], dilate: int = 0) -> Mask:
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
    """Load deepbet once and return a function that finds the brain of an image (Fisch et al., 2024).

    Parameters
    ----------
    threshold : float
        Probability above which a voxel is brain.
    dilate : int
        Voxels added to the mask, negative to remove.
    gpu : bool
        Use CUDA; the caller checks that it is there.
    """
    from deepbet.bet import BrainExtraction

    network = BrainExtraction(no_gpu=not gpu)

    def extract(image: nib.Nifti1Image) -> Mask:
        found = network.run(image, threshold=threshold)[1]
        return tidy_mask(np.asarray(found.dataobj), dilate)

    return extract


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

    The MNI152 brain (no skull) is aligned to the head by rigid and affine Mattes registration from a multi-start search
    and then by a quick SyN within the dilated brain; its filled mask is carried over. Slower than the network and less
    accurate: it inherits the template's shape where the contrast between brain and meninges is weak.

    Parameters
    ----------
    image_file : path
        Preprocessed whole head.

    Returns
    -------
    (x, y, z) ndarray of uint8
        Mask on the grid of the image.
    """
    import tempfile

    from scipy.ndimage import binary_closing

    from popatlas.groupwise.template import reference_brain
    from popatlas.images.io import save_image
    from popatlas.registration.ants import deterministic_ants

    ants = deterministic_ants()
    head = ants.image_read(str(image_file))
    with tempfile.TemporaryDirectory() as folder:
        data, affine = reference_brain(max(2.0, float(min(head.spacing))))
        save_image(data, affine, Path(folder) / "mni.nii.gz")
        save_image(binary_closing(data > 0.05, iterations=2).astype(np.float32), affine, Path(folder) / "mask.nii.gz")
        brain, mask = (ants.image_read(str(Path(folder) / name)) for name in ("mni.nii.gz", "mask.nii.gz"))
        transforms = _head_to_brain(ants, head, brain, mask, Path(folder))
        carried = ants.apply_transforms(head, mask, transforms, whichtoinvert=[True, False], interpolator="linear")
        return tidy_mask(carried.numpy() > 0.5)


def _head_to_brain(ants: Any, head: Any, brain: Any, mask: Any, folder: Path) -> list[str]:
    """Register the head (moving) to the MNI brain (fixed, masked) and return the inverse transforms."""
    start = str(folder / "start.mat")
    top = np.percentile(head.numpy(), 99.5)
    head = ants.from_numpy(
        np.clip(head.numpy() / top, 0, 1), origin=head.origin, spacing=head.spacing, direction=head.direction
    )
    ants.affine_initializer(brain, head, search_factor=20, radian_fraction=0.1, mask=mask, txfn=start)
    affine = ants.registration(
        brain,
        head,
        "Affine",
        initial_transform=start,
        mask=mask,
        mask_all_stages=True,
        outprefix=str(folder / "affine"),
        aff_iterations=(500, 250, 100, 0),
    )
    wide = ants.iMath(mask, "MD", 2)
    result = ants.registration(
        brain,
        head,
        "SyNOnly",
        initial_transform=affine["fwdtransforms"][0],
        mask=wide,
        outprefix=str(folder / "syn"),
        syn_metric="mattes",
        reg_iterations=(40, 20, 0),
    )
    return [str(path) for path in result["invtransforms"]]
