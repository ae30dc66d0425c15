"""Two files: registered, judged, drawn, and what was found applied to other files, there and back."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from popatlas.cli import register as verb
from popatlas.cli.main import main
from popatlas.errors import InputError
from popatlas.images.io import load_image, read_json, save_image, write_table
from popatlas.images.miniature import draw_miniature
from popatlas.measures.landmarks import map_points, read_landmarks
from popatlas.measures.overlap import dice
from popatlas.pairwise.apply import way_of_registrations
from popatlas.pairwise.files import NAMES, Outputs
from popatlas.pairwise.plan import REFINEMENTS, Wanted, limits_for, plan_attempts
from popatlas.pairwise.prepare import Given, foreground, isotropic, read_image
from popatlas.pairwise.register import register_files
from popatlas.pairwise.scores import Extras, LabelScore
from popatlas.registration import attempt
from popatlas.registration.engines.registry import ENGINES
from popatlas.registration.types import LINEAR, STARTS
from popatlas.transforms.resample import Step


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two miniature brains with labels, and landmarks in the corners of their labels."""
    folder = tmp_path_factory.mktemp("files")
    for seed, name in ((1, "fixed"), (2, "moving")):
        _, _, dseg = draw_miniature(seed).save(folder, name)
        labels = load_image(dseg, np.int16)
        data = np.asarray(labels.dataobj)
        rows = []
        for label in np.unique(data)[1:]:
            at = nib.affines.apply_affine(labels.affine, np.argwhere(data == label).mean(0))
            rows.append((f"middle-{label}", *at))
        write_table(pd.DataFrame(rows, columns=["name", "x", "y", "z"]), folder / f"{name}.tsv")
    return folder


def run(files, out, *options):
    sides = [files / f"{name}_T1w.nii.gz" for name in ("fixed", "moving")]
    return main(["register", *map(str, sides), "--out", str(out), *options])


@pytest.fixture(scope="module")
def registered(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "pair"
    labels = ("--labels", files / "moving_dseg.nii.gz", "--fixed-labels", files / "fixed_dseg.nii.gz")
    assert run(files, out, "--brain", "--preset", "quick", *map(str, labels)) == 0
    return out


def test_a_registration_leaves_its_files_and_says_what_it_reached(registered):
    record = read_json(Path(f"{registered}_registration.json"))
    assert (record["verdict"], record["engine"], record["start"]) == ("pass", "instance", "mass")
    assert set(record["files"]) == set(NAMES) - {"page.html", "registration.json"}
    for name, digest in record["files"].items():
        assert hashlib.sha256(Path(f"{registered}_{name}").read_bytes()).hexdigest() == digest
    scores = pd.DataFrame(record["labels"])
    assert len(scores) == 6 and (scores["dice"] > scores["dice_before"]).all() and scores["dice"].mean() > 0.7
    page = Path(f"{registered}_page.html").read_text()
    assert page.count("data:image/webp;base64,") == 4 and "<script" not in page


def test_the_files_are_those_of_itk(registered, files):
    """SimpleITK warps the moving image by the files as popatlas does."""
    fixed, moving = (sitk.ReadImage(str(files / f"{name}_T1w.nii.gz"), sitk.sitkFloat64) for name in ("fixed", "moving"))
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(f"{registered}_warp.nii.gz", sitk.sitkVectorFloat64))
    chain = sitk.CompositeTransform([sitk.ReadTransform(f"{registered}_affine.mat"), field])
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, chain, sitk.sitkLinear, 0.0)).T
    ours = np.asarray(load_image(f"{registered}_warped.nii.gz").dataobj)
    assert np.abs(theirs - ours).max() < 0.02


def test_labels_applied_again_are_those_of_the_registration(registered, files, tmp_path):
    out = tmp_path / "labels.nii.gz"
    source = str(files / "moving_dseg.nii.gz")
    assert main(["apply", source, "--from", str(registered), "--labels", "--out", str(out)]) == 0
    assert (np.asarray(nib.load(out).dataobj) == np.asarray(nib.load(f"{registered}_labels.nii.gz").dataobj)).all()
    by_files = tmp_path / "by-files.nii.gz"
    transforms = [f"{registered}_warp.nii.gz", f"{registered}_affine.mat"]
    reference = ("--reference", str(files / "fixed_T1w.nii.gz"))
    assert main(["apply", source, "--transforms", *transforms, *reference, "--labels", "--out", str(by_files)]) == 0
    assert (np.asarray(nib.load(by_files).dataobj) == np.asarray(nib.load(out).dataobj)).all()


def test_there_and_back_again_is_where_one_began(registered, files, tmp_path):
    points, there, back = files / "moving.tsv", tmp_path / "there.tsv", tmp_path / "back.tsv"
    assert main(["apply", str(points), "--from", str(registered), "--out", str(there)]) == 0
    assert main(["apply", str(there), "--from", str(registered), "--inverse", "--out", str(back)]) == 0
    start, moved, end = (read_landmarks(path)[["x", "y", "z"]].to_numpy() for path in (points, there, back))
    assert np.linalg.norm(moved - start, axis=1).max() > 1
    assert np.linalg.norm(end - start, axis=1).max() < 0.5  # of 4 mm voxels
    steps = [Step(Path(f"{registered}_affine.mat"), invert=True), Step(Path(f"{registered}_inverse_warp.nii.gz"))]
    assert np.abs(moved - map_points(start, steps)).max() < 0.01, "as ANTs moves points"


def test_distances_of_landmarks_are_those_before_and_after(registered, files, tmp_path):
    """The landmarks of the moving image are where ANTs takes those of the fixed one."""
    table = read_landmarks(files / "fixed.tsv")
    start = table[["x", "y", "z"]].to_numpy()
    goal = map_points(start, [Step(Path(f"{registered}_warp.nii.gz")), Step(Path(f"{registered}_affine.mat"))])
    write_table(table.assign(**dict(zip("xyz", goal.T, strict=True))), tmp_path / "goal.tsv")
    images = [files / f"{name}_T1w.nii.gz" for name in ("fixed", "moving")]
    sides = [
        Given(image, points=points)
        for image, points in zip(images, (files / "fixed.tsv", tmp_path / "goal.tsv"), strict=True)
    ]
    grids = [read_image(side, "fixed").grid for side in sides]
    found = Extras.read(tuple(sides), tuple(grids)).score(way_of_registrations([str(registered)]).forward)
    before, after = np.array(list(found.points.values())).T
    assert before == pytest.approx(np.linalg.norm(goal - start, axis=1)) and after.max() < 0.01
    fewer = Extras((None, None), (table.set_index("name"), table.iloc[1:].set_index("name")))
    ((title, *_),) = fewer.score(way_of_registrations([str(registered)]).forward).summary()
    assert title == f"mean distance of {len(table) - 1} landmarks (1 more in one file only), mm"


def test_chains_end_where_single_steps_do(registered, files, tmp_path):
    """To the fixed image and back to the moving one by one chain: nearly the same labels."""
    first = ("--from", str(registered))
    source, once, twice = files / "moving_dseg.nii.gz", tmp_path / "once.nii.gz", tmp_path / "twice.nii.gz"
    main(["apply", str(source), *first, "--labels", "--out", str(once)])
    main(["apply", str(once), *first, "--inverse", "--labels", "--out", str(twice)])
    one, other = (np.asarray(nib.load(path).dataobj) for path in (source, twice))
    assert np.mean([dice(one == label, other == label) for label in range(1, 7)]) > 0.8


def test_overlapping_labels_are_moved_each_for_itself(registered, files, tmp_path):
    image = load_image(files / "moving_dseg.nii.gz", np.uint8)
    labels = np.asarray(image.dataobj)
    overlapping = np.stack([labels > 0, labels > 3, np.isin(labels, (2, 5))], axis=-1).astype(np.uint8)
    save_image(overlapping, image.affine, tmp_path / "4d.nii.gz")
    out = tmp_path / "moved.nii.gz"
    assert main(["apply", str(tmp_path / "4d.nii.gz"), "--from", str(registered), "--labels", "--out", str(out)]) == 0
    moved, single = np.asarray(nib.load(out).dataobj), np.asarray(nib.load(f"{registered}_labels.nii.gz").dataobj)
    assert moved.shape == (*single.shape, 3) and set(np.unique(moved)) == {0, 1}
    assert dice(moved[..., 1], single > 3) > 0.95
    assert (moved[..., 0] >= moved[..., 1]).mean() > 0.999  # what lies within another one stays there


def test_a_plane_is_registered_too(tmp_path):
    for seed, name in ((1, "fixed"), (2, "moving")):
        draw_miniature(seed, spacing_mm=3).axial(28).save(tmp_path, name)
    labels = ("--labels", str(tmp_path / "moving_dseg.nii.gz"), "--fixed-labels", str(tmp_path / "fixed_dseg.nii.gz"))
    assert run(tmp_path, f"{tmp_path}/out/", "--preset", "fast", *labels) == 0
    record = Outputs(f"{tmp_path}/out/").read()
    assert np.mean([one["dice"] - one["dice_before"] for one in record["labels"]]) > 0.05
    assert nib.load(tmp_path / "out" / "warped.nii.gz").shape == nib.load(tmp_path / "fixed_T1w.nii.gz").shape


@pytest.mark.parametrize("refine", ["none", "rigid", "affine"])
def test_linear_stages_alone(files, tmp_path, refine):
    code = run(files, tmp_path / "x", "--refine", refine, "--start", "global", "--no-fallback")
    record = read_json(tmp_path / "x_registration.json")
    assert record["attempts"][0]["start"] == "global" and record["engine"] == refine
    assert (code == 0) == (record["verdict"] == "pass") == ("affine.mat" in record["files"])
    assert not (tmp_path / "x_warp.nii.gz").exists()
    if refine == "affine":
        assert code == 0


def test_the_start_that_is_asked_for_comes_first_and_errors_of_others_do_not_hide_it(files, tmp_path, monkeypatch):
    calls = []

    def start(_, name, __):
        calls.append(name)
        if len(calls) > 1:
            raise InputError("a mask is too thin")
        return np.eye(4) + 70 * np.eye(4, k=3)

    monkeypatch.setattr("popatlas.pairwise.register.find_start", start)
    assert run(files, tmp_path / "x", "--refine", "none", "--start", "global") == verb.REFUSED
    record = read_json(tmp_path / "x_registration.json")
    assert calls == ["global", "mass", "search"] and record["start"] == "global" and record["metrics"]
    assert ["too thin" in row["reasons"][0] for row in record["attempts"]] == [False, True, True]
    assert (tmp_path / "x_page.html").is_file()


def test_what_the_gate_refuses_leaves_a_page_and_no_transform(files, tmp_path, capsys):
    mirrored = load_image(files / "moving_T1w.nii.gz")
    rng = np.random.default_rng(0)
    noise = rng.random(mirrored.shape).astype(np.float32)
    save_image(noise, mirrored.affine, tmp_path / "noise.nii.gz")
    line = ["register", str(files / "fixed_T1w.nii.gz"), str(tmp_path / "noise.nii.gz"), "--out", str(tmp_path / "x")]
    assert main([*line, "--preset", "quick", "--no-fallback"]) == verb.REFUSED
    assert sorted(path.name for path in tmp_path.glob("x_*")) == ["x_page.html", "x_registration.json"]
    assert "the gate refuses the result" in capsys.readouterr().out
    with pytest.raises(InputError, match="failed its gate"):
        Outputs(str(tmp_path / "x")).read()
    # a second one at the same place leaves nothing of a first one that passed
    assert main(["register", *[str(files / f"{name}_T1w.nii.gz") for name in ("fixed", "moving")], "--out",
                 str(tmp_path / "x"), "--refine", "affine"]) == 0  # fmt: skip
    assert (tmp_path / "x_affine.mat").exists()
    assert main([*line, "--preset", "quick", "--no-fallback"]) == verb.REFUSED
    assert not (tmp_path / "x_affine.mat").exists()


def test_numbers_and_files_are_of_one_attempt(files, tmp_path, monkeypatch):
    """The last attempt is refused before anything is deformed: files and record are of the one before."""
    gate = limits_for(Wanted()) | {"mask_dice": 1.01}  # nothing passes, and only what was deformed is judged by it

    def limits(_):
        return gate

    monkeypatch.setattr("popatlas.pairwise.register.limits_for", limits)
    attempts = plan_attempts(Wanted(preset="quick", fallback=False), 3)
    monkeypatch.setattr("popatlas.pairwise.register.plan_attempts", lambda *_: [*attempts, *attempts])
    real, calls = attempt.of_affine, []

    def second_turns_away(*arguments):
        calls.append(1)
        return real(*arguments) | ({"scale_max": 9.0} if len(calls) == 2 else {})

    monkeypatch.setattr(attempt, "of_affine", second_turns_away)
    sides = [Given(files / f"{name}_T1w.nii.gz") for name in ("fixed", "moving")]
    outcome = register_files(*sides, str(tmp_path / "x"), Wanted(preset="quick"), force=True)
    record = outcome.record
    assert len(record["attempts"]) == 2 and not outcome.passed and "warp.nii.gz" in record["files"]
    assert record["metrics"] == record["attempts"][0]["metrics"] and "mask Dice" in record["reasons"][0]


def test_labels_that_do_not_lie_on_their_image_are_refused_before_anything_is_registered(files, tmp_path, capsys):
    image = load_image(files / "moving_dseg.nii.gz", np.uint8)
    save_image(np.asarray(image.dataobj), image.affine + 8 * np.eye(4, k=3), tmp_path / "off.nii.gz")
    assert run(files, tmp_path / "x", "--labels", str(tmp_path / "off.nii.gz")) == 1
    said = capsys.readouterr()
    assert "do not lie on it: moved" in said.err and "level" not in said.out and not list(tmp_path.glob("x_*"))


def test_what_is_applied_lies_on_its_image_and_follows_its_way(registered, files, tmp_path, capsys):
    image = load_image(files / "moving_T1w.nii.gz")
    out = ("--from", str(registered), "--out", str(tmp_path / "out.nii.gz"))
    save_image(np.asarray(image.dataobj) > 0, image.affine + 8 * np.eye(4, k=3), tmp_path / "off_mask.nii.gz", np.uint8)
    assert main(["apply", str(tmp_path / "off_mask.nii.gz"), *out]) == 1  # a mask by its name
    assert "do not lie on it: moved" in capsys.readouterr().err
    hollow = np.asarray(image.dataobj).copy()
    hollow[3, 3, 3] = np.nan
    save_image(hollow, image.affine, tmp_path / "nan.nii.gz")
    assert main(["apply", str(tmp_path / "nan.nii.gz"), *out]) == 1
    assert "not finite" in capsys.readouterr().err
    line = ["apply", str(files / "moving_T1w.nii.gz"), "--from", str(registered), str(registered), "--out", out[-1]]
    assert main(line) == 1
    assert "the way before it ends in" in capsys.readouterr().err
    assert not (tmp_path / "out.nii.gz").exists()
    labels = str(files / "moving_dseg.nii.gz")  # by its name, too
    assert main(["apply", labels, *out]) == 0
    assert (np.asarray(nib.load(out[-1]).dataobj) == np.asarray(nib.load(f"{registered}_labels.nii.gz").dataobj)).all()


def test_files_of_others_are_not_touched(files, tmp_path):
    (tmp_path / "x_affine.mat").write_text("mine")
    assert run(files, tmp_path / "x", "--refine", "rigid") == 1
    assert (tmp_path / "x_affine.mat").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights", "brain-t1w"), "for brains without skull, .* --brain"),
        (("--weights", "brain-t1w-2d", "--brain"), "images of 2 axes, these have 3"),
        (("--engine", "greedy", "--similarity", "mindssc"), "greedy takes no similarity"),
        (("--engine", "ants", "--weights", "brain-t1w"), "ants takes no weights"),
        (("--preset", "fst"), "no preset 'fst', did you mean 'fast'"),
        (("--set", "raduis=3"), "raduis"),
        (("--resolution", "0.1"), "million voxels .* coarser --resolution"),
        (("--fixed-mask", "{moving}"), "fixed image.* and its mask differ"),
        (("--fixed-labels", "{labels}", "--labels", "{four}"), "do not correspond"),
        (("--fixed-labels", "{labels}"), "give --labels too"),
        (("--moving-points", "{points}"), "give --fixed-points too"),
        (("--fixed-labels", "{labels}", "--labels", "{empty}"), "holds no label"),
        (("--refine", "affine", "--similarity", "nmi"), "--similarity is of the deformable stage"),
        (("--moving-mask", "{flat}"), "constant inside of its mask"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(files, tmp_path, capsys, options, message):
    image = load_image(files / "moving_dseg.nii.gz", np.uint8)
    data = np.asarray(image.dataobj)
    save_image(np.stack([data > 0, data > 2], axis=-1).astype(np.uint8), image.affine, tmp_path / "four.nii.gz")
    save_image((data[:-2] > 0).astype(np.uint8), image.affine, tmp_path / "mask.nii.gz")
    names = {
        "moving": str(tmp_path / "mask.nii.gz"),
        "labels": str(files / "fixed_dseg.nii.gz"),
        "four": str(tmp_path / "four.nii.gz"),
        "points": str(files / "moving.tsv"),
        "empty": str(tmp_path / "empty.nii.gz"),
        "flat": str(tmp_path / "flat.nii.gz"),
    }
    save_image(np.zeros_like(data), image.affine, tmp_path / "empty.nii.gz")
    one = np.zeros_like(data)
    one[25, 25, 25] = 1
    save_image(one, image.affine, tmp_path / "flat.nii.gz")
    filled = [option.format(**names) for option in options]
    more = () if {"--preset", "--refine"} & set(options) else ("--preset", "quick")
    assert run(files, tmp_path / "x", *filled, *more) == 1
    assert not list(tmp_path.glob("x_*"))
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(message, said), said
    assert "Remedy" in said


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("apart", "sform and qform place the image up to 16 mm apart"),
        ("nowhere", "neither sform nor qform is set"),
        ("pixdim", "pixdim says 1x1x1 mm, the affine 4x4x4 mm"),
        ("metres", "0.236 mm wide, which is little in voxels of 4 mm"),
        ("kilometres", "moving image would have .* million voxels"),
        ("oblique plane", "not parallel to the first two axes"),
    ],
)
def test_images_that_others_would_place_elsewhere_are_refused(files, tmp_path, capsys, case, message):
    """ANTs applied to the very files would give something else than is written here."""
    image = load_image(files / "moving_T1w.nii.gz")
    data, affine = np.asarray(image.dataobj), image.affine
    made = nib.Nifti1Image(data, affine)
    if case == "apart":
        made.set_sform(affine, 1)
        made.set_qform(affine + 16 * np.eye(4)[:, :1] * np.eye(4)[3], 1)
    elif case == "nowhere":
        made = nib.Nifti1Image(data, None)
    elif case == "pixdim":
        made.set_qform(None, 0)
        made.header["pixdim"][1:4] = 1
    elif case in ("metres", "kilometres"):
        made = nib.Nifti1Image(data, affine @ np.diag([*[0.001 if case == "metres" else 1000] * 3, 1]))
    else:
        made = nib.Nifti1Image(data[:, 25:26].transpose(0, 2, 1), affine[:, [0, 2, 1, 3]])
    nib.save(made, tmp_path / "moving.nii.gz")
    line = ["register", str(files / "fixed_T1w.nii.gz"), str(tmp_path / "moving.nii.gz"), "--out", str(tmp_path / "x")]
    assert main(line) == 1
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_the_place_of_results_is_looked_at_before_the_work(files, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run(files, tmp_path / "file" / "x", "--resolution", "0.1") == 1
    assert "million" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(files, "")
    assert "is a variable of the shell not set" in capsys.readouterr().err


def test_names_on_the_command_line_are_those_of_the_package():
    assert set(verb.ENGINES) == set(ENGINES) and verb.REFINEMENTS == REFINEMENTS
    assert (verb.STARTS, verb.LINEAR) == (STARTS, LINEAR)


def test_attempts_follow_what_is_wanted():
    first, *others = plan_attempts(Wanted(engine="ffd", preset="fast", start="global", similarity="nmi"), 3)
    assert (first.engine, first.start, first.settings.similarity) == ("ffd", "global", "nmi") and len(others) == 3
    assert [attempt.start for attempt in plan_attempts(Wanted(), 2)] == ["mass", "mass", "global"]
    assert len(plan_attempts(Wanted(fallback=False), 3)) == 1


def test_foregrounds():
    rng = np.random.default_rng(0)
    ball = np.linalg.norm(np.indices((30, 30, 30)) - 15, axis=0) < 9
    for image in (ball * (1 + rng.random(ball.shape)), ball * 1000.0 - 1000 + 20 * rng.random(ball.shape)):
        assert dice(foreground(image.astype(np.float32)), ball) > 0.98
    assert foreground(rng.random((8, 8, 8)).astype(np.float32)).mean() > 0.3
    assert foreground(ball.astype(np.float32)).all()  # a mask has its only contrast at its edge


def test_numbers_that_are_none_are_null_in_json():
    assert LabelScore("1", 0.0, 0.0, float("nan")).content() == {"label": "1", "dice_before": 0.0, "dice": 0.0, "hd95": None}


def test_thick_slices_become_isotropic_in_the_same_place(tmp_path):
    affine = np.array([[0.0, 0, 4, -30], [1, 0, 0, -20], [0, 1, 0, 10], [0, 0, 0, 1]])
    data = np.random.default_rng(0).random((40, 36, 12)).astype(np.float32)
    save_image(data, affine, tmp_path / "thick.nii.gz")
    image = read_image(Given(tmp_path / "thick.nii.gz"), "fixed")
    grid = isotropic(image.grid, 1.5)
    assert grid.spacing == pytest.approx((1.5,) * 3)
    assert np.allclose(grid.centre, image.grid.centre) and np.allclose(grid.direction, image.grid.direction)
    assert all(n * 1.5 >= m * mm - 1e-6 for n, m, mm in zip(grid.shape, image.grid.shape, image.grid.spacing, strict=True))
