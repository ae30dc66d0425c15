"""Facts about STAPLE beyond the published form: what its volumes follow, and what they do not depend on."""

from __future__ import annotations

import numpy as np
import pytest

from popatlas.fusion.candidates import Candidates
from popatlas.fusion.fuse import fuse
from popatlas.fusion.staple import multilabel_staple

from .test_fusion import reference_staple

SHAPE, RADIUS = (34, 32, 30), 8.0
PUBLISHED = {"region": "all", "prior": "frequency"}


def ball(centre: np.ndarray, radius: float = RADIUS) -> np.ndarray:
    """Two halves of a ball, labels 2 and 9."""
    place = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) - centre
    return np.where(np.linalg.norm(place, axis=-1) < radius, np.where(place[..., 0] > 0, 9, 2), 0)


@pytest.fixture(scope="module")
def shifted() -> Candidates:
    """Ten candidates of one size, each moved at random: what errors of registration do."""
    rng = np.random.default_rng(0)
    return Candidates(np.stack([ball(np.array(SHAPE) / 2 + rng.normal(0, 1.8, 3)) for _ in range(10)]).astype(np.int32))


def volumes(labels: np.ndarray) -> np.ndarray:
    return np.array([np.count_nonzero(labels == value) for value in (2, 9)])


def test_published_staple_makes_structures_larger_than_any_candidate_and_ours_does_not(shifted: Candidates) -> None:
    sizes = np.array([volumes(one) for one in shifted.labels])
    whole, largest = sizes.mean(axis=0).sum(), sizes.sum(axis=1).max()
    assert largest < 1.01 * whole  # all of one size
    published, between, ours = (
        volumes(multilabel_staple(shifted, **way).dseg) for way in (PUBLISHED, {"prior": "frequency"}, {})
    )
    assert published.sum() > 1.15 * largest
    assert ours.sum() == pytest.approx(whole, rel=0.02)
    np.testing.assert_allclose(ours, sizes.mean(axis=0), rtol=0.05)
    # the region alone takes away more than half of it, which is what unanimous background does
    assert between.sum() - whole < 0.5 * (published.sum() - whole)


def test_voxels_on_which_all_agree_change_published_staple_only(shifted: Candidates) -> None:
    """Two voxels of a third label, far away, make the box of the labels larger: more background."""
    labels = np.pad(shifted.labels, [(0, 0), *[(16, 16)] * 3])
    labels[:, 0, 0, 0] = labels[:, -1, -1, -1] = 5
    wide, inside = Candidates(labels), (slice(16, -16),) * 3
    found = multilabel_staple(wide)
    np.testing.assert_array_equal(found.dseg[inside], multilabel_staple(shifted).dseg)
    np.testing.assert_array_equal(found.atlas_weights, multilabel_staple(shifted).atlas_weights)
    assert found.dseg[0, 0, 0] == 5
    grown, before = (volumes(multilabel_staple(one, **PUBLISHED).dseg) for one in (wide, shifted))
    assert (grown > 1.05 * before).all()


@pytest.mark.parametrize("region", ["disputed", "all"])
def test_expected_volumes_are_the_candidates_weighted_by_reliability(shifted: Candidates, region: str) -> None:
    labels = shifted.labels.copy()
    labels[0] = ball(np.array(SHAPE) / 2, 11)  # much larger than the others
    candidates = Candidates(labels)
    found = multilabel_staple(candidates, region=region)
    for value in (0, 2, 9):
        sizes = np.array([np.count_nonzero(one == value) for one in labels])
        assert found.probability_of(value).sum() == pytest.approx(found.atlas_weights @ sizes, rel=0.01)


def test_reliability_at_disputed_voxels_is_that_of_a_reference_implementation() -> None:
    """With two labels each disputed voxel has votes for both, so that nothing is left out."""
    rng = np.random.default_rng(3)
    truth = rng.random((14, 12, 10)) < 0.4
    wrong = rng.random((5, *truth.shape)) < np.array([0.05, 0.1, 0.15, 0.2, 0.3])[:, None, None, None]
    votes = (truth ^ wrong).astype(int)
    candidates = Candidates(votes)
    found = multilabel_staple(candidates, prior="frequency", max_iterations=500, tolerance=1e-10)
    posterior = reference_staple(votes[:, candidates.disputed], 2, iterations=500)
    np.testing.assert_allclose(found.probability_of(1)[candidates.disputed], posterior[1], atol=1e-5)
    assert (np.diff(found.atlas_weights) < 0).all()  # each rater is worse than the one before
    assert (found.dseg == truth).mean() > 0.97


@pytest.mark.parametrize("prior", ["volumes", "frequency"])
@pytest.mark.parametrize("region", ["disputed", "all"])
def test_two_candidates_that_differ_are_equally_reliable(region: str, prior: str) -> None:
    labels = np.zeros((2, 6, 6, 6), dtype=np.int32)
    labels[0, 1:4], labels[1, 2:5] = 7, 7
    found = fuse(labels, method="staple", region=region, prior=prior)
    np.testing.assert_allclose(found.atlas_weights, 0.5, atol=1e-6)
    assert (found.dseg[2:4] == 7).all() and not found.dseg[[0, 5]].any()
