"""Facts about joint label fusion: the same result as ANTs, closed forms, and what must not change the result."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, map_coordinates

from popatlas.errors import InputError
from popatlas.fusion.candidates import Candidates
from popatlas.fusion.joint import joint_label_fusion, search_offsets
from popatlas.fusion.joint_ants import joint_label_fusion_ants
from popatlas.fusion.kernels_joint import solve_for_ones
from popatlas.fusion.majority import majority_vote
from popatlas.fusion.slabs import in_core, slabs

SHAPE = (24, 22, 20)


def blocks() -> np.ndarray:
    labels = np.zeros(SHAPE, dtype=np.int32)
    labels[4:12, 4:18, 4:16] = 7
    labels[12:20, 4:18, 4:16] = 1035
    return labels


def shifted_atlases(shifts: list[int]) -> tuple[Candidates, np.ndarray]:
    """Return candidates and truth: atlases are the target moved along the first axis."""
    truth = blocks()
    rng = np.random.default_rng(1)
    target = (truth == 7) * 0.5 + (truth == 1035) * 1.0 + rng.normal(0, 0.02, truth.shape)
    images = np.stack([np.roll(target, s, axis=0) + rng.normal(0, 0.02, truth.shape) for s in shifts])
    labels = np.stack([np.roll(truth, s, axis=0) for s in shifts])
    return Candidates(labels, target.astype(np.float32), images.astype(np.float32)), truth


def warped_atlases(shape: tuple[int, ...], count: int, seed: int = 0, scale: float = 1.0) -> tuple[Candidates, np.ndarray]:
    """Return candidates and truth of a phantom: nested and neighbouring regions, smoothly deformed, with noise."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    distance = np.sqrt((grid**2).sum(axis=0))
    truth = np.where(distance < 0.8, np.where(grid[0] > 0.1, 2, 5), 0)
    truth[(distance < 0.8) & (grid[1] > 0.3)] = 40
    truth[distance < 0.35] = 300
    values = {0: 0.0, 2: 0.6, 5: 0.8, 40: 1.0, 300: 0.3}
    picture = gaussian_filter(np.vectorize(values.get)(truth).astype(float), 0.6)
    places = np.indices(shape).astype(float)
    images, labels = [], []
    for _ in range(count):
        field = np.stack([gaussian_filter(rng.normal(size=shape), 3) for _ in shape])
        moved = places + field / field.std() * 1.2
        images.append(map_coordinates(picture, moved, order=1) * rng.uniform(0.9, 1.1) + rng.normal(0, 0.03, shape))
        labels.append(map_coordinates(truth, moved, order=0))
    target = picture + rng.normal(0, 0.03, shape)
    return Candidates(
        np.stack(labels), (target * scale).astype(np.float32), (np.stack(images) * scale).astype(np.float32)
    ), truth


def noise(shape: tuple[int, ...], count: int, n_labels: int = 4, seed: int = 0) -> Candidates:
    """Return candidates that are disputed nearly everywhere, borders included."""
    rng = np.random.default_rng(seed)
    target = rng.normal(size=shape)
    return Candidates(rng.integers(0, n_labels, (count, *shape)), target, target + rng.normal(size=(count, *shape)))


def dice(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    labels = np.unique(other)
    return np.array([2 * ((one == k) & (other == k)).sum() / ((one == k).sum() + (other == k).sum()) for k in labels])


@pytest.mark.parametrize(("shape", "scale"), [((26, 24, 22), 1.0), ((26, 24, 22), 500.0), ((60, 56), 1.0)])
def test_result_is_that_of_ants(shape: tuple[int, ...], scale: float) -> None:
    candidates, truth = warped_atlases(shape, 5, scale=scale)
    ours, reference = joint_label_fusion(candidates), joint_label_fusion_ants(candidates)
    disputed = candidates.disputed
    assert disputed.mean() > 0.1
    assert (ours.dseg == reference.dseg)[disputed].mean() >= 0.99
    assert np.abs(dice(ours.dseg, truth) - dice(reference.dseg, truth)).max() < 0.003
    assert np.abs(ours.probability() - reference.probability()).max() < 0.01
    # and it is worth it
    assert dice(ours.dseg, truth).mean() > dice(majority_vote(candidates).dseg, truth).mean() + 0.01


@pytest.mark.parametrize("shape", [(13, 12), (8, 7, 9), (4, 3, 9)])
@pytest.mark.parametrize(
    "options",
    [{}, {"search": 0}, {"search": 2, "radius": 1}, {"beta": 2.0, "rho": 0.01}, {"beta": 1.3}, {"radius": 3}],
    ids=str,
)
def test_result_is_that_of_ants_also_at_the_border(shape: tuple[int, ...], options: dict) -> None:
    candidates = noise(shape, 3)
    ours, reference = joint_label_fusion(candidates, **options), joint_label_fusion_ants(candidates, **options)
    assert (ours.dseg == reference.dseg).all()
    used = len(ours.options)
    np.testing.assert_allclose(ours.shares, reference.shares[:used], atol=1e-5)
    np.testing.assert_array_equal(ours.options, reference.options[:used])


def test_flat_patches_count_as_in_ants() -> None:
    candidates = noise((9, 9, 9), 3)
    assert candidates.target is not None and candidates.images is not None
    images, target = candidates.images.copy(), candidates.target.copy()
    images[0, :5], target[6:] = 0, 0
    some = Candidates(candidates.labels, target, images)
    ours, reference = joint_label_fusion(some, search=0), joint_label_fusion_ants(some, search=0)
    np.testing.assert_allclose(ours.probability(), reference.probability(), atol=1e-4)


def closed_form(candidates: Candidates, voxel: tuple[int, ...], radius: int, beta: float, rho: float) -> np.ndarray:
    """Return the mean over all patches that hold a voxel of M^-1 1 / 1' M^-1 1, without search."""
    assert candidates.target is not None and candidates.images is not None
    total = np.zeros(len(candidates.labels))
    for step in np.ndindex(*(2 * radius + 1,) * len(voxel)):
        patch = tuple(slice(v + s - 2 * radius, v + s + 1) for v, s in zip(voxel, step, strict=True))
        normal = [
            (one[patch] - one[patch].mean()) / one[patch].std(ddof=1) for one in (candidates.target, *candidates.images)
        ]
        errors = np.stack([np.abs(one - normal[0]).ravel() for one in normal[1:]])
        joint = (errors @ errors.T / (errors.shape[1] - 1)) ** beta + rho * np.eye(len(errors))
        weights = np.maximum(np.linalg.solve(joint, np.ones(len(errors))), 0)
        total += weights / weights.sum()
    return total / total.sum()


@pytest.mark.parametrize("shape", [(11, 11), (11, 11, 11)])
@pytest.mark.parametrize(("radius", "beta", "rho"), [(1, 4.0, 0.1), (2, 2.0, 0.01), (2, 1.5, 1.0)])
def test_weights_of_two_atlases_have_a_closed_form(shape: tuple[int, ...], radius: int, beta: float, rho: float) -> None:
    given_ = noise(shape, 2)
    labels = np.zeros(given_.labels.shape, dtype=int)
    voxel = (5,) * len(shape)
    labels[0][voxel], labels[1][voxel] = 3, 8
    candidates = Candidates(labels, given_.target, given_.images)
    found = joint_label_fusion(candidates, radius=radius, search=0, beta=beta, rho=rho)
    expected = closed_form(candidates, voxel, radius, beta, rho)
    assert [found.probability_of(3)[voxel], found.probability_of(8)[voxel]] == pytest.approx(expected.tolist(), abs=1e-5)
    assert found.dseg[voxel] == (3, 8)[int(expected.argmax())]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(0, 1000), st.floats(1e-3, 10))
def test_solver_equals_numpy(count: int, seed: int, ridge: float) -> None:
    root = np.random.default_rng(seed).normal(size=(count, count))
    matrix, solution = root @ root.T, np.empty(count)
    assert solve_for_ones(matrix, ridge, np.empty((count, count)), solution)
    np.testing.assert_allclose((matrix + ridge * np.eye(count)) @ solution, 1, atol=1e-6)


def test_solver_refuses_a_singular_matrix() -> None:
    assert not solve_for_ones(np.ones((3, 3)), 0.0, np.empty((3, 3)), np.empty(3))


@pytest.mark.parametrize("memory_mb", [0.5, 0.2, 0.001])
def test_slabs_do_not_change_the_result(memory_mb: float) -> None:
    for candidates in (warped_atlases((30, 20, 24), 4)[0], warped_atlases((20, 24, 34), 3)[0], noise((40, 9), 3)):
        whole, cut = joint_label_fusion(candidates), joint_label_fusion(candidates, memory_mb=memory_mb)
        np.testing.assert_array_equal(cut.dseg, whole.dseg)
        np.testing.assert_array_equal(cut.options, whole.options)
        np.testing.assert_array_equal(cut.shares, whole.shares)
        np.testing.assert_allclose(cut.atlas_weights, whole.atlas_weights, atol=1e-12)


def test_slabs_of_the_reference_do_not_change_its_result() -> None:
    candidates = shifted_atlases([0, 1, -1, 2])[0]
    whole, cut = joint_label_fusion_ants(candidates), joint_label_fusion_ants(candidates, memory_mb=0.3)
    np.testing.assert_array_equal(cut.dseg, whole.dseg)
    np.testing.assert_allclose(cut.shares, whole.shares, atol=1e-5)


def test_memory_stays_below_the_budget() -> None:
    some = noise((200, 40, 40), 4)
    labels = np.zeros(some.labels.shape, dtype=np.int32)
    labels[0, 3::7, 3::7, 3::7] = 1  # few disputed voxels: the tables of the result are small
    candidates = Candidates(labels, some.target, some.images)
    joint_label_fusion(noise((8, 8, 8), 4))  # compiled
    assert candidates.disputed.any()
    peaks = {}
    for budget_mb in (1000.0, 4.0):
        tracemalloc.start()
        joint_label_fusion(candidates, memory_mb=budget_mb)
        peaks[budget_mb] = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    assert peaks[4.0] < 4.0 + 4e-6 * candidates.disputed.size + 1.0  # the fused labels are the result
    assert 15 < peaks[1000.0] < 1e-6 * (56 + 14 * 4 + 4) * candidates.disputed.size  # what the module says


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(1, 30), st.integers(0, 9), st.integers(1, 80))
def test_cores_of_slabs_cover_a_volume_once(long: int, short: int, halo: int, layers: int) -> None:
    count = np.zeros((short, long), dtype=int)
    points = np.argwhere(count == 0)
    for slab, core in slabs(count.shape, halo, layers):
        count[slab][core] += 1
        inside = np.zeros_like(count)
        inside[slab][core] = 1
        np.testing.assert_array_equal(in_core(points, slab, core), np.flatnonzero(inside))
    assert (count == 1).all()


def test_displacements_are_ordered_by_distance_the_centre_first() -> None:
    offsets = search_offsets(np.array([1, 2, 0], dtype=np.int32))
    assert offsets[0].tolist() == [0, 0, 0]
    assert len(np.unique(offsets, axis=0)) == len(offsets) == 15
    assert (np.diff((offsets**2).sum(axis=1)) >= 0).all()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([(7, 6), (6, 5, 7)]), st.integers(2, 5), st.integers(1, 2), st.integers(0, 2))
def test_shares_are_probabilities_and_order_and_contrast_do_not_matter(
    seed: int, shape: tuple[int, ...], count: int, radius: int, search: int
) -> None:
    candidates = noise(shape, count, seed=seed)
    assert candidates.target is not None and candidates.images is not None
    found = joint_label_fusion(candidates, radius=radius, search=search)
    assert set(np.unique(found.dseg)) <= set(np.unique(candidates.labels))
    assert (found.dseg == candidates.labels[0])[~candidates.disputed].all()
    assert (found.shares >= 0).all() and np.isfinite(found.shares).all()
    np.testing.assert_allclose(found.shares.sum(axis=0), 1, atol=1e-5)
    assert (np.diff(found.shares, axis=0) <= 2e-6).all()
    assert found.atlas_weights.sum() == pytest.approx(1)
    order = np.random.default_rng(seed).permutation(count)
    turned = joint_label_fusion(candidates.pick(order.tolist()), radius=radius, search=search)
    np.testing.assert_allclose(turned.probability(), found.probability(), atol=1e-4)
    np.testing.assert_allclose(turned.atlas_weights, found.atlas_weights[order], atol=1e-4)
    bright = Candidates(candidates.labels, candidates.target * 64, candidates.images * 64)
    np.testing.assert_allclose(
        joint_label_fusion(bright, radius=radius, search=search).probability(), found.probability(), atol=1e-4
    )


def test_names_of_labels_do_not_matter() -> None:
    candidates, _ = warped_atlases((20, 18, 16), 4)
    values, numbers = np.unique(candidates.labels, return_inverse=True)
    names = np.random.default_rng(0).permutation(1_000_000)[: len(values)] + 5
    renamed = Candidates(names[numbers.reshape(candidates.labels.shape)], candidates.target, candidates.images)
    found, other = joint_label_fusion(candidates), joint_label_fusion(renamed)
    np.testing.assert_array_equal(names[np.searchsorted(values, found.dseg)], other.dseg)


def test_many_and_large_labels() -> None:
    rng = np.random.default_rng(0)
    values = np.sort(rng.choice(2**31 - 1, 600, replace=False))
    truth = values.reshape(20, 30).repeat(3, axis=0).repeat(3, axis=1)
    target = rng.normal(size=truth.shape)
    labels = np.stack([truth, np.roll(truth, 2, axis=0), np.roll(truth, -2, axis=0)])
    images = np.stack([target + 0.1 * rng.normal(size=target.shape) for _ in range(3)])
    images[1:] += 2 * rng.normal(size=images[1:].shape)
    found = joint_label_fusion(Candidates(labels, target, images), search=0)
    assert (found.dseg == truth).mean() > 0.99
    assert set(np.unique(found.dseg)) <= set(values)


def test_only_the_most_probable_of_many_labels_are_kept() -> None:
    labels = np.arange(20 * 6 * 6 * 6).reshape(20, 6, 6, 6)
    images = np.random.default_rng(0).normal(size=labels.shape)
    found = joint_label_fusion(Candidates(labels, images[0], images))
    assert found.options.shape == (8, 216)
    assert (found.shares.sum(axis=0) < 1).any()
    assert (found.options >= 0).all()


def test_joint_fusion_prefers_the_atlases_that_look_like_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    candidates, truth = shifted_atlases([0, 0, 3, 3, 3])
    voted = majority_vote(candidates).dseg
    for engine in (joint_label_fusion, joint_label_fusion_ants):
        found = engine(candidates, search=0)
        assert (found.dseg == truth).mean() > 0.99 > (voted == truth).mean()
        assert set(np.unique(found.dseg)) <= set(np.unique(candidates.labels))
        agreed = ~candidates.disputed
        assert (found.dseg[agreed] == candidates.labels[0][agreed]).all()
        assert not list(tmp_path.iterdir())  # no temporary file is left
    atlas_weights = joint_label_fusion(candidates, search=0).atlas_weights
    assert atlas_weights[:2].min() > 2 * atlas_weights[2:].max()


def test_joint_fusion_of_two_atlases() -> None:
    candidates, truth = shifted_atlases([0, 2])
    assert (joint_label_fusion(candidates, search=0).dseg == truth).mean() > 0.97
    assert (joint_label_fusion_ants(candidates, search=0).dseg == truth).mean() > 0.97


def test_a_candidate_without_atlas_weights_is_left_out() -> None:
    candidates, _ = warped_atlases((22, 20, 18), 4)
    without = joint_label_fusion(candidates.pick([0, 2, 3]))
    found = joint_label_fusion(candidates, prior=np.array([1.0, 0.0, 1.0, 1.0]))
    np.testing.assert_array_equal(found.dseg, without.dseg)
    np.testing.assert_array_equal(found.probability(), without.probability())
    np.testing.assert_allclose(found.entropy(), without.entropy())
    assert found.atlas_weights[1] == 0
    np.testing.assert_allclose(found.atlas_weights[[0, 2, 3]], without.atlas_weights)
    # the map of agreement still knows all candidates
    assert found.candidates.shape == (4, candidates.disputed.sum())


def test_the_prior_is_a_factor_of_the_weights() -> None:
    candidates, _ = warped_atlases((16, 18), 3)
    equal = joint_label_fusion(candidates)
    np.testing.assert_array_equal(joint_label_fusion(candidates, prior=np.full(3, 0.2)).shares, equal.shares)
    favoured = joint_label_fusion(candidates, prior=np.array([1.0, 1.0, 50.0]))
    assert favoured.atlas_weights[2] > 0.9 > equal.atlas_weights[2]
    only = joint_label_fusion(candidates, prior=np.array([0.0, 1.0, 0.0]))
    np.testing.assert_array_equal(only.dseg, candidates.labels[1])
    np.testing.assert_array_equal(only.atlas_weights, [0, 1, 0])
    np.testing.assert_array_equal(only.probability(), 1)


@pytest.mark.parametrize("fuse", [joint_label_fusion, joint_label_fusion_ants])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_identical_atlases_are_returned(fuse, count: int) -> None:
    images = np.stack([blocks().astype(np.float32)] * count)
    found = fuse(Candidates(np.stack([blocks()] * count), images[0], images))
    np.testing.assert_array_equal(found.dseg, blocks())
    np.testing.assert_allclose(found.atlas_weights, 1 / count)
    assert (found.probability() == 1).all()
    assert not found.disputed.any()


@pytest.mark.parametrize("fuse", [joint_label_fusion, joint_label_fusion_ants])
def test_background_only_stays_background(fuse) -> None:
    images = np.ones((3, 6, 6, 6), dtype=np.float32)
    assert not fuse(Candidates(np.zeros(images.shape, dtype=np.int32), images[0], images)).dseg.any()


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, 1000.1])
@pytest.mark.parametrize("rho", [0.0, 0.1])
def test_constant_images_give_equal_weights(value: float, rho: float) -> None:
    labels = noise((8, 7, 6), 3).labels
    found = joint_label_fusion(Candidates(labels, np.full((8, 7, 6), value), np.full(labels.shape, value)), rho=rho)
    np.testing.assert_allclose(found.atlas_weights, 1 / 3, atol=1e-6)
    assert np.isfinite(found.shares).all()


def test_identical_images_give_equal_weights_also_without_a_ridge() -> None:
    given_ = noise((8, 7, 6), 3)
    assert given_.images is not None
    same = np.stack([given_.images[0]] * 3)
    for rho in (0.0, 0.1):
        found = joint_label_fusion(Candidates(given_.labels, given_.target, same), rho=rho)
        np.testing.assert_allclose(found.atlas_weights, 1 / 3, atol=1e-6)


def test_a_volume_of_one_plane_is_a_2d_image() -> None:
    flat = noise((12, 10), 3)
    assert flat.target is not None and flat.images is not None
    expected = joint_label_fusion(flat)
    for axis in range(3):
        labels, images = (np.expand_dims(stack, axis + 1) for stack in (flat.labels, flat.images))
        deep = Candidates(labels, np.expand_dims(flat.target, axis), images)
        found = joint_label_fusion(deep)
        np.testing.assert_array_equal(np.squeeze(found.dseg), expected.dseg)


@pytest.mark.parametrize("options", [{"radius": 0}, {"search": -1}, {"beta": np.nan}, {"rho": -0.1}], ids=str)
def test_parameters_without_meaning_are_an_input_error(options: dict) -> None:
    with pytest.raises(InputError, match=rf"{next(iter(options))} is .*Remedy"):
        joint_label_fusion(noise((6, 6), 2), **options)


@pytest.mark.parametrize("prior", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, np.nan]])
def test_the_prior_must_be_one_number_for_each_candidate(prior: list[float]) -> None:
    with pytest.raises(InputError, match=r"prior of 2 candidates.*Remedy"):
        joint_label_fusion(noise((6, 6), 2), prior=np.array(prior))


@pytest.mark.parametrize("fuse", [joint_label_fusion, joint_label_fusion_ants])
def test_images_are_needed(fuse) -> None:
    with pytest.raises(InputError, match="joint label fusion needs the image"):
        fuse(Candidates(noise((6, 6), 2).labels))
