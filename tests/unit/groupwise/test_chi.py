"""The chi metric: closed forms on small tables, the derivative, and agreement of the compiled passes with torch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popatlas.groupwise import chi
from popatlas.groupwise.chi import Intensities, information, information_slope, intensity_slope, joint_distribution


def entropy(p):
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def tables(seed, images=3, classes=3, levels=4):
    """Return P(Z) and P(U_j | Z): images that are independent given the class."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(classes)), rng.dirichlet(np.ones(levels), (images, classes))


def chi_of(shares, given_class):
    joints = [torch.from_numpy(shares[:, None] * table) for table in given_class]
    return chi.chi(joints)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_chi_is_total_correlation_plus_information_about_the_class(seed):
    shares, (first, second, third) = tables(seed)[0], tables(seed)[1]
    full = np.einsum("k,ka,kb,kc->kabc", shares, first, second, third)
    observed = full.sum(0)
    margins = [observed.sum((1, 2)), observed.sum((0, 2)), observed.sum((0, 1))]
    correlation = sum(map(entropy, margins)) - entropy(observed)
    about_class = entropy(observed) + entropy(shares) - entropy(full)
    assert chi_of(shares, [first, second, third]) == pytest.approx(correlation + about_class, abs=1e-12)


def test_chi_where_images_determine_the_class_or_know_nothing_of_it():
    shares = np.array([0.2, 0.3, 0.5])
    assert chi_of(shares, np.stack([np.eye(3)] * 4)) == pytest.approx(4 * entropy(shares), abs=1e-12)
    ignorant = np.full((4, 3, 5), 0.2)
    assert chi_of(shares, ignorant) == pytest.approx(0, abs=1e-12)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_chi_does_not_care_which_intensity_a_class_has(seed):
    shares, given_class = tables(seed)
    order = np.random.default_rng(seed).permutation(4)
    assert chi_of(shares, given_class[:, :, order]) == pytest.approx(chi_of(shares, given_class), abs=1e-12)


def voxels(seed=0, count=500, classes=3, bins=12):
    rng = torch.Generator().manual_seed(seed)
    values = torch.rand(count, generator=rng)
    weight = (torch.rand(count, generator=rng) - 0.2).clamp(min=0)
    shares = torch.softmax(3 * torch.randn(classes, count, generator=rng), 0)
    axis = Intensities.of(values, None, bins, (0.0, 100.0))
    return values, axis.positions(values), weight, shares, axis


def test_compiled_passes_and_torch_agree():
    """The same three operations, written twice: in one pass for the CPU, in torch for other devices."""
    _, position, weight, shares, axis = voxels()
    bins = axis.axis.bins
    total = float((weight * shares.sum(0)).sum())
    joint = joint_distribution(position, weight, shares, bins)
    torch.testing.assert_close(joint, chi._histogram(position, weight, shares, bins) / total, atol=1e-7, rtol=0)
    slope = information_slope(joint)
    found = intensity_slope(position, weight, shares, slope)
    torch.testing.assert_close(found, chi._slopes(position, weight, shares, slope / total), atol=1e-6, rtol=1e-4)
    compiled, plain = torch.zeros_like(shares), torch.zeros_like(shares)
    chi.add_log_likelihood(compiled, position, weight, chi.log_appearance(joint))
    table, lower = chi.log_appearance(joint).float(), position.floor().long()
    plain += weight * torch.lerp(table[:, lower], table[:, lower + 1], position - lower)
    torch.testing.assert_close(compiled, plain, atol=1e-5, rtol=1e-4)


def test_distribution_sums_to_one_and_keeps_the_shares_of_the_classes():
    _, position, weight, shares, axis = voxels(3)
    joint = joint_distribution(position, weight, shares, axis.axis.bins)
    assert float(joint.sum()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(joint.sum(1), ((shares * weight).sum(1) / weight.sum()).double(), atol=1e-6, rtol=0)


def test_slope_is_the_derivative_of_the_information():
    values, _, weight, shares, axis = voxels(7, count=60)
    bins = axis.axis.bins

    def value(at):
        return float(information(joint_distribution(axis.positions(at), weight, shares, bins)))

    joint = joint_distribution(axis.positions(values), weight, shares, bins)
    found = intensity_slope(axis.positions(values), weight, shares, information_slope(joint)) * axis.scale
    for voxel in (2, 11, 30):
        step = torch.zeros_like(values)
        step[voxel] = 2e-3
        numeric = (value(values + step) - value(values - step)) / 4e-3
        assert float(found[voxel]) == pytest.approx(numeric, abs=2e-4)


def test_no_overlap_is_refused():
    _, position, weight, shares, axis = voxels()
    with pytest.raises(ValueError, match="no voxel with weight"):
        joint_distribution(position, 0 * weight, shares, axis.axis.bins)


def test_no_class_is_ruled_out_for_ever():
    shares = chi.normalised(torch.tensor([[0.0, -1e4], [-1e4, 0.0], [-1e4, -1e4]]), 0.01)
    assert float(shares.min()) == pytest.approx(0.01)
    torch.testing.assert_close(shares.sum(0), torch.ones(2))
    assert math.isclose(float(shares.max()), 0.98, abs_tol=1e-6)
