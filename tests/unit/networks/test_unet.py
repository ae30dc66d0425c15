"""VoxelMorph's and DeepReg's U-Nets: the published layers, alignments of grids, and what the four U-Net families share."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from popatlas.errors import InputError
from popatlas.networks.registration import (
    build_registration_network,
    load_registration_network,
    save_registration_network,
)
from popatlas.networks.unet import Unit, resized
from popatlas.regularisers.diffusion import diffusion
from popatlas.similarity.registry import make
from popatlas.transforms.fields import coordinates, warp
from popatlas.transforms.velocity import integrate_stationary

# CVPR 2018 and MICCAI 2018, trained with TensorFlow
VM2 = {"decoder": [32] * 5, "final": [16, 16], "padding": "end"}
MICCAI = {"decoder": [32] * 4 + [16], "final": [], "half": True, "transform": "velocity", "padding": "end"}
SMALL = {
    "unet": {"encoder": [8, 16, 16], "decoder": [16, 16, 16], "final": [8]},
    "deepreg": {"widths": [4, 8, 16]},
    "pyramid": {"widths": [4, 8, 16]},
    "masked": {"encoder": [8, 16, 16], "decoder": [16, 16, 16], "final": [8], "mask_decoder": [8, 8, 8], "mask_final": []},
}
NAMES = tuple(SMALL)
DIFFERENT = {
    "unet": {"half": True, "alignment": "corners", "steps": 4, "slope": 0.1, "upsampling": "linear", "padding": "end"},
    "deepreg": {"norm": "instance", "transform": "velocity"},
    "pyramid": {"correlation": 2, "fusion": 1, "stop": False, "transform": "velocity", "slope": 0.0, "steps": 3},
    "masked": {"mask_final": [3], "transform": "velocity", "shrink": True},
}


def small(name, ndim=2, seed=0, **options):
    torch.manual_seed(seed)
    return build_registration_network(name, ndim, **(SMALL[name] | options))


def noise(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def count(net):
    return sum(value.numel() for value in net.parameters())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 301411),  # VoxelMorph 0.1, as comparisons of networks quote it
        (VM2, 300547),  # all tensors of the published file
        (MICCAI, 265075),  # 266374 of the published file less 1299 of the head of the variance
    ],
)
def test_parameters_are_those_of_the_published_networks(options, expected):
    assert count(build_registration_network("unet", 3, **options)) == expected


def test_layers_come_in_the_published_order():
    shapes = {
        "vm2": [(16, 2), (32, 16), (32, 32), (32, 32), (32, 32), (32, 64), (32, 64), (32, 48), (32, 32), (16, 34), (16, 16)],
        "miccai": [(16, 2), (32, 16), (32, 32), (32, 32), (32, 32), (32, 64), (32, 64), (32, 48), (16, 32)],
    }
    for name, options in (("vm2", VM2), ("miccai", MICCAI)):
        state = build_registration_network("unet", 3, **options).state_dict()
        expected = [(*shape, 3, 3, 3) for shape in [*shapes[name], (3, 16)]]
        assert [tuple(value.shape) for key, value in state.items() if key.endswith("weight")] == expected
        assert list(state)[-2:] == ["head.flow.weight", "head.flow.bias"]


def layer_by_layer(state, pair, half):
    """The published graph of 2018, written out: (B, 2, *shape) moving and fixed to the values of the head."""
    ndim = pair.ndim - 2
    conv = functional.conv3d if ndim == 3 else functional.conv2d
    tensors = list(state.values())
    layers = list(zip(tensors[::2], tensors[1::2], strict=True))

    def step(x, stride=1, active=True):
        weight, bias = layers.pop(0)
        x = functional.pad(x, ((0, 1) if stride == 2 else (1, 1)) * ndim)  # what "same" is in TensorFlow for even sizes
        x = conv(x, weight, bias, stride=stride)
        return torch.where(x > 0, x, 0.2 * x) if active else x

    def join(x, skip):
        for axis in range(2, x.ndim):
            x = x.repeat_interleave(2, axis)
        return torch.cat([x, skip], 1)

    e1 = step(pair, 2)
    e2 = step(e1, 2)
    e3 = step(e2, 2)
    x = step(step(e3, 2))
    x = step(join(x, e3))
    x = step(join(x, e2))
    x = step(step(join(x, e1)))
    if not half:
        x = step(step(join(x, pair)))
    return step(x, active=False)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("options", [VM2, MICCAI], ids=["vm2", "miccai"])
def test_the_field_is_that_of_the_published_graph(ndim, options):
    net = build_registration_network("unet", ndim, **options)
    state = {key: value + 0.05 * noise(*value.shape) for key, value in net.state_dict().items()}
    net.load_state_dict(state)
    fixed, moving = noise(2, 1, *[32] * ndim), noise(2, 1, *[32] * ndim, seed=2)
    vectors = layer_by_layer(state, torch.cat([moving, fixed], 1), half=options is MICCAI)
    prediction = net(fixed, moving)
    torch.testing.assert_close(prediction.smooth[0], vectors, rtol=1e-4, atol=1e-5)
    assert float(vectors.detach().std()) > 0.01
    if options is VM2:
        assert prediction.displacement is prediction.smooth[0]
        assert prediction.velocity is None
    else:
        assert prediction.velocity.shape[2:] == (16,) * ndim
        flow = integrate_stationary(prediction.velocity)
        torch.testing.assert_close(prediction.displacement, resized(flow, [32] * ndim, "blocks"))


@pytest.mark.parametrize(("padding", "taps"), [("end", (0, 1, 2)), ("both", (-1, 0, 1))])
def test_padding_shifts_what_a_strided_convolution_sees(padding, taps):
    unit = Unit(2, 1, 1, slope=1.0, stride=2, padding=padding)
    image = noise(1, 1, 8, 8)
    for tap, offset in enumerate(taps):
        with torch.no_grad():
            unit.conv.weight.zero_()
            unit.conv.weight[0, 0, tap, tap] = 1
        seen = [n + offset for n in range(0, 8, 2)]
        wide = functional.pad(image, (1, 1, 1, 1))[0, 0]
        expected = wide[[n + 1 for n in seen]][:, [n + 1 for n in seen]]
        assert torch.equal(unit(image)[0, 0].detach(), expected)


def test_alignments_put_coarse_voxels_where_they_say():
    coarse = torch.stack(torch.meshgrid(torch.arange(6.0), torch.arange(4.0), indexing="ij"))[None]
    fine = coordinates((12, 8))
    inside = slice(1, -1)
    blocks = resized(coarse, (12, 8), "blocks")  # coarse voxel i is at 2 i + 0.5
    torch.testing.assert_close(blocks[:, :, inside, inside], (fine - 0.5)[:, :, inside, inside])
    torch.testing.assert_close(resized(coarse, (12, 8), "origin")[:, :, :-1, :-1], fine[:, :, :-1, :-1])
    last = torch.tensor([5 / 11, 3 / 7]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(resized(coarse, (12, 8), "corners"), 2 * fine * last)


@pytest.mark.parametrize("alignment", ["blocks", "corners", "origin"])
@pytest.mark.parametrize("transform", ["displacement", "velocity"])
def test_constant_fields_keep_their_length_in_voxels(alignment, transform):
    shift = torch.tensor([1.5, -0.5])
    options = {"alignment": alignment, "transform": transform}
    for name, factor in (("half", 2), ("shrink", 1), (None, 1)):
        net = small("unet", **options, **({name: True} if name else {}))
        with torch.no_grad():
            net.head.flow.weight.zero_()
            net.head.flow.bias.copy_(shift)
        prediction = net(noise(1, 1, 16, 24), noise(1, 1, 16, 24))
        expected = (factor * shift).reshape(1, 2, 1, 1).expand(1, 2, 16, 24)
        torch.testing.assert_close(prediction.displacement, expected)
        assert prediction.smooth[0].shape[2:] == ((8, 12) if name else (16, 24))
        assert (prediction.velocity is None) == (transform == "displacement")


def test_steps_are_those_of_the_flow():
    net = small("unet", transform="velocity", steps=3)
    with torch.no_grad():
        net.head.flow.weight.normal_(0, 0.1)
    prediction = net(noise(1, 1, 16, 16), noise(1, 1, 16, 16, seed=2))
    torch.testing.assert_close(prediction.displacement, integrate_stationary(prediction.velocity, 3))
    assert not torch.allclose(prediction.displacement, integrate_stationary(prediction.velocity, 7), atol=1e-4)


def test_linear_upsampling_makes_another_field_with_the_same_weights():
    nearest, linear = small("unet"), small("unet", upsampling="linear")
    pair = noise(1, 1, 16, 16), noise(1, 1, 16, 16, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(nearest.parameters(), linear.parameters(), strict=True))
    with torch.no_grad():
        for net in (nearest, linear):
            net.head.flow.weight.fill_(0.1)
        assert float((nearest(*pair).displacement - linear(*pair).displacement).abs().max()) > 0.01


@pytest.mark.parametrize("ndim", [2, 3])
def test_deepreg_has_the_parameters_of_its_blocks(ndim):
    def unit(a, b):
        return a * b * 3**ndim + 2 * b

    total, widths = 0, [2, 8, 16, 32]
    for a, b in pairwise(widths):
        total += unit(a, b) + 2 * unit(b, b)
    for coarse, fine in ((32, 16), (16, 8)):
        total += unit(coarse, fine) + 3 * unit(fine, fine)
    total += 8 * ndim * 3**ndim + ndim
    net = build_registration_network("deepreg", ndim)
    assert count(net) == total
    assert net.stride == 4


def test_deepreg_adds_what_it_skips():
    """Without the way through the coarser grid the decoder gets the encoder's features of the full grid alone."""
    net = small("deepreg", widths=[4, 8], norm="instance")
    with torch.no_grad():
        net.decoder[0].enlarge[1].weight.zero_()
        net.head.flow.weight.normal_(0, 0.1)
    seen = []
    net.decoder[0].then.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    fixed, moving = noise(1, 1, 8, 8), noise(1, 1, 8, 8, seed=2)
    net(fixed, moving)
    torch.testing.assert_close(seen[0], net.encoder[0](torch.cat([moving, fixed], 1)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_an_untrained_network_hardly_moves_anything_and_every_tensor_learns(name, ndim):
    net = small(name, ndim)
    fixed, moving = noise(2, 1, *(16, 24, 8)[:ndim]), noise(2, 1, *(16, 24, 8)[:ndim], seed=2)
    prediction = net(fixed, moving)
    assert prediction.displacement.shape == (2, ndim, *fixed.shape[2:])
    assert all(float(vectors.detach().abs().max()) < 1e-3 for vectors in prediction.smooth)
    assert 0 < float(prediction.displacement.detach().abs().max()) < 1e-2
    with torch.no_grad():
        for key, value in net.named_parameters():
            if key.endswith("flow.weight"):
                value.normal_(0, 0.1)
    prediction = net(fixed, moving)
    loss = (warp(moving, prediction.displacement) - fixed).square().mean()
    if prediction.mask is not None:
        loss = loss + prediction.mask.square().mean()
    loss.backward()
    for key, value in net.named_parameters():
        assert float(value.grad.abs().max()) > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_checked(name):
    net = small(name)
    size = net.stride + 1
    with pytest.raises(ValueError, match=f"not multiples of {net.stride}"):
        net(noise(1, 1, size, size), noise(1, 1, size, size))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ndim", [2, 3])
def test_files_and_descriptions_give_the_same_network(tmp_path, name, ndim):
    options = SMALL[name] | DIFFERENT[name]
    net = small(name, ndim, **DIFFERENT[name])
    pair = noise(1, 1, *[16] * ndim), noise(1, 1, *[16] * ndim, seed=2)
    net(*pair)  # statistics of normalisations
    save_registration_network(net, tmp_path / "net.safetensors", {"who": "test"})
    loaded, texts = load_registration_network(tmp_path / "net.safetensors")
    assert texts == {"who": "test"}
    description = json.loads(json.dumps(net.describe()))
    assert description == loaded.describe()
    assert {key: description[key] for key in options} == options
    again = build_registration_network(**description).eval()
    again.load_state_dict(net.state_dict())
    with torch.no_grad():
        expected = net.eval()(*pair).displacement
        assert torch.equal(loaded(*pair).displacement, expected)
        assert torch.equal(again(*pair).displacement, expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"encoder": []}, "encoder"),
        ("unet", {"encoder": [16, 0]}, "encoder"),
        ("unet", {"decoder": [32, 32, 32]}, "decoder"),
        ("unet", {"final": [16, -1]}, "final"),
        ("unet", {"final": 16}, "network unet"),
        ("unet", {"transform": "affine"}, "transform"),
        ("unet", {"alignment": "middle"}, "alignment"),
        ("unet", {"upsampling": "cubic"}, "upsampling"),
        ("unet", {"padding": "start"}, "padding"),
        ("unet", {"steps": -1}, "steps"),
        ("unet", {"half": True, "shrink": True}, "half and shrink"),
        ("unet", {"colour": "red"}, "colour"),
        ("deepreg", {"widths": [8]}, "widths"),
        ("deepreg", {"norm": "layer"}, "norm"),
        ("deepreg", {"transform": "affine"}, "transform"),
        ("pyramid", {"widths": [8]}, "widths"),
        ("pyramid", {"transform": "affine"}, "transform"),
        ("pyramid", {"correlation": -1}, "correlation"),
        ("pyramid", {"fusion": -1}, "fusion"),
        ("pyramid", {"steps": -1}, "steps"),
        ("masked", {"mask_decoder": [16]}, "mask_decoder"),
        ("masked", {"mask_final": [0]}, "mask_final"),
        ("masked", {"padding": "start"}, "padding"),
        ("masked", {"colour": "red"}, "colour"),
    ],
)
def test_impossible_options_are_named(name, options, message):
    with pytest.raises(InputError, match=message):
        build_registration_network(name, 2, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_has_two_or_three_axes(name):
    with pytest.raises(InputError, match="2 or 3"):
        build_registration_network(name, 4)


def blobs():
    """A fixed and a moving blob of 32 voxels along each axis, 3 voxels and a smooth warp apart."""
    shape = (32, 32, 32)
    x = coordinates(shape)
    rng = np.random.default_rng(0)
    wave = torch.tensor(np.stack([gaussian_filter(rng.normal(size=shape), 5) for _ in shape]), dtype=torch.float32)
    shift = 1.5 * wave / wave.abs().max() + torch.tensor([3.0, 0, 0]).reshape(3, 1, 1, 1)

    def blob(x):
        large, little = ((x - middle).norm(dim=1, keepdim=True) for middle in (15.5, 19.5))
        return torch.sigmoid(7 - large) + 0.5 * torch.sigmoid(2 * (3 - little))

    return blob(x + shift), blob(x)


@pytest.mark.parametrize(
    ("name", "options"),
    [("unet", {}), ("unet", {"half": True, "transform": "velocity"}), ("deepreg", {}), ("pyramid", {})],
)
def test_a_few_steps_on_one_pair_align_it(name, options):
    fixed, moving = blobs()
    ncc = make("ncc")
    assert ncc(fixed, moving) > -0.9
    net = small(name, 3, **options)
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(35):
        prediction = net(fixed, moving)
        smooth = sum(diffusion(vectors).mean() for vectors in prediction.smooth)
        loss = ncc(fixed, warp(moving, prediction.displacement)).mean() + 0.01 * smooth
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert ncc(fixed, warp(moving, net(fixed, moving).displacement)) < -0.98
