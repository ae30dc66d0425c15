"""Facts about the consensus from data parameters: doubt by evidence, the network's weight, other contrasts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from popatlas.errors import ConfigError
from popatlas.fusion.candidates import Candidates
from popatlas.fusion.dataparams.consensus import (
    ALIKE,
    MARGIN,
    STRICTNESS,
    data_parameters_vote,
    doubted,
    look_alike,
    reliability,
)
from popatlas.fusion.fuse import fuse
from popatlas.fusion.vote import vote

SHAPE = (20, 18, 16)


def case(shifts: list[int], contrast: float = 1.0) -> tuple[Candidates, np.ndarray]:
    """Boxes in noise; candidates are the target moved along the first axis, with its contrast or another one."""
    rng, truth = np.random.default_rng(0), np.zeros(SHAPE, dtype=np.int32)
    truth[4:10, 4:14, 4:12], truth[10:16, 4:14, 4:12] = 3, 8
    target = 0.4 * (truth == 3) + 1.0 * (truth == 8) + rng.normal(0, 0.03, SHAPE)
    images = np.stack([contrast * np.roll(target, shift, 0) + rng.normal(0, 0.03, SHAPE) for shift in shifts])
    return Candidates(np.stack([np.roll(truth, shift, 0) for shift in shifts]), target, images), truth


def test_doubt_by_formula() -> None:
    raw = np.array([2.0, -2.0, -2.0, -2.0])
    losses = np.array([0.4, 0.4, 0.4 * (1 + MARGIN / 2), 0.4 * (1 + 2 * MARGIN)])
    expected = [0.5, 0.5, 1 / (1 + math.e), 1 / (1 + math.exp(2))]
    np.testing.assert_allclose(doubted(raw, losses), expected)
    # without evidence the parameters count as they are; one above 0 is not more than belief
    np.testing.assert_allclose(doubted(raw, None), [0.5, *[1 / (1 + math.exp(2))] * 3])


def test_candidates_that_the_network_cannot_tell_apart_are_fused_as_without_it() -> None:
    candidates, _ = case([0, 1, -1, 0])
    columns = int(candidates.disputed.sum())
    flat = np.full((3, columns), -math.log(3))
    raw = np.array([5.0, -5, -5, 5])
    labels = np.array([0, 3, 8])
    found = data_parameters_vote(candidates, parameters=raw, labels=labels, network=flat, network_weight=0)
    plain = fuse(candidates, method="jlf")
    np.testing.assert_array_equal(found.dseg, plain.dseg)
    np.testing.assert_allclose(found.atlas_weights, plain.atlas_weights, atol=1e-6)


def test_quality_of_zero_everywhere_prefers_nobody() -> None:
    candidates, _ = case([0, 1, -1])
    for votes in ("joint", "softmax"):
        none, equal = (
            data_parameters_vote(candidates, parameters=np.zeros(3), quality=quality, votes=votes)
            for quality in (np.zeros(3), np.ones(3))
        )
        np.testing.assert_array_equal(none.dseg, equal.dseg)


def test_other_contrast_is_fused_by_plain_votes() -> None:
    same, truth = case([0, 3, 3, -3, 0])
    other, _ = case([0, 3, 3, -3, 0], contrast=-1.0)
    raw = np.array([3.0, -3, -3, -3, 3])
    assert look_alike(same, doubted(raw, None))
    assert not look_alike(other, doubted(raw, None))
    automatic, plain = (data_parameters_vote(other, parameters=raw, votes=votes) for votes in ("auto", "softmax"))
    np.testing.assert_array_equal(automatic.dseg, plain.dseg)
    np.testing.assert_array_equal(automatic.dseg, truth)
    joint = data_parameters_vote(same, parameters=raw, votes="joint")
    np.testing.assert_array_equal(data_parameters_vote(same, parameters=raw).dseg, joint.dseg)
    assert 0 < ALIKE < 1


def test_only_doubted_candidates_decide_whether_images_are_alike() -> None:
    """Two atlases that look like the target and three that do not: what counts is what is believed."""
    good, _ = case([0, 0])
    bad, _ = case([4, 5, 6], contrast=-1.0)
    labels, images = (np.concatenate([getattr(good, name), getattr(bad, name)]) for name in ("labels", "images"))
    mixed = Candidates(labels, good.target, images)
    assert look_alike(mixed, np.array([0.5, 0.5, 0.01, 0.01, 0.01]))
    assert not look_alike(mixed, np.array([0.01, 0.01, 0.5, 0.5, 0.5]))


def test_reliability_by_hand() -> None:
    """Ten voxels, won by label 1; candidates have it at 10, 10 and 0 of them, the network at 5."""
    labels = np.ones((3, 10), dtype=np.int32)
    labels[2] = 2
    found = vote(labels, np.ones(10, dtype=bool))
    network = np.log(np.array([[0.1] * 10, [0.8] * 5 + [0.1] * 5, [0.1] * 5 + [0.8] * 5]))
    values = np.array([0, 1, 2])
    believed = np.array([0.5, 0.5, 0.0])
    assert reliability(found, network, values, believed) == pytest.approx(0.5**STRICTNESS)
    equal = np.full(3, 1 / 3)
    assert reliability(found, network, values, equal) == pytest.approx((0.5 / (2 / 3)) ** STRICTNESS)
    assert reliability(found, network, values, np.array([0.0, 0, 1])) == 1  # nobody agrees: nothing to compare with
    right = np.log(np.array([[0.1] * 10, [0.8] * 10, [0.1] * 10]))
    assert reliability(found, right, values, equal) == 1


def test_votes_by_label_do_not_turn_into_other_votes() -> None:
    candidates, _ = case([0, 1, -1])
    with pytest.raises(ConfigError, match="votes by label need data parameters of labels"):
        data_parameters_vote(candidates, parameters=np.zeros(3), votes="label")


def test_the_record_tells_the_networks_weight() -> None:
    candidates, _ = case([0, 1, -1])
    columns = int(candidates.disputed.sum())
    network = np.log(np.random.default_rng(0).dirichlet(np.ones(3), columns).T)
    found = data_parameters_vote(
        candidates, parameters=np.zeros(3), labels=np.array([0, 3, 8]), network=network, network_weight=0.4
    )
    assert 0 <= found.notes["network_weight"] < 0.4  # a guessing network agrees less than the candidates do
