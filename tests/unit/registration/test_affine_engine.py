from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.images.scan import Scan
from popatlas.registration.engines.affine import AffineSettings, _Problem, _sample_points, register
from popatlas.similarity.lncc import LNCC
from popatlas.similarity.mi import NMI, MattesMI
from popatlas.similarity.ncc import NCC
from popatlas.similarity.ssd import SSD
from popatlas.transforms.affine import read_affine
from popatlas.transforms.linear import KINDS, parameter_count
from tests.unit.pairs import about, ball, corner_error, moved, rigid_about, texture

SHAPE = (34, 38, 32)
STRETCH = np.array([[1.06, 0.04, 0.0], [0.0, 0.95, -0.03], [0.02, 0.0, 1.03]])


def brain(shape=SHAPE, grid=None, seed=0, sigma=2.0):
    """A textured ellipsoid on black."""
    return Scan((0.2 + texture(shape, sigma, seed)) * ball(shape), grid or Grid.isotropic(shape, 2.0))


def inverted(values):
    return torch.where(values > 0.1, 1.5 - values, values)


def noisy(scan, seed, level=0.02):
    generator = torch.Generator().manual_seed(seed)
    return replace(scan, image=scan.image + level * torch.randn(scan.image.shape, generator=generator))


TRUTH = about(Grid.isotropic(SHAPE, 2.0).centre, Rotation.from_rotvec([0.12, -0.1, 0.15]).as_matrix() @ STRETCH, (4, -3, 5))


@pytest.mark.parametrize(
    ("similarity", "change"),
    [
        (NMI(bins=64, order=3), inverted),
        (MattesMI(), inverted),
        (NCC(), torch.clone),
        (LNCC(), torch.clone),
        (SSD(), torch.clone),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_each_similarity_recovers_a_known_affine(similarity, change):
    fixed = brain()
    moving = noisy(moved(fixed, TRUTH, Grid.isotropic(SHAPE, 2.0), change), 1)
    result = register(noisy(fixed, 2), moving, settings=AffineSettings(similarity=similarity))
    assert corner_error(np.eye(4), TRUTH, fixed.grid) > 8
    assert corner_error(result.matrix, TRUTH, fixed.grid) < 0.6  # mm, of 2 mm voxels
    assert result.converged


def test_oblique_anisotropic_and_flipped_grids():
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec([0.2, 0.3, -0.4]).as_matrix() * (2.0, -1.5, 3.0)
    affine[:3, 3] = (100, -40, 20)
    fixed = brain((34, 44, 24), Grid((34, 44, 24), affine), sigma=(2.0, 2.6, 1.3))
    truth = about(fixed.grid.centre, Rotation.from_rotvec([0.1, 0.1, -0.1]).as_matrix() @ STRETCH, (5, 4, -3))
    moving_affine = np.diag([2.5, 2.0, 1.8, 1.0])
    moving_affine[:3, 3] = (truth @ [*fixed.grid.centre, 1])[:3] - Grid((34, 40, 42), moving_affine).centre
    moving = moved(fixed, truth, Grid((34, 40, 42), moving_affine))
    result = register(fixed, moving)
    assert corner_error(result.matrix, truth, fixed.grid) < 0.8


def test_it_is_as_accurate_as_ants(tmp_path):
    ants = pytest.importorskip("ants")
    fixed = noisy(brain(), 3)
    moving = noisy(moved(brain(), TRUTH, Grid.isotropic(SHAPE, 2.0), inverted), 4)
    ants.config.set_ants_deterministic(True)
    images = [ants.from_numpy(scan.image[0, 0].numpy(), spacing=scan.grid.spacing) for scan in (fixed, moving)]
    found = ants.registration(*images, "Affine", outprefix=str(tmp_path / "a"))
    theirs = corner_error(read_affine(found["fwdtransforms"][0]), TRUTH, fixed.grid)
    ours = corner_error(register(fixed, moving).matrix, TRUTH, fixed.grid)
    assert ours < theirs + 0.1


@pytest.mark.parametrize("kind", ["translation", "rigid", "similarity"])
def test_a_kind_gives_a_transform_of_that_kind(kind):
    fixed = brain()
    moving = moved(fixed, TRUTH, fixed.grid)
    linear = register(fixed, moving, kinds=(kind,)).matrix[:3, :3]
    product = linear.T @ linear
    assert np.allclose(product, product[0, 0] * np.eye(3), atol=1e-9)
    assert kind == "similarity" or product[0, 0] == pytest.approx(1)
    assert kind != "translation" or np.array_equal(linear, np.eye(3))


def test_rigid_is_found_exactly_and_in_2d_too():
    fixed = brain((60, 52), Grid.isotropic((60, 52)), sigma=2.5)
    truth = rigid_about(fixed.grid.centre, 12, (3, -4))
    result = register(fixed, moved(fixed, truth, fixed.grid, inverted), kinds=("rigid",))
    assert result.matrix.shape == (3, 3)
    assert corner_error(result.matrix, truth, fixed.grid) < 0.25


@pytest.mark.parametrize("side", ["fixed", "moving"])
def test_a_mask_on_either_side_hides_what_it_leaves_out(side):
    plain = brain()
    scans = {"fixed": plain, "moving": moved(plain, TRUTH, plain.grid)}
    lesion = torch.zeros_like(plain.image)
    lesion[..., 8:20, 10:24, 8:20] = 1

    def found(value, mask):
        spoilt = torch.where(lesion > 0, value, scans[side].image)
        pair = {**scans, side: Scan(spoilt, plain.grid, mask)}
        plan = AffineSettings(similarity=NCC(), coarse=None)
        return register(pair["fixed"], pair["moving"], settings=plan).matrix

    masked = found(4.0, 1 - lesion)
    assert corner_error(masked, TRUTH, plain.grid) < 0.4
    assert np.array_equal(masked, found(-7.0, 1 - lesion))
    assert corner_error(found(4.0, None), TRUTH, plain.grid) > 5


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_whitened_step_of_length_one_moves_the_samples_by_a_millimetre(kind, ndim):
    fixed = brain((20, 30, 16)[:ndim], Grid.isotropic((20, 30, 16)[:ndim], 1.7))
    start = rigid_about(fixed.grid.centre, np.full(2 * ndim - 3, 40.0), (0,) * ndim)
    problem = _Problem(fixed, fixed, kind, start, AffineSettings(samples=2000))
    points = torch.cat([problem.points[0].double(), torch.ones(1, problem.points.shape[2])])
    world = torch.tensor(fixed.grid.affine) @ points
    rng = np.random.default_rng(0)
    for _ in range(5):
        step = rng.normal(size=parameter_count(kind, ndim))
        step *= 1e-3 / np.linalg.norm(step)
        change = (problem.matrix_at(torch.tensor(step))[0] - torch.tensor(start)) @ world
        assert float((change**2).sum(0).mean().sqrt()) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("similarity", [NMI(bins=64, order=3), NCC(), LNCC()], ids=["nmi", "ncc", "lncc"])
def test_the_gradient_is_that_of_the_loss(similarity):
    fixed = brain()
    moving = moved(fixed, TRUTH, fixed.grid)
    problem = _Problem(fixed, moving, "affine", np.eye(4), AffineSettings(similarity=similarity, samples=50_000))
    at = np.full(12, 0.05)
    assert problem.matching(at)
    slope = problem(at)[1]
    differences = [(problem(at + step)[0] - problem(at - step)[0]) / 0.04 for step in 0.02 * np.eye(12)]
    assert np.linalg.norm(slope - differences) < 0.1 * np.linalg.norm(slope)


def test_samples_lie_between_the_voxels_of_the_mask():
    """On a lattice mutual information prefers transforms that keep voxels on voxels."""
    scan = replace(brain(), mask=ball(SHAPE, 0.3))
    points, block = _sample_points(scan, AffineSettings(samples=3000))
    assert block == (3000, 1, 1) and points.shape == (1, 3, 3000)
    assert bool((scan.mask[(0, 0, *points[0].round().long())] > 0).float().mean() > 0.95)
    assert float((points - points.round()).abs().mean()) == pytest.approx(0.25, abs=0.01)
    points, block = _sample_points(scan, AffineSettings(similarity=LNCC(), samples=3000))
    assert block == (5, 5, 5) and points.shape == (1, 3, 24 * 125)
    assert torch.allclose(points.reshape(3, 24, 5, 5, 5).diff(dim=2)[0], torch.ones(()))


def test_runs_are_repeatable_and_seeds_matter_little():
    fixed = noisy(brain(), 5)
    moving = noisy(moved(brain(), TRUTH, fixed.grid), 6)
    few = AffineSettings(samples=8000)
    first, again, other = (register(fixed, moving, settings=plan) for plan in (few, few, replace(few, seed=7)))
    assert np.array_equal(first.matrix, again.matrix)
    assert 0 < corner_error(first.matrix, other.matrix, fixed.grid) < 0.5


def test_history_shows_every_stage_and_an_early_stop():
    fixed = brain()
    result = register(fixed, moved(fixed, TRUTH, fixed.grid), initial=TRUTH, settings=AffineSettings(sides=(20, 64)))
    assert [stage.kind for stage in result.history] == ["rigid", "similarity", "affine", "affine"]
    assert [round(stage.spacing, 2) for stage in result.history] == [3.88] * 3 + [2.0]
    for stage in result.history:
        assert stage.losses[-1] <= stage.losses[0] and len(stage.losses) == stage.iterations + 1
    assert sum(stage.iterations for stage in result.history) < 40  # of 200: the start was the truth
    assert result.loss == result.history[-1].losses[-1]


def test_a_start_without_overlap_is_returned_and_not_converged():
    fixed = brain()
    far = rigid_about(fixed.grid.centre, (0, 0, 0), (500, 0, 0))
    result = register(fixed, fixed, initial=far)
    assert np.array_equal(result.matrix, far) and result.loss == float("inf") and not result.converged


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scan: replace(scan, image=torch.ones_like(scan.image)), "moving image is constant"),
        (lambda scan: replace(scan, image=scan.image / 0), "NaN or infinite"),
        (lambda scan: replace(scan, mask=torch.zeros_like(scan.image)), "moving mask is empty"),
        (lambda _: brain((20, 20), Grid.isotropic((20, 20))), "fixed image has 3 axes and the moving one 2"),
    ],
)
def test_bad_input_is_refused(change, message):
    fixed = brain()
    with pytest.raises(InputError, match=rf"{message}.*sub-5"):
        register(fixed, change(fixed), subject="sub-5")
