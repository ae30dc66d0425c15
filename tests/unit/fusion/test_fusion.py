"""Facts about label fusion: transform order, votes and ties, STAPLE against a reference, joint fusion, the steps."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from popatlas.errors import InputError
from popatlas.fusion.candidates import Candidates
from popatlas.fusion.labels import bounding_box, to_contiguous
from popatlas.fusion.majority import majority_vote
from popatlas.fusion.propagate import chain, propagate
from popatlas.fusion.staple import multilabel_staple
from popatlas.images.io import save_image
from popatlas.interfaces.fuse import FuseLabels, PropagateLabels
from popatlas.measures.landmarks import map_points, to_template
from popatlas.transforms.resample import Step, resample

LPS = np.array([-1.0, -1.0, 1.0])
SHAPE = (24, 22, 20)
AFFINE = np.array([[2.0, 0, 0, -23], [0, 2, 0, -21], [0, 0, 2.5, -24], [0, 0, 0, 1]])


def world(affine: np.ndarray = AFFINE, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Return the LPS coordinates of all voxels, (x, y, z, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return nib.affines.apply_affine(affine, index) * LPS


def write_affine(path: Path, matrix: np.ndarray, shift: np.ndarray) -> Path:
    import ants

    parameters = np.concatenate([matrix.ravel(), shift])
    transform = ants.new_ants_transform(precision="double", dimension=3, transform_type="AffineTransform")
    transform.set_parameters(parameters)
    ants.write_transform(transform, str(path))
    return path


def write_linear_field(path: Path, matrix: np.ndarray, shift: np.ndarray) -> Path:
    """Write the displacement u(p) = matrix p + shift: linear interpolation is exact on it."""
    data = (world() @ matrix.T + shift).astype(np.float32)[:, :, :, None, :]
    image = nib.Nifti1Image(data, AFFINE)
    image.header.set_intent(1007)
    nib.save(image, path)
    return path


@pytest.fixture(scope="module")
def transforms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("chain")
    rng = np.random.default_rng(3)

    def pair(scale: float) -> tuple[np.ndarray, np.ndarray]:
        return rng.normal(0, scale, (3, 3)), rng.normal(0, 1.0, 3)

    affine_t, affine_a, field_t, field_a = pair(0.05), pair(0.05), pair(0.02), pair(0.02)
    eye = np.eye(3)
    files = {
        "affine_t": write_affine(folder / "t.mat", eye + affine_t[0], affine_t[1]),
        "affine_a": write_affine(folder / "a.mat", eye + affine_a[0], affine_a[1]),
        "inverse_t": write_linear_field(folder / "t_inv.nii.gz", *field_t),
        "warp_a": write_linear_field(folder / "a_warp.nii.gz", *field_a),
    }

    def through(points: np.ndarray) -> np.ndarray:
        """Target to atlas point (LPS): undo the target's affine, its inverse warp, the atlas's warp and affine."""
        p = (points - affine_t[1]) @ np.linalg.inv(eye + affine_t[0]).T
        p = p + p @ field_t[0].T + field_t[1]
        p = p + p @ field_a[0].T + field_a[1]
        return p @ (eye + affine_a[0]).T + affine_a[1]

    return {"files": files, "map": through, "folder": folder}


def inner(data: np.ndarray) -> np.ndarray:
    return data[7:-7, 7:-7, 7:-7]


def test_chain_through_template_is_composed_in_the_documented_order(transforms: dict) -> None:
    files, folder = transforms["files"], transforms["folder"]
    steps = chain(files["warp_a"], files["affine_a"], files["affine_t"], files["inverse_t"])
    expected = transforms["map"](world())
    save_image(np.zeros(SHAPE, np.float32), AFFINE, folder / "target.nii.gz")
    for axis in range(3):
        # an image of its own coordinate tells where each target voxel was taken from
        save_image(world()[..., axis], AFFINE, folder / f"coordinate{axis}.nii.gz", np.float64)
        found = resample(folder / "target.nii.gz", folder / f"coordinate{axis}.nii.gz", steps, "linear")
        np.testing.assert_allclose(inner(found), inner(expected[..., axis]), atol=1e-3)


def test_points_and_images_move_in_opposite_directions(transforms: dict) -> None:
    files = transforms["files"]
    steps = chain(files["warp_a"], files["affine_a"], files["affine_t"], files["inverse_t"])
    points = inner(world()).reshape(-1, 3)
    moved = map_points(points * LPS, steps)  # tables are RAS
    np.testing.assert_allclose(moved * LPS, transforms["map"](points), atol=1e-3)


def test_to_template_undoes_the_forward_transform(tmp_path: Path) -> None:
    shift, translation = np.array([1.0, -2.0, 0.5]), np.array([3.0, 1.0, -1.0])
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
    affine = write_affine(tmp_path / "affine.mat", turn, translation)
    warp = write_linear_field(tmp_path / "warp.nii.gz", np.zeros((3, 3)), shift)
    inverse = write_linear_field(tmp_path / "inverse.nii.gz", np.zeros((3, 3)), -shift)
    template = np.array([[1.0, 2.0, 3.0], [-4.0, 0.0, 2.0]])
    subject = map_points(template, [Step(warp), Step(affine)])
    np.testing.assert_allclose(subject * LPS, ((template * LPS) + shift) @ turn.T + translation, atol=1e-4)
    np.testing.assert_allclose(to_template(subject, affine, inverse), template, atol=1e-4)


def blocks(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    labels = np.zeros(shape, dtype=np.int32)
    labels[4:12, 4:18, 4:16] = 7
    labels[12:20, 4:18, 4:16] = 1035
    return labels


def test_labels_keep_their_values_under_propagation(tmp_path: Path, transforms: dict) -> None:
    files = transforms["files"]
    save_image(blocks(), AFFINE, tmp_path / "dseg.nii.gz")
    save_image(blocks().astype(np.float32), AFFINE, tmp_path / "brain.nii.gz")
    steps = chain(files["warp_a"], files["affine_a"])
    for interpolator in ("genericLabel", "nearestNeighbor"):
        labels, images = propagate(
            tmp_path / "brain.nii.gz", [tmp_path / "dseg.nii.gz"], [tmp_path / "brain.nii.gz"], [steps], interpolator
        )
        assert labels.shape == images.shape == (1, *SHAPE)
        assert set(np.unique(labels)) == {0, 7, 1035}
        assert (labels[0] != blocks()).any()


def brute_majority(column: np.ndarray) -> set[int]:
    values, counts = np.unique(column, return_counts=True)
    return set(values[counts == counts.max()].tolist())


def test_majority_equals_counting() -> None:
    labels = np.random.default_rng(0).choice([0, 3, 9, 400], size=(5, 6, 7, 8))
    found = majority_vote(Candidates(labels))
    fused, agreement = found.dseg, found.agreement()
    lowest = majority_vote(Candidates(labels), ties="lowest").dseg
    for place in np.ndindex(6, 7, 8):
        winners = brute_majority(labels[:, *place])
        assert fused[place] in winners
        assert lowest[place] == min(winners)
        assert agreement[place] == pytest.approx((labels[:, *place] == fused[place]).mean())


def test_tie_takes_the_nearest_undisputed_label_in_millimetres() -> None:
    first = np.zeros((1, 1, 9), dtype=int)
    first[0, 0, :4], first[0, 0, 5:] = 1, 2
    second = first.copy()
    first[0, 0, 4], second[0, 0, 4] = 1, 2
    first[0, 0, 5] = 1  # voxels 4 and 5 are tied between 1 and 2; 3 is the nearest decided 1, 6 the nearest decided 2
    candidates = Candidates(np.stack([first, second]), spacing=(1, 1, 2))
    found = majority_vote(candidates, ties="nearest")
    assert found.dseg.ravel().tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 2]
    assert found.agreement().ravel().tolist() == [1, 1, 1, 1, 0.5, 0.5, 1, 1, 1]
    assert found.entropy().ravel().tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0]  # one bit
    assert found.probability_of(2).ravel().tolist() == [0, 0, 0, 0, 0.5, 0.5, 1, 1, 1]
    assert majority_vote(candidates, ties="lowest").dseg.ravel().tolist() == [1, 1, 1, 1, 1, 1, 2, 2, 2]


def test_spacing_decides_which_voxel_is_nearest() -> None:
    labels = np.zeros((2, 5, 5, 1), dtype=int)
    labels[:, 0, 2], labels[:, 2, 4] = 1, 2
    labels[:, 2, 2, 0] = 1, 2
    # voxel (2, 2): label 1 is two steps away on axis 0, label 2 two steps on axis 1
    assert majority_vote(Candidates(labels, spacing=(1, 3, 1))).dseg[2, 2, 0] == 1
    assert majority_vote(Candidates(labels, spacing=(3, 1, 1))).dseg[2, 2, 0] == 2


def test_tie_without_any_decided_voxel_takes_the_smallest_label() -> None:
    labels = np.array([5, 3, 5, 3]).reshape(2, 2, 1, 1)
    labels[1, :, 0, 0] = [3, 5]
    assert majority_vote(Candidates(labels)).dseg.ravel().tolist() == [3, 3]


def reference_staple(votes: np.ndarray, n_labels: int, iterations: int = 300) -> np.ndarray:
    """EM of Rohlfing et al. 2004 on votes (raters, voxels): start from the majority, priors from the votes.

    Returns the probability of each label at each voxel.
    """
    raters = len(votes)
    counts = np.stack([(votes == label).sum(axis=0) for label in range(n_labels)])
    weight = np.where((counts == counts.max(axis=0)).sum(axis=0) == 1, counts == counts.max(axis=0), 0.0)
    prior = np.array([(votes == label).mean() for label in range(n_labels)])
    for _ in range(iterations):
        theta = np.zeros((raters, n_labels, n_labels))
        for rater in range(raters):
            np.add.at(theta[rater], votes[rater], weight.T)
        theta /= np.maximum(theta.sum(axis=1, keepdims=True), 1e-300)
        weight = prior[:, None] * np.prod([theta[r][votes[r]].T for r in range(raters)], axis=0)
        weight /= np.maximum(weight.sum(axis=0), 1e-300)
    return weight


def noisy_raters(seed: int, n_labels: int, raters: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = np.zeros(shape, dtype=int)
    edges = np.linspace(0, shape[0], n_labels + 1).astype(int)
    for label in range(n_labels):
        truth[edges[label] : edges[label + 1]] = label
    wrong = rng.random((raters, *shape)) < np.linspace(0.05, 0.4, raters)[:, None, None, None]
    return truth, np.where(wrong, rng.integers(0, n_labels, (raters, *shape)), truth)


@pytest.mark.parametrize(("seed", "n_labels", "raters"), [(0, 4, 3), (1, 6, 4), (2, 5, 6)])
def test_staple_equals_a_reference_implementation_also_with_ties(seed: int, n_labels: int, raters: int) -> None:
    truth, votes = noisy_raters(seed, n_labels, raters, (16, 14, 12))
    counts = np.sort(np.stack([(votes == label).sum(axis=0) for label in range(n_labels)]), axis=0)
    assert (counts[-1] == counts[-2]).mean() > 0.005  # ties, where ITK seeds its matrices wrongly
    found = multilabel_staple(Candidates(votes), region="all", prior="frequency", max_iterations=300, tolerance=1e-8)
    posterior = reference_staple(votes.reshape(raters, -1), n_labels)
    np.testing.assert_array_equal(found.dseg.ravel(), posterior.argmax(axis=0))
    disputed = found.disputed.ravel()
    voted = np.stack([(votes.reshape(raters, -1) == label).any(axis=0) for label in range(n_labels)])
    posterior = np.where(voted, posterior, 0) / np.where(voted, posterior, 0).sum(axis=0)  # nothing for what nobody said
    np.testing.assert_allclose(found.probability().ravel()[disputed], posterior.max(axis=0)[disputed], atol=0.01)
    # raters differ in skill, which STAPLE finds out; a vote without spatial tie rule does not know it
    assert (found.dseg == truth).mean() > (majority_vote(Candidates(votes), "lowest").dseg == truth).mean()
    assert (np.diff(found.atlas_weights) < 0).all()  # each rater is worse than the one before


def test_staple_handles_many_and_large_labels() -> None:
    rng = np.random.default_rng(0)
    values = np.sort(rng.choice(np.arange(1, 2_000_000), 300, replace=False))
    truth = values[np.arange(300)].reshape(10, 10, 3).repeat(4, axis=2).astype(np.int64)
    votes = np.stack([truth] * 3)
    votes[0].flat[::17] = values[0]
    fused = multilabel_staple(Candidates(votes)).dseg
    assert set(np.unique(fused)) <= set(np.unique(votes))
    assert (fused == truth).mean() > 0.99


def test_contiguous_numbers_restore_the_labels() -> None:
    for values in ([3, 0, 70000, 3], [5, 5_000_000, 0, 1]):
        kept, indices = to_contiguous(np.array(values))
        assert kept[0] == 0
        assert (kept[indices] == values).all()
    with pytest.raises(InputError, match="negative"):
        to_contiguous(np.array([-1, 2]))


def test_bounding_box_of_nothing_is_empty() -> None:
    assert np.zeros((4, 4))[bounding_box(np.zeros((4, 4), dtype=bool))].size == 0


def test_labels_are_placed_by_their_sform_as_the_brains_are(tmp_path: Path, transforms: dict) -> None:
    """ITK alone would take the qform here, 6 mm off."""
    files = transforms["files"]
    save_image(blocks().astype(np.float32), AFFINE, tmp_path / "brain.nii.gz")
    save_image(blocks(), AFFINE, tmp_path / "plain.nii.gz")
    moved = AFFINE.copy()
    moved[0, 3] += 6
    image = nib.Nifti1Image(blocks().astype(np.int16)[..., None], AFFINE)
    image.set_sform(AFFINE, code=2)
    image.set_qform(moved, code=1)
    nib.save(image, tmp_path / "odd.nii.gz")
    steps = chain(files["warp_a"], files["affine_a"])
    brain = tmp_path / "brain.nii.gz"
    found = propagate(brain, [tmp_path / "plain.nii.gz", tmp_path / "odd.nii.gz"], [brain] * 2, [steps] * 2)[0]
    assert found[0].any()
    np.testing.assert_array_equal(found[1], found[0])


def test_steps_propagate_and_fuse(tmp_path: Path, transforms: dict) -> None:
    files = transforms["files"]
    save_image(blocks(), AFFINE, tmp_path / "sub-01_dseg.nii.gz")
    save_image(blocks().astype(np.float32), AFFINE, tmp_path / "brain.nii.gz")
    brain, dseg = str(tmp_path / "brain.nii.gz"), str(tmp_path / "sub-01_dseg.nii.gz")
    stack, images = tmp_path / "labels.nii.gz", tmp_path / "images.nii.gz"
    step = PropagateLabels(
        in_target=brain, in_dsegs=[dseg] * 2, in_brains=[brain] * 2, in_warps=[str(files["warp_a"])] * 2,
        in_affines=[str(files["affine_a"])] * 2, in_target_affine=str(files["affine_t"]),
        in_target_inverse_warp=str(files["inverse_t"]), out_labels=str(stack), out_images=str(images),
    )  # fmt: skip
    step.run()
    assert nib.load(stack).shape == (*SHAPE, 2)
    through = chain(files["warp_a"], files["affine_a"], files["affine_t"], files["inverse_t"])
    assert [(one.file.name, one.invert) for one in through] == [
        ("t.mat", True), ("t_inv.nii.gz", False), ("a_warp.nii.gz", False), ("a.mat", False),
    ]  # fmt: skip
    expected = nib.load(stack).get_fdata()[..., 0]
    for method in ("majority", "staple", "jlf"):
        out = tmp_path / f"{method}.nii.gz"
        FuseLabels(method=method, in_labels=str(stack), in_images=str(images), in_target=brain, out_file=str(out)).run()
        assert nib.load(out).get_data_dtype() == np.int32
        np.testing.assert_array_equal(nib.load(out).get_fdata(), expected)
    with pytest.raises(InputError, match="no labelled atlas"):
        PropagateLabels(
            in_target=brain, in_dsegs=[], in_brains=[], in_warps=[], in_affines=[], out_labels="x.nii.gz",
            out_images="y.nii.gz",
        ).run()  # fmt: skip
