import numpy as np
import pytest

from popatlas.registration.gate import correlation, dice, gate_metrics, judge

LIMITS = {"mask_dice": 0.85, "scale": [0.6, 1.6], "shear": 0.3, "nonpositive_jacobian": 0.001}


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
    ],
)
def test_each_limit_is_judged(change, word):
    metrics = gate_metrics(np.eye(4), np.ones((10, 10, 10), np.float32), masks(), masks()) | change
    reasons = judge(metrics, LIMITS)
    assert len(reasons) == 1
    assert word in reasons[0]


def test_share_of_folded_voxels_counts_the_mask_only():
    jacobian = np.ones((10, 10, 10), np.float32)
    jacobian[0] = -1
    jacobian[2, 2:8, 2:8] = 0
    assert gate_metrics(np.eye(4), jacobian, masks(), masks())["nonpositive_jacobian"] == pytest.approx(1 / 6)


def test_dice_of_shifted_cubes():
    assert dice(masks(), np.roll(masks(), 3, axis=0)) == pytest.approx(0.5)
    assert dice(np.zeros(3), np.zeros(3)) == 1.0


def test_correlation_is_invariant_to_scale_and_safe_on_constants():
    image = np.random.default_rng(0).random((10, 10, 10))
    assert correlation(image, 3 * image + 2, masks()) == pytest.approx(1.0)
    assert correlation(image, np.ones_like(image), masks()) == 0.0
