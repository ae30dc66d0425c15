"""Public checkpoints: every weight lands where the published network has it, and the fields mean the same."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from popatlas.cli.weights import KINDS
from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.transforms.jacobian import jacobian_determinant
from popatlas.zoo.importers.base import IMPORTERS, import_weights
from popatlas.zoo.store import load_weights, verify

h5py = pytest.importorskip("h5py")

SHAPE = (16, 32, 48)
VM2 = [(2, 16), (16, 32), (32, 32), (32, 32), (32, 32), (64, 32), (64, 32), (48, 32), (32, 32), (34, 16), (16, 16)]
PROBABILISTIC = [*VM2[:8], (32, 16)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("POPATLAS_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def weights(*shape, seed):
    """Return values that keep the scale of what flows through them."""
    return torch.randn(shape, generator=rng(seed)) / np.sqrt(max(1, np.prod(shape[1:])))


def keras_file(path, channels, heads, first=236):
    """Write kernels (x, y, z, in, out) as Keras lays them out; return them for torch."""
    kept = {}
    names = [f"conv3d_{first + i}" for i in range(len(channels))]
    with h5py.File(path, "w") as file:
        for seed, (name, (before, after)) in enumerate([*zip(names, channels, strict=True), *((h, (16, 3)) for h in heads)]):
            kernel, bias = 1.4 * weights(after, before, 3, 3, 3, seed=seed), 0.1 * weights(after, seed=100 + seed)
            inner = file.create_group(f"model_weights/{name}/{name}_27" if name in heads else f"model_weights/{name}/{name}")
            inner["kernel:0"] = kernel.permute(2, 3, 4, 1, 0).numpy()
            inner["bias:0"] = bias.numpy()
            kept[name] = kernel, bias
        file.create_group("model_weights/leaky_re_lu_236")
    return [kept[name] for name in [*names, *heads[:1]]]


def keras_network(layers, fixed, moving, half):
    """TensorFlow's arithmetic: with stride 2 and even sizes the zeros of "same" are behind."""

    def unit(values, layer, stride=1):
        kernel, bias = layer
        padding = (0, 1) if stride == 2 else (1, 1)
        return functional.leaky_relu(
            functional.conv3d(functional.pad(values, padding * 3), kernel, bias, stride=stride), 0.2
        )

    def twice(values):
        return values.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)

    images = torch.cat([moving, fixed], 1)
    one = unit(images, layers[0], 2)
    two = unit(one, layers[1], 2)
    three = unit(two, layers[2], 2)
    values = unit(unit(three, layers[3], 2), layers[4])
    for layer, skip in zip(layers[5:8], (three, two, one), strict=True):
        values = unit(torch.cat([twice(values), skip], 1), layer)
    values = unit(values, layers[8])
    if not half:
        values = unit(unit(torch.cat([twice(values), images], 1), layers[9]), layers[10])
    return functional.conv3d(values, *layers[-1], padding=1)


def pair(shape=SHAPE):
    return [torch.rand(1, 1, *shape, generator=rng(seed)) for seed in (1, 2)]


@torch.no_grad()
def test_the_network_of_cvpr2018_computes_what_keras_did(folder):
    layers = keras_file(folder / "vm2.h5", VM2, ("flow",), first=95)  # numbers of two and of three digits
    entry = import_weights("voxelmorph-cvpr2018", folder / "vm2.h5")
    net, _ = load_weights("voxelmorph-cvpr2018")
    fixed, moving = pair()
    found, expected = net(fixed, moving).displacement, keras_network(layers, fixed, moving, half=False)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.std()) + 1e-6)
    assert float(expected.std()) > 0.05
    assert (entry.licence, entry.transform, entry.architecture) == ("Apache-2.0", "displacement", "unet")
    assert (entry.input.orientation, entry.input.shape) == ("LIA", (160, 192, 224))


@torch.no_grad()
def test_of_the_network_of_miccai2018_the_mean_velocity_is_taken(folder):
    layers = keras_file(folder / "m.h5", PROBABILISTIC, ("flow", "log_sigma"))
    entry = import_weights("voxelmorph-miccai2018", folder / "m.h5")
    net, _ = load_weights("voxelmorph-miccai2018")
    fixed, moving = pair()
    found = net(fixed, moving)
    velocity = keras_network(layers, fixed, moving, half=True)
    assert torch.allclose(found.velocity, velocity, atol=1e-4 * float(velocity.std()) + 1e-6)
    assert found.velocity.shape[2:] == (8, 16, 24)
    assert found.displacement.shape[2:] == SHAPE
    assert entry.transform == "velocity"


def symnet_state(channels=2):
    """Return a state dict with the published names; multiples of `channels` are the published widths over 7."""
    c = channels
    convolutions = {"eninput": (2, c), "ec1": (c, c), "ec2": (c, 2 * c), "ec3": (2 * c, 2 * c), "ec4": (2 * c, 4 * c)}
    convolutions |= {"ec5": (4 * c, 4 * c), "ec6": (4 * c, 8 * c), "ec7": (8 * c, 8 * c), "ec8": (8 * c, 16 * c)}
    convolutions |= {"ec9": (16 * c, 8 * c), "dc1": (16 * c, 8 * c), "dc2": (8 * c, 4 * c), "dc3": (8 * c, 4 * c)}
    convolutions |= {"dc4": (4 * c, 2 * c), "dc5": (4 * c, 4 * c), "dc6": (4 * c, 2 * c), "dc7": (3 * c, 2 * c)}
    convolutions |= {"dc8": (2 * c, 2 * c)}
    state = {}
    for seed, (name, (before, after)) in enumerate(convolutions.items()):
        state[f"{name}.0.weight"] = 1.4 * weights(after, before, 3, 3, 3, seed=seed)
        state[f"{name}.0.bias"] = 0.1 * weights(after, seed=50 + seed)
    for seed, (name, width) in enumerate({"up1": 8 * c, "up2": 4 * c, "up3": 2 * c, "up4": 2 * c}.items(), start=70):
        state[f"{name}.0.weight"] = 2 * weights(width, width, 2, 2, 2, seed=seed)
        state[f"{name}.0.bias"] = 0.1 * weights(width, seed=80 + seed)
    for seed, name in enumerate(("dc9", "dc10"), start=90):
        state[f"{name}.0.weight"] = 0.1 * weights(3, 2 * c, 5, 5, 5, seed=seed)
    return state


def symnet_velocities(state, fixed, moving):
    """Return both velocities as the published network gives them: last axis first, in hundreds of voxels."""

    def conv(name, values, stride=1):
        return functional.conv3d(values, state[f"{name}.0.weight"], state[f"{name}.0.bias"], stride=stride, padding=1).relu()

    values, skips = torch.cat([fixed, moving], 1), []
    for first, second, stride in (
        ("eninput", "ec1", 1),
        ("ec2", "ec3", 2),
        ("ec4", "ec5", 2),
        ("ec6", "ec7", 2),
        ("ec8", "ec9", 2),
    ):
        values = conv(second, conv(first, values, stride))
        skips.append(values)
    values = skips.pop()
    for i in range(4):
        up = functional.conv_transpose3d(values, state[f"up{i + 1}.0.weight"], state[f"up{i + 1}.0.bias"], stride=2).relu()
        values = conv(f"dc{2 * i + 2}", conv(f"dc{2 * i + 1}", torch.cat([up, skips.pop()], 1)))
    return [functional.softsign(functional.conv3d(values, state[f"{name}.0.weight"], padding=2)) for name in ("dc9", "dc10")]


def seen_through(image, flow):
    """Sample at voxel + flow, the component along the last axis first, as `grid_sample` counts."""
    shape = image.shape[2:]
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    at = torch.stack(axes[::-1], -1)[None] + flow.movedim(1, -1)
    unit = 2 * at / (torch.tensor(shape[::-1]) - 1) - 1
    return functional.grid_sample(image, unit, padding_mode="border", align_corners=True)


def flowed(velocity):
    flow = velocity / 2**7
    for _ in range(7):
        flow = flow + seen_through(flow, flow)
    return flow


@torch.no_grad()
def test_symnet_goes_there_by_one_velocity_and_back_by_the_other(folder):
    state = symnet_state()
    torch.save(state, folder / "symnet.pth")
    entry = import_weights("symnet", folder / "symnet.pth", "mine")
    net, _ = load_weights("mine")
    fixed, moving = pair()
    one, other = (100 * v for v in symnet_velocities(state, fixed, moving))
    found = net(fixed, moving)
    assert torch.allclose(found.smooth[0].flip(1), other, atol=1e-3)
    assert torch.allclose(found.smooth[1].flip(1), one, atol=1e-3)
    there, back = flowed(other), flowed(-one)
    expected = there + seen_through(back, there)
    assert torch.allclose(found.displacement.flip(1), expected, atol=1e-2)
    assert float(expected.abs().mean()) > 0.3
    assert (entry.licence, entry.transform) == ("MIT", "velocity")
    assert net.options["channels"] == 2


def lapirn_state(channels=2):
    """Return a state dict with the published names."""
    fine, coarse, state = 2 * channels, 4 * channels, {}

    def put(name, *shape, gain=1.4):
        state[name] = gain * weights(*shape, seed=len(state))

    for prefix, inputs, end in (("model_lvl2.model_lvl1.", 2, coarse), ("model_lvl2.", 5, coarse), ("", 5, fine)):
        put(f"{prefix}input_encoder_lvl1.0.weight", fine, inputs, 3, 3, 3)
        put(f"{prefix}input_encoder_lvl1.2.weight", fine, fine, 3, 3, 3)
        put(f"{prefix}down_conv.weight", coarse, fine, 3, 3, 3)
        for i in range(0, 10, 2):
            block = f"{prefix}resblock_group_lvl1.{i}"
            for n in (1, 2):
                put(f"{block}.ai{n}.style.weight", 2 * coarse, 64)
                put(f"{block}.ai{n}.style.bias", 2 * coarse)
                put(f"{block}.conv{n}.weight", coarse, coarse, 3, 3, 3)
            for n, size in ((0, 1), (2, 64), (4, 64), (6, 64)):
                put(f"{block}.mapping.{n}.weight", 64, size)
                put(f"{block}.mapping.{n}.bias", 64)
        put(f"{prefix}up.weight", coarse, end, 2, 2, 2)
        put(f"{prefix}output_lvl1.0.weight", (end + fine) // 2, end + fine, 3, 3, 3)
        put(f"{prefix}output_lvl1.2.weight", 3, (end + fine) // 2, 3, 3, 3, gain=0.5)
    return state


def lapirn_level(state, prefix, images, coarser, dial):
    """One published resolution: displacement in halves of the image, last axis first, and its features."""

    def conv(name, values, stride=1):
        return functional.conv3d(values, state[f"{prefix}{name}.weight"], stride=stride, padding=1)

    def bent(values):
        return functional.leaky_relu(values, 0.2)

    fine = conv("input_encoder_lvl1.2", bent(conv("input_encoder_lvl1.0", images)))
    values = conv("down_conv", fine, 2) + (0 if coarser is None else coarser)
    for i in range(0, 10, 2):
        block, code = f"resblock_group_lvl1.{i}", torch.tensor([[dial]])
        for n in range(0, 8, 2):
            key = f"{prefix}{block}.mapping.{n}"
            code = bent(functional.linear(code, state[f"{key}.weight"], state[f"{key}.bias"]))
        change = values
        for n in (1, 2):
            key = f"{prefix}{block}.ai{n}.style"
            style = functional.linear(code, state[f"{key}.weight"], state[f"{key}.bias"])[0, :, None, None, None]
            gain, shift = style.chunk(2)
            mean, deviation = change.mean((2, 3, 4), keepdim=True), change.std((2, 3, 4), keepdim=True, unbiased=False)
            change = conv(f"{block}.conv{n}", bent((1 + gain) * (change - mean) / torch.sqrt(deviation**2 + 1e-5) + shift))
        values = bent(values + change)
    values = functional.conv_transpose3d(values, state[f"{prefix}up.weight"], stride=2)
    out = conv("output_lvl1.2", bent(conv("output_lvl1.0", torch.cat([values, fine], 1))))
    return 0.4 * functional.softsign(out), values


@torch.no_grad()
def test_lapirn_adds_the_displacements_of_three_resolutions(folder):
    state = lapirn_state()
    torch.save(state, folder / "lapirn.pth")
    entry = import_weights("lapirn-lite", folder / "lapirn.pth")
    net, _ = load_weights("lapirn-lite")
    fixed, moving = pair()
    total, features = None, None
    for prefix, halvings in (("model_lvl2.model_lvl1.", 2), ("model_lvl2.", 1), ("", 0)):
        images = torch.cat([moving, fixed], 1)
        for _ in range(halvings):
            images = functional.avg_pool3d(images, 3, 2, 1, count_include_pad=False)
        if total is not None:
            total = functional.interpolate(total, scale_factor=2, mode="trilinear", align_corners=False)
            halves = (torch.tensor(images.shape[2:]).flip(0) - 1).reshape(1, 3, 1, 1, 1) / 2
            images = torch.cat([seen_through(images[:, :1], total * halves), images[:, 1:], total], 1)
        step, features = lapirn_level(state, prefix, images, features, 0.1)
        total = step if total is None else total + step
    expected = total * (torch.tensor(SHAPE).flip(0) - 1).reshape(1, 3, 1, 1, 1) / 2
    found = net(fixed, moving).displacement
    assert torch.allclose(found.flip(1), expected, atol=1e-3)
    assert float(expected.std()) > 0.3
    assert entry.input.intensity.high == 0.5
    net.smoothness = 0.9
    assert not torch.allclose(net(fixed, moving).displacement, found, atol=1e-2)


@pytest.mark.parametrize("name", ["symnet", "lapirn"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_published_networks_learn_in_two_and_three_dimensions(name, ndim):
    from popatlas.networks.registration import build_registration_network

    torch.manual_seed(0)
    net = build_registration_network(name, ndim, channels=2)
    fixed, moving = pair((16,) * (ndim - 1) + (32,))
    found = net(fixed, moving)
    assert found.displacement.shape == (1, ndim, *fixed.shape[2:])
    (found.displacement.square().sum() + sum(part.sum() for part in found.smooth)).backward()
    assert all(value.grad is not None and bool(value.grad.isfinite().all()) for value in net.parameters())
    assert sum(bool(value.grad.any()) for value in net.parameters()) > 0.9 * len(list(net.parameters()))


@pytest.mark.parametrize("ndim", [2, 3])
def test_lapirn_penalises_what_it_adds(ndim):
    from popatlas.networks.registration import build_registration_network

    torch.manual_seed(0)
    net = build_registration_network("lapirn", ndim, channels=2).eval()
    with torch.no_grad():
        found = net(*pair((16,) * (ndim - 1) + (32,)))
    assert [tuple(part.shape[2:]) for part in found.smooth] == [
        tuple(n // k for n in found.displacement.shape[2:]) for k in (4, 2, 1)
    ]


def test_checkpoints_that_are_others_are_refused_with_what_does_not_fit(folder):
    keras_file(folder / "vm2.h5", VM2, ("flow",))
    with pytest.raises(
        InputError, match="no checkpoint of voxelmorph-miccai2018: it has 11 numbered convolutions, expected 9"
    ):
        import_weights("voxelmorph-miccai2018", folder / "vm2.h5")
    state = lapirn_state()
    torch.save(state, folder / "lapirn.pth")
    with pytest.raises(InputError, match=r"no checkpoint of symnet: it has no tensor eninput\.0\.weight"):
        import_weights("symnet", folder / "lapirn.pth")
    torch.save(state | {"extra": torch.ones(1)}, folder / "more.pth")
    with pytest.raises(InputError, match="has a tensor extra that the network does not"):
        import_weights("lapirn-lite", folder / "more.pth")
    state["down_conv.weight"] = state["down_conv.weight"][:, :1]
    torch.save(state, folder / "cut.pth")
    with pytest.raises(InputError, match=r"levels\.2\.down\.weight is \(8, 1, 3, 3, 3\), expected \(8, 4, 3, 3, 3\)"):
        import_weights("lapirn-lite", folder / "cut.pth")
    for kind in ("symnet", "voxelmorph-cvpr2018"):
        (folder / "text").write_text("no checkpoint")
        with pytest.raises(InputError, match="cannot read"):
            import_weights(kind, folder / "text")
    with pytest.raises(InputError, match="no such checkpoint"):
        import_weights("symnet", folder / "missing.pth")
    with pytest.raises(InputError, match=r"no importer 'vxm'.*use one of voxelmorph-cvpr2018"):
        import_weights("vxm", folder / "text")
    assert not (folder / "weights").exists()


class Trap:
    """Something that runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_does_not_run(folder):
    torch.save({"eninput.0.weight": Trap(folder / "ran")}, folder / "trap.pth")
    with pytest.raises(InputError, match="give a file of tensors only"):
        import_weights("symnet", folder / "trap.pth")
    assert not (folder / "ran").exists()


def test_the_command_line_knows_the_importers():
    assert set(KINDS) == set(IMPORTERS)


@pytest.mark.checkpoints
@pytest.mark.skipif("POPATLAS_CHECKPOINTS" not in os.environ, reason="POPATLAS_CHECKPOINTS names no folder of checkpoints")
@torch.no_grad()
def test_published_checkpoints_bring_a_shifted_brain_back(folder):
    """Each network moves a brain-like image back in the direction that it came from, most of the way, and hardly folds."""
    from popatlas.images.scan import Scan
    from popatlas.zoo.contract import conform_pair

    files = {
        "voxelmorph-cvpr2018": "voxelmorph_cvpr2018*.h5",
        "voxelmorph-miccai2018": "voxelmorph_miccai2018*.h5",
        "symnet": "SYMNet*.pth",
        "lapirn-lite": "cLapIRN_lite*.pth",
    }
    grid = Grid((80, 100, 110), np.diag([-2.0, -2.0, 2.0, 1.0]))
    x = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")).astype(float)

    def brain(shift):
        y = (x - np.array([40, 48, 55]).reshape(3, 1, 1, 1) - np.array(shift).reshape(3, 1, 1, 1)) / 30
        folds = 0.6 + 0.3 * np.cos(9 * y[0]) * np.cos(8 * y[1] + 1) * np.cos(9 * y[2])
        return torch.tensor(np.where((y**2).sum(0) < 1, folds, 0))[None, None].float()

    shift = np.array([1.5, -1.0, 0.5])  # voxels of 2 mm
    for kind, pattern in files.items():
        file = next(Path(os.environ["POPATLAS_CHECKPOINTS"]).glob(pattern))
        entry = import_weights(kind, file)
        net, _ = load_weights(kind)
        images = conform_pair(Scan(brain([0, 0, 0]), grid), Scan(brain(shift), grid), np.eye(4), entry.input)
        predicted = net(images.fixed.image, images.moving).displacement
        found = images.back(predicted)[0].numpy()
        inside = ((x - np.array([40, 48, 55]).reshape(3, 1, 1, 1)) ** 2).sum(0) < 25**2
        mean = found[:, inside].mean(1)
        length = np.linalg.norm(shift)
        assert mean @ shift / np.linalg.norm(mean) / length > 0.9, (kind, mean)
        assert 0.4 < np.linalg.norm(mean) / length < 1.2, (kind, mean)
        assert float((jacobian_determinant(predicted) <= 0).float().mean()) < 0.01, kind
    assert [problem for _, problem in verify()] == [None] * 4
