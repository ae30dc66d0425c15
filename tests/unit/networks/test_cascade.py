"""Recursive cascades: composition, affine stage and its penalties, repeats, gradients, files."""

import math
from itertools import pairwise

import pytest
import torch

from popatlas.errors import InputError
from popatlas.networks.cascade import AffineHead, affine_displacement, cascaded
from popatlas.networks.registration import (
    build_registration_network,
    load_registration_network,
    save_registration_network,
)
from popatlas.regularisers.affine import EPSILON, determinant_penalty, orthogonality_penalty
from popatlas.regularisers.diffusion import diffusion
from popatlas.transforms.fields import compose, coordinates, warp

SHAPES = {2: (16, 24), 3: (8, 16, 12)}
SMALL = {"widths": [4, 6], "cascades": 2}


def small(ndim=2, seed=0, lively=True, **options):
    """A tiny network; a lively one has heads that move voxels."""
    torch.manual_seed(seed)
    net = build_registration_network("cascade", ndim, **(SMALL | options))
    if lively:
        with torch.no_grad():
            for name, value in net.named_parameters():
                if "head" in name:
                    value.normal_(0, 0.02)
    return net


def noise(ndim, batch=2, seed=1):
    return torch.randn((batch, 1, *SHAPES[ndim]), generator=torch.Generator().manual_seed(seed))


def centred(shape):
    return coordinates(shape) - torch.tensor(shape).sub(1).div(2).reshape(1, -1, *[1] * len(shape))


def rotation(angle, ndim):
    """Rotation in the plane of the first two axes, without translation."""
    matrix = torch.eye(ndim, ndim + 1)
    matrix[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return matrix.unsqueeze(0)


def turning(angle, shape):
    """Displacement of a rotation about the centre, not made by the code under test."""
    x = centred(shape)
    change = rotation(angle, len(shape))[0, :, :-1] - torch.eye(len(shape))
    return torch.einsum("ij,bj...->bi...", change, x)


def smooth_field(shape, seed, size=2.0):
    """Waves of 20 voxels and longer."""
    g, ndim = torch.Generator().manual_seed(seed), len(shape)
    phases, waves = 6 * torch.rand(ndim, generator=g), torch.rand(ndim, ndim, generator=g) / 6
    angles = torch.einsum("ij,bj...->bi...", waves, centred(shape)) + phases.reshape(1, -1, *[1] * ndim)
    return size * angles.sin()


# ---------------------------------------------------------------------------------------------------- composition


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("affine", [0.0, 0.1])
def test_equal_rotations_add_up_to_the_rotation_by_their_sum(ndim, affine):
    shape, angle, count = (31, 31, 5)[:ndim], 0.15, 4
    matrix = rotation(affine, ndim) if affine else None
    field, image = turning(angle, shape), torch.zeros(1, 1, *shape)
    total, fields = cascaded([lambda fixed, moving: field] * count, image, image, matrix)
    assert len(fields) == count
    inside = (centred(shape)[:, :2].norm(dim=1) < 14).expand(1, *shape)
    expected = turning(count * angle + affine, shape)
    error = (total - expected).norm(dim=1)[inside]
    assert float(error.max()) < 1e-4
    assert float((count * field + turning(affine, shape) - expected).norm(dim=1)[inside].max()) > 1  # sums do not


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_composed_field_warps_as_the_fields_one_after_the_other(ndim):
    shape = (36, 44, 28)[:ndim]
    image = torch.exp(-centred(shape).square().sum(1, keepdim=True) / 100)
    parts = [smooth_field(shape, seed) for seed in range(3)]
    queue = iter(parts)
    total, _ = cascaded([lambda fixed, moving: next(queue)] * 3, image, image)
    successive = image
    for part in parts:
        successive = warp(successive, part)
    core = (slice(None), slice(None), *[slice(6, -6)] * ndim)
    once = warp(image, total)
    backwards = warp(image, compose(compose(parts[0], parts[1]), parts[2]))
    rest, change, wrong = (float((other - successive)[core].abs().mean()) for other in (once, image, backwards))
    assert float((once - successive)[core].abs().max()) < 0.02
    assert rest < 0.05 * change and rest < 0.2 * wrong  # the field of the last stage comes first


def test_the_affine_map_has_no_border():
    """A field that leaves the image is followed exactly by the affine map, also outside."""
    shape, matrix = (6, 9), torch.tensor([[[1.2, 0.1, 3.0], [-0.2, 0.9, -4.0]]])
    shift = torch.tensor([20.0, -30.0]).reshape(1, 2, 1, 1)
    image = torch.zeros(1, 1, *shape)
    total, _ = cascaded([lambda fixed, moving: shift.expand(1, 2, *shape)], image, image, matrix)
    points = centred(shape) + shift
    expected = (
        torch.einsum("ij,bj...->bi...", matrix[0, :, :2], points) + matrix[0, :, 2].reshape(1, 2, 1, 1) - centred(shape)
    )
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=0)


def test_no_stages_and_no_matrix_are_refused():
    with pytest.raises(ValueError, match="no stages"):
        cascaded([], torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize("ndim", [2, 3])
def test_affine_displacements_are_counted_from_the_centre(ndim):
    shape = (5, 7, 9)[:ndim]
    none = torch.zeros(1, 1, *shape)
    middle = (0, slice(None), *[n // 2 for n in shape])
    turned = affine_displacement(rotation(0.7, ndim), none)
    torch.testing.assert_close(turned, turning(0.7, shape))
    assert float(turned[middle].abs().max()) < 1e-6
    assert torch.equal(affine_displacement(rotation(0, ndim), none), torch.zeros(1, ndim, *shape))


# ---------------------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("ndim", [2, 3])
def test_each_cascade_registers_what_was_found_before_it(ndim, repeats):
    net = small(ndim, repeats=repeats)
    fixed, moving = noise(ndim), noise(ndim, seed=2)
    found = net(fixed, moving)
    matrix = net.affine(fixed, moving)
    assert torch.equal(found.matrices[0], matrix) and matrix.shape == (2, ndim, ndim + 1)
    own = torch.zeros_like(found.displacement)
    nets = [one for one in net.cascades for _ in range(repeats)]  # 1 1 2 2, not 1 2 1 2
    assert len(found.smooth) == len(nets)
    for one, field in zip(nets, found.smooth, strict=True):
        torch.testing.assert_close(field, one(fixed, warp(moving, affine_displacement(matrix, own))), atol=1e-4, rtol=1e-4)
        own = compose(field, own)
    torch.testing.assert_close(found.displacement, affine_displacement(matrix, own), atol=1e-4, rtol=1e-4)
    assert float(found.displacement.detach().abs().max()) > 0.5


def test_fields_are_divided_by_the_number_of_cascades():
    one, three = (small(cascades=count, affine=False) for count in (1, 3))
    three.cascades[0].load_state_dict(one.cascades[0].state_dict())
    fixed, moving = noise(2), noise(2, seed=2)
    torch.testing.assert_close(three(fixed, moving).smooth[0], one(fixed, moving).smooth[0] / 3)
    scaled = small(cascades=1, affine=False, scale=5.0)
    scaled.load_state_dict(one.state_dict())
    torch.testing.assert_close(scaled(fixed, moving).displacement, one(fixed, moving).displacement / 4)


def test_without_an_affine_stage_there_are_no_matrices():
    assert small(affine=False)(noise(2), noise(2)).matrices == ()


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_fresh_network_leaves_the_images_where_they_are(ndim):
    found = small(ndim, lively=False)(noise(ndim), noise(ndim, seed=2))
    assert float(found.displacement.detach().abs().max()) < 0.05
    assert torch.equal(found.matrices[0], rotation(0, ndim).expand(2, -1, -1))


def test_the_end_loss_reaches_the_first_cascade():
    net = small(cascades=3)
    fixed, moving = noise(2), noise(2, seed=2)
    (fixed - warp(moving, net(fixed, moving).displacement)).square().mean().backward()
    for part in (net.affine, *net.cascades):
        assert all(value.grad is not None and float(value.grad.abs().max()) > 0 for value in part.parameters())
    # through the images as well as through the sum: the last cascade sees what the first one did
    net.zero_grad()
    found = net(fixed, moving)
    gradient = torch.autograd.grad(found.smooth[-1].square().sum(), net.cascades[0].head.weight)[0]
    assert float(gradient.abs().max()) > 0


def test_the_published_deformable_network_has_its_parameters():
    widths = (16, 32, 64, 128, 256, 512)
    encoder = sum(27 * i * o + o for i, o in zip((2, *widths), widths, strict=False)) + sum(
        27 * o * o + o for o in widths[2:]
    )
    decoder, inputs = 0, widths[-1]
    for fine in reversed(widths[:-1]):
        decoder += 64 * inputs * fine + (27 * inputs * 3 + 3) + 64 * 3 * 3
        inputs = fine + fine + 3
    with torch.device("meta"):
        net = build_registration_network("cascade", 3)
    count = sum(value.numel() for value in net.cascades[0].parameters())
    assert count == encoder + decoder + 64 * inputs * 3
    dense = 512 * 2**3 * 12 + 12
    assert sum(value.numel() for value in net.affine.parameters()) == encoder + dense
    assert net.stride == 64


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_affine_head_is_a_dense_layer_where_cells_are_voxels_and_takes_other_shapes(ndim):
    torch.manual_seed(0)
    head = AffineHead(ndim, 5, 2)
    torch.nn.init.normal_(head.dense.weight)
    features = torch.randn(3, 5, *[2] * ndim)
    expected = features.reshape(3, -1) @ head.dense.weight.T
    torch.testing.assert_close(head(features) - torch.eye(ndim, ndim + 1), expected.reshape(3, ndim, ndim + 1))
    larger = features
    for axis in range(ndim):
        larger = larger.repeat_interleave(2 + axis, axis + 2)
    torch.testing.assert_close(head(larger), head(features))


def test_repeats_reach_farther_than_the_network_was_trained_for():
    """Trained once on short translations; then its error on long ones falls with 1, 2 and 4 applications."""
    g = torch.Generator().manual_seed(0)
    net = small(lively=False, widths=[8, 16, 16], cascades=1, affine=False)
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)

    def blobs(centres):
        squares = (coordinates((48, 48)) - centres[:, :, None, None]).square().sum(1, keepdim=True)
        return torch.exp(-squares / 50)

    for _ in range(150):
        centres, shifts = 18 + 12 * torch.rand(8, 2, generator=g), 3 * (2 * torch.rand(8, 2, generator=g) - 1)
        fixed, moving = blobs(centres), blobs(centres + shifts)
        found = net(fixed, moving)
        loss = (fixed - warp(moving, found.displacement)).square().mean() + 1e-3 * diffusion(found.smooth[0]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    fixed = blobs(torch.tensor([[18.0, 18.0], [20.0, 16.0]]))
    moving = blobs(torch.tensor([[28.0, 23.0], [20.0, 26.0]]))
    errors = [float((fixed - moving).square().mean())]
    with torch.no_grad():
        for net.repeats in (1, 2, 4):
            errors.append(float((fixed - warp(moving, net(fixed, moving).displacement)).square().mean()))
    assert all(later < 0.95 * earlier for earlier, later in pairwise(errors)), errors
    assert errors[-1] < 0.4 * errors[1]


# ------------------------------------------------------------------------------------------------------- penalties


@pytest.mark.parametrize("ndim", [2, 3])
def test_affine_penalties_in_closed_form(ndim):
    factors = torch.tensor([1.0, 0.5, 1.3, 2.0], dtype=torch.float64)
    shift = torch.full((ndim, 1), 7.0, dtype=torch.float64)
    scalings = torch.stack([torch.cat([s * torch.eye(ndim, dtype=torch.float64), shift], 1) for s in factors])
    expected = 0.5 * (factors**ndim - 1) ** 2
    torch.testing.assert_close(determinant_penalty(scalings), expected)
    c = factors**2 + EPSILON
    torch.testing.assert_close(orthogonality_penalty(scalings), ndim * (c + (1 + EPSILON) ** 2 / c - 2 * (1 + EPSILON)))
    torch.testing.assert_close(orthogonality_penalty(scalings), ndim * (factors**2 + factors**-2 - 2), atol=1e-3, rtol=0)
    turned = rotation(0.8, ndim)
    for penalty in (determinant_penalty, orthogonality_penalty):
        assert float(penalty(rotation(0, ndim))) == 0
        assert float(penalty(turned)) == pytest.approx(0, abs=1e-6)
    mirror = torch.eye(ndim, ndim + 1).unsqueeze(0)
    mirror[0, 0, 0] = -1
    assert float(determinant_penalty(mirror)) == pytest.approx(2)
    assert float(orthogonality_penalty(mirror)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_orthogonality_equals_its_formula_by_eigenvalues_and_has_gradients(ndim):
    torch.manual_seed(1)
    matrix = torch.randn(4, ndim, ndim + 1, dtype=torch.float64)
    square = matrix[:, :, :-1].mT @ matrix[:, :, :-1] + EPSILON * torch.eye(ndim, dtype=torch.float64)
    values = torch.linalg.eigvalsh(square)
    expected = values.sum(1) + (1 + EPSILON) ** 2 * (1 / values).sum(1) - 2 * ndim * (1 + EPSILON)
    torch.testing.assert_close(orthogonality_penalty(matrix), expected)
    assert torch.autograd.gradcheck(orthogonality_penalty, matrix.requires_grad_())
    same = torch.eye(ndim, ndim + 1).unsqueeze(0).mul(1.5).requires_grad_()  # equal singular values
    orthogonality_penalty(same).sum().backward()
    expected = 2 * 1.5 - 2 / 1.5**3
    torch.testing.assert_close(same.grad[0], expected * torch.eye(ndim, ndim + 1), atol=1e-3, rtol=0)
    flat = torch.zeros(1, ndim, ndim + 1, requires_grad=True)
    assert math.isfinite(float(orthogonality_penalty(flat).detach()))


@pytest.mark.parametrize("shape", [(2, 3), (1, 3, 3), (1, 4, 5)])
def test_other_matrices_are_refused(shape):
    for penalty in (determinant_penalty, orthogonality_penalty):
        with pytest.raises(ValueError, match="affine matrices"):
            penalty(torch.zeros(shape))


# ----------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_file_keeps_the_network_and_its_repeats(ndim, tmp_path):
    net = small(ndim)
    net.repeats = 3
    save_registration_network(net, tmp_path / "net.safetensors", {"trained": "never"})
    again, metadata = load_registration_network(tmp_path / "net.safetensors")
    assert metadata == {"trained": "never"} and again.describe() == net.describe() and again.repeats == 3
    fixed, moving = noise(ndim), noise(ndim, seed=2)
    with torch.no_grad():
        assert torch.equal(again(fixed, moving).displacement, net(fixed, moving).displacement)
        again.repeats = 1
        assert len(again(fixed, moving).smooth) == 2


def test_the_description_rebuilds_the_architecture():
    options = {"cascades": 3, "widths": [2, 3, 4], "affine": False, "repeats": 2, "scale": 1.5, "cells": 1}
    net = build_registration_network("cascade", 2, **options)
    assert net.describe() == {"name": "cascade", "ndim": 2, **options}
    twin = build_registration_network(**net.describe())
    assert {n: v.shape for n, v in twin.named_parameters()} == {n: v.shape for n, v in net.named_parameters()}
    assert twin.repeats == 2 and twin.stride == 8


@pytest.mark.parametrize(
    "options",
    [
        {"cascades": 0},
        {"widths": []},
        {"widths": [4, 0]},
        {"repeats": 0},
        {"scale": 0},
        {"cells": 0},
        {"depth": 3},
        {"ndim": 4},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError, match="network cascade"):
        build_registration_network("cascade", **({"ndim": 2} | SMALL | options))


def test_sizes_must_fit():
    with pytest.raises(ValueError, match="multiples of 4"):
        small()(torch.zeros(1, 1, 8, 10), torch.zeros(1, 1, 8, 10))
