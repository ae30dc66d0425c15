from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from scipy.stats import kstest

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.images.scan import Scan
from popatlas.registration.global_search.csngf import SCHEDULES, GlobalSchedule, Level, search, without_background
from popatlas.registration.global_search.fft import erode, padded, similarity_map, spectra
from popatlas.registration.global_search.rotations import angle_between, cube_rotations, perturbed, uniform_rotations
from popatlas.similarity.ngf import normalised_gradient
from tests.unit.pairs import about, ball, corner_error, moved, rigid_about, texture


def shift_map(fixed, moving, masks, overlap, epsilon=1e-5):
    """Score and count for all shifts of two images, and the shifts."""
    size, shifts = padded(fixed.shape[2:], moving.shape[2:], overlap)
    parts = [
        spectra(normalised_gradient(image, epsilon)[:, 0], mask, size)
        for image, mask in zip((fixed, moving), masks, strict=True)
    ]
    return *similarity_map(*parts, size, shifts, overlap), shifts


def direct(fixed, moving, masks, shift, squared=True):
    """Mean inner product (squared) over the overlap at one shift, and the number of voxels, by slices."""
    near = [slice(max(0, -s), min(a, b - s)) for s, a, b in zip(shift, fixed.shape[2:], moving.shape[2:], strict=True)]
    far = [slice(part.start + s, part.stop + s) for part, s in zip(near, shift, strict=True)]
    if any(part.stop <= part.start for part in near):
        return 0.0, 0
    fields = [
        normalised_gradient(fixed, 1e-5)[(0, 0, slice(None), *near)],
        normalised_gradient(moving, 1e-5)[(0, 0, slice(None), *far)],
    ]
    weight = masks[0][(0, 0, *near)] * masks[1][(0, 0, *far)]
    inner = (fields[0] * fields[1]).sum(0) ** (2 if squared else 1)
    count = int(weight.sum())
    return float((inner * weight).sum()) / max(count, 1), count


@pytest.mark.parametrize("shapes", [((10, 10, 10), (10, 10, 10)), ((7, 9, 8), (10, 6, 7)), ((11, 8), (9, 13))])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_fft_map_is_the_direct_sum_at_every_shift(shapes, dtype, tolerance):
    fixed, moving = (texture(shape, 1.0, seed, dtype) for seed, shape in enumerate(shapes))
    generator = torch.Generator().manual_seed(0)
    masks = [(torch.rand(image.shape, generator=generator) > 0.4).to(dtype) for image in (fixed, moving)]
    score, count, shifts = shift_map(fixed, moving, masks, overlap=0.0)
    for place, shift in zip(np.ndindex(*score.shape[1:]), product(*shifts), strict=True):
        expected, voxels = direct(fixed, moving, masks, shift)
        assert int(count[0][place]) == voxels
        assert float(score[0][place]) == pytest.approx(expected if voxels else -1, abs=tolerance)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 9), st.integers(2, 9)), min_size=2, max_size=3), st.floats(0.1, 1))
def test_less_padding_does_not_let_the_other_end_in(sizes, overlap):
    shapes = [tuple(pair[which] for pair in sizes) for which in (0, 1)]
    fixed, moving = (texture(shape, 0.7, seed, torch.float64) for seed, shape in enumerate(shapes))
    masks = [torch.ones_like(fixed), torch.ones_like(moving)]
    _, count, shifts = shift_map(fixed, moving, masks, overlap)
    _, every, all_shifts = shift_map(fixed, moving, masks, 0.0)
    inner = tuple(slice(s.start - a.start, s.stop - a.start) for s, a in zip(shifts, all_shifts, strict=True))
    assert torch.equal(count[0], every[0][inner])
    # shifts that are left out overlap too little on full boxes
    left_out = every.clone()
    left_out[(0, *inner)] = 0
    assert float(left_out.max()) < overlap * float(every.max()) or overlap * min(map(min, shapes)) <= 1


def test_shifts_with_too_little_overlap_do_not_count():
    image = texture((9, 9), 1.0, dtype=torch.float64)
    mask = torch.ones_like(image)
    score, count, _ = shift_map(image, image, [mask, mask], 0.5)
    assert torch.equal(score >= 0, count >= 0.5 * 81)
    assert (score < 0).any()


@pytest.mark.parametrize("change", [lambda a: 1 - a, lambda a: torch.sin(7 * a)], ids=["inverted", "sine"])
def test_the_squared_product_peaks_at_the_true_shift_and_the_plain_one_does_not(change):
    """[hazard] Contrast may be inverted between modalities: the unsquared product is lowest at the truth."""
    large = texture((44, 44, 44), 1.5, 3)
    true = (5, -3, 4)
    fixed = large[..., 6:38, 6:38, 6:38]
    moving = change(large[(..., *(slice(6 - s, 38 - s) for s in true))])
    masks = [torch.ones_like(fixed)] * 2
    score, _, shifts = shift_map(fixed, moving, masks, 0.5)
    found = [wanted[i] for wanted, i in zip(shifts, np.unravel_index(int(score.argmax()), score.shape[1:]), strict=True)]
    assert tuple(found) == true
    assert float(score.max()) > 0.9
    plain, _ = direct(fixed, moving, masks, true, squared=False)
    assert plain < -0.5


def test_an_image_matches_itself_perfectly():
    image = texture((16, 16, 16), 1.5)
    mask = torch.ones_like(image)
    score, _, shifts = shift_map(image, image, [mask, mask], 0.5)
    at_zero = tuple(wanted.index(0) for wanted in shifts)
    assert float(score[0][at_zero]) == pytest.approx(1, abs=1e-3)
    assert float(score.max()) == pytest.approx(float(score[0][at_zero]))


def test_a_mask_border_makes_no_gradient():
    """[hazard] Multiplying by the mask before the gradient would make edges that match each other."""
    shape = (16, 16, 16)
    mask = ball(shape)
    index = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
    ramps = [(index[axis].float() + 8)[None, None] / 24 for axis in (0, 1)]  # gradients at right angles: nothing matches
    score, _, _ = shift_map(*ramps, [erode(mask)] * 2, 0.5)
    assert float(score.max()) < 1e-6
    multiplied, _, _ = shift_map(*(ramp * mask for ramp in ramps), [mask] * 2, 0.5)
    assert float(multiplied.max()) > 0.1


def test_what_lies_outside_of_a_mask_has_no_influence():
    shape = (14, 15)
    mask = erode(ball(shape))
    image, other = texture(shape, 1.0, 0), texture(shape, 1.0, 1)
    changed = torch.where(ball(shape) > 0, image, 7 * other)
    first, second = (shift_map(values, other, [mask, mask], 0.5)[0] for values in (image, changed))
    assert torch.equal(first, second)


def test_uniform_rotations_are_uniform_and_uniform_euler_angles_are_not():
    """[hazard] The angle t of a uniform rotation from any pose has the distribution (t - sin t) / pi."""
    poses = Rotation.random(30, random_state=1).as_matrix()

    def largest_distance(rotations):
        angles = [np.deg2rad(angle_between(rotations, pose)) for pose in poses]
        return max(kstest(sample, lambda t: (t - np.sin(t)) / np.pi).statistic for sample in angles)

    count = 2000
    ours = uniform_rotations(count, 3)
    euler = Rotation.from_euler("xyz", np.random.default_rng(0).uniform(-np.pi, np.pi, (count, 3))).as_matrix()
    limit = 1.63 / np.sqrt(count)  # of a random sample at the 1 % level
    assert largest_distance(ours) < limit / 2
    assert largest_distance(euler) > 1.5 * limit
    assert np.abs(ours.mean(0)).max() < 0.02
    assert np.allclose(ours @ ours.transpose(0, 2, 1), np.eye(3), atol=1e-12) and np.allclose(np.linalg.det(ours), 1)


@pytest.mark.parametrize("ndim", [2, 3])
def test_rotations_within_a_cone_fill_it(ndim):
    angles = angle_between(uniform_rotations(500, ndim, 15.0), np.eye(ndim))
    assert angles.max() <= 15 + 1e-9
    # the share within half of the angle: a half in 2D, an eighth of the ball in 3D
    assert np.mean(angles < 7.5) == pytest.approx(0.5 ** (ndim - 1 if ndim == 2 else 3), abs=0.02)


def test_steps_mean_the_same_at_every_parent():
    """[hazard] Steps in Euler angles shrink to a turn about one axis at the poles."""
    parents = np.stack([np.eye(3), Rotation.from_euler("xyz", (0, 90, 0), degrees=True).as_matrix()])
    children = perturbed(parents, 400, 10, np.random.default_rng(0))
    assert len(children) == 400
    for number, parent in enumerate(parents):
        vectors = Rotation.from_matrix(parent.T @ children[number::2]).as_rotvec(degrees=True)
        assert np.abs(vectors).max() <= 10 + 1e-9
        assert np.allclose(vectors.std(0), 10 / np.sqrt(3), rtol=0.12)


def test_cube_rotations_are_the_group():
    for ndim, order in ((2, 4), (3, 24)):
        group = cube_rotations(ndim)
        assert len(group) == order and np.array_equal(group[0], np.eye(ndim))
        products = {tuple(np.round(a @ b).ravel()) for a in group for b in group}
        assert products == {tuple(matrix.ravel()) for matrix in group}


@pytest.mark.parametrize("seed", range(4))
def test_each_of_the_24_cube_rotations_is_recovered_exactly_under_inverted_contrast(seed):
    rng = np.random.default_rng(seed)
    fixed = Scan(texture((24, 24, 24), 1.5, seed), Grid.isotropic((24, 24, 24)))
    turn = cube_rotations(3)[rng.integers(24)]
    truth = about(fixed.grid.centre, turn, rng.integers(-4, 5, 3))
    moving = moved(fixed, truth, fixed.grid, lambda a: (1 - a) ** 2, padding="zeros")
    result = search(fixed, moving, GlobalSchedule(levels=(Level(1, 0, 0, 0, 1),), side=24, cube=True))
    assert result.evaluations == 24
    assert np.allclose(result.matrix, truth, atol=0.05)  # the parabola moves the peak by hundredths of a voxel
    assert result.score > 0.95 and result.runner_up < 0.5


def test_random_search_within_15_degrees_is_accurate():
    """The card's third test: 32 voxels, 150 + 60 + 40 rotations, error below 1.5 voxels."""
    fixed = Scan(texture((32, 32, 32), 2.0, 5), Grid.isotropic((32, 32, 32)))
    truth = rigid_about(fixed.grid.centre, (8, -6, 9), (2.3, -1.4, 3.1))
    moving = moved(fixed, truth, fixed.grid, lambda a: 1 - a)
    plan = GlobalSchedule(
        levels=(Level(2, 1, 150, 0, 8), Level(1, 1, 60, 5, 3), Level(1, 1, 40, 2, 1)), side=32, max_angle=26, separation=0
    )
    result = search(fixed, moving, plan)
    assert corner_error(np.eye(4), truth, fixed.grid) > 5
    assert corner_error(result.matrix, truth, fixed.grid) < 1.5


def test_default_search_finds_a_non_monotonic_contrast_in_any_pose_on_oblique_anisotropic_grids():
    spacing, tilt = np.array([1.5, 2.0, 3.0]), Rotation.from_rotvec([0.2, -0.1, 0.3]).as_matrix()
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = tilt * spacing, (30, -70, 15)
    fixed = Scan(texture((42, 32, 21), (3.0, 2.2, 1.5), 1), Grid((42, 32, 21), affine), ball((42, 32, 21)))
    truth = rigid_about(fixed.grid.centre, (100, -60, 80), (12, 20, -9))
    target = Grid.isotropic((40, 40, 40), 2.0)
    affine = np.array(target.affine)
    affine[:3, 3] = (truth @ [*fixed.grid.centre, 1])[:3] - target.centre + 3
    moving = moved(fixed, truth, Grid(target.shape, affine), lambda a: torch.cos(5 * a))
    result = search(fixed, moving)
    assert corner_error(result.matrix, truth, fixed.grid) < 2  # one voxel of the moving image, mm
    assert result.score > result.runner_up + 0.1
    again = search(fixed, moving)
    assert np.array_equal(result.matrix, again.matrix) and result.score == again.score


def test_search_works_in_2d():
    fixed = Scan(texture((48, 40), 2.0, 2), Grid.isotropic((48, 40), 1.2), ball((48, 40)))
    truth = rigid_about(fixed.grid.centre, -130, (6, -9))
    result = search(fixed, moved(fixed, truth, Grid.isotropic((52, 52), 1.2), lambda a: 1 - a))
    assert result.matrix.shape == (3, 3)
    assert corner_error(result.matrix, truth, fixed.grid) < 1.2


def test_parents_are_tried_again():
    fixed = Scan(texture((20, 20, 20), 1.5, 4), Grid.isotropic((20, 20, 20)))
    moving = moved(fixed, rigid_about(fixed.grid.centre, (20, 0, 10), (1, 2, 0)), fixed.grid)
    one = GlobalSchedule(levels=(Level(1, 1, 200, 0, 3),), side=20, separation=0)
    two = replace(one, levels=(*one.levels, replace(one.levels[0], rotations=0)))
    first, second = search(fixed, moving, one), search(fixed, moving, two)
    assert np.allclose(first.matrix, second.matrix) and first.score == pytest.approx(second.score)
    assert (first.evaluations, second.evaluations) == (201, 204)


def test_the_paper_schedule_is_the_papers():
    plan = SCHEDULES["paper"]
    table = {name: tuple(getattr(level, name) for level in plan.levels) for name in ("factor", "sigma", "rotations", "keep")}
    assert table == {
        "factor": (4, 2, 2, 1), "sigma": (5, 3, 2, 1.5), "rotations": (5000, 3000, 300, 0), "keep": (20, 3, 1, 1)
    }  # fmt: skip
    # the paper gives the step to the level that hands on
    assert [level.step for level in plan.levels[1:]] == [10, 3, 0]
    assert (plan.overlap, plan.epsilon, plan.side) == (0.5, 1e-5, None)


def test_an_exact_background_is_left_out():
    image = texture((12, 12), 1.5) + 0.1
    stripped = Scan(image * ball((12, 12)), Grid.isotropic((12, 12)))
    found = without_background(stripped)
    assert found.mask is not None and torch.equal(found.mask, ball((12, 12)))
    assert without_background(replace(stripped, image=image)).mask is None


def test_a_mask_that_is_too_thin_is_named():
    image, mask = texture((20, 20, 20)), torch.zeros(1, 1, 20, 20, 20)
    mask[..., 10, 4:16, 4:16] = 1
    grid = Grid.isotropic((20, 20, 20))
    with pytest.raises(InputError, match=r"too thin.*sub-7"):
        search(Scan(image, grid, mask), Scan(image, grid), subject="sub-7")


def test_a_constant_image_is_refused():
    grid = Grid.isotropic((8, 8))
    with pytest.raises(InputError, match="moving image is constant"):
        search(Scan(texture((8, 8)), grid), Scan(torch.ones(1, 1, 8, 8), grid))
