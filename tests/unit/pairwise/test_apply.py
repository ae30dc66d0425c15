"""What `popatlas apply` refuses or keeps, so that no result that looks finished is a wrong one."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from popatlas.cli.main import main
from popatlas.errors import InputError
from popatlas.images.io import load_image, read_json, save_image, write_json
from popatlas.images.miniature import draw_miniature
from popatlas.pairwise.apply import way_of_registrations
from popatlas.pairwise.files import AFFINE, RECORD, Outputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two miniature brains, in 3D and as planes at a height, and registrations of both by affines."""
    at = tmp_path_factory.mktemp("apply")
    for seed, name in ((1, "fixed"), (2, "moving")):
        draw_miniature(seed).save(at, name)
        plane = draw_miniature(seed, spacing_mm=3).axial(28)
        plane.save(at, f"flat-{name}")
        for kind in ("T1w", "dseg"):
            image = nib.load(at / f"flat-{name}_{kind}.nii.gz")
            affine = image.affine.copy()
            affine[2, 3] = 30 if name == "fixed" else 45
            data = np.asarray(image.dataobj)
            save_image(data.reshape(*data.shape[:2], 1), affine, at / f"high-{name}_{kind}.nii.gz")
    for kind in ("", "high-"):
        pair = [str(at / f"{kind}{name}_T1w.nii.gz") for name in ("fixed", "moving")]
        assert main(["register", *pair, "--out", str(at / f"{kind}pair"), "--refine", "affine", "--no-fallback"]) == 0
    return at


def apply(folder, source, out, *options, pair="pair"):
    return main(["apply", str(source), "--from", str(folder / pair), "--out", str(out), *options])


def test_nothing_is_interpolated_between_labels_unless_it_is_asked_for(folder, tmp_path, capsys):
    for kind, name in ((np.uint8, "aparc+aseg.nii.gz"), (np.float32, "atlas.nii")):
        image = load_image(folder / "moving_dseg.nii.gz", kind)
        save_image(np.asarray(image.dataobj), image.affine, tmp_path / name)
        assert apply(folder, tmp_path / name, tmp_path / "x.nii.gz") == 1
        assert "seems to hold labels" in capsys.readouterr().err and not (tmp_path / "x.nii.gz").exists()
        assert apply(folder, tmp_path / name, tmp_path / "x.nii.gz", "--labels") == 0
        assert set(np.unique(nib.load(tmp_path / "x.nii.gz").dataobj)) == set(range(7))
        assert apply(folder, tmp_path / name, tmp_path / "y.nii.gz", "--image") == 0
        assert len(np.unique(nib.load(tmp_path / "y.nii.gz").dataobj)) > 100
        (tmp_path / "x.nii.gz").unlink()
    shutil.copy(folder / "fixed_dseg.nii.gz", tmp_path / "pair_labels.nii.gz")  # as `popatlas register` calls them
    assert apply(folder, tmp_path / "pair_labels.nii.gz", tmp_path / "x.nii.gz", "--inverse") == 0
    assert set(np.unique(nib.load(tmp_path / "x.nii.gz").dataobj)) == set(range(7))


@pytest.mark.parametrize(
    ("case", "out", "message"),
    [
        ("far", "x.nii.gz", "shows nothing of where it is brought to"),
        ("fixed", "x.nii.gz", "is the one that others are brought to.*--inverse"),
        ("vectors", "x.nii.gz", "holds vectors"),
        ("complex", "x.nii.gz", "not real numbers"),
        ("plane", "x.nii.gz", "2 axes and the transforms have 3"),
        ("apart", "x.nii.gz", "sform and qform place the image up to 16 mm apart"),
        ("nowhere", "x.nii.gz", "neither sform nor qform is set"),
        ("volumes", "x.nii.gz", "2 axes: .*|5 axes"),
        ("far", "x.png", "cannot be written there.*end in .nii.gz"),
        ("far", "far.nii.gz", "would take the place of what it is made from"),
        ("table", "x.nii.gz", "cannot be written there.*end in .tsv"),
        ("picture", "x.nii.gz", "no image .* and no table"),
    ],
)
def test_what_cannot_be_applied_is_refused(folder, tmp_path, capsys, case, out, message):
    image = load_image(folder / "moving_T1w.nii.gz")
    data, source = np.asarray(image.dataobj), tmp_path / f"{case}.nii.gz"
    made = nib.Nifti1Image(data, image.affine)
    if case == "far":
        made = nib.Nifti1Image(data, image.affine + 900 * np.eye(4, k=3))
    elif case == "vectors":
        made = nib.Nifti1Image(np.stack([data] * 3, axis=-1)[..., None, :], image.affine)
        made.header.set_intent("vector")
    elif case == "complex":
        made = nib.Nifti1Image(data.astype(np.complex64), image.affine)
    elif case == "plane":
        made = nib.Nifti1Image(data[:, :, 20], np.diag([4.0, 4, 1, 1]))
    elif case == "apart":
        made.set_sform(image.affine, 1)
        made.set_qform(image.affine + 16 * np.eye(4)[:, :1] * np.eye(4)[3], 1)
    elif case == "nowhere":
        made = nib.Nifti1Image(data, None)
    elif case == "volumes":
        made = nib.Nifti1Image(np.stack([np.stack([data] * 2, axis=-1)] * 2, axis=-1), image.affine)
    nib.save(made, source)
    if case == "fixed":
        source = folder / "fixed_T1w.nii.gz"
    elif case == "table":
        source = tmp_path / "table.tsv"
        source.write_text("name\tx\ty\tz\na\t1\t2\t3\n")
    elif case == "picture":
        source = tmp_path / "picture.png"
        source.write_bytes(b"x")
    before = sorted(tmp_path.iterdir())
    assert apply(folder, source, tmp_path / out) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(message, said) and "Remedy" in said, said
    assert sorted(tmp_path.iterdir()) == before


def test_a_table_of_landmarks_keeps_its_columns_rows_and_their_order(folder, tmp_path):
    (tmp_path / "a.tsv").write_text("rater\tname\tx\ty\tz\nB\tpons\t1\t2\t3\nA\tapex\tn/a\tn/a\tn/a\nA\tacom\t4\t5\t6\n")
    assert apply(folder, tmp_path / "a.tsv", tmp_path / "b.tsv") == 0
    assert apply(folder, tmp_path / "b.tsv", tmp_path / "c.tsv", "--inverse") == 0
    start, moved, back = (pd.read_csv(tmp_path / f"{name}.tsv", sep="\t") for name in "abc")
    assert list(moved.columns) == ["rater", "name", "x", "y", "z"] and list(moved["name"]) == ["pons", "apex", "acom"]
    assert list(moved["rater"]) == list("BAA") and moved.loc[1, ["x", "y", "z"]].isna().all()
    places = [table[["x", "y", "z"]].dropna().to_numpy() for table in (start, moved, back)]
    assert np.abs(places[1] - places[0]).max() > 1 and np.abs(places[2] - places[0]).max() < 1e-6


def test_planes_come_out_as_the_fixed_file_has_them(folder, tmp_path, capsys):
    fixed = nib.load(folder / "high-fixed_T1w.nii.gz")
    warped = nib.load(folder / "high-pair_warped.nii.gz")
    assert warped.shape == fixed.shape and np.allclose(warped.affine, fixed.affine)
    assert apply(folder, folder / "high-moving_dseg.nii.gz", tmp_path / "x.nii.gz", pair="high-pair") == 0
    labels = nib.load(tmp_path / "x.nii.gz")
    assert labels.shape == fixed.shape and np.allclose(labels.affine, fixed.affine) and np.asarray(labels.dataobj).any()
    four = np.stack([np.asarray(nib.load(folder / "high-moving_dseg.nii.gz").dataobj) == label for label in (2, 3)], axis=-1)
    save_image(four.astype(np.uint8), nib.load(folder / "high-moving_dseg.nii.gz").affine, tmp_path / "four.nii.gz")
    assert apply(folder, tmp_path / "four.nii.gz", tmp_path / "y.nii.gz", "--labels", pair="high-pair") == 0
    assert nib.load(tmp_path / "y.nii.gz").shape == (*fixed.shape, 2)
    (tmp_path / "a.tsv").write_text("name\tx\ty\tz\na\t10\t5\t45\n")
    assert apply(folder, tmp_path / "a.tsv", tmp_path / "b.tsv", pair="high-pair") == 0
    assert pd.read_csv(tmp_path / "b.tsv", sep="\t").loc[0, "z"] == 30  # in the plane of the fixed image
    turn = np.eye(4)
    turn[[0, 0, 2, 2], [0, 2, 0, 2]] = np.cos(0.1), np.sin(0.1), -np.sin(0.1), np.cos(0.1)
    save_image(np.asarray(fixed.dataobj), turn @ fixed.affine, tmp_path / "turned.nii.gz")
    assert apply(folder, tmp_path / "turned.nii.gz", tmp_path / "z.nii.gz", pair="high-pair") == 1
    assert "not parallel to the first two axes of the world" in capsys.readouterr().err


def test_a_registration_remembers_its_images(folder, tmp_path, capsys):
    """They may be gone; one that has become another is not taken for what was registered."""
    record = read_json(Outputs(str(folder / "pair")).path(RECORD))
    for side in ("fixed", "moving"):
        record[side]["image"] = str(tmp_path / f"{side}.nii.gz")
    shutil.copy(folder / "pair_affine.mat", tmp_path / "pair_affine.mat")
    write_json(tmp_path / "pair_registration.json", record)
    assert apply(tmp_path, folder / "moving_dseg.nii.gz", tmp_path / "x.nii.gz") == 0
    assert nib.load(tmp_path / "x.nii.gz").shape == nib.load(folder / "fixed_T1w.nii.gz").shape
    image = load_image(folder / "moving_T1w.nii.gz")
    save_image(np.asarray(image.dataobj), image.affine + 8 * np.eye(4, k=3), tmp_path / "moving.nii.gz")
    assert apply(tmp_path, tmp_path / "moving.nii.gz", tmp_path / "y.nii.gz") == 1
    assert "another grid than when it was registered" in capsys.readouterr().err
    write_json(tmp_path / "next_registration.json", record | {"fixed": record["moving"] | {"sha256": "of another image"}})
    shutil.copy(folder / "pair_affine.mat", tmp_path / "next_affine.mat")
    with pytest.raises(InputError, match="which was another image then"):
        way_of_registrations([str(tmp_path / "pair"), str(tmp_path / "next")])
    write_json(tmp_path / "next_registration.json", [])
    with pytest.raises(InputError, match="no record of a registration"):
        way_of_registrations([str(tmp_path / "next")])


def test_what_the_gate_has_refused_is_applied_with_a_word_about_it(folder, tmp_path, capsys):
    record = read_json(Outputs(str(folder / "pair")).path(RECORD))
    shutil.copy(folder / "pair_affine.mat", tmp_path / "pair_affine.mat")
    write_json(tmp_path / "pair_registration.json", record | {"verdict": "fail"})
    assert apply(tmp_path, folder / "moving_T1w.nii.gz", tmp_path / "x.nii.gz") == 0
    assert "the gate has refused the registration" in capsys.readouterr().err


def test_chains_of_planes_and_volumes_are_refused(folder, tmp_path, capsys):
    transforms = [str(folder / f"{kind}pair_affine.mat") for kind in ("", "high-")]
    line = ["apply", str(folder / "moving_T1w.nii.gz"), "--transforms", *transforms, "--out", str(tmp_path / "x.nii.gz")]
    assert main([*line, "--reference", str(folder / "fixed_T1w.nii.gz")]) == 1
    assert "2 axes in a chain of 3" in capsys.readouterr().err


def test_files_are_published_whole_or_not_at_all(tmp_path, monkeypatch):
    staged = tmp_path / "staged"
    staged.mkdir()
    for name in (AFFINE, "warped.nii.gz"):
        (staged / name).write_text(name)
    outputs, copies = Outputs(str(tmp_path / "x")), []

    def stops(source, target):
        copies.append(target)
        if len(copies) == 2:
            raise KeyboardInterrupt
        return Path(target).write_bytes(Path(source).read_bytes())

    monkeypatch.setattr("popatlas.pairwise.files.shutil.copyfile", stops)
    with pytest.raises(KeyboardInterrupt):
        outputs.publish(staged, [AFFINE, "warped.nii.gz"])
    assert [path.name for path in tmp_path.iterdir()] == ["staged"], "and the next run does not take them for others' files"
    monkeypatch.undo()

    def interferes(source, target):
        return Path(target).write_text("of a run at the same time")

    monkeypatch.setattr("popatlas.pairwise.files.shutil.copyfile", interferes)
    sums = outputs.publish(staged, [AFFINE])
    monkeypatch.undo()
    ends = {"image": "x", "sha256": "x", "shape": [4, 4, 4], "affine": np.eye(4).tolist()}
    write_json(outputs.path(RECORD), {"files": sums, "fixed": ends, "moving": ends, "verdict": "pass"})
    with pytest.raises(InputError, match="gone or was changed"):
        outputs.read()


def test_a_folder_that_has_the_name_of_a_registration_does_not_hide_it(tmp_path):
    (tmp_path / "x_registration.json").touch()
    (tmp_path / "x").mkdir()
    outputs = Outputs(str(tmp_path / "x"))
    assert outputs.path(AFFINE) == tmp_path / "x_affine.mat"
    (tmp_path / "x_registration.json").unlink()  # as in the middle of `publish`
    assert outputs.path(AFFINE) == tmp_path / "x_affine.mat"
    assert replace(outputs).path(AFFINE) == tmp_path / "x" / "affine.mat"
