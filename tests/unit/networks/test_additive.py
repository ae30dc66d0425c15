"""Networks of label-driven registration: counts, zero start, levels, additive shortcuts, variants, learning, files."""

import math
from itertools import pairwise

import pytest
import torch

from popatlas.errors import InputError
from popatlas.networks.additive import Rise
from popatlas.networks.cascade import affine_displacement
from popatlas.networks.registration import (
    build_registration_network,
    load_registration_network,
    save_registration_network,
)
from popatlas.regularisers.bending import bending
from popatlas.similarity.registry import make
from popatlas.transforms.fields import coordinates, warp

SHAPES = {2: (16, 24), 3: (8, 16, 12)}
SMALL = {"channels": 3, "global_channels": 2, "halvings": 2}
VARIANTS = ("local", "global", "composite")


def small(ndim=2, seed=0, lively=True, **options):
    """A tiny network; a lively one has heads that move voxels."""
    torch.manual_seed(seed)
    net = build_registration_network("labelreg", ndim, **(SMALL | options))
    if lively:
        with torch.no_grad():
            for name, value in net.named_parameters():
                if "head" in name:
                    value.normal_(0, 0.1)
    return net


def noise(ndim, batch=2, seed=1):
    return torch.randn((batch, 1, *SHAPES[ndim]), generator=torch.Generator().manual_seed(seed))


def count(net):
    return sum(value.numel() for value in net.parameters())


# ---------------------------------------------------------------------------------------------------------- counts


def unit_size(ndim, inputs, outputs, kernel=3):
    """Convolution without bias, gain and offset of its normalisation."""
    return inputs * outputs * kernel**ndim + 2 * outputs


def encoder_size(ndim, widths):
    """Three convolutions at each level but the coarsest, which has one; the first of all is large."""
    total = unit_size(ndim, 2, widths[0], 7) + 2 * unit_size(ndim, widths[0], widths[0])
    for fine, coarse in pairwise(widths[:-1]):
        total += unit_size(ndim, fine, coarse) + 2 * unit_size(ndim, coarse, coarse)
    return total + unit_size(ndim, widths[-2], widths[-1])


def local_size(ndim, widths, levels):
    """The encoder; a transposed and two other convolutions at each level of the decoder; displacements with a bias."""
    total = encoder_size(ndim, widths)
    for level in range(min(levels), len(widths) - 1):
        total += unit_size(ndim, widths[level + 1], widths[level]) + 2 * unit_size(ndim, widths[level], widths[level])
    return total + sum(widths[level] * ndim * 3**ndim + ndim for level in levels)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_published_networks_have_their_parameters(ndim):
    local, coarse = [32, 64, 128, 256, 512], [8, 16, 32, 64, 128]
    affine = encoder_size(ndim, coarse) + (128 * 2**ndim + 1) * ndim * (ndim + 1)
    expected = {
        ("local", (0, 1, 2, 3, 4)): local_size(ndim, local, range(5)),
        ("local", (0,)): local_size(ndim, local, [0]),
        ("local", (1, 2, 3, 4)): local_size(ndim, local, range(1, 5)),
        ("local", (4,)): encoder_size(ndim, local) + 512 * ndim * 3**ndim + ndim,
        ("global", ()): affine,
        ("composite", (0,)): local_size(ndim, local, [0]) + affine,
    }
    found = {}
    with torch.device("meta"):
        for variant, levels in expected:
            net = build_registration_network("labelreg", ndim, variant=variant, levels=levels)
            found[variant, levels] = count(net)
            assert net.stride == 16
        assert build_registration_network("labelreg", ndim).options["levels"] == [0, 1, 2, 3, 4]
        assert build_registration_network("labelreg", ndim, variant="composite").options["levels"] == [0]
    assert found == expected
    if ndim == 3:
        # convolutions of the encoder, of the decoder, gains and offsets of both, displacement layers
        encoder = 2 * 32 * 343 + 27 * (2 * 32**2 + 32 * 64 + 2 * 64**2 + 64 * 128 + 2 * 128**2 + 128 * 256 + 2 * 256**2)
        deepest = 27 * 256 * 512
        decoder = 27 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 32 + 2 * (256**2 + 128**2 + 64**2 + 32**2))
        norms = 2 * (3 * (32 + 64 + 128 + 256) * 2 + 512)
        heads = 81 * (32 + 64 + 128 + 256 + 512) + 5 * 3
        assert found["local", (0, 1, 2, 3, 4)] == encoder + deepest + decoder + norms + heads == 18_909_743


# ----------------------------------------------------------------------------------------------------------- start


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_fresh_network_gives_exactly_zero(ndim, variant, training):
    net = small(ndim, variant=variant, lively=False).train(training)
    found = net(noise(ndim), noise(ndim, seed=2))
    assert torch.equal(found.displacement, torch.zeros(2, ndim, *SHAPES[ndim]))
    assert len(found.matrices) == (variant != "local")
    for matrix in found.matrices:
        assert torch.equal(matrix, torch.eye(ndim, ndim + 1).expand(2, -1, -1))


def test_weights_are_drawn_as_glorot_and_bengio_do():
    net = small(3, channels=16, lively=False)
    layers = [m for m in net.modules() if isinstance(m, torch.nn.Conv3d | torch.nn.ConvTranspose3d) and m.bias is None]
    assert len(layers) == 3 * 2 + 1 + 3 * 2
    for layer in layers:
        fans = sum(layer.weight.shape[:2]) * layer.weight[0, 0].numel()
        assert 0.98 < float(layer.weight.detach().abs().max()) / math.sqrt(6 / fans) <= 1 + 1e-6
        assert float(layer.weight.detach().var()) == pytest.approx(2 / fans, rel=0.1)


# ---------------------------------------------------------------------------------------------------------- levels


@pytest.mark.parametrize("levels", [[0], [1, 2], [0, 1, 2], [2], [0, 2]])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_displacement_is_the_sum_of_those_of_the_levels(ndim, levels):
    """Each in voxels of the images, however coarse it is."""
    net = small(ndim, levels=levels, lively=False)
    shifts = {level: torch.arange(1.0, ndim + 1) * 10.0**level for level in levels}
    for level, shift in shifts.items():
        net.local.heads[str(level)].flow.bias.data.copy_(shift)
    found = net(noise(ndim), noise(ndim, seed=2)).displacement
    expected = torch.stack(list(shifts.values())).sum(0).reshape(1, -1, *[1] * ndim).expand_as(found)
    torch.testing.assert_close(found, expected)


def test_coarse_displacements_are_interpolated_to_the_voxels():
    net = small(levels=[2])
    fixed, moving = noise(2), noise(2, seed=2)
    coarse = net.local.heads["2"](net.local.encoder(fixed, moving)[1])
    assert coarse.shape == (2, 2, 4, 6)
    found = net(fixed, moving).displacement
    x = torch.tensor([0.125, 0.375, 0.625, 0.875])  # from the middle of a block of four voxels to that of the next one
    line = coarse[0, 0, 0, 1] * (1 - x) + coarse[0, 0, 0, 2] * x
    torch.testing.assert_close(found[0, 0, 0, 6:10], line)
    assert float(line.detach().std()) > 0.01


@pytest.mark.parametrize("options", [{}, {"levels": [1, 2]}, {"variant": "global"}, {"variant": "composite"}])
@pytest.mark.parametrize("ndim", [2, 3])
def test_every_parameter_takes_part(ndim, options):
    net = small(ndim, **options)
    fixed, moving = noise(ndim), noise(ndim, seed=2)
    (fixed - warp(moving, net(fixed, moving).displacement)).square().mean().backward()
    idle = [n for n, v in net.named_parameters() if v.grad is None or not float(v.grad.abs().max()) > 0]
    assert idle == []


# --------------------------------------------------------------------------------------------- additive enlargement


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("additive", [True, False])
def test_the_decoder_adds_the_enlarged_halves_of_the_channels(ndim, additive):
    """With all convolutions at zero only the shortcuts are left."""
    rise = Rise("batch", ndim, 6, 3, additive)
    with torch.no_grad():
        for value in rise.parameters():
            if value.ndim > 2:
                value.zero_()
    ramp = coordinates([4] * ndim)[:, :1]
    values = torch.cat([ramp * factor for factor in range(1, 7)], dim=1)
    skip = torch.full((1, 3, *[8] * ndim), 0.25)
    found = rise(values, skip)
    assert found.shape == skip.shape
    inner = found[(0, slice(None), slice(1, -1), *[0] * (ndim - 1))]
    # voxel i of the fine grid lies at (i - 1/2) / 2 of the coarse one; channels 1 + 4, 2 + 5, 3 + 6
    at = (torch.arange(1, 7) - 0.5) / 2
    expected = torch.outer(torch.tensor([5.0, 7.0, 9.0]), at) if additive else torch.zeros(3, 6)
    torch.testing.assert_close(inner, expected + 0.25)


def test_the_additive_enlargement_is_an_option_of_the_network():
    plain, additive = small(additive=False), small()
    assert count(plain) == count(additive)
    plain.load_state_dict(additive.state_dict())
    fixed, moving = noise(2), noise(2, seed=2)
    assert not torch.allclose(plain(fixed, moving).displacement, additive(fixed, moving).displacement)


# -------------------------------------------------------------------------------------------------------- variants


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_composite_adds_a_local_displacement_found_from_the_warped_image(ndim):
    net = small(ndim, variant="composite", levels=[0, 1]).eval()
    fixed, moving = noise(ndim), noise(ndim, seed=2)
    found = net(fixed, moving)
    affine = affine_displacement(found.matrices[0], torch.zeros(2, 1, *SHAPES[ndim]))
    assert float(affine.detach().abs().max()) > 0.3
    local = net.local(fixed, warp(moving, affine))
    torch.testing.assert_close(found.displacement, affine + local)
    assert not torch.allclose(local, net.local(fixed, moving), atol=1e-3)
    assert torch.equal(found.smooth[0], found.displacement)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_global_network_gives_an_affine_displacement(ndim):
    net = small(ndim, variant="global", lively=False)
    parameters = 0.1 * torch.arange(1.0, ndim * (ndim + 1) + 1)
    net.whole.head.dense.bias.data.copy_(parameters)
    found = net(noise(ndim), noise(ndim, seed=2))
    change = parameters.reshape(ndim, ndim + 1)
    torch.testing.assert_close(found.matrices[0][0], change + torch.eye(ndim, ndim + 1))
    x = coordinates(SHAPES[ndim]) - torch.tensor(SHAPES[ndim]).sub(1).div(2).reshape(1, -1, *[1] * ndim)
    expected = torch.einsum("ij,bj...->bi...", change[:, :-1], x) + change[:, -1].reshape(1, -1, *[1] * ndim)
    torch.testing.assert_close(found.displacement, expected.expand(2, *expected.shape[1:]), atol=1e-4, rtol=1e-5)


def test_it_learns_from_labels_alone():
    """Two images without common contrast; the overlap of warped labels teaches the translation between them."""
    g = torch.Generator().manual_seed(0)
    net = small(lively=False, channels=8, halvings=3, norm="instance")
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    overlap = make("dice", sigmas=[0, 1, 2, 4])

    def pairs(batch):
        centres = 13 + 6 * torch.rand(batch, 2, generator=g)
        shifts = 4 * (2 * torch.rand(batch, 2, generator=g) - 1)

        def disc(at):
            return torch.sigmoid(2 * (5 - (coordinates((32, 32)) - at[:, :, None, None]).norm(dim=1, keepdim=True)))

        fixed, moving = disc(centres), disc(centres + shifts)
        speckle = 0.1 * torch.randn(fixed.shape, generator=g)
        return fixed, moving, 1 - fixed + speckle, 0.5 * moving, shifts

    for _ in range(120):
        fixed, moving, first, second, _ = pairs(8)
        field = net(first, second).displacement
        loss = (overlap(fixed, warp(moving, field)) + 0.5 * bending(field)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.eval()
    fixed, moving, first, second, shifts = pairs(32)
    with torch.no_grad():
        field = net(first, second).displacement
    found = (field * fixed).sum((2, 3)) / fixed.sum((2, 3))
    error = (found - shifts).norm(dim=1)
    assert float(error.mean()) < 0.4 * float(shifts.norm(dim=1).mean()), float(error.mean())


# ----------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_file_keeps_the_network(ndim, variant, tmp_path):
    net = small(ndim, variant=variant)
    fixed, moving = noise(ndim), noise(ndim, seed=2)
    net(fixed, moving)  # running means of the batch normalisation
    save_registration_network(net.eval(), tmp_path / "net.safetensors", {})
    again, _ = load_registration_network(tmp_path / "net.safetensors")
    assert again.describe() == net.describe()
    with torch.no_grad():
        assert torch.equal(again(fixed, moving).displacement, net(fixed, moving).displacement)


def test_the_description_rebuilds_the_architecture():
    options = {"variant": "composite", "levels": [1, 2], "additive": False, "channels": 4, "global_channels": 2}
    options |= {"halvings": 2, "cells": 1, "norm": "group"}
    net = build_registration_network("labelreg", 2, **options)
    assert net.describe() == {"name": "labelreg", "ndim": 2, **options}
    twin = build_registration_network(**net.describe())
    assert {n: v.shape for n, v in twin.named_parameters()} == {n: v.shape for n, v in net.named_parameters()}
    assert build_registration_network("labelreg", 2, **SMALL, variant="global").describe()["levels"] == []


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "both"},
        {"levels": []},
        {"levels": [3]},
        {"levels": [-1]},
        {"variant": "global", "levels": [0]},
        {"channels": 0},
        {"global_channels": 0},
        {"halvings": 0},
        {"cells": 0},
        {"norm": "layer"},
        {"no": 1},
        {"ndim": 1},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError, match="network labelreg"):
        build_registration_network("labelreg", **({"ndim": 2} | SMALL | options))
