"""Properties of the transform algebra: random grids, matrices and fields."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from popatlas.images.grid import Grid
from popatlas.transforms import fields, jacobian, linear
from popatlas.transforms.chain import Affine, Chain, Field
from popatlas.transforms.ffd import control_shape, dense_from_control
from popatlas.transforms.griddistance import grid_distance_mm, squared_grid_distance
from popatlas.transforms.itk import read_displacement, write_affine, write_displacement
from popatlas.transforms.velocity import integrate_stationary, inverse_time_varying

quick = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
dimensions = st.sampled_from([2, 3])


@st.composite
def grids(draw: st.DrawFn, ndim: int | None = None, smallest: int = 2) -> Grid:
    """Grids of any orientation, flipped or not, with voxels of 0.3 to 6 mm."""
    ndim = draw(dimensions) if ndim is None else ndim
    rng = np.random.default_rng(draw(seeds))
    turn = (
        Rotation.random(random_state=rng).as_matrix()
        if ndim == 3
        else Rotation.from_euler("z", rng.uniform(0, 7)).as_matrix()
    )
    affine = np.eye(ndim + 1)
    affine[:-1, :-1] = turn[:ndim, :ndim] * rng.uniform(0.3, 6, ndim) * rng.choice([-1, 1], ndim)
    affine[:-1, -1] = rng.uniform(-150, 150, ndim)
    return Grid(tuple(draw(st.integers(smallest, smallest + 7)) for _ in range(ndim)), affine)


def matrices(ndim: int, seed: int, size: float = 0.3, batch: int = 1) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    scale = np.r_[[30.0] * ndim, [1.0] * (linear.parameter_count("affine", ndim) - ndim)]
    return linear.matrix(
        torch.tensor(rng.uniform(-size, size, (batch, len(scale))) * scale), "affine", rng.uniform(-50, 50, ndim)
    )


def smooth(shape: tuple[int, ...], seed: int, slope: float) -> torch.Tensor:
    """Return a smooth displacement that vanishes at the border and whose slopes are at most `slope`."""
    noise = np.random.default_rng(seed).normal(size=(len(shape), *shape))
    window = np.prod(np.meshgrid(*(np.sin(np.pi * np.arange(n) / (n - 1)) ** 2 for n in shape), indexing="ij"), axis=0)
    field = gaussian_filter(noise, (0, *[3.0] * len(shape))) * window
    steepest = max(np.abs(np.diff(field, axis=axis)).max() for axis in range(1, len(shape) + 1))
    return torch.tensor(field * slope / steepest)[None]


def interpolation_error(field: torch.Tensor) -> float:
    """Return how far a smooth field is from its linear interpolation: about an eighth of its second differences."""
    axes = range(2, field.ndim)
    return sum(float(torch.diff(field, n=2, dim=axis).norm(dim=1).max()) for axis in axes) / 8


def points_in(grid: Grid, seed: int, count: int = 15) -> npt.NDArray[np.float64]:
    index = np.random.default_rng(seed).uniform(0, np.array(grid.shape) - 1, (count, grid.ndim))
    return np.asarray(index @ grid.affine[:-1, :-1].T + grid.origin)


@quick
@given(data=st.data(), ndim=dimensions, seed=seeds)
def test_voxel_matrices_there_and_back_cancel(data: st.DataObject, ndim: int, seed: int) -> None:
    one, two = data.draw(grids(ndim)), data.draw(grids(ndim))
    forward = matrices(ndim, seed, batch=2)
    there = linear.voxel_matrix(forward, one, two)
    back = linear.voxel_matrix(torch.linalg.inv(forward), two, one)
    torch.testing.assert_close(back @ there, torch.eye(ndim + 1).double().expand(2, -1, -1), atol=1e-8, rtol=0)


@quick
@given(grid=grids(), seed=seeds)
def test_jacobian_of_an_affine_displacement_is_its_determinant(grid: Grid, seed: int) -> None:
    matrix = matrices(grid.ndim, seed, batch=2)
    found = jacobian.jacobian_determinant(linear.affine_displacement(matrix, grid))
    expected = torch.linalg.det(matrix[:, :-1, :-1]).reshape(2, *[1] * grid.ndim)  # any grid: voxel sizes cancel
    torch.testing.assert_close(found, expected.expand_as(found), atol=1e-8, rtol=0)


@quick
@given(ndim=dimensions, seed=seeds, slope=st.floats(0.05, 0.35))
def test_inverse_undoes_on_both_sides_and_is_its_own_inverse(ndim: int, seed: int, slope: float) -> None:
    u = smooth((18, 20, 17)[:ndim], seed, slope)
    v = fields.invert(u, tolerance=1e-4)
    assert fields.compose(v, u).norm(dim=1).max() <= 1e-4
    # the exact inverse of a piecewise linear field has kinks, for which half a second difference is the bound
    assert fields.compose(u, v).norm(dim=1).max() < 4 * interpolation_error(v) + 1e-3
    again = fields.invert(v, tolerance=1e-4)
    assert (again - u).norm(dim=1).max() < 4 * interpolation_error(v) + 1e-3
    identity = torch.zeros_like(u)
    assert fields.invert(identity).abs().max() == 0
    torch.testing.assert_close(fields.compose(u, identity), u)
    torch.testing.assert_close(fields.compose(identity, u), u)


@quick
@given(ndim=dimensions, seed=seeds)
def test_determinants_of_a_composition_multiply(ndim: int, seed: int) -> None:
    shape = (22, 20, 21)[:ndim]
    one, two = smooth(shape, seed, 0.15), smooth(shape, seed + 1, 0.15)
    whole = jacobian.jacobian_determinant(fields.compose(one, two))
    parts = jacobian.jacobian_determinant(one) * fields.warp(jacobian.jacobian_determinant(two)[None], one)[0]
    assert (whole - parts).abs().mean() < 0.01


@quick
@given(ndim=dimensions, seed=seeds, slope=st.floats(0.05, 0.3))
def test_flows_of_opposite_velocities_are_inverse(ndim: int, seed: int, slope: float) -> None:
    velocity = smooth((18, 20, 17)[:ndim], seed, slope)
    forward, back = integrate_stationary(velocity), integrate_stationary(-velocity)
    rest = max(fields.compose(forward, back).norm(dim=1).max(), fields.compose(back, forward).norm(dim=1).max())
    assert rest < 2 * interpolation_error(forward) + 0.03  # each squaring interpolates
    assert jacobian.jacobian_determinant(forward).min() > 0


@quick
@given(data=st.data(), ndim=dimensions, seed=seeds)
def test_chains_move_points_through_their_steps_and_back(data: st.DataObject, ndim: int, seed: int) -> None:
    grid = data.draw(grids(ndim, smallest=16))
    field, matrix = Field(smooth(grid.shape, seed, 0.3), grid), Affine(matrices(ndim, seed))
    points = points_in(grid, seed)
    both = Chain((field, matrix)).points(points)
    by_hand = Chain((matrix,)).points(Chain((field,)).points(points))
    torch.testing.assert_close(both, by_hand, atol=1e-8, rtol=0)
    back = Chain((field, matrix)).inverse().points(both).numpy()
    assert np.abs(back - points).max() < 0.1 * max(grid.spacing)


@quick
@given(data=st.data(), ndim=dimensions, seed=seeds)
def test_an_image_resampled_through_an_affine_is_read_where_its_points_go(data: st.DataObject, ndim: int, seed: int) -> None:
    """A linear ramp in millimetres stays one: value at a fixed voxel = ramp at the moved point."""
    fixed, moving = data.draw(grids(ndim)), data.draw(grids(ndim))
    chain = Chain((Affine(matrices(ndim, seed)),))
    slope = np.random.default_rng(seed).normal(size=ndim)
    index = fields.coordinates(moving.shape, dtype=torch.float64)
    ramp = torch.einsum("d,bd...->b...", torch.tensor(slope), linear.move(torch.tensor(moving.affine)[None], index))[None]
    found = chain.apply(ramp, moving, fixed, padding="border")[0, 0].numpy()
    where = fields.coordinates(fixed.shape, dtype=torch.float64).flatten(2)[0].numpy().T
    moved = chain.points(where @ fixed.affine[:-1, :-1].T + fixed.origin).numpy()
    at = np.linalg.solve(moving.affine[:-1, :-1], (moved - moving.origin).T).T
    inside = ((at >= 0) & (at <= np.array(moving.shape) - 1)).all(axis=1)
    np.testing.assert_allclose(found.ravel()[inside], (moved @ slope)[inside], atol=1e-6)


@quick
@given(data=st.data(), ndim=dimensions, spacing=st.floats(0.7, 9), kind=st.sampled_from(["bspline", "linear"]))
def test_control_points_make_a_partition_of_unity(data: st.DataObject, ndim: int, spacing: float, kind: str) -> None:
    shape = tuple(data.draw(st.integers(2, 20)) for _ in range(ndim))
    control = torch.ones(1, ndim, *control_shape(shape, spacing), dtype=torch.float64)
    dense = dense_from_control(control, shape, spacing, kind)  # type: ignore[arg-type]
    torch.testing.assert_close(dense, torch.ones_like(dense))


@quick
@given(grid=grids(), seed=seeds)
def test_grid_distance_is_a_metric_that_motion_of_the_moving_space_keeps(grid: Grid, seed: int) -> None:
    one, two, three = (matrices(grid.ndim, seed + i)[0].numpy() for i in range(3))
    distance = grid_distance_mm(one, two, grid)
    assert 0 < distance <= grid_distance_mm(one, three, grid) + grid_distance_mm(three, two, grid) + 1e-9
    rigid = linear.matrix(torch.tensor(np.random.default_rng(seed).normal(size=(1, 6 if grid.ndim == 3 else 3))), "rigid",
                          grid.centre)[0].numpy()  # fmt: skip
    np.testing.assert_allclose(grid_distance_mm(rigid @ one, rigid @ two, grid), distance, rtol=1e-9)


@pytest.mark.parametrize("shape", [(8, 9, 7), (8, 9)], ids=["3d", "2d"])
def test_tensors_stay_on_the_device_of_their_input(shape: tuple[int, ...]) -> None:
    """The `meta` device refuses to mix with tensors of the CPU, as a GPU does."""
    grid, ndim = Grid.isotropic(shape), len(shape)
    field, image, matrix = (
        torch.zeros(size, device="meta") for size in ((1, ndim, *shape), (1, 2, *shape), (1, ndim + 1, ndim + 1))
    )
    control = torch.zeros((1, ndim, *control_shape(shape, 3)), device="meta")
    parameters = torch.zeros((1, linear.parameter_count("affine", ndim)), device="meta")
    results = [
        *(fields.warp(image, field, mode, "zeros") for mode in get_args(fields.Mode)),
        jacobian.log_jacobian(field),
        fields.resize_field(field, [n + 3 for n in shape]),
        integrate_stationary(field),
        inverse_time_varying([field, field]),
        dense_from_control(control, shape, 3),
        linear.affine_displacement(linear.matrix(parameters, "affine", grid.centre), grid),
        squared_grid_distance(matrix, matrix, grid),
    ]
    assert {result.device.type for result in results} == {"meta"}


@settings(quick, max_examples=10)
@given(grid=grids(), seed=seeds)
def test_files_keep_fields_and_grids(grid: Grid, seed: int) -> None:
    field = np.random.default_rng(seed).normal(size=(grid.ndim, *grid.shape))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "field.nii.gz"
        write_displacement(path, field, grid)
        found, read = read_displacement(path)
        write_affine(Path(folder) / "affine.mat", matrices(grid.ndim, seed)[0])
        assert read.same_as(grid)
        assert Grid.from_file(path).same_as(grid)
    np.testing.assert_allclose(found, field, atol=1e-5)
