"""The network with a mask branch: the plain network inside, and a mask that is learnt beside the field."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from popatlas.networks.registration import build_registration_network
from popatlas.similarity.registry import make
from popatlas.transforms.fields import coordinates, warp

PLAIN = {"encoder": [8, 16], "decoder": [16, 16], "final": [8]}
MASK = {"mask_decoder": [8, 8], "mask_final": [4]}


def noise(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def masked(ndim=2, **options):
    torch.manual_seed(0)
    return build_registration_network("masked", ndim, **(PLAIN | MASK | options))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("options", [{}, {"half": True, "transform": "velocity", "padding": "end"}])
def test_without_the_mask_it_is_the_plain_network(ndim, options):
    net = masked(ndim, **options)
    with torch.no_grad():
        net.head.flow.weight.normal_(0, 0.1)
    plain = build_registration_network("unet", ndim, **(PLAIN | options))
    state = {key: value for key, value in net.state_dict().items() if not key.startswith("mask.")}
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state)
    pair = noise(2, 1, *[16] * ndim), noise(2, 1, *[16] * ndim, seed=2)
    found, expected = net(*pair), plain(*pair)
    assert torch.equal(found.displacement, expected.displacement)
    assert float(expected.displacement.detach().abs().max()) > 0.01
    assert found.mask.shape == pair[0].shape  # also when the field is on a coarser grid
    assert expected.mask is None


def test_both_branches_teach_the_encoder_and_neither_teaches_the_other():
    net = masked()
    with torch.no_grad():
        net.head.flow.weight.normal_(0, 0.1)
    for part, inside, outside in (("mask", "mask.", ("decoder.", "head.")), ("displacement", "decoder.", ("mask.",))):
        net.zero_grad()
        getattr(net(noise(1, 1, 16, 16), noise(1, 1, 16, 16, seed=2)), part).square().sum().backward()
        for key, value in net.named_parameters():
            if key.startswith(("encoder.", inside)):
                assert float(value.grad.abs().max()) > 0, key
            if key.startswith(outside):
                assert value.grad is None or not value.grad.any(), key


def chests(pairs, seed):
    """A dark disc, the lung, in a bright noisy field; fixed, moving and the lung of the fixed image."""
    generator = torch.Generator().manual_seed(seed)
    middle = 16 + 4 * torch.rand(pairs, 2, generator=generator)
    shift = 2 * torch.rand(pairs, 2, generator=generator) - 1

    def lung(at):
        return torch.sigmoid(2 * (9 - (coordinates((36, 36)) - at[..., None, None]).norm(dim=1, keepdim=True)))

    grain = 0.1 * torch.randn(2, pairs, 1, 36, 36, generator=generator)
    return 1 - lung(middle) + grain[0], 1 - lung(middle + shift) + grain[1], (lung(middle) > 0.5).float()


def test_the_mask_is_learnt_beside_the_field_and_limits_what_counts():
    net, ssd = masked(), make("ssd")
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(60):
        fixed, moving, lung = chests(4, seed=step)
        prediction = net(fixed, moving)
        loss = ssd(fixed, warp(moving, prediction.displacement)).mean()
        loss = loss + binary_cross_entropy_with_logits(prediction.mask, lung)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    fixed, moving, lung = chests(8, seed=1000)
    with torch.no_grad():
        prediction = net(fixed, moving)
    found = prediction.mask > 0
    dice = 2 * (found * lung).sum() / (found.sum() + lung.sum())
    assert dice > 0.95
    moved = warp(moving, prediction.displacement)
    wrong = moved + 5 * (~found)
    assert torch.equal(ssd(fixed, wrong, found), ssd(fixed, moved, found))
    assert (ssd(fixed, wrong) > ssd(fixed, moved) + 1).all()
