"""A brain's asymmetry tells its left from its right, and says so only where it can."""

import numpy as np
import pytest
from benchmarks.starts.brains import Brain
from benchmarks.starts.scans import scan_of

from popatlas.groupwise.template import reference_brain
from popatlas.registration.initialisation import centre_of_mass
from popatlas.registration.sides import antisymmetric, laterality, reference
from tests.unit.damaged import GATE, brain


def sides(one: Brain):
    scan, known = scan_of(one), reference().scan
    return laterality(scan, known, centre_of_mass(known, scan))


@pytest.mark.parametrize("number", [1, 2])
def test_a_brain_with_peoples_torque_is_told_from_its_mirror_image(number):
    found, mirrored = sides(brain(number)), sides(brain(number).mirrored())
    assert found > 0.4
    assert mirrored < GATE["sides"]
    assert mirrored == pytest.approx(-found, abs=0.15)  # nothing but the sign changes


def test_without_torque_chance_decides():
    found = [sides(brain(number, torque=0.0)) for number in (1, 2)]
    assert max(abs(value) for value in found) < 0.6


@pytest.mark.parametrize(
    "change", [lambda one: one.recoloured("T2-like"), lambda one: one.noisy(0.1, 0), lambda one: one.turned((12, -10, 15))]
)
def test_contrast_noise_and_pose_do_not_exchange_sides(change):
    assert sides(change(brain(2))) > 0.3


def test_a_symmetric_brain_and_a_part_of_one_tell_nothing():
    image, affine = reference_brain(4.0)
    assert sides(Brain("mni", image, image > 0.05, image > 0.05, affine)) is None
    assert sides(brain(1).cropped(2, 0.5, 1.0)) is None


def test_the_reference_is_its_own_mirror_image():
    scan = reference().scan
    assert np.array_equal(scan.image.numpy(), scan.image.flip(2).numpy())
    assert scan.grid.shape[0] % 2 == 0
    middle = scan.grid.affine @ [(scan.grid.shape[0] - 1) / 2, 0, 0, 1]
    assert middle[0] == pytest.approx(0)


def test_only_what_is_odd_counts():
    scan = reference().scan
    mask = scan.mask
    even = scan.image
    assert np.abs(antisymmetric(even, mask)).max() == 0
    odd = (even - even.roll(3, 2)) - (even - even.roll(3, 2)).flip(2)
    whole = antisymmetric(odd / 2, mask)
    assert np.allclose(whole, -antisymmetric(odd.flip(2) / 2, mask), atol=1e-6)
    assert np.abs(whole).max() > 0.05
