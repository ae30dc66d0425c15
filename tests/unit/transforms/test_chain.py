import ants
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.autograd import gradcheck

from popatlas.images.grid import Grid
from popatlas.transforms.chain import Affine, Chain, Field
from popatlas.transforms.fields import compose, warp
from popatlas.transforms.itk import write_affine, write_displacement
from popatlas.transforms.linear import affine_displacement
from tests.unit.images.test_grid import placed

# fixed and moving grids: oblique, anisotropic, flipped; each mapped into the other's middle
PAIRS = {
    "3d-oblique": (
        placed((20, 24, 18), (2.0, 1.5, 3.0), (10, 20, -15), (1, 1, 1), (-30, 10, -20)),
        placed((24, 22, 20), (1.7, 2.1, 2.2), (-30, 5, 12), (1, 1, 1), (10, -20, 30)),
    ),
    "3d-flipped": (
        placed((20, 24, 18), (2.0, 1.5, 3.0), (0, 0, 0), (-1, 1, -1), (30, 10, 20)),
        placed((24, 22, 20), (1.7, 2.1, 2.2), (40, 0, 90), (1, -1, 1), (10, 50, 30)),
    ),
    "3d-thick": (
        placed((26, 24, 8), (1.0, 1.0, 5.0), (0, 0, 5), (-1, -1, 1), (12, 15, 0)),
        placed((16, 14, 30), (2.5, 2.5, 1.0), (0, 60, 0), (1, 1, 1), (0, 0, 0)),
    ),
    "2d-oblique-flipped": (
        placed((30, 24), (2.0, 1.5), (12,), (1, -1), (-20, 10)),
        placed((24, 32), (1.7, 2.1), (-30,), (-1, 1), (10, -20)),
    ),
}
ALL = pytest.mark.parametrize(("fixed", "moving"), list(PAIRS.values()), ids=list(PAIRS))


def texture(grid, seed=0):
    values = gaussian_filter(np.random.default_rng(seed).normal(size=grid.shape), 1.2)
    return (values / values.std()).astype(np.float32)


def displacement(grid, seed=0, amplitude=2.0):
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(1, grid.ndim, *grid.shape)), (0, 0, *[3] * grid.ndim))
    return torch.tensor(amplitude * field / np.abs(field).max())


def affine_between(fixed, moving, seed=0):
    """Return an affine that sends the middle of the fixed grid near that of the moving one."""
    rng, ndim = np.random.default_rng(seed), fixed.ndim
    matrix = np.eye(ndim + 1)
    matrix[:-1, :-1] += rng.normal(0, 0.07, (ndim, ndim))
    matrix[:-1, -1] = moving.centre - matrix[:-1, :-1] @ fixed.centre + rng.uniform(-3, 3, ndim)
    return matrix


def as_ants(grid, values):
    return ants.from_numpy(values, origin=grid.origin.tolist(), spacing=grid.spacing, direction=grid.direction)


def by_ants(fixed, moving, values, files, interpolator):
    """Resample with ANTs; files in the order in which a fixed point goes through them."""
    target, source = as_ants(fixed, np.zeros(fixed.shape, np.float32)), as_ants(moving, values)
    transforms = [str(path) for path in files]
    return ants.apply_transforms(fixed=target, moving=source, transformlist=transforms, interpolator=interpolator).numpy()


def two_fields(fixed, moving, folder):
    """Return a chain of a fixed-grid field, an affine and a moving-grid field, and its files."""
    steps = (
        Field(displacement(fixed, 1), fixed),
        Affine(torch.tensor(affine_between(fixed, moving))),
        Field(displacement(moving, 2), moving),
    )
    files = [folder / "first.nii.gz", folder / "linear.mat", folder / "last.nii.gz"]
    write_displacement(files[0], steps[0].displacement[0], fixed)
    write_affine(files[1], steps[1].matrix[0], centre=fixed.centre)
    write_displacement(files[2], steps[2].displacement[0], moving)
    return Chain(steps), files


@ALL
def test_ants_makes_the_same_image_from_our_files(fixed, moving, tmp_path):
    """Also at the border and outside of grids; linear, nearest, cubic B-spline and generic labels."""
    chain, files = two_fields(fixed, moving, tmp_path)
    values = texture(moving)
    image = torch.tensor(values)[None, None]
    for mode, interpolator in (("linear", "linear"), ("nearest", "nearestNeighbor"), ("cubic", "bSpline")):
        expected = by_ants(fixed, moving, values, files, interpolator)
        found = chain.apply(image, moving, fixed, mode)[0, 0].numpy()
        # a coordinate next to a half can round to the other side
        assert np.mean(np.abs(found - expected) > 1e-4) < 2e-3, mode
        assert 0.3 < np.mean(found != 0) < 0.99, "a part of the fixed grid, and only a part, lies outside"


@ALL
def test_generic_labels_are_those_of_ants(fixed, moving, tmp_path):
    chain, files = two_fields(fixed, moving, tmp_path)
    labels = (7 * np.digitize(texture(moving), [-0.6, 0, 0.6])).astype(np.float32)
    expected = by_ants(fixed, moving, labels, files, "genericLabel")
    found = chain.apply(torch.tensor(labels)[None, None], moving, fixed, "generic")[0, 0].numpy()
    assert np.mean(found != expected) < 2e-3
    assert set(np.unique(found)) == {0, 7, 14, 21}


@ALL
def test_points_move_as_ants_moves_them(fixed, moving, tmp_path):
    """ants.apply_transforms_to_points takes the same list in the same order as images do."""
    import pandas as pd

    chain, files = two_fields(fixed, moving, tmp_path)
    rng, last = np.random.default_rng(5), np.array(fixed.shape) - 1
    points = rng.uniform(0.2 * last, 0.8 * last, (20, fixed.ndim)) @ fixed.affine[:-1, :-1].T + fixed.origin
    names = list("xyz"[: fixed.ndim])
    table = pd.DataFrame(points, columns=names)
    theirs = ants.apply_transforms_to_points(fixed.ndim, table, [str(path) for path in files])[names].to_numpy()
    ours = chain.points(points)
    assert ours.dtype == torch.float64
    assert np.abs(ours.numpy() - theirs).max() < 1e-4
    assert np.abs(ours.numpy() - points).max() > 5


@ALL
def test_a_chain_as_one_field_is_the_chain(fixed, moving):
    chain = Chain((Field(displacement(fixed, 1), fixed), Affine(torch.tensor(affine_between(fixed, moving)))))
    one = chain.as_field(fixed, dtype=torch.float64)
    image = torch.tensor(texture(moving))[None, None]
    assert (chain.apply(image, moving, fixed) - Chain((one,)).apply(image, moving, fixed)).abs().max() < 1e-3
    pure = Chain((Affine(torch.tensor(affine_between(fixed, moving))),)).as_field(fixed, dtype=torch.float64)
    expected = affine_displacement(torch.tensor(affine_between(fixed, moving)), fixed)
    assert torch.allclose(pure.displacement, expected)


def test_one_interpolation_keeps_what_two_would_blur():
    """Half a voxel forth and half a voxel back is nothing; two interpolations would smooth the image."""
    grid = Grid.isotropic((16, 16))
    image = torch.tensor(np.random.default_rng(0).normal(size=(1, 1, 16, 16)).astype(np.float32))
    half = torch.full((1, 2, 16, 16), 0.5)
    inner = (..., slice(2, -2), slice(2, -2))
    once = Chain((Field(half, grid), Field(-half, grid))).apply(image, grid, grid)
    assert (once - image)[inner].abs().max() < 1e-5
    assert (warp(warp(image, -half), half) - image)[inner].abs().max() > 0.5


def test_fields_on_one_grid_compose_as_displacements():
    grid = Grid.isotropic((20, 22), 1.5)
    one, two = (displacement(grid, seed, 1.0) for seed in (1, 2))
    chain = Chain((Field(one, grid),)).then(Chain((Field(two, grid),)))
    inner = (..., slice(2, -2), slice(2, -2))
    assert (chain.as_field(grid, dtype=torch.float64).displacement - compose(one, two))[inner].abs().max() < 1e-12


@ALL
def test_inverse_brings_points_back(fixed, moving):
    chain = Chain((Field(displacement(fixed, 1), fixed), Affine(torch.tensor(affine_between(fixed, moving)))))
    last = np.array(fixed.shape) - 1
    points = (
        np.random.default_rng(6).uniform(0.3 * last, 0.7 * last, (30, fixed.ndim)) @ fixed.affine[:-1, :-1].T + fixed.origin
    )
    back = chain.then(chain.inverse()).points(points).numpy()
    assert np.abs(back - points).max() < 0.15 * max(fixed.spacing)
    assert isinstance(chain.inverse().steps[0], Affine)


def test_no_steps_are_the_identity_between_grids():
    grid = Grid.isotropic((8, 9, 10), 2.0)
    image = torch.tensor(texture(grid))[None, None]
    assert torch.allclose(Chain().apply(image, grid, grid), image, atol=1e-5)
    fine = grid.resized((15, 17, 19))
    assert torch.allclose(Chain().apply(image, grid, fine)[..., ::2, ::2, ::2], image, atol=1e-4)
    points = np.random.default_rng(0).normal(size=(5, 3))
    assert np.allclose(Chain().points(points), points)
    assert Chain().points(np.zeros((0, 3))).shape == (0, 3)


def test_points_outside_of_a_field_stay():
    grid = Grid.isotropic((8, 8))
    chain = Chain((Field(torch.full((1, 2, 8, 8), 2.0), grid),))
    assert chain.points(np.array([[3.0, 3.0], [7.4, 3.0], [7.6, 3.0]])).tolist() == [[5, 5], [9.4, 5], [7.6, 3]]


def test_labels_keep_their_type():
    grid = Grid.isotropic((8, 8))
    labels = torch.randint(0, 9, (1, 1, 8, 8))
    moved = Chain((Field(torch.full((1, 2, 8, 8), 0.3), grid),)).apply(labels, grid, grid, "nearest")
    assert moved.dtype == torch.int64
    assert torch.equal(moved, labels)


def test_batches_go_through_together():
    grid = Grid.isotropic((12, 10), 2.0)
    matrices = torch.stack([torch.tensor(affine_between(grid, grid, seed)) for seed in (1, 2)])
    fields = torch.cat([displacement(grid, seed) for seed in (3, 4)])
    images = torch.tensor(np.stack([texture(grid, seed) for seed in (5, 6)]))[:, None]
    both = Chain((Field(fields, grid), Affine(matrices)))
    points = np.random.default_rng(0).uniform(5, 15, (2, 7, 2))
    for row in range(2):
        single = Chain((Field(fields[row : row + 1], grid), Affine(matrices[row])))
        expected = single.apply(images[row : row + 1], grid, grid)
        assert torch.allclose(both.apply(images, grid, grid)[row], expected[0], atol=1e-5)
        assert torch.allclose(both.points(points)[row], single.points(points[row]))
    with pytest.raises(ValueError, match="batch of 2"):
        both.points(points[0])


def test_gradients_of_image_matrix_and_field():
    grid = Grid.isotropic((5, 4), 1.5)
    image = torch.tensor(np.random.default_rng(0).normal(size=(1, 1, 5, 4))).requires_grad_()
    matrix = torch.tensor(affine_between(grid, grid)).requires_grad_()
    field = displacement(grid, 1, 0.4).requires_grad_()

    def apply(image, matrix, field):
        return Chain((Field(field, grid), Affine(matrix))).apply(image, grid, grid, padding="border")

    assert gradcheck(apply, (image, matrix, field))


def test_what_does_not_fit_is_refused():
    flat, deep = Grid.isotropic((8, 8)), Grid.isotropic((8, 8, 8))
    with pytest.raises(ValueError, match="2D and 3D"):
        Chain((Affine(torch.eye(3)), Affine(torch.eye(4))))
    with pytest.raises(ValueError, match="homogeneous"):
        Affine(torch.eye(4)[:3])
    with pytest.raises(ValueError, match="on a grid of shape"):
        Field(torch.zeros(1, 3, 8, 8, 9), deep)
    with pytest.raises(ValueError, match="3D chain"):
        Chain((Affine(torch.eye(4)),)).points(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="on a grid of shape"):
        Chain().apply(torch.zeros(1, 1, 8, 9), flat, flat)
