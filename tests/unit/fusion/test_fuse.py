"""The contract of `fuse`, for every method: right result or one clear error, whatever the candidates are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from popatlas.errors import ConfigError, InputError
from popatlas.fusion.candidates import Candidates
from popatlas.fusion.dataparams.consensus import data_parameters_vote, pooled
from popatlas.fusion.fuse import choose, fuse
from popatlas.fusion.majority import majority_vote
from popatlas.fusion.methods import METHODS
from popatlas.fusion.vote import vote
from popatlas.fusion.weighted_global import global_similarity, global_vote
from popatlas.fusion.weighted_local import local_similarity, local_vote

SHAPE = (18, 16, 14)
EVERY = pytest.mark.parametrize("method", list(METHODS))


def options(method: str, count: int) -> dict[str, Any]:
    return {"parameters": np.zeros(count)} if method == "dataparams" else {}


def anatomy() -> np.ndarray:
    truth = np.zeros(SHAPE, dtype=np.int32)
    truth[3:9, 3:12, 3:11], truth[9:15, 4:13, 3:11] = 7, 1035
    return truth


def cohort(shifts: list[int], seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return target, truth, images and labels: atlases are the target moved along the first axis."""
    truth, rng = anatomy(), np.random.default_rng(seed)
    target = (truth == 7) * 0.5 + (truth == 1035) * 1.0 + rng.normal(0, 0.02, SHAPE)
    images = np.stack([np.roll(target, shift, axis=0) + rng.normal(0, 0.02, SHAPE) for shift in shifts])
    labels = np.stack([np.roll(truth, shift, axis=0) for shift in shifts])
    return target, truth, images, labels


def run(method: str, labels: np.ndarray, images: np.ndarray, target: np.ndarray, **more: Any) -> Any:
    return fuse(labels, images, method, target=target, **options(method, len(labels)), **more)


@EVERY
def test_contract(method: str) -> None:
    target, truth, images, labels = cohort([0, 0, 1, -1, 0])
    found = run(method, labels, images, target)
    assert found.dseg.dtype == np.int32
    assert (found.dseg == truth).mean() > 0.97
    assert set(np.unique(found.dseg)) <= set(np.unique(labels))
    agreed = (labels == labels[:1]).all(axis=0)
    assert (found.dseg[agreed] == labels[0][agreed]).all()
    for name in ("probability", "agreement", "entropy"):
        values = getattr(found, name)()
        assert values.shape == SHAPE
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert (values[agreed] == (0 if name == "entropy" else 1)).all()
    assert found.probability().min() > 0
    assert found.probability().max() <= 1 + 1e-5
    assert found.entropy().max() <= np.log2(5) + 1e-5
    total = sum(found.probability_of(int(label)) for label in np.unique(labels))
    np.testing.assert_allclose(total, 1, atol=0.01)
    assert found.atlas_weights.shape == (5,)
    assert found.atlas_weights.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found.agreement(), (labels == found.dseg).mean(axis=0), atol=1e-6)


@EVERY
def test_one_candidate_is_the_result(method: str) -> None:
    target, _, images, labels = cohort([2])
    found = run(method, labels, images, target)
    np.testing.assert_array_equal(found.dseg, labels[0])
    assert found.atlas_weights.tolist() == [1]


@EVERY
@pytest.mark.parametrize("count", [2, 3])
def test_identical_candidates_are_the_result(method: str, count: int) -> None:
    target, truth, images, labels = cohort([0] * count)
    found = run(method, labels, images, target)
    np.testing.assert_array_equal(found.dseg, truth)
    assert not found.disputed.any()


@EVERY
def test_background_only_is_background(method: str) -> None:
    target, _, images, labels = cohort([0, 1, 2])
    assert not run(method, np.zeros_like(labels), images, target).dseg.any()


@EVERY
def test_empty_candidate_is_left_out_and_named(method: str) -> None:
    target, _, images, labels = cohort([0, 1, 0, -1])
    labels[2] = 0
    found = run(method, labels, images, target, names=["a", "b", "c", "d"])
    kept = [0, 1, 3]
    without = run(method, labels[kept], images[kept], target)
    np.testing.assert_array_equal(found.dseg, without.dseg)
    assert found.atlas_weights[2] == 0
    np.testing.assert_allclose(found.atlas_weights[kept], without.atlas_weights)
    assert found.notes["left_out"] == ["c"]


@EVERY
def test_label_that_one_atlas_lacks_is_still_fused(method: str) -> None:
    target, truth, images, labels = cohort([0, 0, 0, 1])
    labels[3][labels[3] == 1035] = 0
    found = run(method, labels, images, target)
    assert 2 * ((found.dseg == 1035) & (truth == 1035)).sum() / ((found.dseg == 1035).sum() + (truth == 1035).sum()) > 0.97


@EVERY
def test_many_labels(method: str) -> None:
    """More labels than a byte holds; two good candidates and one that is moved."""
    truth = np.arange(300, dtype=np.int32).reshape(10, 10, 3).repeat(4, axis=2) + 1
    labels = np.stack([truth, truth, np.roll(truth, 1, axis=0)])
    images = labels / 300.0
    found = run(method, labels, images, images[0])
    assert (found.dseg == truth).mean() > 0.99


@EVERY
def test_names_of_labels_do_not_matter(method: str) -> None:
    target, _, images, labels = cohort([0, 1, -1, 2])
    names = np.arange(1036) * 2000
    renamed = names[labels].astype(np.int32)
    first, second = run(method, labels, images, target), run(method, renamed, images, target)
    np.testing.assert_array_equal(names[first.dseg], second.dseg)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "jlfants"])  # the peer is used in 3D
def test_two_dimensions(method: str) -> None:
    target, _, images, labels = cohort([0, 0, 1, -1])
    found = run(method, labels[..., 7], images[..., 7], target[..., 7])
    assert (found.dseg == anatomy()[..., 7]).mean() > 0.95


@EVERY
def test_other_grid_is_one_clear_error(method: str) -> None:
    target, _, images, labels = cohort([0, 1])
    with pytest.raises(InputError, match=r"shapes differ: atlas images.*subject: sub-1.*propagate the atlases again"):
        fuse(labels, images[:, 1:], method, target=target, subject="sub-1", **options(method, 2))
    with pytest.raises(InputError, match="shapes differ: target"):
        fuse(labels, images, method, target=target[1:], **options(method, 2))


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.needs_images])
def test_missing_images_are_one_clear_error(method: str) -> None:
    _, _, _, labels = cohort([0, 1])
    with pytest.raises(InputError, match="needs the image of the target and of each atlas"):
        fuse(labels, None, method, **options(method, 2))


@EVERY
def test_no_candidate_is_one_clear_error(method: str) -> None:
    with pytest.raises(InputError, match=r"no atlas.*Remedy: set fuse.atlases"):
        fuse(np.zeros((0, 4, 4, 4), dtype=np.int32), None, method, **options(method, 0))


def test_candidates_that_cannot_be_used() -> None:
    labels = np.zeros((2, 4, 4), dtype=np.int64)
    with pytest.raises(InputError, match="candidate atlas-b has label -3"):
        Candidates(labels - [[[0]], [[3]]], names=("atlas-a", "atlas-b"))
    with pytest.raises(InputError, match="has label 3000000000"):
        Candidates(labels + 3_000_000_000)
    with pytest.raises(InputError, match="are float64, not integers"):
        Candidates(labels * 1.0)
    with pytest.raises(InputError, match="are bool, not integers"):
        Candidates(labels > 0)
    with pytest.raises(InputError, match=r"spacing \(1.0, 1.0, 1.0\) for 2 axes"):
        Candidates(labels, spacing=(1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="1 names for 2 candidates"):
        Candidates(labels, names=("one",))
    with pytest.raises(InputError, match="target has voxels that are not finite"):
        Candidates(labels, np.full((4, 4), np.nan))


def test_unknown_method_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="no fusion method is called 'best'"):
        fuse(np.ones((2, 3, 3), dtype=int), method="best")
    with pytest.raises(ConfigError, match="dataparams needs `parameters`"):
        fuse(np.ones((2, 3, 3), dtype=int), method="dataparams")


def test_selection_keeps_the_most_similar() -> None:
    target, truth, images, labels = cohort([0, 3, 0, 4])
    candidates = Candidates(labels, target, images, names=("a", "b", "c", "d"))
    assert choose(candidates, 2) == [0, 2]
    assert choose(candidates, 2, np.array([0, 1, 0, 1])) == [1, 3]
    with pytest.raises(ConfigError, match="cannot select -1"):
        choose(candidates, -1)
    with pytest.raises(InputError, match="one finite number for each of 4"):
        choose(candidates, 2, np.array([1.0, np.nan, 3, 2]))
    found = fuse(candidates, select=2)
    np.testing.assert_array_equal(found.dseg, truth)
    assert found.atlas_weights.tolist() == [0.5, 0, 0.5, 0]
    assert found.notes["left_out"] == ["b", "d"]
    # options with a value for each candidate follow
    picked = fuse(candidates, method="dataparams", select=2, parameters=np.array([0.0, 9, 0, 9]), votes="softmax")
    np.testing.assert_array_equal(picked.dseg, truth)


def test_similarity_by_formula() -> None:
    target, _, images, labels = cohort([0, 1, 3])
    candidates = Candidates(labels, target, images)
    region = (labels != 0).any(axis=0)
    expected = [np.corrcoef(target[region], image[region])[0, 1] for image in images]
    np.testing.assert_allclose(global_similarity(candidates), np.maximum(expected, 0), rtol=1e-6)
    local = local_similarity(candidates, radius=1)
    place = tuple(np.argwhere(candidates.disputed)[40])
    window = tuple(slice(n - 1, n + 2) for n in place)
    expected = [np.corrcoef(target[window].ravel(), image[window].ravel())[0, 1] for image in images]
    np.testing.assert_allclose(local[:, 40], np.maximum(expected, 0), atol=1e-5)
    # scale and offset of an atlas do not matter
    other = Candidates(labels, target, images * 7 + 3)
    np.testing.assert_allclose(local_similarity(other, 1), local, atol=1e-5)


def test_power_zero_is_the_majority_and_flat_images_vote_alike() -> None:
    target, _, images, labels = cohort([0, 1, -1, 2])
    candidates = Candidates(labels, target, images)
    plain = majority_vote(candidates).dseg
    np.testing.assert_array_equal(global_vote(candidates, power=0).dseg, plain)
    np.testing.assert_array_equal(local_vote(candidates, power=0).dseg, plain)
    flat = Candidates(labels, target, np.ones_like(images))
    np.testing.assert_array_equal(local_vote(flat).dseg, plain)
    np.testing.assert_array_equal(global_vote(flat).dseg, plain)


def test_similar_atlases_outvote_the_majority() -> None:
    target, truth, images, labels = cohort([0, 0, 3, 3, 3])
    candidates = Candidates(labels, target, images)
    for method in ("global", "local", "jlf"):
        assert (fuse(candidates, method=method).dseg == truth).mean() > (majority_vote(candidates).dseg == truth).mean()


def test_softmax_consensus_is_the_papers() -> None:
    """Binary: where the sum of the weighted labels is above one half."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (6, 9, 9, 9)).astype(np.int32)
    raw = rng.normal(0, 1, 6)
    weight = np.exp(raw) / np.exp(raw).sum()
    expected = np.tensordot(weight, labels, 1) > 0.5
    found = data_parameters_vote(Candidates(labels), parameters=raw, votes="softmax")
    np.testing.assert_array_equal(found.dseg, expected)
    np.testing.assert_allclose(found.atlas_weights, weight, rtol=1e-6)
    np.testing.assert_allclose(found.probability_of(1), np.tensordot(weight, labels, 1), atol=1e-6)


def test_a_parameter_for_each_label_counts_where_the_candidate_has_it() -> None:
    labels = np.array([[1, 1, 0, 0], [0, 2, 2, 0], [0, 0, 0, 2]])[:, :, None]
    table = np.array([[0.0, 9, 0], [0, 0, 0], [0, 0, 9]])  # candidate 0 is good at label 1, candidate 2 at label 2
    found = data_parameters_vote(
        Candidates(labels), parameters=np.zeros(3), label_parameters=table, labels=np.array([0, 1, 2]), votes="label"
    )
    assert found.dseg.ravel().tolist() == [1, 1, 0, 2]


def test_quality_zero_takes_a_candidate_out() -> None:
    target, _, images, labels = cohort([0, 2, 2])
    candidates = Candidates(labels, target, images)
    for votes in ("softmax", "joint"):
        found = data_parameters_vote(candidates, parameters=np.zeros(3), quality=np.array([1.0, 0, 0]), votes=votes)
        np.testing.assert_array_equal(found.dseg, labels[0])
        assert found.atlas_weights.tolist() == [1, 0, 0]


def test_network_is_pooled_by_the_geometric_mean() -> None:
    labels = np.array([[1], [2], [2], [2]])
    found = vote(labels, np.array([True]))
    network = np.log(np.array([[0.01], [0.9], [0.09]]))
    options, shares = pooled(found, network, np.array([0, 1, 2]), 0.5)
    expected = np.sqrt(np.array([0.25 * 0.9, 0.75 * 0.09]))
    assert options[:2, 0].tolist() == [1, 2]
    np.testing.assert_allclose(shares[:2, 0], expected / expected.sum(), rtol=1e-5)
    assert pooled(found, network, np.array([0, 1, 2]), 0.0)[0][0, 0] == 2
    # a label that nobody voted for is not invented, however sure the network is
    sure = np.log(np.array([[0.98], [0.01], [0.01]]))
    assert 0 not in pooled(found, sure, np.array([0, 1, 2]), 1.0)[0][:2, 0]
