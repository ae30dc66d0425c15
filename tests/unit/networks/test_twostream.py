"""The network with a stream for each image: units of its field, passes, learning from boxes, files."""

import pytest
import torch

from popatlas.errors import InputError
from popatlas.networks.registration import (
    build_registration_network,
    load_registration_network,
    save_registration_network,
)
from popatlas.regularisers.diffusion import diffusion
from popatlas.similarity.registry import make
from popatlas.training.boxes import box_maps
from popatlas.transforms.fields import compose, coordinates, warp

SHAPES = {2: (16, 24), 3: (8, 16, 12)}
SMALL = {"maps": 3, "widths": [4, 6]}


def small(ndim=2, seed=0, lively=True, **options):
    """A tiny network; a lively one has a head that moves voxels."""
    torch.manual_seed(seed)
    net = build_registration_network("twostream", ndim, **(SMALL | options))
    if lively:
        torch.nn.init.normal_(net.head.flow.weight, 0, 0.1)
    return net


def noise(ndim, batch=2, seed=1):
    return torch.randn((batch, 1, *SHAPES[ndim]), generator=torch.Generator().manual_seed(seed))


def shifting(ndim, shift, **options):
    """A network that always says one displacement, given in voxels."""
    net = small(ndim, lively=False, **options)
    with torch.no_grad():
        net.head.flow.weight.zero_()
        net.head.flow.bias.copy_(torch.atanh(2 * shift / torch.tensor(SHAPES[ndim])))
    return net


def constant(shift, batch=2):
    return shift.reshape(1, -1, *[1] * len(shift)).expand(batch, len(shift), *SHAPES[len(shift)])


# ------------------------------------------------------------------------------------------------------------ field


@pytest.mark.parametrize("ndim", [2, 3])
def test_outputs_are_shares_of_half_the_image(ndim):
    shift = torch.tensor([1.5, -3.0, 0.25][:ndim])
    found = shifting(ndim, shift, passes=1)(noise(ndim), noise(ndim, seed=2))
    torch.testing.assert_close(found.displacement, constant(shift))
    net = small(ndim, passes=1, lively=False)
    torch.nn.init.constant_(net.head.flow.bias, -50.0)
    farthest = net(noise(ndim), noise(ndim, seed=2)).displacement
    torch.testing.assert_close(farthest, constant(-torch.tensor(SHAPES[ndim]) / 2))


@pytest.mark.parametrize("ndim", [2, 3])
def test_constant_shifts_of_the_passes_add_up(ndim):
    shift = torch.tensor([1.5, -2.0, 0.25][:ndim])
    net = shifting(ndim, shift)
    fixed, moving = noise(ndim), noise(ndim, seed=2)
    assert net.passes == 2
    for net.passes in (2, 1, 3):
        found = net(fixed, moving)
        torch.testing.assert_close(found.displacement, constant(net.passes * shift))
        assert len(found.smooth) == net.passes
        for field in found.smooth:
            torch.testing.assert_close(field, constant(shift))


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_second_pass_sees_the_warped_image_and_the_fields_are_composed(ndim):
    net = small(ndim)
    fixed, moving = noise(ndim), noise(ndim, seed=2)
    found = net(fixed, moving)
    features = net.stream(fixed)
    first = net.field(features, moving)
    second = net.field(features, warp(moving, first))
    torch.testing.assert_close(found.smooth, (first, second))
    torch.testing.assert_close(found.displacement, compose(second, first))
    assert float((second - first).detach().abs().max()) > 0.1


@pytest.mark.parametrize("ndim", [2, 3])
def test_equal_images_stay_and_their_boxes_cost_nothing(ndim):
    net, image = small(ndim, lively=False), noise(ndim, batch=1)
    found = net(image, image).displacement.detach()
    assert float(found.abs().max()) < 0.05
    labels = torch.zeros(1, 1, *SHAPES[ndim], dtype=torch.int64)
    labels[(0, 0, *[slice(2, 6)] * ndim)] = 1
    boxes = box_maps(labels, [1])
    assert float(make("ssd")(boxes, warp(boxes, found))) < 1e-4
    assert float(make("ssd")(boxes, warp(boxes.roll(2, 2), found))) > 0.01


def test_both_images_go_through_one_stream():
    """Its parameters get a gradient from either image; the joined features have the fixed image first."""
    net = small(passes=1)
    fixed, moving = noise(2).requires_grad_(), noise(2, seed=2).requires_grad_()
    seen = []
    net.encoder[0].register_forward_pre_hook(lambda module, values: seen.append(values[0]))
    net(fixed, moving).displacement.square().sum().backward()
    torch.testing.assert_close(seen[0], torch.cat([net.stream(fixed), net.stream(moving)], dim=1))
    assert float(fixed.grad.abs().max()) > 0 and float(moving.grad.abs().max()) > 0
    assert all(float(value.grad.abs().max()) > 0 for value in net.parameters() if value.ndim > 1)


def test_the_channels_are_those_of_the_paper():
    with torch.device("meta"):
        net = build_registration_network("twostream", 3)
    assert net.stride == 8 and net.passes == 2
    assert net.stream[-1][0].out_channels == 16
    assert (len(net.encoder), 1 + len(net.decoder), len(net.tail)) == (3, 4, 3)
    assert net.encoder[0][0].in_channels == net.decoder[-1][0].out_channels == net.tail[-1][0].out_channels == 32
    assert net.head.flow.weight.shape == (3, 32, 1, 1, 1)


# --------------------------------------------------------------------------------------------------------- learning


def two_organs(count, g):
    """Pairs of images with two equal discs and their labels.

    All discs move by 7 voxels, more than their radius of 4; but the first disc of the moving image, 3 voxels away, is the
    nearest one to the second disc of the fixed image.
    """
    x = coordinates((24, 48))
    at = torch.tensor([12.0, 15.0]) + 4 * torch.rand(count, 2, generator=g) - 2
    images, labels = [], []
    for move in (0.0, 7.0):
        discs = []
        for place in (move, move + 10):
            centre = (at + torch.tensor([0.0, place]))[:, :, None, None]
            discs.append((x - centre).norm(dim=1, keepdim=True) < 4)
        labels.append(discs[0].long() + 2 * discs[1].long())
        images.append((discs[0] | discs[1]) + 0.05 * torch.randn(discs[0].shape, generator=g))
    return images[0], images[1], labels[0], labels[1]


def overlaps_after_training(weight, seed):
    """Dice of the two organs before and after registration by a network that was trained with a weight of the boxes."""
    g = torch.Generator().manual_seed(seed)
    net = small(seed=seed, lively=False, maps=4, widths=[8, 12, 16], passes=1)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(80):
        fixed, moving, fixed_labels, moving_labels = two_organs(4, g)
        found = net(fixed, moving)
        boxes = [box_maps(labels, [1, 2], 0.05, g) for labels in (fixed_labels, moving_labels)]
        loss = make("ssd")(fixed, warp(moving, found.displacement)) + 0.01 * diffusion(found.displacement)
        loss = loss + weight * make("ssd")(boxes[0], warp(boxes[1], found.displacement))
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    fixed, moving, fixed_labels, moving_labels = two_organs(16, g)
    with torch.no_grad():
        field = net(fixed, moving).displacement
    maps = [torch.cat([(labels == value).float() for value in (1, 2)], 1) for labels in (fixed_labels, moving_labels)]
    return [float(2 * (maps[0] * m).sum() / (maps[0] + m).sum()) for m in (maps[1], warp(maps[1], field).round())]


def test_boxes_tell_organs_apart_that_images_mix_up():
    """By images alone it is chance which organs are brought together; with boxes it never is."""
    before, unsupervised = zip(*(overlaps_after_training(0.0, seed) for seed in (1, 3, 4)), strict=True)
    boxed = [overlaps_after_training(2.0, seed)[1] for seed in (1, 3, 4)]
    assert max(before) < 0.1
    assert min(boxed) > 0.9 and min(unsupervised) < 0.5, (unsupervised, boxed)


# ------------------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_file_keeps_the_network_and_its_passes(ndim, tmp_path):
    net = small(ndim)
    net.passes = 3
    save_registration_network(net, tmp_path / "net.safetensors", {"trained": "never"})
    again, metadata = load_registration_network(tmp_path / "net.safetensors")
    assert metadata == {"trained": "never"} and again.describe() == net.describe() and again.passes == 3
    fixed, moving = noise(ndim), noise(ndim, seed=2)
    with torch.no_grad():
        assert torch.equal(again(fixed, moving).displacement, net(fixed, moving).displacement)


def test_the_description_rebuilds_the_architecture():
    options = {"maps": 2, "widths": [3, 4, 5], "passes": 1, "norm": "batch"}
    net = build_registration_network("twostream", 2, **options)
    assert net.describe() == {"name": "twostream", "ndim": 2, **options}
    twin = build_registration_network(**net.describe())
    assert {n: v.shape for n, v in twin.named_parameters()} == {n: v.shape for n, v in net.named_parameters()}
    assert twin.stride == 8 and twin.passes == 1


@pytest.mark.parametrize(
    "options", [{"maps": 0}, {"widths": []}, {"widths": [0]}, {"passes": 0}, {"norm": "layer"}, {"no": 1}, {"ndim": 4}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError, match="network twostream"):
        build_registration_network("twostream", **({"ndim": 2} | SMALL | options))
