"""Properties of label fusion that hold for any labels."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from popatlas.fusion.labels import bounding_box, disputed_mask, to_contiguous, union_mask
from popatlas.fusion.majority import majority_vote
from popatlas.fusion.staple import multilabel_staple

SHAPES = hnp.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=5)
STACKS = hnp.arrays(np.int32, SHAPES, elements=st.sampled_from([0, 0, 1, 2, 17, 300, 70_000]))
RULES = st.sampled_from(["nearest", "lowest"])
FEW = settings(max_examples=60, deadline=None)


@FEW
@given(STACKS, RULES)
def test_vote_is_one_of_the_most_frequent_candidates(labels: np.ndarray, ties: str) -> None:
    fused, agreement = majority_vote(labels, ties)
    votes = np.stack([(labels == one).sum(axis=0) for one in labels])
    mine = (labels == fused).sum(axis=0)
    np.testing.assert_array_equal(mine, votes.max(axis=0))
    np.testing.assert_allclose(agreement, mine / len(labels), rtol=1e-6)


@FEW
@given(STACKS, RULES, st.randoms(use_true_random=False))
def test_order_of_atlases_does_not_matter(labels: np.ndarray, ties: str, random) -> None:
    order = list(range(len(labels)))
    random.shuffle(order)
    np.testing.assert_array_equal(majority_vote(labels, ties)[0], majority_vote(labels[order], ties)[0])


@FEW
@given(STACKS, RULES)
def test_names_of_labels_do_not_matter(labels: np.ndarray, ties: str) -> None:
    values, indices = to_contiguous(labels)
    np.testing.assert_array_equal(values[indices], labels)
    np.testing.assert_array_equal(values[majority_vote(indices, ties)[0]], majority_vote(labels, ties)[0])


@FEW
@given(STACKS, RULES)
def test_repeating_every_atlas_changes_nothing(labels: np.ndarray, ties: str) -> None:
    once, twice = majority_vote(labels, ties), majority_vote(np.concatenate([labels, labels]), ties)
    np.testing.assert_array_equal(once[0], twice[0])
    np.testing.assert_allclose(once[1], twice[1])


@settings(max_examples=30, deadline=None)
@given(STACKS)
def test_staple_invents_no_label_and_keeps_consensus_of_nothing(labels: np.ndarray) -> None:
    fused = multilabel_staple(labels)
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
