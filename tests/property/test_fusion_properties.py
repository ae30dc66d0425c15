"""Properties of label fusion that hold for any labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from popatlas.fusion.candidates import Candidates
from popatlas.fusion.labels import bounding_box, disputed_mask, to_contiguous, union_mask
from popatlas.fusion.majority import majority_vote
from popatlas.fusion.staple import multilabel_staple
from popatlas.fusion.vote import vote

SHAPES = hnp.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=5)
STACKS = hnp.arrays(np.int32, SHAPES, elements=st.sampled_from([0, 0, 1, 2, 17, 300, 70_000]))
RULES = st.sampled_from(["nearest", "lowest"])
FEW = settings(max_examples=60, deadline=None)


@FEW
@given(STACKS, RULES)
def test_vote_is_one_of_the_most_frequent_candidates(labels: np.ndarray, ties: str) -> None:
    found = majority_vote(Candidates(labels), ties)
    fused, agreement = found.dseg, found.agreement()
    votes = np.stack([(labels == one).sum(axis=0) for one in labels])
    mine = (labels == fused).sum(axis=0)
    np.testing.assert_array_equal(mine, votes.max(axis=0))
    np.testing.assert_allclose(agreement, mine / len(labels), rtol=1e-6)


@FEW
@given(STACKS, RULES, st.randoms(use_true_random=False))
def test_order_of_atlases_does_not_matter(labels: np.ndarray, ties: str, random) -> None:
    order = list(range(len(labels)))
    random.shuffle(order)
    first, second = majority_vote(Candidates(labels), ties), majority_vote(Candidates(labels[order]), ties)
    np.testing.assert_array_equal(first.dseg, second.dseg)


@FEW
@given(STACKS, RULES)
def test_names_of_labels_do_not_matter(labels: np.ndarray, ties: str) -> None:
    values, indices = to_contiguous(labels)
    np.testing.assert_array_equal(values[indices], labels)
    renamed = majority_vote(Candidates(indices), ties).dseg
    np.testing.assert_array_equal(values[renamed], majority_vote(Candidates(labels), ties).dseg)


@FEW
@given(STACKS, RULES)
def test_repeating_every_atlas_changes_nothing(labels: np.ndarray, ties: str) -> None:
    once = majority_vote(Candidates(labels), ties)
    twice = majority_vote(Candidates(np.concatenate([labels, labels])), ties)
    np.testing.assert_array_equal(once.dseg, twice.dseg)
    np.testing.assert_allclose(once.agreement(), twice.agreement())
    np.testing.assert_allclose(once.entropy(), twice.entropy(), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(STACKS)
def test_staple_invents_no_label_and_keeps_consensus_of_nothing(labels: np.ndarray) -> None:
    fused = multilabel_staple(Candidates(labels)).dseg
    assert set(np.unique(fused)) <= set(np.unique(labels)) | {0}
    outside = np.ones(fused.shape, dtype=bool)
    outside[bounding_box(union_mask(labels))] = False
    assert not fused[outside].any()


@FEW
@given(STACKS)
def test_bounding_box_is_tight(labels: np.ndarray) -> None:
    mask = disputed_mask(labels)
    box = bounding_box(mask)
    assert mask[box].sum() == mask.sum()
    if mask.any():
        for axis in range(mask.ndim):
            ends = np.moveaxis(mask[box], axis, 0)
            assert ends[0].any()
            assert ends[-1].any()


@FEW
@given(STACKS, RULES, st.integers(0, 2**32 - 1))
def test_weighted_shares_are_those_of_direct_counting(labels: np.ndarray, ties: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidates = Candidates(labels)
    count = int(candidates.disputed.sum())
    weights = rng.random((len(labels), count)) * (rng.random((len(labels), count)) < 0.8)
    found = vote(labels, candidates.disputed, weights, ties)
    table, total = labels[:, candidates.disputed], weights.sum(axis=0)
    for column in range(count):
        share = weights[:, column] / total[column] if total[column] > 0 else np.full(len(labels), 1 / len(labels))
        for label in np.unique(table[:, column]):
            there = found.probability_of(int(label))[candidates.disputed][column]
            np.testing.assert_allclose(there, share[table[:, column] == label].sum(), atol=1e-5)
    np.testing.assert_allclose(found.shares.sum(axis=0), 1, atol=1e-5)
    assert (np.diff(found.shares, axis=0) <= 1e-6).all()
    np.testing.assert_array_equal(found.dseg[candidates.disputed], found.options[0] if count else [])
    assert found.atlas_weights.sum() == pytest.approx(1, abs=1e-5)
