"""Facts about scores against the truth of a simulation: affine maps, on which everything is known in closed form."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation

from popatlas.images.io import read_table, save_image, write_table
from popatlas.interfaces.measure import ScoreTruth
from popatlas.measures.truth import Sampler, brain_points, known_field_errors, read_field, rigid_align, score_truth

SHAPE = (32, 32, 32)
# template and MNI grids, and a subject grid with other axes: a raw image need not be RAS
GRID = np.array([[2.0, 0, 0, -31], [0, 2, 0, -31], [0, 0, 2, -31], [0, 0, 0, 1]])
RAW = np.array([[0, 0, -2.2, 34], [-2.2, 0, 0, 34], [0, 2.2, 0, -34], [0, 0, 0, 1]])
LPS = np.array([-1.0, -1.0, 1.0])
LABEL = "t"
Map = tuple[np.ndarray, np.ndarray]  # RAS: p -> matrix p + shift


def compose(second: Map, first: Map) -> Map:
    return second[0] @ first[0], second[0] @ first[1] + second[1]


def invert(one: Map) -> Map:
    matrix = np.linalg.inv(one[0])
    return matrix, -matrix @ one[1]


def apply(one: Map, points: np.ndarray) -> np.ndarray:
    return points @ one[0].T + one[1]


def world(affine: np.ndarray) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    return nib.affines.apply_affine(affine, index)


def write_map(path: Path, one: Map, affine: np.ndarray) -> None:
    """Write a map as ITK displacement field: LPS millimetres."""
    points = world(affine)
    data = ((apply(one, points) - points) * LPS).astype(np.float32)[:, :, :, None, :]
    image = nib.Nifti1Image(data, affine)
    image.header.set_intent(1007)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def near_identity(rng: np.random.Generator, size: float = 0.04) -> Map:
    return np.eye(3) + rng.normal(0, size, (3, 3)), rng.normal(0, 1, 3)


class Cohort:
    """A cohort of affine deformations, registered exactly except for a shift (mm in MNI space) of some scans."""

    def __init__(self, folder: Path, shifts: dict[int, np.ndarray], count: int = 4, stretch: float = 1.0) -> None:
        rng = np.random.default_rng(5)
        self.out, self.truth = folder / "out", folder / "truth"
        self.scans = [f"sub-{i}/anat/sub-{i}" for i in range(count)]
        turn = Rotation.from_rotvec([0.05, -0.1, 0.08]).as_matrix()
        to_mni = near_identity(rng)  # template points to MNI points, the same for all
        anatomy = compose((turn * stretch, np.array([1.0, 2, 3])), invert(to_mni))  # the template is this, turned
        points = world(GRID)
        ball = (np.linalg.norm(points, axis=-1) < 18).astype(np.uint8)
        tpl = self.out / f"tpl-{LABEL}"
        save_image(ball, GRID, tpl / f"tpl-{LABEL}_desc-brain_mask.nii.gz")
        save_image(points @ [1, 2, -1], GRID, tpl / f"tpl-{LABEL}_T1w.nii.gz", np.float64)
        mni = apply(invert(to_mni), points) @ [1, 2, -1]
        save_image(mni, GRID, self.truth / "tpl-MNI152_desc-brain_T1w.nii.gz", np.float64)
        write_map(self.truth / "tpl-MNI152_desc-meananatomy_xfm.nii.gz", anatomy, GRID)
        for i, scan in enumerate(self.scans):
            psi = near_identity(rng)
            wrong = (np.eye(3), shifts.get(i, np.zeros(3)))
            phi = compose(psi, compose(wrong, to_mni))
            write_map(self.out / f"{scan}_from-T1w_to-{LABEL}_mode-image_xfm.nii.gz", phi, GRID)
            write_map(self.truth / f"{scan}_from-T1w_to-MNI152_mode-points_xfm.nii.gz", invert(psi), RAW)

    def score(self) -> pd.DataFrame:
        return score_truth(self.scans, self.out, self.truth, LABEL, "t@00000000", limit=500)


def values(table: pd.DataFrame, metric: str) -> list[float]:
    return table.loc[table["metric"] == metric, "value"].tolist()


def test_exact_registrations_have_no_error(tmp_path: Path) -> None:
    table = Cohort(tmp_path, {}).score()
    for metric, count in [("known_field_error", 4), ("known_field_error_p95", 4), ("pairwise_field_error", 3)]:
        assert values(table, metric) == pytest.approx([0] * count, abs=1e-4)
    assert values(table, "template_error") == pytest.approx([0], abs=1e-4)
    assert values(table, "template_correlation") == pytest.approx([1], abs=1e-5)
    assert values(table, "truth_points") == [500]


def test_a_shift_of_one_scan_is_its_error(tmp_path: Path) -> None:
    shift = np.array([0.0, 3, 4]) / 2.5  # 2 mm
    table = Cohort(tmp_path, {1: shift}).score()
    others = 2 / 3  # a fourth scan sees the shifted one as one of three
    assert values(table, "known_field_error") == pytest.approx([others, 2, others, others], abs=1e-4)
    assert values(table, "known_field_error_p95") == pytest.approx([others, 2, others, others], abs=1e-4)
    assert values(table, "pairwise_field_error") == pytest.approx([2, 2, 0], abs=1e-4)
    assert values(table, "template_error") == pytest.approx([0], abs=0.1)  # a common shift would be rigid


def test_a_template_of_the_wrong_size_is_an_error(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, {}, stretch=1.1)
    points = brain_points(nib.load(cohort.out / "tpl-t" / "tpl-t_desc-brain_mask.nii.gz"), 500)
    expected = 0.1 * np.linalg.norm(points - points.mean(axis=0), axis=1).mean()
    assert values(cohort.score(), "template_error") == pytest.approx([expected], abs=1e-3)


def test_one_scan_has_no_other_to_compare_with(tmp_path: Path) -> None:
    table = Cohort(tmp_path, {}, count=1).score()
    assert np.isnan(values(table, "known_field_error")).all()
    assert values(table, "pairwise_field_error") == []


def test_scans_without_truth_are_left_aside(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, {})
    cohort.scans.append("sub-x/anat/sub-x")
    assert len(values(cohort.score(), "known_field_error")) == 4
    nothing = score_truth(["sub-x/anat/sub-x"], cohort.out, cohort.truth, LABEL)
    assert nothing.empty


def test_masks_are_scored_on_the_grid_of_the_estimate(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, {}, count=1)
    scan = cohort.scans[0]
    mask = np.zeros((8, 8, 8), dtype=np.uint8)
    mask[2:6, 2:6, 2:6] = 1
    save_image(mask, np.diag([2.0, 2, 2, 1]), cohort.out / f"{scan}_desc-brain_mask.nii.gz")
    # the same box moved by one coarse voxel, on a grid of half the spacing
    fine = np.roll(mask, 1, axis=0).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    affine = np.array([[1.0, 0, 0, -0.5], [0, 1, 0, -0.5], [0, 0, 1, -0.5], [0, 0, 0, 1]])
    save_image(fine, affine, cohort.truth / f"{scan}_desc-truth_mask.nii.gz")
    assert values(cohort.score(), "mask_dice") == [0.75]


def test_leave_one_out_correction_equals_leaving_one_out() -> None:
    mapped = np.random.default_rng(0).normal(size=(5, 40, 3))
    direct = [np.linalg.norm(mapped[i] - np.delete(mapped, i, axis=0).mean(axis=0), axis=1) for i in range(5)]
    np.testing.assert_allclose(known_field_errors(mapped), direct)


def test_alignment_removes_rigid_motion_and_nothing_else() -> None:
    points = np.random.default_rng(0).normal(size=(50, 3))
    turn = Rotation.from_rotvec([0.3, 2.0, -1.0]).as_matrix()
    np.testing.assert_allclose(rigid_align(points @ turn.T + [3, 4, 5], points), points, atol=1e-10)
    mirrored = points * [-1, 1, 1]
    assert np.linalg.norm(rigid_align(mirrored, points) - points, axis=1).mean() > 0.3


def test_sampling_agrees_with_ants(tmp_path: Path) -> None:
    from popatlas.measures.landmarks import map_points
    from popatlas.measures.truth import move
    from popatlas.transforms.resample import Step

    write_map(tmp_path / "field.nii.gz", near_identity(np.random.default_rng(1)), RAW)
    points = np.random.default_rng(2).uniform(-20, 20, (30, 3))
    found = move(read_field(tmp_path / "field.nii.gz"), points)
    np.testing.assert_allclose(found, map_points(points, [Step(tmp_path / "field.nii.gz")]), atol=1e-4)


def test_points_outside_of_a_grid_are_missing() -> None:
    sampler = Sampler(np.arange(8, dtype=np.float32).reshape(2, 2, 2), np.eye(4))
    found = sampler.at(np.array([[0.0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1.1, 0, 0], [0, -0.2, 0]]))
    np.testing.assert_array_equal(found, [0, 7, 3.5, np.nan, np.nan])


def test_step_writes_the_truth(tmp_path: Path) -> None:
    cohort = Cohort(tmp_path, {0: np.array([1.0, 0, 0])})
    index = pd.DataFrame({"scan": cohort.scans, "subject": [s.split("/")[0] for s in cohort.scans], "session": ""})
    ledger = pd.DataFrame([("sub-3", "", "register", "failed", "gate", "")], columns=["subject", "session", "stage", "state", "reason", "log"])  # fmt: skip  # noqa: E501
    write_table(index, tmp_path / "index.tsv")
    write_table(ledger, tmp_path / "ledger.tsv")
    ScoreTruth(
        in_index=str(tmp_path / "index.tsv"), in_ledger=str(tmp_path / "ledger.tsv"), derivatives=str(cohort.out),
        truth=str(cohort.truth), label=LABEL, template="t@00000000", points=200, out_table=str(tmp_path / "truth.tsv"),
    ).run()  # fmt: skip
    table = read_table(tmp_path / "truth.tsv")
    assert values(table, "known_field_error") == pytest.approx([1, 0.5, 0.5], abs=1e-4)
    assert set(table.loc[table["participant_id"] == "group", "metric"]) == {
        "template_error",
        "template_correlation",
        "truth_points",
    }
