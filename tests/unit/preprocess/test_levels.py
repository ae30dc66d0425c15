"""Intensities whose background is not at 0, stray voxels, and images that must stay as they are."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from popatlas.errors import InputError
from popatlas.preprocess.bias import correct_bias
from popatlas.preprocess.levels import measure_levels, settle
from popatlas.preprocess.settings import N4Settings

SHAPE = (40, 44, 36)
AFFINE = np.diag([5.0, 5.0, 5.0, 1.0])
RNG = np.random.default_rng(4)
RADII = np.array([13, 16, 13]).reshape(3, 1, 1, 1)
PLACES = np.linalg.norm((np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2) / RADII, axis=0)
BRAIN, SKULL = PLACES < 0.75, PLACES < 0.9
NOISE = np.abs(RNG.normal(0, 3, SHAPE))
HEAD = (
    np.where(BRAIN, np.where(PLACES < 0.4, 200.0, 140.0), np.where(SKULL, 8.0, np.where(PLACES < 1, 260.0, 0))) + NOISE
).astype(np.float32)
Z = (HEAD - HEAD.mean()) / HEAD.std()


def settled(data: np.ndarray) -> tuple[np.ndarray, dict]:
    image, notes = settle(nib.Nifti1Image(data.astype(np.float32), AFFINE))
    return np.asarray(image.dataobj), notes


def corners(data: np.ndarray, count: int) -> np.ndarray:
    return np.pad(data, count)


@pytest.mark.parametrize(
    "data",
    [
        HEAD,
        corners(HEAD, 20),
        np.where(BRAIN, HEAD, 0),
        np.maximum(
            HEAD[14:26, 14:30, 12:24] + RNG.normal(0, 25, (12, 16, 12)), 0
        ),  # a crop without air, as of the hippocampus
        np.where(HEAD > 255, HEAD * 3, HEAD),  # bright vessels
        HEAD.astype(np.uint8),
    ],
    ids=["head", "padded", "stripped", "crop", "bright vessels", "8 bits"],
)
def test_ordinary_images_stay_as_they_are(data: np.ndarray) -> None:
    found, notes = settled(data)
    np.testing.assert_array_equal(found, data.astype(np.float32))
    assert notes == {}


@pytest.mark.parametrize(
    ("data", "scale"),
    [
        (Z, HEAD.std()),
        (HEAD - 1000, 1),
        (HEAD + 500, 1),
        (corners(HEAD - 1000, 12) - 2000 * (corners(np.ones(SHAPE), 12) == 0), 1),  # CT: -2000 beyond the field of view
        (corners(HEAD + 500, 12), 1),
        (corners(HEAD, 12) + 500, 1),
    ],
    ids=["z-scores", "-1000", "+500", "CT", "padded offset", "offset padding"],
)
def test_the_background_comes_to_0_and_the_head_keeps_its_contrast(data: np.ndarray, scale: float) -> None:
    found, notes = settled(data)
    middle = tuple(slice((n - m) // 2, (n + m) // 2) for n, m in zip(found.shape, SHAPE, strict=True))
    head = found[middle] * scale
    assert found.min() == 0
    assert "background" in notes
    assert np.median(head[~SKULL & (PLACES > 1)]) == pytest.approx(0, abs=4)
    np.testing.assert_allclose(head[BRAIN], HEAD[BRAIN], atol=6)
    again, notes = settled(found)
    np.testing.assert_array_equal(again, found)
    assert notes == {}


def test_z_scores_of_a_stripped_brain_stay_above_the_background() -> None:
    inside = HEAD[BRAIN]
    scores = np.where(BRAIN, (HEAD - inside.mean()) / inside.std(), 0)
    found, _ = settled(scores)
    assert (found[~BRAIN] == 0).all()
    assert (found[BRAIN] > 0).all()
    assert np.corrcoef(found[BRAIN], inside)[0, 1] > 0.99


@pytest.mark.parametrize("value", [1000 * 260.0, -1000 * 260.0, 1e30])
@pytest.mark.parametrize("count", [1, 20])
def test_stray_voxels_are_brought_back(value: float, count: int) -> None:
    data = HEAD.copy()
    where = tuple(RNG.integers(0, n, count) for n in SHAPE)
    data[where] = value
    found, notes = settled(data)
    assert notes["clipped_voxels"] == len(set(zip(*where, strict=True)))
    others = np.ones(SHAPE, dtype=bool)
    others[where] = False
    np.testing.assert_array_equal(found[others], HEAD[others])
    assert found.max() == HEAD[others].max()


def test_a_background_brighter_than_the_head_is_refused() -> None:
    with pytest.raises(InputError, match=r"brighter than the head.*subtract the image from its maximum") as caught:
        settle(nib.Nifti1Image(300 - np.where(PLACES > 1, 0, HEAD), AFFINE), "raw.nii.gz", "sub-1")
    assert (caught.value.file, caught.value.subject) == ("raw.nii.gz", "sub-1")


@settings(max_examples=30, deadline=None)
@given(gain=st.floats(1e-3, 1e3), offset=st.floats(-2000, -100))
def test_a_shift_below_0_is_undone_whatever_the_scale(gain: float, offset: float) -> None:
    found, _ = settled((HEAD + offset) * gain)
    assert np.corrcoef(found[BRAIN], HEAD[BRAIN])[0, 1] > 0.999
    assert np.median(found[BRAIN]) / gain == pytest.approx(np.median(HEAD[BRAIN]), rel=0.05)


def test_levels_of_an_image_of_one_value() -> None:
    assert measure_levels(np.full(SHAPE, 7, np.float32)) is None
    found, notes = settled(np.full(SHAPE, -7))
    assert found.max() == 0
    assert notes == {}


@pytest.mark.parametrize("change", [lambda data: (data - data.mean()) / data.std(), lambda data: data - 1000])
def test_n4_divides_the_same_field_out_of_an_image_that_is_not_above_0(change) -> None:
    """What was below 0 was cut off: half of the head, with z-scores."""
    options = N4Settings()
    field = np.exp(0.4 * np.linspace(-1, 1, SHAPE[1]))[None, :, None]
    plain = np.asarray(correct_bias(nib.Nifti1Image((HEAD * field).astype(np.float32), AFFINE), options).dataobj)
    moved = change(HEAD * field).astype(np.float32)
    found = np.asarray(correct_bias(nib.Nifti1Image(moved, AFFINE), options).dataobj)
    assert np.corrcoef(found[BRAIN], plain[BRAIN])[0, 1] > 0.99


def test_a_stray_voxel_does_not_switch_n4_off() -> None:
    """Otsu's threshold would lie between the stray voxel and all others, and the fit would have one voxel."""
    options = N4Settings()
    field = np.exp(0.4 * np.linspace(-1, 1, SHAPE[1]))[None, :, None]
    data = (HEAD * field).astype(np.float32)
    plain = np.asarray(correct_bias(nib.Nifti1Image(data, AFFINE), options).dataobj)
    data[20, 22, 18] = 1000 * data.max()
    found = np.asarray(correct_bias(settle(nib.Nifti1Image(data, AFFINE))[0], options).dataobj)
    assert np.corrcoef(found[BRAIN], plain[BRAIN])[0, 1] > 0.99
