"""Right poses stand out, wrong ones do not, whatever the contrast; intensities of one contrast go together."""

import numpy as np
import pytest
import torch
from benchmarks.starts.scans import scan_of
from scipy.spatial.transform import Rotation

from popatlas.images.grid import Grid
from popatlas.images.scan import Scan
from popatlas.registration.engines.affine import register
from popatlas.registration.pose import CLEAR, PoseJudge, Structure, common_spacing, coverage, relation, turn_of
from tests.unit.damaged import brain, random_turn
from tests.unit.pairs import about, texture


def judge_of(fixed, moving):
    spacing = common_spacing(fixed, moving)
    return PoseJudge(Structure(fixed, spacing), Structure(moving, spacing))


def aligned(fixed, moving, turn=None):
    """Scans of two brains, the second one's header turned, and the affine that undoes the turn."""
    other = moving if turn is None else moving.turned(turn)
    scans = scan_of(fixed), scan_of(other)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    start = lps @ other.affine @ np.linalg.inv(moving.affine) @ lps
    plain = [Scan(scan.image, scan.grid) for scan in scans]
    return *scans, register(*plain, kinds=("rigid", "affine"), initial=start).matrix


@pytest.fixture(scope="module")
def right():
    return aligned(brain(1), brain(2))


def test_an_image_agrees_with_itself(right):
    fixed = right[0]
    pose = judge_of(fixed, fixed).judge(np.eye(4))
    assert pose.edges > 0.95
    assert pose.clear and pose.distinct > 12


def test_edges_of_unrelated_textures_agree_by_chance():
    """The mean squared cosine of independent directions is 1/3 in 3D, and less where edges are faint."""
    shape, grid = (40, 40, 40), Grid.isotropic((40, 40, 40), 4.0)
    one, other = (Scan(texture(shape, 2.0, seed), grid, torch.ones(1, 1, *shape)) for seed in (1, 2))
    assert judge_of(one, other).edges(np.eye(4)) == pytest.approx(1 / 3, abs=0.05)


def test_the_right_pose_of_two_brains_is_clear(right):
    fixed, moving, matrix = right
    pose = judge_of(fixed, moving).judge(matrix)
    assert pose.clear and pose.distinct > 1.5 * CLEAR
    assert pose.edges > 0.6


@pytest.mark.parametrize("turn", [(180, 0, 0), (0, 0, 180), tuple(random_turn(1, 120))])
def test_a_pose_that_an_affine_settled_in_upside_down_is_not_clear(turn):
    """Even after the affine has made the best of it; the best turned one is nearer to the truth where axes were swapped."""
    fixed, moving = (scan_of(one) for one in (brain(1), brain(2).turned(turn)))
    plain = [Scan(scan.image, scan.grid) for scan in (fixed, moving)]
    centred = np.eye(4)
    centred[:3, 3] = np.array(moving.grid.centre) - fixed.grid.centre
    settled = register(*plain, kinds=("rigid", "affine"), initial=centred).matrix
    pose = judge_of(fixed, moving).judge(settled)
    angle = turn_of(settled)[0]
    if abs(angle - np.linalg.norm(turn)) > 30:  # it did not find the way by itself
        assert not pose.clear and pose.distinct < CLEAR - 1
    else:
        assert pose.clear


@pytest.mark.parametrize("contrast", ["inverted", "T2-like", "PD-like"])
def test_contrast_does_not_matter_to_the_pose_and_is_told(right, contrast):
    fixed, _, matrix = right
    judge = judge_of(fixed, scan_of(brain(2).recoloured(contrast)))
    assert judge.judge(matrix).clear
    assert judge.relation(matrix).contrast < 0.8
    assert judge_of(*right[:2]).relation(matrix).contrast > 0.95


def test_scale_and_offset_of_the_intensities_do_not_matter(right):
    fixed, moving, matrix = right
    other = Scan(1000 * moving.image + 300, moving.grid, moving.mask)
    one, same = (judge_of(fixed, scan).judge(matrix) for scan in (moving, other))
    assert same.distinct == pytest.approx(one.distinct, rel=1e-2)


@pytest.mark.parametrize("part", [(2, 0.3, 1.0), (1, 0.0, 0.6), (0, 0.0, 0.6)])
def test_a_part_of_the_brain_in_place_is_clear_and_its_share_is_told(right, part):
    fixed, _, matrix = right
    moving = scan_of(brain(2).cropped(*part))
    assert judge_of(fixed, moving).judge(matrix).clear
    assert coverage(fixed, moving, matrix) == pytest.approx(part[2] - part[1], abs=0.2)
    assert coverage(*right) == 1


def test_images_apart_from_each_other_agree_in_nothing(right):
    fixed, moving, _ = right
    away = about(np.zeros(3), np.eye(3), np.full(3, 1e4))
    pose = judge_of(fixed, moving).judge(away)
    assert (pose.edges, pose.distinct) == (0.0, 0.0)
    assert coverage(fixed, moving, away) == 0


def test_in_a_plane_the_pose_is_not_judged():
    scan = Scan(texture((30, 34), 2.0), Grid.isotropic((30, 34), 2.0), torch.ones(1, 1, 30, 34))
    pose = judge_of(scan, scan).judge(np.eye(3))
    assert np.isnan(pose.distinct) and pose.clear
    assert pose.edges > 0.9


def test_two_correlated_gaussians_share_what_their_correlation_implies():
    rng = np.random.default_rng(0)
    one, noise = rng.normal(size=(2, 50_000))
    for slope in (0.5, 1.0, 3.0):
        assert relation(one, slope * one + noise).contrast == pytest.approx(1, abs=0.03)
        assert relation(one, -slope * one + noise).contrast == pytest.approx(-1, abs=0.03)
    folded = relation(one, np.abs(one) + 0.3 * noise)  # much is shared, nothing of it linear
    assert abs(folded.contrast) < 0.1 and folded.nmi > 1.1
    assert relation(one, noise).nmi == pytest.approx(1, abs=0.01)
    assert relation(one, np.zeros_like(one)).contrast == 0


@pytest.mark.parametrize(
    ("turn", "words"), [((170, 5, 0), "the left-right"), ((0, 0, -90), "the head-foot"), ((60, 60, 0), "an oblique")]
)
def test_a_turn_is_told_in_degrees_and_words(turn, words):
    matrix = about(np.array([3.0, -8, 9]), 1.1 * Rotation.from_rotvec(turn, degrees=True).as_matrix(), (10, 0, 5))
    angle, axis = turn_of(matrix)
    assert angle == pytest.approx(np.linalg.norm(turn), abs=0.5)
    assert axis == words


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_turn_of_an_affine_that_mirrors_is_that_without_the_mirror(ndim):
    """The gate refuses it by its reflection; it must not end in an error before."""
    matrix = np.diag([-1.1, *[0.9] * (ndim - 1), 1.0])
    assert turn_of(matrix)[0] == pytest.approx(0, abs=1e-6)
