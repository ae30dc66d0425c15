import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.linalg import expm
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck

from popatlas.images.grid import Grid
from popatlas.transforms import linear
from popatlas.transforms.affine import decompose
from popatlas.transforms.fields import warp
from tests.unit.images.test_grid import OBLIQUE, OBLIQUE_2D, placed

COUNTS = {"translation": (2, 3), "rigid": (3, 6), "similarity": (4, 7), "affine": (6, 12)}
ALL = pytest.mark.parametrize(("kind", "ndim"), [(kind, ndim) for kind in linear.KINDS for ndim in (2, 3)])
CENTRE = np.array([12.0, -30.0, 7.0])


def values(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


def random_parameters(kind, ndim, batch=2, size=0.3):
    rng = np.random.default_rng(linear.parameter_count(kind, ndim))
    return torch.tensor(rng.uniform(-size, size, (batch, linear.parameter_count(kind, ndim))))


@ALL
def test_zeros_are_the_identity(kind, ndim):
    assert linear.parameter_count(kind, ndim) == COUNTS[kind][ndim - 2]
    zeros = linear.identity_parameters(kind, ndim, batch=3)
    assert torch.equal(linear.matrix(zeros, kind, CENTRE[:ndim]), torch.eye(ndim + 1).expand(3, -1, -1))


@ALL
def test_kinds_keep_what_they_promise_and_move_the_centre_by_the_translation(kind, ndim):
    parameters = random_parameters(kind, ndim)
    for matrix, row in zip(linear.matrix(parameters, kind, CENTRE[:ndim]).numpy(), parameters.numpy(), strict=True):
        part, gram = matrix[:-1, :-1], matrix[:-1, :-1].T @ matrix[:-1, :-1]
        assert np.linalg.det(part) > 0
        assert np.allclose(part, np.eye(ndim)) == (kind == "translation")
        assert np.allclose(gram, np.eye(ndim)) == (kind in ("translation", "rigid"))
        assert np.allclose(gram, gram[0, 0] * np.eye(ndim)) == (kind != "affine")
        assert np.allclose(part @ CENTRE[:ndim] + matrix[:-1, -1], CENTRE[:ndim] + row[:ndim])
        assert matrix[-1].tolist() == [0] * ndim + [1]


def test_rotation_vectors_are_those_of_scipy():
    turn = np.array([0.4, -1.2, 0.9])
    found = linear.matrix(values(0, 0, 0, *turn), "rigid", np.zeros(3))[0, :3, :3].numpy()
    assert np.allclose(found, Rotation.from_rotvec(turn).as_matrix())
    flat = linear.matrix(values(0, 0, np.pi / 2), "rigid", np.zeros(2))[0, :2, :2].numpy()
    assert np.allclose(flat, [[0, -1], [1, 0]])


def test_rigid_agrees_with_simpleitk_about_a_centre():
    turn, shift = np.array([0.2, 0.5, -0.3]), (3.0, -2.0, 8.0)
    transform = sitk.VersorRigid3DTransform()
    transform.SetCenter(CENTRE.tolist())
    transform.SetRotation((turn / np.linalg.norm(turn)).tolist(), float(np.linalg.norm(turn)))
    transform.SetTranslation(shift)
    matrix = linear.matrix(values(*shift, *turn), "rigid", torch.tensor(CENTRE))[0].numpy()
    for point in np.random.default_rng(0).normal(0, 60, (10, 3)):
        assert np.allclose(matrix[:3, :3] @ point + matrix[:3, 3], transform.TransformPoint(point.tolist()))


def test_scales_and_shears_are_logarithms():
    size = linear.matrix(values(0, 0, 0, 0, 0, 0, np.log(1.5)), "similarity", np.zeros(3))[0].numpy()
    assert np.allclose(size, np.diag([1.5, 1.5, 1.5, 1]))
    shears = [0.1, -0.2, 0.3]
    found = linear.matrix(values(*[0] * 6, *np.log([1.2, 0.8, 1.1]), *shears), "affine", np.zeros(3))[0].numpy()
    logs = np.diag(np.log([1.2, 0.8, 1.1]))
    logs[np.triu_indices(3, 1)] = logs.T[np.triu_indices(3, 1)] = shears
    assert np.allclose(found[:3, :3], expm(logs))
    assert np.allclose(linear.matrix(values(0, 0, 0, *np.log([2, 3]), 0), "affine", np.zeros(2))[0], np.diag([2, 3, 1]))
    assert sorted(decompose(found).scales) == pytest.approx(sorted(np.exp(np.linalg.eigvalsh(logs))))


@ALL
@pytest.mark.parametrize("size", [0.0, 0.3], ids=["identity", "random"])
def test_gradients_of_matrices(kind, ndim, size):
    parameters = random_parameters(kind, ndim, size=size).requires_grad_()
    assert gradcheck(lambda p: linear.matrix(p, kind, CENTRE[:ndim]), (parameters,))


def test_a_kind_that_is_unknown_or_has_other_parameters_is_refused():
    with pytest.raises(ValueError, match=r"'projective'.*translation, rigid"):
        linear.parameter_count("projective", 3)
    with pytest.raises(ValueError, match="6 parameters"):
        linear.matrix(torch.zeros(1, 7), "rigid", np.zeros(3))


@pytest.mark.parametrize(("fixed", "moving"), [
    (OBLIQUE, placed((5, 6, 7), (2, 1, 3), (-60, 5, 10), (-1, -1, 1), (3, 4, 5))),
    (OBLIQUE_2D, placed((5, 6), (2, 1), (-60,), (1, -1), (3, 4))),
], ids=["3d", "2d"])  # fmt: skip
def test_voxel_matrices_agree_with_the_way_through_millimetres(fixed, moving):
    ndim = fixed.ndim
    matrices = linear.matrix(random_parameters("affine", ndim), "affine", fixed.centre)
    index = np.random.default_rng(0).uniform(0, 5, (4, ndim))
    points = index @ fixed.affine[:-1, :-1].T + fixed.origin
    for matrix, found in zip(matrices.numpy(), linear.voxel_matrix(matrices, fixed, moving).numpy(), strict=True):
        moved = points @ matrix[:-1, :-1].T + matrix[:-1, -1]
        expected = np.linalg.solve(moving.affine[:-1, :-1], (moved - moving.origin).T).T
        assert np.allclose(index @ found[:-1, :-1].T + found[:-1, -1], expected)
    single = linear.voxel_matrix(matrices[0].float(), fixed, moving)
    assert single.shape == (1, ndim + 1, ndim + 1)
    assert single.dtype == torch.float32


@pytest.mark.parametrize("grid", [OBLIQUE, OBLIQUE_2D], ids=["3d", "2d"])
def test_affine_displacement_ends_where_the_matrix_sends_the_voxel(grid):
    matrices = linear.matrix(random_parameters("affine", grid.ndim), "affine", grid.centre)
    displacement = linear.affine_displacement(matrices, grid)
    assert displacement.shape == (2, grid.ndim, *grid.shape)
    last = np.array(grid.shape) - 1
    start = grid.affine[:-1, :-1] @ last + grid.origin
    for matrix, field in zip(matrices.numpy(), displacement.numpy(), strict=True):
        end = grid.affine[:-1, :-1] @ (last + field[(slice(None), *last)]) + grid.origin
        assert np.allclose(end, matrix[:-1, :-1] @ start + matrix[:-1, -1])


def test_a_translation_in_millimetres_moves_the_image_against_it():
    grid = Grid(shape=(8, 6), affine=np.diag([2.0, 3.0, 1.0]))
    image = torch.zeros(1, 1, 8, 6)
    image[0, 0, 5, 3] = 1
    moved = warp(
        image, linear.affine_displacement(linear.matrix(torch.tensor([[4.0, 3.0]]), "translation", grid.centre), grid)
    )
    assert moved[0, 0, 3, 2].item() == pytest.approx(1, abs=1e-5)


def test_grids_of_mixed_dimensions_are_refused():
    with pytest.raises(ValueError, match="axes"):
        linear.voxel_matrix(torch.eye(4), OBLIQUE, OBLIQUE_2D)
