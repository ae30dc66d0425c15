"""Forces of image similarity: signs, symmetry, scale, compiled and torch alike; networks guided by them."""

import pytest
import torch

from popatlas.networks import forces
from popatlas.networks.fast import SHARE
from popatlas.networks.forces import descriptor_force, image_force, tempered
from popatlas.networks.registration import build_registration_network, load_registration_network, save_registration_network
from popatlas.similarity.lncc import LNCC
from popatlas.transforms.fieldops import TensorOps
from popatlas.transforms.fields import warp

SHAPES = {2: (32, 40), 3: (24, 32, 28)}
NDIM = pytest.mark.parametrize("ndim", [2, 3])
FORCES = pytest.mark.parametrize("force", [image_force, descriptor_force])


def texture(ndim, seed=1, channels=1):
    """Smooth random grey values in [0, 1]."""
    noise = torch.rand((1, channels, *SHAPES[ndim]), generator=torch.Generator().manual_seed(seed))
    smooth = TensorOps().smooth(noise, 1.5)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def shifted(image, shift):
    """The image whose warp by a constant `shift` along the first axis is `image`."""
    field = torch.zeros(1, image.ndim - 2, *image.shape[2:])
    field[:, 0] = -shift
    return warp(image, field)


@NDIM
@FORCES
def test_a_force_points_to_where_the_moving_image_fits(ndim, force):
    fixed = texture(ndim)
    found = force(fixed, shifted(fixed, 0.5))
    inner = found[(slice(None), slice(None), *[slice(4, -4)] * ndim)].flatten(2).mean(2)[0]
    assert float(inner[0]) > 0.15
    assert float(inner[1:].abs().max()) < 0.1 * float(inner[0])


@NDIM
@FORCES
def test_to_exchange_the_images_reverses_the_force(ndim, force):
    fixed, moving = texture(ndim), texture(ndim, 2)
    torch.testing.assert_close(force(fixed, moving), -force(moving, fixed), atol=1e-3, rtol=1e-3)


@NDIM
def test_equal_descriptors_have_no_force(ndim):
    image = texture(ndim, channels=3)
    assert not descriptor_force(image, image).any()


@NDIM
def test_the_force_of_images_makes_their_correlation_higher(ndim):
    fixed, moving = texture(ndim), texture(ndim, 2)
    loss, steps = LNCC(forces.WINDOW, floor=forces.FLOOR), (0.0, 0.1, 0.2)
    force = image_force(fixed, moving)
    values = [float(loss(fixed, warp(moving, step * force))) for step in steps]
    assert values[2] < values[1] < values[0]


@NDIM
def test_the_force_of_descriptors_makes_their_distance_smaller(ndim):
    fixed, moving = texture(ndim, channels=3), texture(ndim, 2, channels=3)
    force = descriptor_force(fixed, moving)
    values = [float((fixed - warp(moving, step * force)).square().sum()) for step in (0.0, 0.1, 0.2)]
    assert values[2] < values[1] < values[0]


@pytest.mark.parametrize("force", [image_force, descriptor_force])
@pytest.mark.parametrize("ndim", [2, 3])
def test_mixed_precision_does_not_touch_forces(ndim, force, monkeypatch):
    monkeypatch.setattr(forces, "_ops", lambda *images: TensorOps())  # as on a GPU
    fixed, moving = (0.7 + 0.05 * texture(ndim, seed) for seed in (1, 2))  # weak texture: a small difference of large sums
    exact = force(fixed, moving)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(force(fixed, moving), exact)


def test_compiled_and_torch_forces_agree(monkeypatch):
    fixed, moving = texture(3), texture(3, 2)
    compiled = image_force(fixed, moving)
    monkeypatch.setattr(forces, "_ops", lambda *images: TensorOps())
    inner = (0, slice(None), *[slice(3, -3)] * 3)  # the kernel leaves the ends of the last axis out, also of the mean
    torch.testing.assert_close(image_force(fixed, moving)[inner], compiled[inner], atol=0.05, rtol=0)


@NDIM
def test_a_tempered_force_has_no_scale(ndim):
    force = torch.randn(2, ndim, *SHAPES[ndim], generator=torch.Generator().manual_seed(3))
    found = tempered(force)
    assert float(found.square().sum(1).max()) < 1
    torch.testing.assert_close(tempered(1e-6 * force), found)
    equal = torch.zeros_like(force)
    equal[:, 0] = 5.0
    torch.testing.assert_close(tempered(equal)[:, 0], torch.full_like(equal[:, 0], 1 / (1 + forces.SOFTNESS)))
    assert not tempered(torch.zeros_like(force)).any()


def guided(ndim=3, **options):
    torch.manual_seed(0)
    options = {"widths": [6, 8], "blocks": [0, 1], "fine": True, "guided": True} | options
    return build_registration_network("fast", ndim, **options).eval()


@NDIM
@pytest.mark.parametrize("fine", [True, False])
@pytest.mark.parametrize("sees", ["images", "descriptors", "both"])
def test_a_guided_network_registers_before_it_learns(ndim, fine, sees):
    """Its head is near zero: what moves the image is the share of the force."""
    fixed = texture(ndim)
    moving = shifted(fixed, 1.0)
    net, loss = guided(ndim, fine=fine, sees=sees), LNCC()
    after = []
    with torch.no_grad():
        for net.passes in (1, 4):
            after.append(float(loss(fixed, warp(moving, net(fixed, moving).displacement))))
    assert after[1] < after[0] < float(loss(fixed, moving))


def test_a_network_that_is_guided_without_a_share_is_the_plain_one():
    torch.manual_seed(0)
    plain = build_registration_network("fast", 3, widths=[6, 8], blocks=[0, 1], fine=True).eval()
    torch.nn.init.normal_(plain.head.flow.weight, 0, 0.01)
    net, weights = guided(), plain.state_dict()
    first = torch.zeros_like(net.stem[0][0].weight)
    first[:, : weights["stem.0.0.weight"].shape[1]] = weights["stem.0.0.weight"]
    net.load_state_dict(weights | {"stem.0.0.weight": first, "shares": torch.zeros(1)})
    fixed, moving = texture(3), texture(3, 2)
    with torch.no_grad():
        torch.testing.assert_close(net(fixed, moving).displacement, plain(fixed, moving).displacement)


@NDIM
def test_the_first_layer_sees_the_forces(ndim):
    blocks, entries = 2**ndim, {2: 4, 3: 12}[ndim]
    inputs = {sees: guided(ndim, sees=sees).stem[0][0].weight.shape[1] for sees in ("images", "descriptors", "both")}
    assert inputs["images"] == (2 + ndim) * blocks and inputs["descriptors"] == 2 * entries + ndim
    assert inputs["both"] == inputs["images"] + inputs["descriptors"]


def test_shares_are_learnt_and_kept(tmp_path):
    net = guided(sees="both").train()
    assert net.shares.tolist() == pytest.approx([SHARE, SHARE])
    fixed = texture(3)
    LNCC()(fixed, warp(texture(3, 2), net(fixed, texture(3, 2)).displacement)).sum().backward()
    assert net.shares.grad.abs().min() > 0
    save_registration_network(net.eval(), tmp_path / "net.safetensors", {})
    again, _ = load_registration_network(tmp_path / "net.safetensors")
    assert again.describe()["guided"] and torch.equal(again.shares, net.shares)
