"""Facts about the simulated cohort: the truth is true for ANTs, effects are there, drawing is repeatable and cautious."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from popatlas.cli.main import main
from popatlas.errors import InputError
from popatlas.images import subject as draw
from popatlas.images.deformation import jacobian_determinant, read_displacement
from popatlas.images.io import read_json, read_table
from popatlas.images.phantom import head_model, label_table, lateral_ventricles
from popatlas.images.simulate import TRUTH, mni_grid, reorient, simulate_cohort
from popatlas.surroundings import PRIVATE

VOXEL = 4.0  # tests draw coarse images; the truth does not depend on the voxel size
FORWARD, BACK = "_from-MNI152_to-T1w_mode-points_xfm.nii.gz", "_from-T1w_to-MNI152_mode-points_xfm.nii.gz"
LPS = np.array([-1, -1, 1])


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "bids"
    simulate_cohort(folder, 3, 7, voxel_size=VOXEL)
    return folder


def truth(cohort: Path, number: int, ending: str) -> Path:
    return cohort / TRUTH / f"sub-{number:02d}" / "anat" / f"sub-{number:02d}{ending}"


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_ants_makes_the_true_labels_from_mni(cohort: Path, number: int) -> None:
    import ants

    reference = ants.image_read(str(truth(cohort, number, "_desc-truth_dseg.nii.gz")))
    labels = ants.image_read(str(cohort / TRUTH / "tpl-MNI152_desc-truth_dseg.nii.gz"))
    transform = str(truth(cohort, number, BACK))
    moved = ants.apply_transforms(reference, labels, [transform], interpolator="nearestNeighbor")
    true, found = reference.numpy(), moved.numpy()
    for label in label_table()["index"]:
        assert dice(true == label, found == label) > 0.95


@pytest.mark.parametrize("number", [1, 2, 3])
def test_ants_brings_the_scan_to_mni(cohort: Path, number: int) -> None:
    import ants

    scan = ants.image_read(str(cohort / f"sub-{number:02d}" / "anat" / f"sub-{number:02d}_T1w.nii.gz"))
    brain = ants.image_read(str(cohort / TRUTH / "tpl-MNI152_desc-brain_T1w.nii.gz"))
    moved = ants.apply_transforms(brain, scan, [str(truth(cohort, number, FORWARD))]).numpy()
    inside = brain.numpy() > 0
    assert np.corrcoef(moved[inside], brain.numpy()[inside])[0, 1] > 0.8


@pytest.mark.parametrize("number", [1, 2, 3])
def test_truth_transforms_are_diffeomorphic_and_inverse_to_each_other(cohort: Path, number: int) -> None:
    import SimpleITK as sitk

    forward, affine = read_displacement(truth(cohort, number, FORWARD))
    assert jacobian_determinant(forward, nib.affines.voxel_sizes(affine)).min() > 0.1
    there, back = (
        sitk.DisplacementFieldTransform(sitk.ReadImage(str(truth(cohort, number, name)), sitk.sitkVectorFloat64))
        for name in (FORWARD, BACK)
    )
    voxels = np.argwhere(head_model().labels > 0)[::500]
    points = nib.affines.apply_affine(head_model().affine, voxels) * LPS
    error = [np.linalg.norm(np.subtract(back.TransformPoint(there.TransformPoint(p)), p)) for p in points.tolist()]
    assert np.mean(error) < 0.15
    assert np.max(error) < 1.0


def test_landmarks_follow_the_transform_and_the_labels(cohort: Path) -> None:
    import SimpleITK as sitk

    model = read_table(cohort / TRUTH / "tpl-MNI152_desc-truth_landmarks.tsv")
    own = read_table(truth(cohort, 2, "_desc-truth_landmarks.tsv"))
    assert list(own["name"]) == list(model["name"])
    move = sitk.DisplacementFieldTransform(sitk.ReadImage(str(truth(cohort, 2, FORWARD)), sitk.sitkVectorFloat64))
    for start, end in zip(model[["x", "y", "z"]].to_numpy(), own[["x", "y", "z"]].to_numpy(), strict=True):
        # the file has a 2 mm grid, the table comes from the field itself
        np.testing.assert_allclose(np.array(move.TransformPoint((start * LPS).tolist())) * LPS, end, atol=0.15)


def test_mean_anatomy_is_the_mean_without_pose(cohort: Path) -> None:
    points = mni_grid().points().reshape(3, -1).T
    mapped = []
    for number in (1, 2, 3):
        forward, _ = read_displacement(truth(cohort, number, FORWARD))
        pose = np.array(read_json(truth(cohort, number, "_desc-pose_xfm.json"))["matrix"])
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
        mapped.append(nib.affines.apply_affine(np.linalg.inv(pose), points + forward.reshape(3, -1).T))
    mean, _ = read_displacement(cohort / TRUTH / "tpl-MNI152_desc-meananatomy_xfm.nii.gz")
    np.testing.assert_allclose(points + mean.reshape(3, -1).T, np.mean(mapped, axis=0), atol=0.01)


def test_files_are_a_bids_dataset(cohort: Path) -> None:
    description = read_json(cohort / "dataset_description.json")
    assert description["BIDSVersion"]
    assert read_json(cohort / TRUTH / "dataset_description.json")["DatasetType"] == "derivative"
    assert (cohort / "README").is_file()
    participants = read_table(cohort / "participants.tsv")
    assert list(participants) == ["participant_id", "age", "sex"]
    assert set(read_json(cohort / "participants.json")) == {"age", "sex"}
    assert list(read_table(cohort / TRUTH / "dseg.tsv")) == ["index", "name"]
    for name in participants["participant_id"]:
        files = {path.name for path in (cohort / name / "anat").iterdir()}
        assert files == {f"{name}_T1w.nii.gz", f"{name}_T1w.json"}
        image = nib.load(cohort / name / "anat" / f"{name}_T1w.nii.gz")
        mask = nib.load(truth(cohort, int(name[4:]), "_desc-truth_mask.nii.gz"))
        assert image.get_data_dtype() == np.int16
        assert image.shape == mask.shape
        np.testing.assert_array_equal(image.affine, mask.affine)
        data, inside = np.asarray(image.dataobj), np.asarray(mask.dataobj) > 0
        assert data.min() >= 0
        assert np.median(data[inside]) > 10 * np.median(data[:2])  # brain against air


def test_a_draw_depends_on_seed_and_number_only(cohort: Path, tmp_path: Path) -> None:
    simulate_cohort(tmp_path, 2, 7, first=2, voxel_size=VOXEL)
    for ending in (FORWARD, BACK, "_desc-truth_dseg.nii.gz", "_desc-truth_landmarks.tsv"):
        one, two = (truth(folder, 3, ending).read_bytes() for folder in (cohort, tmp_path))
        assert one == two
    images = [
        np.asarray(nib.load(folder / "sub-03" / "anat" / "sub-03_T1w.nii.gz").dataobj) for folder in (cohort, tmp_path)
    ]
    assert images[0].tobytes() == images[1].tobytes()
    other = draw.draw_traits(8, 3)
    assert other != draw.draw_traits(7, 3)


def test_subjects_are_added_and_present_ones_kept(cohort: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bids"
    shutil.copytree(cohort, folder)
    old = folder / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    before = old.stat().st_mtime_ns, (folder / TRUTH / "tpl-MNI152_desc-meananatomy_xfm.nii.gz").read_bytes()
    table = simulate_cohort(folder, 2, 7, first=3, voxel_size=VOXEL)
    assert list(table["participant_id"]) == ["sub-01", "sub-02", "sub-03", "sub-04"]
    pd.testing.assert_frame_equal(table, read_table(folder / "participants.tsv"))
    assert (old.stat().st_mtime_ns) == before[0]
    assert (folder / TRUTH / "tpl-MNI152_desc-meananatomy_xfm.nii.gz").read_bytes() != before[1]
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    simulate_cohort(folder, 4, 7, voxel_size=VOXEL)
    touched = [path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp]
    assert touched == []


def test_an_interrupted_subject_is_drawn_again(cohort: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bids"
    shutil.copytree(cohort, folder)
    record = read_json(folder / TRUTH / "simulation.json")
    record["scans"] = record["scans"][:2]
    (folder / TRUTH / "simulation.json").write_text(json.dumps(record))
    image = folder / "sub-03" / "anat" / "sub-03_T1w.nii.gz"
    image.unlink()
    assert len(simulate_cohort(folder, 3, 7, voxel_size=VOXEL)) == 3
    assert image.is_file()


def test_a_folder_that_holds_only_its_own_temporary_files_is_empty(tmp_path: Path) -> None:
    """Where no usual folder can be written, as in a container, temporary files are below the result."""
    (tmp_path / f"{PRIVATE}1").mkdir()
    simulate_cohort(tmp_path, 1, 7, voxel_size=8.0)
    assert (tmp_path / "dataset_description.json").is_file()


def test_foreign_folders_and_other_options_are_refused(cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"not made by `popatlas simulate`.*Remedy"):
        simulate_cohort(tmp_path, 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match="other options"):
        simulate_cohort(cohort, 3, 8, voxel_size=VOXEL)
    with pytest.raises(InputError, match="voxel size"):
        simulate_cohort(tmp_path / "new", 1, 1, voxel_size=20)
    with pytest.raises(InputError, match="count from 1"):
        simulate_cohort(tmp_path / "new", 0, 1)
    assert not (tmp_path / "new").exists()


def test_sessions_t2w_and_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "bids"
    line = f"simulate {folder} --subjects 2 --seed 7 --sessions 2 --t2w --voxel-size 6 --jobs 2"
    assert main(line.split()) == 0
    assert "2 subjects" in capsys.readouterr().out
    anat = folder / "sub-01" / "ses-2" / "anat"
    t1w, t2w = (nib.load(anat / f"sub-01_ses-2_{kind}.nii.gz") for kind in ("T1w", "T2w"))
    assert not np.array_equal(t1w.affine, t2w.affine)
    ages = read_table(folder / "sub-01" / "sub-01_sessions.tsv")
    assert ages["age"].diff().iloc[1] == pytest.approx(draw.SESSION_YEARS)
    scans = pd.DataFrame(read_json(folder / TRUTH / "simulation.json")["scans"])
    assert list(scans["scan"])[1] == "sub-01/ses-2/anat/sub-01_ses-2"
    growth = scans.groupby("subject")["ventricle_growth"].diff().dropna()
    np.testing.assert_allclose(growth, draw.VENTRICLE_SLOPE * draw.SESSION_YEARS)
    poses = read_json(folder / TRUTH / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_desc-pose_xfm.json")
    assert np.abs(np.array(poses["matrix"]) - np.array(poses["matrix_T2w"])).max() > 0


def test_anatomies_are_invertible_and_have_the_planted_effects() -> None:
    """Volumes are integrals of the Jacobian determinant over MNI, so no image is needed."""
    labels, points = head_model().labels[::2, ::2, ::2], mni_grid().points()
    inside, ventricles = labels > 0, lateral_ventricles(labels)
    rows = []
    for number in range(1, 17):
        traits = draw.draw_traits(1, number)
        anatomy = draw.draw_anatomy(1, number, traits)
        grid = anatomy.grid
        determinant = jacobian_determinant(anatomy.forward, grid.spacing)
        assert determinant.min() > 0
        assert jacobian_determinant(anatomy.backward, grid.spacing).min() > 0
        volumes = [draw.sample(determinant, grid.affine, points[:, part]).sum() * 0.008 for part in (ventricles, inside)]
        rows.append((traits.age, traits.sex, *volumes))
    table = pd.DataFrame(rows, columns=["age", "sex", "ventricles", "brain"])
    assert table["ventricles"].between(5, 60).all()
    assert table["age"].corr(table["ventricles"]) > 0.8
    relative = np.log(table["ventricles"] / table["brain"])
    assert np.polyfit(table["age"], relative, 1)[0] == pytest.approx(draw.VENTRICLE_SLOPE, rel=0.3)
    means = table.groupby("sex")["brain"].mean()
    assert means["M"] / means["F"] == pytest.approx(draw.MALE_FACTOR, abs=0.05)
    assert table["brain"].between(1250, 1900).all()


def test_traits_are_balanced_and_in_range() -> None:
    table = pd.DataFrame([vars(draw.draw_traits(5, number)) for number in range(1, 201)])
    assert table["age"].between(*draw.AGES).all()
    assert table["age"].mean() == pytest.approx(np.mean(draw.AGES), abs=1)
    assert (table["sex"] == "M").mean() == pytest.approx(0.5, abs=0.03)
    assert abs(table["age"].corr(table["sex"] == "M")) < 0.1


@pytest.mark.parametrize("orientation", draw.ORIENTATIONS)
def test_storage_orientation_moves_no_voxel_in_the_world(orientation: str) -> None:
    data = np.random.default_rng(0).normal(size=(4, 5, 6))
    affine = np.array([[2.0, 0, 0, -3], [0, 2.5, 0, 4], [0, 0, 3, 5], [0, 0, 0, 1]])
    stored, turned = reorient(data, affine, orientation)
    assert "".join(nib.aff2axcodes(turned)) == orientation
    back = nib.as_closest_canonical(nib.Nifti1Image(stored, turned))
    np.testing.assert_array_equal(back.get_fdata(), data)
    np.testing.assert_allclose(back.affine, affine)


def test_contrast_of_tissues_is_that_of_t1w_and_t2w() -> None:
    rng = np.random.default_rng(0)
    scan = draw.draw_scan(rng, np.eye(4), 5.0)
    model, points = head_model(), scan.anatomy_points()
    share = {name: draw.sample(part, model.affine, points) > 250 for name, part in model.brain.items()}
    image = {kind: draw.draw_image(rng, points, scan, kind) for kind in ("T1w", "T2w")}
    t1w, t2w = ({name: np.median(image[kind][inside]) for name, inside in share.items()} for kind in image)
    assert t1w["csf"] < t1w["gm"] < t1w["wm"]
    assert t2w["csf"] > t2w["gm"] > t2w["wm"]
