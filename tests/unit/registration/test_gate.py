import numpy as np
import pytest

from popatlas.measures.correlation import correlation
from popatlas.measures.overlap import dice
from popatlas.registration.gate import doubts, gate_metrics, judge

LIMITS = {
    "mask_dice": 0.85,
    "scale": [0.6, 1.6],
    "shear": 0.3,
    "nonpositive_jacobian": 0.001,
    "similarity_gain": 0.02,
    "inverse_error": 0.5,
}
OTHERS = {"ncc_before": 0.6, "ncc_affine": 0.8, "ncc": 0.9, "inverse_error": 0.1, "diverged": 0.0}  # of a good registration


def masks():
    mask = np.zeros((10, 10, 10))
    mask[2:8, 2:8, 2:8] = 1
    return mask


def test_a_good_registration_passes():
    metrics = gate_metrics(np.eye(4), np.ones((10, 10, 10), np.float32), masks(), masks())
    assert judge(metrics, LIMITS) == []
    assert metrics["mask_dice"] == 1.0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"scale_min": 0.4}, "scale 0.40 below"),
        ({"scale_max": 2.0}, "scale 2.00 above"),
        ({"shear": 0.5}, "shear"),
        ({"mask_dice": 0.2}, "mask Dice 0.200"),
        ({"nonpositive_jacobian": 0.01}, "Jacobian"),
        ({"reflected": 1.0}, "mirrors"),
        ({"ncc": 0.61}, "correlation rose by 0.010, less than 0.02"),
        ({"ncc": 0.5}, "correlation rose by -0.100"),
        ({"inverse_error": 0.7}, "inverse consistency error 0.700 voxels above 0.5"),
        ({"diverged": 1.0}, "the optimisation diverged"),
    ],
)
def test_each_limit_is_judged(change, word):
    good = gate_metrics(np.eye(4), np.ones((10, 10, 10), np.float32), masks(), masks()) | OTHERS
    assert judge(good, LIMITS) == []
    reasons = judge(good | change, LIMITS)
    assert len(reasons) == 1
    assert word in reasons[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["scale_min", "scale_max", "shear", "reflected", "mask_dice", "nonpositive_jacobian", *OTHERS, "anything"]
)
def test_a_number_that_is_not_finite_fails_and_is_named(name, value):
    metrics = gate_metrics(np.eye(4), np.ones((10, 10, 10), np.float32), masks(), masks()) | OTHERS | {name: value}
    assert f"{name} is not finite ({value})" in judge(metrics, LIMITS)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_mirrored_brain_fails_however_well_it_fits(ndim):
    mask = masks() if ndim == 3 else masks()[5]
    mirrored = gate_metrics(np.diag([-1.0, *[1.0] * ndim]), None, mask, mask)
    assert mirrored["reflected"] == 1.0
    assert judge(mirrored, LIMITS) == ["the affine mirrors the image"]
    assert judge(gate_metrics(np.eye(ndim + 1), None, mask, mask), LIMITS) == []


def test_an_affine_that_is_singular_or_not_finite_fails():
    flat, broken = np.diag([1.0, 1.0, 0.0, 1.0]), np.full((4, 4), np.nan)
    assert "scale 0.00 below 0.6" in judge(gate_metrics(flat, None, masks(), masks()), LIMITS)
    assert any("scale_min is not finite" in reason for reason in judge(gate_metrics(broken, None, masks(), masks()), LIMITS))


def test_share_of_folded_voxels_counts_the_mask_only():
    jacobian = np.ones((10, 10, 10), np.float32)
    jacobian[0] = -1
    jacobian[2, 2:8, 2:8] = 0
    assert gate_metrics(np.eye(4), jacobian, masks(), masks())["nonpositive_jacobian"] == pytest.approx(1 / 6)


def test_dice_of_shifted_cubes():
    assert dice(masks(), np.roll(masks(), 3, axis=0)) == pytest.approx(0.5)
    assert dice(np.zeros(3), np.zeros(3), empty=1.0) == 1.0
    assert gate_metrics(np.eye(4), None, np.zeros((3, 3, 3)), np.zeros((3, 3, 3)))["mask_dice"] == 1.0


def test_correlation_is_invariant_to_scale_and_safe_on_constants():
    image = np.random.default_rng(0).random((10, 10, 10))
    assert correlation(image, 3 * image + 2, masks()) == pytest.approx(1.0)
    assert correlation(image, np.ones_like(image), masks()) == 0.0


def test_where_sides_are_not_judged_only_those_of_a_mirror_image_are_doubted():
    """A kidney is as symmetric as it likes."""
    said = "left and right may be exchanged"
    for limits, doubted in (({"sides": -0.15}, (False, True, False)), ({}, (False, False, True))):
        found = [any(said in line for line in doubts({"sides": sides}, limits)) for sides in (0.9, 0.04, -0.5)]
        assert tuple(found) == doubted
