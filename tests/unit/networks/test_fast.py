"""Our network for CPUs: blocks, passes, what it sees of an image, files."""

import pytest
import torch

from popatlas.errors import InputError
from popatlas.networks.fast import block_means, from_blocks, to_blocks
from popatlas.networks.registration import (
    build_registration_network,
    load_registration_network,
    save_registration_network,
)
from popatlas.transforms.fields import compose, warp

SHAPES = {2: (16, 24), 3: (8, 16, 12)}
SMALL = {"widths": [6, 8], "blocks": [0, 1]}
NDIM = pytest.mark.parametrize("ndim", [2, 3])


def small(ndim=2, lively=True, **options):
    """A tiny network; a lively one has a head that moves voxels."""
    torch.manual_seed(0)
    net = build_registration_network("fast", ndim, **(SMALL | options)).eval()
    if lively:
        torch.nn.init.normal_(net.head.flow.weight, 0, 0.01)
    return net


def noise(ndim, seed=1, batch=2):
    return torch.rand((batch, 1, *SHAPES[ndim]), generator=torch.Generator().manual_seed(seed))


def shifting(ndim, shift, **options):
    """A network that always says one displacement, given in voxels of the images."""
    net = small(ndim, lively=False, **options)
    with torch.no_grad():
        net.head.flow.weight.zero_()
        net.head.flow.bias.copy_(shift.repeat_interleave(2**ndim) if net.fine else shift / 2)
    return net


def constant(shift, batch=2):
    return shift.reshape(1, -1, *[1] * len(shift)).expand(batch, len(shift), *SHAPES[len(shift)])


@NDIM
def test_blocks_are_channels_and_back(ndim):
    image = noise(ndim)
    blocks = to_blocks(image)
    assert blocks.shape == (2, 2**ndim, *(n // 2 for n in SHAPES[ndim]))
    assert torch.equal(from_blocks(blocks, SHAPES[ndim]), image)
    torch.testing.assert_close(blocks.mean(1, keepdim=True), block_means(image))


@NDIM
@pytest.mark.parametrize("fine", [False, True])
def test_constant_shifts_of_the_passes_add_up(ndim, fine):
    shift = torch.tensor([1.5, -2.0, 0.25][:ndim])
    net = shifting(ndim, shift, fine=fine, transform="displacement")
    for net.passes in (1, 2, 3):
        found = net(noise(ndim), noise(ndim, 2)).displacement
        torch.testing.assert_close(found, constant(net.passes * shift), atol=1e-4, rtol=0)


@NDIM
def test_a_pass_looks_at_what_the_one_before_left(ndim):
    """Two passes are one pass, and one on the warped image, composed."""
    net, fixed, moving = small(ndim, fine=True), noise(ndim), noise(ndim, 2)
    with torch.no_grad():
        first = net(fixed, moving).displacement
        second = net(fixed, warp(moving, first)).displacement
        net.passes = 2
        both = net(fixed, moving).displacement
    assert float(first.abs().max()) > 0.01
    torch.testing.assert_close(both, compose(second, first), atol=1e-4, rtol=0)


def test_in_training_some_passes_have_no_gradient():
    """Number of passes at random, 1 to 3; the gradient is that of the last one."""
    net, fixed, moving = small(2, passes=3).train(), noise(2), noise(2, 2)
    found = []
    for seed in range(12):
        torch.manual_seed(seed)
        found.append(net(fixed, moving).displacement)
    sizes = sorted({round(float(one.detach().abs().sum()), 3) for one in found})
    assert len(sizes) == 3
    found[0].sum().backward()
    assert float(net.stem[0][0].weight.grad.abs().max()) > 0


@NDIM
def test_the_inverse_of_a_single_pass_undoes_it(ndim):
    net = small(ndim)
    with torch.no_grad():
        found = net(noise(ndim), noise(ndim, 2))
        around = compose(found.displacement, net.inverse(found))
    inner = (slice(None), slice(None), *[slice(2, -2)] * ndim)
    assert float(found.displacement[inner].square().mean()) > 100 * float(around[inner].square().mean())
    net.passes = 2
    assert net.inverse(net(noise(ndim), noise(ndim, 2))) is None


@NDIM
@pytest.mark.parametrize("passes", [1, 2])
def test_descriptors_are_the_same_in_an_inverted_or_scaled_image(ndim, passes):
    net, fixed, moving = small(ndim, sees="descriptors", passes=passes), noise(ndim), noise(ndim, 2)
    plain, inverted, scaled = (net(fixed, other).displacement for other in (moving, 1 - moving, 3 * moving + 5))
    assert float(plain.detach().abs().max()) > 0.001
    torch.testing.assert_close(inverted, plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled, plain, atol=1e-4, rtol=0)


def test_who_sees_images_sees_their_contrast():
    for sees in ("images", "both"):
        net, fixed, moving = small(2, sees=sees), noise(2), noise(2, 2)
        assert not torch.allclose(net(fixed, moving).displacement, net(fixed, 1 - moving).displacement, atol=1e-4)


@NDIM
def test_the_first_layer_has_the_channels_of_what_is_seen(ndim):
    entries = {2: 4, 3: 12}[ndim]
    inputs = [small(ndim, sees=sees).stem[0][0].weight.shape[1] for sees in ("images", "descriptors", "both")]
    assert inputs == [2 * 2**ndim, 2 * entries, 2 * (2**ndim + entries)]


def test_a_file_keeps_the_network_and_its_passes(tmp_path):
    net = small(3, sees="both", fine=True)
    net.passes = 2
    save_registration_network(net, tmp_path / "net.safetensors", {})
    again, _ = load_registration_network(tmp_path / "net.safetensors")
    assert again.describe() == net.describe() and again.passes == 2
    torch.testing.assert_close(again(noise(3), noise(3, 2)).displacement, net(noise(3), noise(3, 2)).displacement)


@pytest.mark.parametrize("options", [{"widths": [4]}, {"blocks": [1]}, {"passes": 0}, {"squarings": -1}, {"sees": "sounds"}])
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError, match=r"network fast(\.\w+)?: "):
        build_registration_network("fast", 2, **(SMALL | options))
