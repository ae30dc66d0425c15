"""The compiled kernels against SciPy, direct window sums and the tensor operations."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from popatlas.similarity.kernels_lncc import lncc_force
from popatlas.transforms import kernels
from popatlas.transforms.fieldops import CompiledOps, TensorOps, coarse_shape, gaussian_weights

Array = npt.NDArray[np.float32]
SHAPE = (9, 12, 11)
NONE = np.zeros((1, 1, 1), np.float32)


def noise(shape: tuple[int, ...], seed: int, sigma: float = 1.0) -> Array:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return np.asarray(gaussian_filter(values, [0] * (len(shape) - 3) + [sigma] * 3), np.float32)


def windows(image: npt.NDArray[np.float64], radius: int, at: tuple[int, int, int]) -> npt.NDArray[np.float64]:
    return image[tuple(slice(max(i - radius, 0), i + radius + 1) for i in at)].ravel()


def direct_lncc(
    fixed: Array, moving: Array, weight: Array, radius: int, floor: float
) -> tuple[float, npt.NDArray[np.float64]]:
    """Squared local correlation, and its derivative at the window's own centre, window by window in float64."""
    a, b, w = fixed.astype(float), moving.astype(float), weight.astype(float)
    total, push = 0.0, np.zeros(a.shape)
    for at in np.ndindex(*a.shape):
        n, p, q = (windows(x, radius, at) for x in (w, a, b))
        mass = max(n.sum(), 1e-6)
        ma, mb = (n * p).sum() / mass, (n * q).sum() / mass
        vaa = (n * (p - ma) ** 2).sum() / mass + floor
        vbb = (n * (q - mb) ** 2).sum() / mass + floor
        vab = (n * (p - ma) * (q - mb)).sum() / mass
        total += w[at] * vab**2 / (vaa * vbb)
        push[at] = w[at] * vab / (vaa * vbb) * ((a[at] - ma) - vab / vbb * (b[at] - mb))
    return total, push


def inner(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Set the ends of the last axis to zero, where the kernels do not push."""
    out = values.copy()
    out[..., [0, -1]] = 0
    return out


def central(image: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    n = image.shape[axis]
    after, before = np.minimum(np.arange(n) + 1, n - 1), np.maximum(np.arange(n) - 1, 0)
    return (image.take(after, axis) - image.take(before, axis)) / 2


@pytest.mark.parametrize("radius", [1, 2, 3, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_local_correlation_and_force_equal_direct_windows(radius: int, weighted: bool) -> None:
    fixed, moving = noise(SHAPE, 1), noise(SHAPE, 2)
    weight = (noise(SHAPE, 3) > 0).astype(np.float32) if weighted else np.ones(SHAPE, np.float32)
    total, push = direct_lncc(fixed, moving, weight, radius, 1e-3)
    expected = inner(np.stack([push * central(moving.astype(float), axis) for axis in range(3)]))
    force = np.zeros((3, *SHAPE), np.float32)
    value, mass = lncc_force(fixed, moving, weight if weighted else NONE, radius, 1e-3, 1, False, force, 0, SHAPE[0])
    assert value == pytest.approx(total, rel=1e-4)
    assert mass == pytest.approx(weight.sum())
    np.testing.assert_allclose(force, expected, atol=2e-4 * np.abs(expected).max())


def test_symmetric_force_is_antisymmetric_under_exchange() -> None:
    fixed, moving = noise(SHAPE, 1), noise(SHAPE, 2)
    forces = np.zeros((2, 3, *SHAPE), np.float32)
    lncc_force(fixed, moving, NONE, 2, 1e-3, 1, True, forces[0], 0, SHAPE[0])
    lncc_force(moving, fixed, NONE, 2, 1e-3, 1, True, forces[1], 0, SHAPE[0])
    np.testing.assert_allclose(forces[0], -forces[1], atol=1e-5 * np.abs(forces[0]).max())


def test_coarse_force_is_the_block_sum_of_the_fine_force() -> None:
    fixed, moving = noise(SHAPE, 1), noise(SHAPE, 2)
    fine = np.zeros((3, *SHAPE), np.float32)
    coarse = np.zeros((3, *coarse_shape(SHAPE, 2)), np.float32)
    lncc_force(fixed, moving, NONE, 2, 1e-3, 1, False, fine, 0, SHAPE[0])
    lncc_force(fixed, moving, NONE, 2, 1e-3, 2, False, coarse, 0, SHAPE[0])
    padded = np.pad(fine, [(0, 0), *[(0, n % 2) for n in SHAPE]])
    blocks = padded.reshape(3, *[m for n in coarse.shape[1:] for m in (n, 2)]).sum((2, 4, 6))
    np.testing.assert_allclose(coarse, blocks, atol=1e-5 * np.abs(fine).max())


@pytest.mark.parametrize("shrink", [1, 2])
def test_ranges_of_planes_add_up_to_the_whole(shrink: int) -> None:
    fixed, moving = noise(SHAPE, 1), noise(SHAPE, 2)
    whole, parts = (np.zeros((3, *coarse_shape(SHAPE, shrink)), np.float32) for _ in range(2))
    value, _ = lncc_force(fixed, moving, NONE, 2, 1e-3, shrink, True, whole, 0, SHAPE[0])
    values = [
        lncc_force(fixed, moving, NONE, 2, 1e-3, shrink, True, parts, lo, hi)[0] for lo, hi in ((0, 4), (4, 6), (6, 9))
    ]
    assert sum(values) == pytest.approx(value, rel=1e-4)
    np.testing.assert_allclose(parts, whole, atol=1e-3 * np.abs(whole).max())


def test_warp_equals_scipy_through_an_oblique_matrix() -> None:
    moving, field = noise((8, 13, 10), 4), noise((3, *SHAPE), 5, 2.0) * 4
    matrix = np.array([[0.8, 0.1, 0.0, 0.3], [-0.1, 1.1, 0.05, -0.5], [0.0, 0.1, 0.9, 0.2]], np.float32)
    out = np.empty(SHAPE, np.float32)
    kernels.warp(moving, field, 1, matrix, out, 0, SHAPE[0])
    points = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")) + field
    at = np.tensordot(matrix[:, :3], points, axes=1) + matrix[:, 3].reshape(3, 1, 1, 1)
    expected = map_coordinates(moving, at, order=1, mode="nearest")
    np.testing.assert_allclose(out, expected, atol=1e-3 * np.abs(moving).max())


@pytest.mark.parametrize("shrink", [1, 2])
@pytest.mark.parametrize("shape", [SHAPE, (8, 12, 10)])
def test_compiled_operations_equal_tensor_operations(shrink: int, shape: tuple[int, int, int]) -> None:
    compiled, tensor = CompiledOps(threads=2), TensorOps()
    field = torch.from_numpy(noise((2, 3, *coarse_shape(shape, shrink)), 6, 1.5) * 3)
    moving = torch.from_numpy(noise((2, 1, *shape), 7))
    matrix = torch.tensor([[1.0, 0.1, 0, 0.2], [0, 1, 0, -0.3], [0, 0.1, 1, 0]]).expand(2, -1, -1)
    for name, arguments in {
        "warp": (moving, field, shrink, matrix, shape),
        "smooth": (field, 1.3),
        "even_out": (field, 0.3),
        "compose": (field, field.flip(1).contiguous()),
        "jacobian": (field,),
    }.items():
        ours, theirs = getattr(compiled, name)(*arguments), getattr(tensor, name)(*arguments)
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_smoothing_equals_scipy() -> None:
    field = noise((3, *SHAPE), 8)
    sigma = 1.4
    radius = len(gaussian_weights(sigma)) - 1
    ours = CompiledOps().smooth(torch.from_numpy(field)[None], sigma)[0].numpy()
    expected = np.stack([gaussian_filter(part, sigma, mode="nearest", radius=radius) for part in field])
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("ops", [TensorOps(), CompiledOps()], ids=["torch", "compiled"])
def test_evening_out_damps_changes_of_volume_and_leaves_shears_and_rotations(ops: TensorOps) -> None:
    x, y, z = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in (16, 12, 13)), indexing="ij")
    keeping = {
        "shear": (0.3 * y + 0.1 * z, 0 * y, 0.2 * x),
        "turn": (-0.1 * y, 0.1 * x, 0 * z),
        "wave": (y.sin(), z.cos(), 0 * x),
    }
    for name, vectors in keeping.items():
        field = torch.stack(vectors)[None]
        torch.testing.assert_close(ops.even_out(field, 0.3), field, msg=lambda text, name=name: f"{name}: {text}")
    assert ops.even_out(field, 0.0) is field
    k, bulk = 0.7, 0.3  # a wave along its own direction, whose divergence is all that it has
    field = torch.stack([(k * x).sin(), 0 * y, 0 * z])[None]
    expected = field * (1 - bulk * np.sin(k) ** 2)
    torch.testing.assert_close(ops.even_out(field, bulk)[:, :, 2:-2], expected[:, :, 2:-2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(field[0, 0], (k * x).sin())  # in a new field


@pytest.mark.parametrize("ops", [TensorOps(), CompiledOps()], ids=["torch", "compiled"])
def test_an_inverse_does_not_depend_on_the_other_fields_of_a_batch(ops: TensorOps) -> None:
    """They need different numbers of iterations."""
    weak, strong = (
        amount * torch.tensor(np.stack([noise((12, 14, 16), seed, 3.0) for seed in range(3)])[None]) for amount in (4, 12)
    )
    both = ops.invert(torch.cat([weak, strong]).float())
    for row, one in enumerate((weak, strong)):
        torch.testing.assert_close(both[row : row + 1], ops.invert(one.float()), atol=1e-6, rtol=0)


def test_least_determinants_are_those_of_torch_and_see_what_central_differences_miss() -> None:

    field = torch.from_numpy(noise((3, *SHAPE), 4))[None] * 0.4
    slow, fast = TensorOps().least_jacobian(field), CompiledOps().least_jacobian(field)
    np.testing.assert_allclose(fast.numpy(), slow.numpy(), atol=1e-5)
    # every second voxel jumps over its neighbour: neighbours of a voxel move alike, so that central differences are 1
    jumping = torch.zeros(1, 3, 8, 8, 8)
    jumping[:, 0, ::2] = 1.5
    inside = (slice(None), slice(1, -1))
    assert (TensorOps().jacobian(jumping)[inside] == 1).all()
    assert (TensorOps().least_jacobian(jumping)[inside] == -0.5).all()
    # an affine map has one determinant
    scaled = torch.stack(torch.meshgrid(*[0.1 * torch.arange(8.0)] * 3, indexing="ij"))[None]
    np.testing.assert_allclose(TensorOps().least_jacobian(scaled).numpy(), 1.1**3, rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_force_of_mutual_information_is_that_of_torch(weighted: bool, symmetric: bool) -> None:
    from popatlas.similarity.mi import NMI

    rng = np.random.default_rng(0)
    fixed = torch.from_numpy(rng.random((1, 1, *SHAPE)).astype(np.float32))
    moving = (1 - fixed) ** 2 + 0.05 * torch.from_numpy(rng.random((1, 1, *SHAPE)).astype(np.float32))
    mask = torch.from_numpy((noise(SHAPE, 3) > 0).astype(np.float32))[None, None] if weighted else None
    loss = NMI(bins=12)
    value, push = TensorOps().force(loss, fixed, moving, mask, 1, symmetric)
    for threads in (1, 3):
        found, force = CompiledOps(threads).force(loss, fixed, moving, mask, 1, symmetric)
        assert float(found) == pytest.approx(float(value), rel=1e-4)
        scale = float((push[..., 1:-1] * force[..., 1:-1]).sum() / force[..., 1:-1].square().sum())
        np.testing.assert_allclose(scale * force[..., 1:-1], push[..., 1:-1], atol=2e-3 * float(push.abs().max()))
        assert scale > 0
