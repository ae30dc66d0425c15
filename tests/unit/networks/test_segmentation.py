"""Segmentation networks: counts, shapes, locality, gradients, prediction by blocks, and that they learn."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from popatlas.errors import InputError
from popatlas.networks.base import normalisation
from popatlas.networks.segmentation import (
    SegmentationNet,
    build_network,
    voxel_positions,
    voxel_rows,
)
from tests.unit.segmentation_networks import NAMES, ODD, SMALL, noise, small

NORMS = ("instance", "group", "batch")
# the listing of the 3D network of Deep-STAPLE
INPUTS = (None, 16, 16, 24, 24, 32, 32, 32, 64, 64)
EXPANDED = (32, 96, 96, 144, 144, 192, 192, 192, 384, 384)
OUTPUTS = (16, 16, 24, 24, 32, 32, 32, 64, 64, 64)


def count(net):
    return sum(value.numel() for value in net.parameters())


def frozen_statistics(net):
    """Batch normalisation in use, with statistics of some images: what is left of locality is that of the convolutions."""
    ndim = net.backbone.ndim
    net(noise(2, net.in_channels, *[16] * ndim, dtype=net.classifier.weight.dtype))
    return net.eval()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_lraspp_has_the_parameters_of_the_listing(ndim, norm):
    inputs, features, inner, labels = 2, 32, 128, 7
    total = 0
    for i, (a, b, c) in enumerate(zip(INPUTS, EXPANDED, OUTPUTS, strict=True)):
        total += inputs * b * 3**ndim if i == 0 else a * b  # the first convolution replaces the expansion
        total += 2 * b + b * 3**ndim + 2 * b + b * c + 2 * c  # norm, depthwise, norm, projection, norm
    total += 64 * inner + 2 * inner + 64 * inner  # branch and gate
    total += (inner + 16) * features  # deep and low map
    total += features * labels + labels
    assert count(build_network("lraspp", ndim, labels, inputs, norm=norm)) == total


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("widths", "blocks"), [((8, 32, 48), (1, 2)), ((4, 6), (3,)), ((4, 6, 8, 10), (1, 2, 1))])
def test_light_has_the_parameters_of_its_levels(ndim, widths, blocks):
    inputs, features, labels = 2, 24, 5

    def unit(a, b, kernel=3):
        return a * b * kernel**ndim + 2 * b

    total = unit(inputs, widths[0], 5)
    for level in range(1, len(widths)):
        fine, coarse = widths[level - 1], widths[level]
        total += unit(fine, coarse) + blocks[level - 1] * 2 * unit(coarse, coarse)
        inner = fine if level > 1 else 2 * fine
        total += (fine + coarse) * inner + 2 * inner
        total += 2 * unit(fine, fine) if level > 1 else inner * features * 3**ndim  # the last one is linear
    total += features * labels + labels
    net = build_network("light", ndim, labels, inputs, widths=widths, blocks=blocks)
    assert count(net) == total
    assert net.backbone.stride == 2 ** len(blocks)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_every_size_gives_logits_and_features_on_its_own_grid(name, ndim):
    net = small(name, ndim, in_channels=2)
    for shape in (ODD[ndim], (8, 12, 4)[:ndim], (1, 9, 2)[:ndim], (5,) * ndim):
        image = noise(2, 2, *shape)
        assert net.features(image).shape == (2, SMALL[name]["features"], *shape)
        logits = net(image)
        assert logits.shape == (2, 4, *shape)
        assert logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_other_images_are_refused(name):
    net = small(name, 3)
    for shape in ((1, 1, 8, 8), (1, 2, 8, 8, 8), (1, 8, 8, 8)):
        with pytest.raises(ValueError, match="takes images"):
            net.features(torch.zeros(shape))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_the_border_is_repeated_up_to_the_stride(name, ndim):
    net = frozen_statistics(small(name, ndim, norm="batch").double())
    image = noise(1, 1, *ODD[ndim], dtype=torch.float64)
    padded = np.pad(image.numpy(), [(0, 0), (0, 0)] + [(0, -n % 4) for n in ODD[ndim]], mode="edge")
    whole = net.backbone(torch.from_numpy(padded))
    expected = whole[tuple(slice(n) for n in (1, whole.shape[1], *ODD[ndim]))]
    assert torch.allclose(net.features(image), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_logits_of_single_voxels_are_those_of_the_whole(name, ndim):
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        net = small(name, ndim).to(dtype)
        image = noise(2, 1, *ODD[ndim], dtype=dtype)
        logits, features = net(image), net.features(image)
        chosen = torch.randperm(2 * math.prod(ODD[ndim]), generator=torch.Generator().manual_seed(0))[:50]
        some = net.classify(voxel_rows(features).index_select(0, chosen))
        for row, index in zip(some, chosen.tolist(), strict=True):
            b, *at = np.unravel_index(index, (2, *ODD[ndim]))
            assert torch.allclose(row, logits[(b, slice(None), *at)], rtol=0, atol=tolerance)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_prediction_is_the_most_probable_label_whatever_the_blocks(name, ndim, monkeypatch):
    net = small(name, ndim).double()
    image = noise(2, 1, *ODD[ndim], dtype=torch.float64)
    expected = net(image).softmax(1).max(1)
    voxels, sizes, classify = 2 * math.prod(ODD[ndim]), [], net.classify
    monkeypatch.setattr(net, "classify", lambda rows: sizes.append(len(rows)) or classify(rows))
    for block in (101, voxels // 2, voxels, 65536):
        sizes.clear()
        labels, probability = net.predict(image, block=block)
        assert labels.dtype == torch.int64
        assert labels.shape == probability.shape == (2, *ODD[ndim])
        assert torch.equal(labels, expected.indices)
        assert torch.allclose(probability, expected.values, rtol=0, atol=1e-12)
        assert sum(sizes) == voxels
        assert max(sizes) <= block
        assert len(sizes) == -(-voxels // block)
    with pytest.raises(ValueError, match="at least 1"):
        net.predict(image, block=0)


@pytest.mark.parametrize("name", NAMES)
def test_prediction_neither_trains_nor_changes_the_mode(name):
    net = small(name, norm="batch")
    net(noise(4, 1, 16, 16))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    image = noise(1, 1, 16, 16, seed=3)
    in_training = net.predict(image)
    assert net.training
    assert not in_training[1].requires_grad
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    in_use = net.eval().predict(image)
    assert not net.training
    assert all(torch.equal(a, b) for a, b in zip(in_training, in_use, strict=True))


@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize("name", NAMES)
def test_normalisation_of_images_keeps_those_of_a_batch_apart(name, norm):
    net = small(name, norm=norm).double()
    images = noise(3, 1, 16, 12, dtype=torch.float64)
    alone = torch.cat([net(image[None]) for image in images])
    assert torch.allclose(net(images), alone, rtol=0, atol=1e-12)


def test_normalisations_differ_in_what_shares_a_mean():
    values = noise(2, 48, 6, 5, dtype=torch.float64) * 3 + torch.arange(48)[:, None, None]
    for norm in NORMS:
        out = normalisation(norm, 2, 48).double()(values)
        each = out.movedim(0, 1).flatten(1) if norm == "batch" else out.reshape(16 if norm == "group" else 96, -1)
        assert torch.allclose(each.mean(1), torch.zeros(len(each), dtype=torch.float64), atol=1e-12)
        assert torch.allclose(each.var(1, correction=0), torch.ones(len(each), dtype=torch.float64), atol=1e-4)


def seen_by(first, last, blocks=(1, 2)):
    """The voxels that the features of voxels first..last of the light network depend on, from the sizes of its kernels."""

    def at(level, first, last):  # what the encoder's result at a level sees, in voxels of the image
        for i in range(level, 0, -1):
            first, last = first - 2 * blocks[i - 1], last + 2 * blocks[i - 1]
            first, last = 2 * first - 1, 2 * last + 1
        return first - 2, last + 2

    first, last = first - 1, last + 1
    ranges = [at(0, first, last)]
    for level in range(1, len(blocks) + 1):
        first, last = math.floor((first - 0.5) / 2), math.ceil((last - 0.5) / 2)  # linear interpolation between centres
        if level < len(blocks):  # the decoder's residual block
            first, last = first - 2, last + 2
        ranges.append(at(level, first, last))
    return min(r[0] for r in ranges), max(r[1] for r in ranges)


@pytest.mark.parametrize("ndim", [2, 3])
def test_light_sees_67_voxels_along_each_axis(ndim):
    torch.manual_seed(0)
    net = build_network("light", ndim, 2, norm="batch").double().eval()
    for axis in range(ndim):
        shape = [1] * ndim
        shape[axis] = 96
        for voxel in range(44, 48):
            image = noise(1, 1, *shape, dtype=torch.float64).requires_grad_()
            net.features(image).flatten(2)[0, :, voxel].sum().backward()
            seen = image.grad.flatten().nonzero()
            assert (int(seen[0]), int(seen[-1])) == seen_by(voxel, voxel)
            assert seen[-1] - seen[0] + 1 == 67
            assert max(voxel - seen[0], seen[-1] - voxel) <= 36


@pytest.mark.parametrize(
    ("name", "norm", "everything"),
    [("light", "instance", True), ("light", "group", True), ("lraspp", "batch", True), ("light", "batch", False)],
)
def test_means_over_the_image_join_far_voxels(name, norm, everything):
    net = frozen_statistics(build_network(name, 2, 2, norm=norm).double())
    image = noise(1, 1, 8, 128, dtype=torch.float64).requires_grad_()
    net(image)[0, 0, 4, 4].backward()
    assert bool((image.grad[..., 100:] != 0).any()) is everything


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name, ndim, norm):
    net = small(name, ndim, norm=norm)
    image = noise(2, 1, *ODD[ndim])
    labels = (image.flatten() > 0).long() + 2 * (image.flatten() > 1).long()
    cross_entropy(net.classify(voxel_rows(net.features(image))), labels).backward()
    without = [key for key, value in net.named_parameters() if value.grad is None or not bool(value.grad.any())]
    assert without == []


@pytest.mark.parametrize("ndim", [2, 3])
def test_lraspp_works_at_half_and_a_quarter_of_the_resolution(ndim):
    net = small("lraspp", ndim).double()
    image = noise(1, 1, *(24, 16, 32)[:ndim], dtype=torch.float64)
    low = net.backbone.stem(image)
    assert low.shape == (1, 16, *(12, 8, 16)[:ndim])
    shapes, deep = [], low
    for block in net.backbone.blocks:
        deep = block(deep)
        shapes.append((deep.shape[1], deep.shape[2]))
    assert shapes == [(channels, 12 if i < 5 else 6) for i, channels in enumerate(OUTPUTS[1:])]
    coarse = net.backbone.coarse(image)
    assert coarse.shape == (1, 6, *(12, 8, 16)[:ndim])
    # all behind the gate is linear: logits may be interpolated instead of features
    mode = "trilinear" if ndim == 3 else "bilinear"
    logits = net.classify(coarse.movedim(1, -1)).movedim(-1, 1)
    assert torch.allclose(net(image), interpolate(logits, size=image.shape[2:], mode=mode), rtol=0, atol=1e-12)


def test_lraspp_gates_the_deep_map_by_its_mean():
    net = small("lraspp").double()
    backbone, image = net.backbone, noise(1, 1, 16, 16, dtype=torch.float64)
    low = backbone.stem(image)
    deep = backbone.blocks(low)
    rows, gate = voxel_rows(deep), backbone.gate[0].weight
    opened = 1 / (1 + torch.exp(-rows.mean(0) @ gate.T))
    branch = torch.relu(backbone.branch[1](backbone.branch[0](deep)))
    deep_part = torch.einsum("fc,bcxy->bfxy", backbone.from_deep.weight, branch * opened[:, None, None])
    low_part = torch.einsum("fc,bcxy->bfxy", backbone.from_low.weight, low)
    expected = interpolate(deep_part, size=(8, 8), mode="bilinear") + low_part
    assert torch.allclose(backbone.coarse(image), expected, rtol=0, atol=1e-12)


def test_lraspp_adds_where_channels_and_resolution_allow():
    net = small("lraspp", norm="batch").double().eval()
    activations = [module for module in net.modules() if isinstance(module, nn.ReLU6)]
    assert len(activations) == 2 * len(OUTPUTS)
    for i, block in enumerate(net.backbone.blocks, start=1):
        nn.init.zeros_(block.body[-1].weight)  # so that the block's own result is zero
        values = noise(1, INPUTS[i], 8, 8, dtype=torch.float64)
        adds = INPUTS[i] == OUTPUTS[i] and i != 6  # of ten blocks the seventh has stride 2
        assert torch.equal(block(values), values) is adds


def test_positions_run_from_one_end_of_the_image_to_the_other():
    grid = voxel_positions(torch.zeros(2, 3, 5, 1, 3))
    assert grid.shape == (1, 3, 5, 1, 3)
    assert grid[0, 0, :, 0, 2].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert grid[0, 1].unique().tolist() == [0]
    assert grid[0, 2, 3, 0].tolist() == [-1, 0, 1]


@pytest.mark.parametrize("ndim", [2, 3])
def test_only_positions_tell_places_of_a_uniform_image_apart(ndim):
    shape = (96, 3, 2)[:ndim]
    image = torch.ones(2, 1, *shape, dtype=torch.float64)
    for positions in (False, True):
        net = frozen_statistics(small("light", ndim, positions=positions, norm="batch").double())
        values = net.features(image)[:, :, 40:56:4]  # the same place of each coarse voxel, far from the ends
        same = torch.allclose(values, values[:, :, :1].expand_as(values), rtol=0, atol=1e-9)
        assert same is not positions
        assert torch.equal(net(image)[0], net(image)[1])


def test_positions_need_room_in_the_backbone():
    backbone = small("light", 3).backbone
    with pytest.raises(ValueError, match="-2 image channels"):
        SegmentationNet(backbone, 4, positions=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_makes_the_same_network(name):
    a, b, c = small(name, seed=1), small(name, seed=1), small(name, seed=2)
    image = noise(1, 1, 16, 16)
    results = []
    for net in (a, b, c):
        loss = net(image).square().mean()
        loss.backward()
        results.append(torch.cat([value.grad.flatten() for value in net.parameters()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("options", [{}, {"norm": "batch", "positions": True, "features": 7, "in_channels": 2}])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_description_makes_the_same_architecture(name, ndim, options):
    net = build_network(name, ndim, 3, **options)
    description = json.loads(json.dumps(net.describe()))
    assert description == net.describe()
    assert description["norm"] == options.get("norm", "instance")  # defaults are spelled out: they may change
    again = build_network(**description)
    assert again.describe() == description
    assert str(again) == str(net)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (("resnet", 2, 3), {}),
        (("light", 4, 3), {}),
        (("light", 2, 0), {}),
        (("light", 2, 3, 0), {}),
        (("light", 2, 3), {"norm": "layer"}),
        (("light", 2, 3), {"depth": 3}),
        (("light", 2, 3), {"widths": [8]}),
        (("light", 2, 3), {"blocks": [1]}),
        (("light", 2, 3), {"blocks": [1, 0]}),
        (("light", 2, 3), {"features": 0}),
        (("lraspp", 3, 3), {"inner": "many"}),
        (("lraspp", 3, 3), {"inner": 0}),
    ],
)
def test_impossible_networks_are_refused(arguments, options):
    with pytest.raises(InputError, match="Remedy"):
        build_network(*arguments, **options)


def discs(count, seed):
    """Noisy images (count, 1, 40, 36) of a bright disc and their labels, 1 in the disc."""
    rng = np.random.default_rng(seed)
    x, y = np.mgrid[:40, :36]
    centre, radius = rng.uniform(12, 24, (count, 2)), rng.uniform(7, 11, count)
    distance = np.hypot(x - centre[:, 0, None, None], y - centre[:, 1, None, None])
    labels = distance < radius[:, None, None]
    images = labels + rng.normal(0, 0.3, labels.shape)
    return torch.from_numpy(images[:, None]).float(), torch.from_numpy(labels).long()


@pytest.mark.parametrize("name", NAMES)
def test_a_few_steps_teach_discs(name):
    torch.manual_seed(0)
    net = build_network(name, 2, 2)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(50):
        images, labels = discs(6, seed=step)
        chosen = torch.randperm(labels.numel())[:2000]
        rows = voxel_rows(net.features(images)).index_select(0, chosen)
        loss = cross_entropy(net.classify(rows), labels.flatten()[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    images, labels = discs(10, seed=1000)
    found, probability = net.predict(images)
    dice = 2 * (found * labels).sum((1, 2)) / (found.sum((1, 2)) + labels.sum((1, 2)))
    assert dice.mean() > 0.95
    assert dice.min() > 0.9
    assert probability.min() >= 0.5 - 1e-6
