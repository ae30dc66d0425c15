"""A head with its brain, drawn round the MNI152 brain of nilearn."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_closing, binary_dilation, gaussian_filter
from scipy.spatial.transform import Rotation

from popatlas.groupwise.template import reference_brain
from popatlas.preprocess.brain import tidy_mask


@pytest.fixture(scope="module")
def head() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MNI152 brain in a drawn head: dark skull, bright scalp, a neck below; with its brain mask and an oblique affine."""
    brain, affine = reference_brain(2.0)
    brain, affine = np.pad(brain, 12), affine @ np.array(nib.affines.from_matvec(np.eye(3), [-12, -12, -12]))
    mask = tidy_mask(binary_closing(brain > 0.05, iterations=2)) > 0
    skull = binary_dilation(mask, iterations=4)
    scalp = binary_dilation(skull, iterations=3)
    neck = np.zeros_like(mask)
    rows = np.indices(mask.shape) - np.array([mask.shape[0] / 2, mask.shape[1] / 2, 0]).reshape(3, 1, 1, 1)
    neck[(np.hypot(rows[0], rows[1]) < 28) & (rows[2] < 30)] = True
    data = np.where(mask, brain, np.where(skull, 0.08, np.where(scalp, 1.3, np.where(neck, 0.5, 0.0))))
    noisy = gaussian_filter(data, 0.4) * 400 + np.abs(np.random.default_rng(1).normal(0, 6, data.shape))
    pose = nib.affines.from_matvec(Rotation.from_euler("xyz", [9, -4, 6], degrees=True).as_matrix(), [8, -15, 22])
    return noisy.astype(np.float32), mask, pose @ affine
