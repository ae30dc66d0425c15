"""What the zoo notes of weights: facts as JSON, and the memory that they need."""

import pytest
import torch

from popatlas.networks.architectures import ARCHITECTURES
from popatlas.networks.registration import build_registration_network
from popatlas.zoo.memory import estimate_memory, living_bytes, memory_of
from popatlas.zoo.metadata import InputContract, Intensity, TrainingFacts
from tests.zoo import CONTRACT_2D, FACTS, SCORE


def test_facts_go_to_json_and_back():
    contract = InputContract((1.0, 1.2, 1.0), 16, "LIA", (160, 192, 224), Intensity("robust", 0.0, 0.5), affine_first=False)
    for facts in (contract, CONTRACT_2D, FACTS, SCORE, TrainingFacts("x")):
        assert type(facts).from_json(facts.to_json()) == facts
    assert InputContract.from_plain({"spacing_mm": [2, 2, 2], "multiple": 8}).spacing_mm == (2.0, 2.0, 2.0)
    for wrong in (
        {"spacing_mm": [1.0], "multiple": 8},
        {"spacing_mm": [1.0, 1.0], "multiple": 0},
        {"spacing_mm": [1.0, 1.0], "multiple": 8, "shape": [12, 16]},
        {"spacing_mm": [1.0, 1.0], "multiple": 8, "usual_shape": [12, 16]},
        {"spacing_mm": [1.0, 1.0], "multiple": 8, "shape": [16, 16], "usual_shape": [16, 16]},
        {"spacing_mm": [1.0, 1.0], "multiple": 8, "colour": 1},
        {"spacing_mm": [1.0, float("nan")], "multiple": 8},
        {"spacing_mm": [1.0, 1e9], "multiple": 8},
        {"spacing_mm": [1.0, 1.0], "multiple": 10**30},
        {"spacing_mm": [1.0, 1.0], "multiple": 8, "shape": [8, 8 * 10**12]},
        {"spacing_mm": [1.0, 1.0], "multiple": 8, "intensity": {"kind": "none", "low": 0, "high": float("inf")}},
        {"spacing_mm": [1.0, 1.0], "multiple": "8"},
        {"spacing_mm": [1.0, 1.0], "multiple": 8, "intensity": {"kind": "none", "low": 1, "high": 0}},
        {"multiple": 8},
        [1],
    ):
        with pytest.raises(ValueError, match=r"."):
            InputContract.from_plain(wrong)


@pytest.mark.parametrize("name", [name for name, entry in ARCHITECTURES.items() if not entry.packages])
@pytest.mark.parametrize("ndim", [2, 3])
def test_memory_grows_with_the_image_and_the_line_of_the_lock_tells_it(name, ndim):
    net = build_registration_network(name, ndim)
    memory = memory_of(net)
    # a third size, of another form than the two that the line goes through
    shape = [net.stride * -(-n // net.stride) for n in ((256, 384) if ndim == 2 else (96, 160, 128))]
    voxels = torch.Size(shape).numel()
    assert memory.of(voxels) == pytest.approx(estimate_memory(net, shape), rel=0.03)
    assert memory.of(3 * voxels) > memory.of(voxels) + 2 * voxels * 4 * 2


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(
    "options", [{"guided": True}, {"sees": "descriptors"}, {"sees": "both", "guided": True, "passes": 2}]
)
def test_memory_of_networks_that_leave_mixed_precision_is_told(options, ndim):
    """Their sums switch it off, which the device that counts memory does not know."""
    plain, net = (build_registration_network("fast", ndim, **more) for more in ({}, options))
    assert memory_of(net).of(10**6) >= memory_of(plain).of(10**6)


def test_living_tensors_are_counted_as_long_as_they_live():
    class Chain(torch.nn.Module):
        def forward(self, fixed, moving):
            total = fixed + moving  # three images
            for _ in range(5):
                total = total * 2  # a fourth one; the one before it goes
            return total.flatten()  # no fifth one

    assert living_bytes(Chain(), (32, 32)) == 4 * 32 * 32 * 4
