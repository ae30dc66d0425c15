"""The engine of flows recovers what moved an image, without folds, and its weight is that of the energy."""

from dataclasses import replace

import pytest
import torch

from popatlas.errors import InputError
from popatlas.registration.engines.lddmm.core import flow, register
from popatlas.registration.engines.lddmm.settings import LDDMMSettings
from popatlas.regularisers.sobolev import SobolevOperator
from popatlas.transforms.fields import compose, warp
from popatlas.transforms.jacobian import least_determinant
from popatlas.transforms.velocity import inverse_time_varying
from tests.unit.registration.test_ffd_engine import contrasted, smooth_field

SSD = {"similarity": "ssd", "options": {}}
FLAT = LDDMMSettings(**SSD, shrink=(2, 1), iterations=(60, 60), weight=1e-5)


@pytest.mark.parametrize("velocities", [1, 4])
@pytest.mark.parametrize("shape", [(48, 40), (26, 24, 28)], ids=["2d", "3d"])
def test_a_smooth_warp_is_recovered_without_folds(velocities, shape):
    moving, truth = contrasted(shape, 1), smooth_field(shape, 4.0, 11)
    result = register(warp(moving, truth, "cubic"), moving, replace(FLAT, velocities=velocities))
    inner = (slice(None), *[slice(4, -4)] * len(shape))
    before, after = (float((field - truth).norm(dim=1)[inner].mean()) for field in (0 * truth, result.displacement))
    assert after < 0.3 * before
    assert len(result.velocities) == velocities and not result.diverged
    assert float(least_determinant(result.displacement).min()) > 0


def test_the_way_back_is_the_flow_of_the_negative_velocities_and_the_energy_falls_with_its_weight():
    shape = (48, 40)
    moving, truth = contrasted(shape, 1), smooth_field(shape, 4.0, 11)
    fixed = warp(moving, truth, "cubic")
    energies = []
    for weight in (1e-5, 1e-3):
        found = register(fixed, moving, replace(FLAT, weight=weight))
        operator = SobolevOperator(FLAT.alpha, 1.0, 2.0, shape)
        energies.append(sum(float(operator.energy(velocity)) for velocity in found.velocities))
    assert energies[1] < 0.7 * energies[0]
    round_trip = compose(flow(found.velocities), inverse_time_varying(found.velocities))
    assert float(round_trip.norm(dim=1)[:, 6:-6, 6:-6].mean()) < 0.2 * float(found.displacement.norm(dim=1).mean())


def test_pairs_of_a_batch_do_not_touch_each_other_and_shapes_are_checked():
    shape = (32, 28)
    moving = torch.cat([contrasted(shape, seed) for seed in (1, 2)])
    fixed = torch.cat([warp(moving[:1], smooth_field(shape, 3.0, 4), "cubic"), moving[1:]])
    short = replace(FLAT, shrink=(1,), iterations=(10,), tolerance=0.0)
    both, one = register(fixed, moving, short), register(fixed[:1], moving[:1], short)
    assert torch.allclose(both.displacement[:1], one.displacement, atol=1e-4)
    assert float(both.displacement[1].norm(dim=0).max()) < 0.05  # these two are alike
    with pytest.raises(InputError, match="no matrix between their grids"):
        register(fixed, moving[:, :, 2:], short)
