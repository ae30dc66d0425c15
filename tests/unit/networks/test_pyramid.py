"""Dual-PRNet: increments, their composition, the warp of features, correlations, and large shifts."""

from itertools import pairwise

import pytest
import torch

from popatlas.networks.heads import refined
from popatlas.networks.pyramid import correlate
from popatlas.networks.registration import build_registration_network
from popatlas.regularisers.diffusion import diffusion
from popatlas.transforms.fields import compose, coordinates, warp
from popatlas.transforms.velocity import integrate_stationary
from tests.unit.pairs import texture


def pyramid(ndim=2, seed=0, **options):
    torch.manual_seed(seed)
    return build_registration_network("pyramid", ndim, **({"widths": [4, 8, 16]} | options))


def noise(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def set_increments(net, values):
    """Make the increment of each level constant, coarsest first, in voxels of its grid."""
    with torch.no_grad():
        for head, value in zip(net.heads, values, strict=True):
            head[-1].flow.weight.zero_()
            head[-1].flow.bias.copy_(torch.as_tensor(value))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("transform", ["displacement", "velocity"])
@pytest.mark.parametrize("correlation", [0, 1])
def test_constant_increments_add_up_in_voxels_of_the_full_grid(ndim, transform, correlation):
    net = pyramid(ndim, transform=transform, correlation=correlation, fusion=correlation)
    shifts = [
        torch.tensor([1.0, -0.5, 0.25][:ndim]),
        torch.tensor([0.5, 2.0, 0][:ndim]),
        torch.tensor([-3.0, 1, 0.1][:ndim]),
    ]
    set_increments(net, shifts)
    shape = (16, 20, 12)[:ndim]
    prediction = net(noise(1, 1, *shape), noise(1, 1, *shape, seed=2))
    expected = (4 * shifts[0] + 2 * shifts[1] + shifts[2]).reshape(1, -1, *[1] * ndim)
    torch.testing.assert_close(prediction.displacement, expected.expand(1, ndim, *shape))
    assert [vectors.shape[2:] for vectors in prediction.smooth] == [tuple(n // k for n in shape) for k in (4, 2, 1)]
    for vectors, shift in zip(prediction.smooth, shifts, strict=True):
        torch.testing.assert_close(vectors.flatten(2).mean(2)[0], shift)
    assert prediction.velocity is None


def test_a_residual_block_of_zeros_passes_its_features_on():
    net, plain = pyramid(correlation=1, fusion=1, residual=2), pyramid(correlation=1, fusion=1)
    kept = {name: value for name, value in net.state_dict().items() if ".units." not in name}
    plain.load_state_dict({name.replace(".3.flow", ".1.flow"): value for name, value in kept.items()})
    fixed, moving = noise(1, 1, 16, 20), noise(1, 1, 16, 20, seed=2)
    assert not torch.equal(net(fixed, moving).displacement, plain(fixed, moving).displacement)
    with torch.no_grad():
        for name, value in net.named_parameters():
            value.mul_(0 if ".units." in name else 1)
    torch.testing.assert_close(net(fixed, moving).displacement, plain(fixed, moving).displacement)


@pytest.mark.parametrize("widths", [(8, 16, 32, 32), (8, 16, 16, 32, 32)])
def test_parameters_are_those_of_one_stream_and_its_heads(widths):
    def unit(a, b):
        return 27 * a * b + b

    total = sum(unit(a, b) for a, b in pairwise([1, *widths])) + unit(widths[-1], widths[-1])
    total += sum(unit(a + b, a) for a, b in pairwise(widths))
    total += sum(unit(2 * width, 3) for width in widths)
    net = build_registration_network("pyramid", 3, widths=list(widths))
    assert sum(value.numel() for value in net.parameters()) == total
    # Dual-PRNet++: 27 correlations more, two convolutions that join them with the features, two of the residual block
    total += sum(
        unit(2 * width + 27, width) + 3 * unit(width, width) + unit(width, 3) - unit(2 * width, 3) for width in widths
    )
    plus = build_registration_network("pyramid", 3, widths=list(widths), correlation=2, fusion=2, residual=1)
    assert sum(value.numel() for value in plus.parameters()) == total
    assert net.stride == 2 ** (len(widths) - 1)


def test_warping_by_the_field_is_warping_by_its_parts_in_order():
    """Each increment moves what the coarser field has moved already."""
    net = pyramid(widths=[4, 8])
    waves = []
    for head, size, seed in zip(net.heads, (24, 48), (1, 2), strict=True):
        wave = 6 * torch.cat([texture((size, size), 4, seed + k) - 0.5 for k in (0, 10)], 1)
        head.register_forward_hook(lambda *_, wave=wave: wave)
        waves.append(wave)
    image = texture((48, 48), 4, seed=5)
    prediction = net(image, image)
    assert all(a is b for a, b in zip(prediction.smooth, waves, strict=True))
    coarse, fine = refined(waves[0], (48, 48)), waves[1]
    expected = warp(warp(image, coarse), fine)

    def error(field):
        return float((warp(image, field) - expected)[..., 6:-6, 6:-6].abs().mean())

    assert error(prediction.displacement) < 5e-3
    for wrong in (compose(coarse, fine), coarse + fine):
        assert error(wrong) > 4 * error(prediction.displacement)


@pytest.mark.parametrize("correlation", [0, 2])
def test_heads_see_features_of_the_moving_image_where_the_coarser_field_leads(correlation):
    """A shift of whole coarse voxels, once found, leaves no difference for the finer heads."""
    net = pyramid(correlation=correlation)
    set_increments(net, [(2.0, -1.0), (0.0, 0.0), (0.0, 0.0)])
    wide = texture((128, 128), 2)
    fixed, moving = wide[..., 8:120, 4:116], wide[..., :112, 8:120]  # fixed(x) is moving(x + (8, -4))
    seen = []
    for head in net.heads:
        head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(fixed, moving)
    for values, width, agree in zip(seen, (16, 8, 4), (False, True, True), strict=True):
        border = values.shape[-1] * 5 // 14  # the borders of the images are seen from there on
        inner = (slice(None), slice(None), slice(border, -border), slice(border, -border))
        a, b = values[:, :width], values[:, width : 2 * width]
        products = correlate(a, b, correlation) if correlation else values[:, :0]
        torch.testing.assert_close(values[:, 2 * width :], products)
        a, b = a[inner], b[inner]
        assert torch.allclose(a, b, atol=1e-5) == agree
        assert float(a.detach().std()) > 0.01


@pytest.mark.parametrize("stop", [True, False])
def test_the_warp_of_features_passes_gradients_only_when_it_may(stop):
    net = pyramid(stop=stop)
    with torch.no_grad():
        for head in net.heads:
            head[-1].flow.weight.normal_(0, 0.05)
    prediction = net(texture((16, 16), 1), texture((16, 16), 1, seed=1))
    bias = net.heads[0][-1].flow.bias
    (last,) = torch.autograd.grad(prediction.smooth[-1].square().sum(), bias, retain_graph=True, allow_unused=True)
    assert (last is None) == stop
    (whole,) = torch.autograd.grad(prediction.displacement.sum(), bias)
    assert float(whole.abs().min()) > 1


@pytest.mark.parametrize(("shape", "reach"), [((5, 6), 1), ((5, 6), 2), ((4, 5, 6), 1), ((4, 5, 6), 2)])
def test_correlations_are_mean_products_with_neighbours(shape, reach):
    ndim = len(shape)
    a, b = noise(2, 3, *shape), noise(2, 3, *shape, seed=2)
    found = correlate(a, b, reach)
    assert found.shape == (2, 3**ndim, *shape)
    offsets = torch.cartesian_prod(*[torch.tensor([-reach, 0, reach])] * ndim)
    for number, offset in enumerate(offsets):
        for at in ((0,) * ndim, tuple(n - 1 for n in shape), (2,) * ndim, (2, *(1,) * (ndim - 1))):
            there = tuple(int(i + o) for i, o in zip(at, offset, strict=True))
            inside = all(0 <= i < n for i, n in zip(there, shape, strict=True))
            here, neighbour = (slice(None), slice(None), *at), (slice(None), slice(None), *there)
            expected = (a[here] * b[neighbour]).mean(1) if inside else torch.zeros(2)
            torch.testing.assert_close(found[(slice(None), number, *at)], expected)


def test_velocities_flow_before_they_are_composed():
    net = pyramid(widths=[4, 8], transform="velocity", steps=2)
    with torch.no_grad():
        for head in net.heads:
            head[-1].flow.weight.normal_(0, 0.3)
    prediction = net(texture((16, 16), 1), texture((16, 16), 1, seed=1))
    for steps, agree in ((2, True), (7, False)):
        coarse, fine = (integrate_stationary(vectors, steps) for vectors in prediction.smooth)
        assert torch.allclose(prediction.displacement, compose(fine, refined(coarse, (16, 16))), atol=1e-5) == agree


def discs(pairs, seed):
    """Discs of radius 8 on 64 x 64, 8 pixels apart in any direction: fixed, moving, shift."""
    generator = torch.Generator().manual_seed(seed)
    middle = 29 + 6 * torch.rand(pairs, 2, generator=generator)
    angle = 2 * torch.pi * torch.rand(pairs, generator=generator)
    shift = 8 * torch.stack([angle.cos(), angle.sin()], 1)

    def disc(at):
        return torch.sigmoid(2 * (8 - (coordinates((64, 64)) - at[..., None, None]).norm(dim=1, keepdim=True)))

    return disc(middle - shift / 2), disc(middle + shift / 2), shift[..., None, None]


def trained_error(name, options):
    """Mean error of the displacement in unseen discs, pixels, after 150 steps on others."""
    torch.manual_seed(0)
    net = build_registration_network(name, 2, **options)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    for step in range(150):
        fixed, moving, _ = discs(4, seed=step)
        prediction = net(fixed, moving)
        difference = (fixed - warp(moving, prediction.displacement)).square().mean() / (fixed - moving).square().mean()
        loss = difference + 0.02 * sum(diffusion(vectors).mean() for vectors in prediction.smooth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    fixed, moving, shift = discs(32, seed=1000)
    with torch.no_grad():
        error = (net(fixed, moving).displacement - shift).norm(dim=1, keepdim=True)
    return float(error[fixed > 0.5].mean()), sum(value.numel() for value in net.parameters())


def test_shifts_of_half_the_size_of_an_object_are_found_that_one_stream_misses():
    """Discs overlap well after both; one stream squeezes them there, the pyramid moves them."""
    single = {"encoder": [16, 32, 32], "decoder": [32, 32, 24], "final": [16, 16]}
    two, two_count = trained_error("pyramid", {"widths": [8, 16, 32, 32]})
    one, one_count = trained_error("unet", single)
    assert two_count < one_count
    assert two < 2.5
    assert one > 3
