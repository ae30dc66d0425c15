"""The training table, its split, and scans on the training grid."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from popatlas.errors import InputError
from popatlas.images.grid import Grid
from popatlas.training import conform
from popatlas.training.conform import load_labels, load_scan, load_slices, middle_of
from popatlas.training.grid import TrainingGrid
from popatlas.training.table import TrainingScan, read_training_table, split_scans
from popatlas.transforms.itk import write_affine
from popatlas.zoo.contract import MARGIN, to_contract
from popatlas.zoo.metadata import InputContract, Intensity

SHAPE = (12, 14, 10)


def save(path, data, affine=None):
    nib.save(nib.Nifti1Image(np.asarray(data, dtype=np.float32), np.eye(4) if affine is None else affine), path)
    return path


def ramp(shape, slopes=(1.0, 2.0, 3.0), offset=5.0):
    """An image that is linear in RAS millimetres on a grid of 1 mm at the origin."""
    return sum(s * x for s, x in zip(slopes, np.indices(shape), strict=False)) + offset


def write(folder, rows, name="scans.tsv"):
    for row in rows:
        for column in ("image", "labels"):
            if row.get(column):
                save(folder / row[column], ramp((4, 4, 4)).round())
    path = folder / name
    table = pd.DataFrame(rows)
    table.to_csv(path, sep="\t", index=False) if path.suffix == ".tsv" else table.to_parquet(path)
    return path


def rows(count, **extra):
    return [{"subject": f"{n:03d}", "image": f"{n}.nii.gz", **extra} for n in range(count)]


@pytest.mark.parametrize("name", ["scans.tsv", "scans.parquet"])
def test_a_table_is_read_as_it_is(tmp_path, name):
    table = [
        {"subject": "007", "image": "a.nii.gz", "session": "1", "labels": "l.nii.gz", "group": "g", "split": "train"},
        {"subject": "007", "image": "b.nii.gz", "session": "2", "labels": None, "group": "g", "split": "train"},
        {"subject": "008", "image": "c.nii.gz", "session": None, "labels": None, "group": "h", "split": "validation"},
        {"subject": "009", "image": "c.nii.gz", "session": None, "labels": None, "group": "h", "split": "test"},
    ]
    scans = read_training_table(write(tmp_path, table, name))
    assert [scan.name for scan in scans] == ["007_1", "007_2", "008", "009"]
    assert [scan.split for scan in scans] == ["train", "train", "validation", "test"]
    assert (scans[0].image, scans[0].labels, scans[1].labels) == (tmp_path / "a.nii.gz", tmp_path / "l.nii.gz", None)
    assert [scan.group for scan in scans] == ["g", "g", "h", "h"]


def broken(change):
    table = rows(4, session="1", split="train", group="", affine="")
    change(table)
    return table


DEFECTS = {
    "no column image": (lambda t: [row.pop("image") for row in t], "no column image", "columns are"),
    "typo": (lambda t: [row.update(label="x") for row in t], "unknown column label", "did you mean labels"),
    "no subject": (lambda t: t[2].update(subject=""), "row 3 has no subject", "fill"),
    "no image": (lambda t: t[1].update(image=""), "row 2 has no image", "fill"),
    "no file": (lambda t: t[1].update(affine="gone.mat"), "row 2: the file in column affine is not there", "path"),
    "twice": (lambda t: t[3].update(subject="001"), "rows 2 and 4 list the same subject", "session"),
    "unknown split": (lambda t: t[0].update(split="dev"), "unknown split 'dev'", "train, validation, test"),
    "two splits": (lambda t: t[3].update(subject="001", session="2", split="test"), "splits train and test", "one split"),
    "no training": (lambda t: [row.update(split="test") for row in t], "no row has the split train", "split train"),
    "alone": (lambda t: t[2].update(group="x"), "row 3 is the only scan in group 'x'", "group"),
    "alone without": (lambda t: [row.update(group="x") for row in t[1:]], "only scan in those without", "group"),
    "no pair": (lambda t: [row.update(split="test") for row in t[1:]], "no pair of training scans", "two of a group"),
}


@pytest.mark.parametrize("defect", list(DEFECTS))
def test_every_defect_is_named_with_place_and_remedy(tmp_path, defect):
    change, message, remedy = DEFECTS[defect]
    path = write(tmp_path, broken(change))
    with pytest.raises(InputError) as caught:
        read_training_table(path)
    assert message in caught.value.message
    assert remedy in caught.value.remedy
    assert caught.value.file == path


def test_a_defect_of_a_row_names_its_subject(tmp_path):
    with pytest.raises(InputError) as caught:
        read_training_table(write(tmp_path, broken(DEFECTS["no file"][0])))
    assert caught.value.subject == "001"


def test_an_empty_table_and_one_that_is_not_there_are_refused(tmp_path):
    path = tmp_path / "scans.tsv"
    with pytest.raises(InputError, match="cannot read table"):
        read_training_table(path)
    path.write_text("subject\timage\n")
    with pytest.raises(InputError, match="no rows"):
        read_training_table(path)


def scans_of(count, sessions=1, group=lambda number: ""):
    return [
        TrainingScan(f"s{n}", image=None, session=str(visit), group=group(n))
        for n in range(count)
        for visit in range(sessions)
    ]


def test_without_split_a_tenth_of_the_subjects_is_for_validation_with_all_their_sessions():
    split = split_scans(scans_of(400, sessions=2))
    chosen = {scan.subject for scan in split if scan.split == "validation"}
    assert 25 <= len(chosen) <= 55
    assert {scan.subject for scan in split if scan.split == "train"}.isdisjoint(chosen)
    assert [(scan.subject, scan.session) for scan in split] == [(s.subject, s.session) for s in scans_of(400, 2)]


def test_a_small_table_has_one_subject_for_validation(tmp_path):
    splits = [scan.split for scan in read_training_table(write(tmp_path, rows(3)))]
    assert sorted(splits) == ["train", "train", "validation"]


def test_the_split_stays_when_subjects_join_or_change_places():
    before = {scan.subject: scan.split for scan in split_scans(scans_of(100))}
    after = {scan.subject: scan.split for scan in split_scans(scans_of(150)[::-1])}
    assert {name: after[name] for name in before} == before


def test_subjects_of_a_group_are_split_together():
    split = split_scans(scans_of(60, group=lambda n: f"twins{n // 2}"))
    for group in {scan.group for scan in split}:
        assert len({scan.split for scan in split if scan.group == group}) == 1
    assert {scan.split for scan in split} == {"train", "validation"}


def test_one_group_of_all_is_split_by_subject():
    assert {scan.split for scan in split_scans(scans_of(20, group=lambda n: "all"))} == {"train", "validation"}


@pytest.mark.parametrize("orientation", ["RAS", "LIA", "PSR"])
def test_the_grid_lies_round_its_centre_in_its_orientation(orientation):
    grid = TrainingGrid((8, 10, 12), (2.0, 1.0, 3.0), orientation, centre=(5.0, -7.0, 9.0)).place(Grid.isotropic((3, 3, 3)))
    assert grid.centre == pytest.approx([-5.0, 7.0, 9.0])
    assert grid.spacing == (2.0, 1.0, 3.0)
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    assert "".join(nib.aff2axcodes(ras)) == orientation


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (8,)},
        {"shape": (8, 8, 1)},
        {"spacing": (1.0, 1.0)},
        {"spacing": (1.0, 0.0, 1.0)},
        {"orientation": "RAL"},
        {"orientation": "RA"},
        {"centre": (0.0, 0.0)},
        {"slice_axis": "S"},
        {"shape": (8, 8), "spacing": (1.0, 1.0), "slice_axis": "S", "orientation": "RS"},
    ],
)
def test_impossible_grids_are_refused(wrong):
    with pytest.raises(ValueError, match=r"grid|spacing|orientation|centre|slice axis"):
        TrainingGrid(**{"shape": (8, 8, 8), "spacing": (1.0, 1.0, 1.0), **wrong})


def test_a_scan_goes_through_its_affine_once(tmp_path):
    """A ramp in millimetres stays one; each voxel shows the point to which the affine sends it."""
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])  # stored LAS
    affine[0, 3] = SHAPE[0] - 1
    image = save(tmp_path / "i.nii.gz", ramp(SHAPE)[::-1], affine)
    matrix = np.eye(4)
    matrix[:3] = [[1.0, 0.05, 0.0, 0.7], [-0.05, 1.0, 0.02, -0.4], [0.0, 0.0, 0.95, 0.3]]
    write_affine(tmp_path / "a.mat", matrix)
    centre = np.array([5.0, 6.0, 4.0])
    grid = TrainingGrid((6, 5, 4), (0.8, 0.9, 1.0), centre=tuple(centre))
    volume = load_scan(TrainingScan("s", image, affine=tmp_path / "a.mat"), grid, "none")
    index = np.indices((6, 5, 4)).reshape(3, -1)
    ras = centre[:, None] + (index - np.array([2.5, 2.0, 1.5])[:, None]) * np.array([0.8, 0.9, 1.0])[:, None]
    flip = np.diag([-1.0, -1.0, 1.0])
    there = flip @ (matrix[:3, :3] @ (flip @ ras) + matrix[:3, 3:])
    expected = np.array([1.0, 2.0, 3.0]) @ there + 5.0
    assert volume.image.shape == (1, 1, 6, 5, 4)
    assert volume.image.dtype == torch.float32
    assert np.abs(volume.image.numpy().ravel() - expected).max() < 1e-4


def test_labels_and_mask_keep_their_values_and_may_have_their_own_grid(tmp_path):
    labels = np.zeros(SHAPE)
    labels[3:9, 3:9, 3:8], labels[5:7, 5:7, 5:7] = 2035, 70001
    coarse = np.diag([2.0, 2.0, 2.0, 1.0])
    mask = np.zeros((6, 7, 5))
    mask[2:4, 2:5, 1:4] = 1
    scan = TrainingScan(
        "s",
        save(tmp_path / "i.nii.gz", ramp(SHAPE)),
        labels=save(tmp_path / "l.nii.gz", labels),
        mask=save(tmp_path / "m.nii.gz", mask, coarse),
    )
    volume = load_scan(scan, TrainingGrid(SHAPE, (1.0,) * 3))
    assert torch.equal(volume.labels[0, 0], torch.as_tensor(labels, dtype=torch.int32))
    assert set(volume.mask.unique().tolist()) == {0.0, 1.0}
    assert bool(volume.mask[0, 0, 4, 4, 2] == 1) and bool(volume.mask[0, 0, 0, 0, 0] == 0)


def test_robust_intensities_are_percentiles_of_the_foreground(tmp_path):
    data = np.zeros(SHAPE)
    inside = np.random.default_rng(0).uniform(100, 900, (6, 6, 6))
    data[3:9, 4:10, 2:8] = inside
    scan = TrainingScan("s", save(tmp_path / "i.nii.gz", data))
    grid = TrainingGrid(SHAPE, (1.0,) * 3)
    image = load_scan(scan, grid).image[0, 0].numpy()
    low, high = np.percentile(inside.astype(np.float32), [1, 99])
    assert np.abs(image[3:9, 4:10, 2:8] - np.clip((inside - low) / (high - low), 0, 1.5)).max() < 1e-5
    assert image.min() == 0 and image.max() == image[3:9, 4:10, 2:8].max() > 1
    zscore = load_scan(scan, grid, "zscore").image[0, 0, 3:9, 4:10, 2:8]
    assert float(zscore.mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(zscore.std()) == pytest.approx(0.25, abs=1e-3)


def test_the_mask_says_what_scales_and_does_not_cut(tmp_path):
    data, mask = ramp(SHAPE), np.zeros(SHAPE)
    mask[6:] = 1
    files = save(tmp_path / "i.nii.gz", data), save(tmp_path / "m.nii.gz", mask)
    volume = load_scan(TrainingScan("s", files[0], mask=files[1]), TrainingGrid(SHAPE, (1.0,) * 3))
    low, high = np.percentile(data[6:], [1, 99])
    assert np.abs(volume.image[0, 0].numpy() - np.clip((data - low) / (high - low), 0, 1.5)).max() < 1e-5
    assert bool((volume.image[0, 0, :6] > 0).any())


def test_a_stripped_image_is_nothing_outside_of_its_mask(tmp_path):
    """As the contract of its network does: cut out first, then scaled by what is inside."""
    data, mask = ramp(SHAPE), np.zeros(SHAPE)
    mask[6:] = 1
    files = save(tmp_path / "i.nii.gz", data), save(tmp_path / "m.nii.gz", mask)
    scan, grid = TrainingScan("s", files[0], mask=files[1]), TrainingGrid(SHAPE, (1.0,) * 3)
    cut, plain = load_scan(scan, grid, stripped=True).image, load_scan(scan, grid).image
    assert not bool(cut[0, 0, :6].any()) and torch.equal(cut[0, 0, 6:], plain[0, 0, 6:]) and bool(plain[0, 0, :6].any())
    contract = InputContract((1.0,) * 3, multiple=1, orientation="RAS", intensity=Intensity("zscore"), stripped=True)
    parts = (torch.as_tensor(part, dtype=torch.float32)[None, None] for part in (data, mask))
    image, brain = parts
    seen = to_contract(image, Grid.from_file(files[0]), contract, brain).image[
        0, 0, MARGIN:-MARGIN, MARGIN:-MARGIN, MARGIN:-MARGIN
    ]
    assert torch.allclose(seen, load_scan(scan, grid, "zscore", stripped=True).image[0, 0, 6:], atol=1e-5)


def test_a_whole_head_without_a_mask_is_no_brain(tmp_path):
    scan, grid = TrainingScan("s", save(tmp_path / "i.nii.gz", ramp(SHAPE))), TrainingGrid(SHAPE, (1.0,) * 3)
    assert load_scan(scan, grid).image.shape[2:] == SHAPE
    with pytest.raises(InputError, match=r"grid\.stripped.* only 0 % of the image are 0") as caught:
        load_scan(scan, grid, stripped=True)
    assert "column `mask`" in caught.value.remedy and caught.value.subject == "s"
    data = ramp(SHAPE)
    data[:3] = 0
    save(tmp_path / "i.nii.gz", data)
    assert not bool(load_scan(scan, grid, stripped=True).image[0, 0, :3].any())


def test_label_maps_are_those_of_the_volumes_and_need_no_image(tmp_path):
    image, dseg = save(tmp_path / "i.nii.gz", ramp(SHAPE)), save(tmp_path / "l.nii.gz", ramp(SHAPE) // 8)
    scan, grid = TrainingScan("s", image, labels=dseg), TrainingGrid((6, 7, 5), (1.5,) * 3)
    plane = TrainingGrid((7, 5), (1.0, 1.0), slice_axis="A")
    whole, slices = load_scan(scan, grid).labels, [each.labels for each in load_slices(scan, plane, [-2.0, 1.0])]
    save(image, np.ones(SHAPE))  # constant: `load_scan` refuses it
    assert torch.equal(load_labels(scan, grid)[0], whole)
    assert all(torch.equal(*each) for each in zip(load_labels(scan, plane, [-2.0, 1.0]), slices, strict=True))
    save(dseg, np.zeros(SHAPE))
    with pytest.raises(InputError, match="no label lies on the training grid") as caught:
        load_labels(scan, grid)
    assert caught.value.subject == "s" and caught.value.file == dseg


def test_growing_voxels_do_not_alias(tmp_path):
    """Of noise, what finer voxels show and coarse ones cannot is taken away; the mean stays."""
    noise = np.random.default_rng(0).standard_normal((24, 24, 24)) + 10
    scan = TrainingScan("s", save(tmp_path / "i.nii.gz", noise))
    fine = load_scan(scan, TrainingGrid((16, 16, 16), (1.0,) * 3), "none").image
    coarse = load_scan(scan, TrainingGrid((6, 6, 6), (3.0,) * 3), "none").image
    assert float(coarse.std()) < 0.3 * float(fine.std())
    assert float(coarse.mean()) == pytest.approx(10, abs=0.1)


def test_slices_are_those_of_the_volume(tmp_path):
    scan = TrainingScan("s", save(tmp_path / "i.nii.gz", ramp(SHAPE)), labels=save(tmp_path / "l.nii.gz", ramp(SHAPE) // 8))
    centre = (5.0, 6.0, 4.0)
    volume = load_scan(scan, TrainingGrid((7, 9, 5), (1.0,) * 3, centre=centre), "none")
    plane = TrainingGrid((7, 5), (1.0, 1.0), centre=centre, slice_axis="A")
    assert plane.axes == "RSA"
    found = load_slices(scan, plane, [-2.0, 1.0], "none")
    for slice_, row in zip(found, (2, 5), strict=True):
        assert slice_.image.shape == (1, 1, 7, 5)
        assert (slice_.image - volume.image[:, :, :, row]).abs().max() < 1e-5
        assert torch.equal(slice_.labels, volume.labels[:, :, :, row])


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1)])
def test_plain_2d_images(tmp_path, shape):
    data = np.random.default_rng(0).uniform(size=shape)
    volume = load_scan(TrainingScan("s", save(tmp_path / "i.nii.gz", data)), TrainingGrid((9, 8), (1.0, 1.0)), "none")
    assert np.abs(volume.image[0, 0].numpy() - data.reshape(9, 8)).max() < 1e-5


def test_the_middle_of_a_scan_goes_back_through_its_affine(tmp_path):
    image = save(tmp_path / "i.nii.gz", ramp(SHAPE))
    matrix = np.eye(4)
    matrix[:3, 3] = [3.0, -2.0, 1.0]
    write_affine(tmp_path / "a.mat", matrix)
    assert middle_of(TrainingScan("s", image)) == pytest.approx((5.5, 6.5, 4.5))
    assert middle_of(TrainingScan("s", image, affine=tmp_path / "a.mat")) == pytest.approx((8.5, 4.5, 3.5))


def bad_scan(folder, kind):
    scan = {"image": save(folder / "i.nii.gz", ramp(SHAPE))}
    if kind == "unreadable":
        scan["image"].write_text("no image")
    elif kind == "constant":
        save(scan["image"], np.ones(SHAPE))
    elif kind == "labels":
        scan["labels"] = save(folder / "l.nii.gz", np.full(SHAPE, 0.5))
    elif kind == "mask":
        scan["mask"] = save(folder / "m.nii.gz", np.zeros(SHAPE))
    elif kind == "axes":
        save(scan["image"], np.random.default_rng(0).uniform(size=(5, 5)))
    elif kind == "affine":
        write_affine(folder / "a.mat", np.eye(3))
        scan["affine"] = folder / "a.mat"
    elif kind == "far":
        matrix = np.eye(4)
        matrix[:3, 3] = 500
        write_affine(folder / "a.mat", matrix)
        scan["affine"] = folder / "a.mat"
    return TrainingScan("who", **scan)


@pytest.mark.parametrize("kind", ["unreadable", "constant", "labels", "mask", "axes", "affine", "far"])
def test_scans_that_cannot_be_used_are_refused(tmp_path, kind):
    with pytest.raises(InputError) as caught:
        load_scan(bad_scan(tmp_path, kind), TrainingGrid(SHAPE, (1.0,) * 3, centre=(5.0, 6.0, 4.0)))
    assert caught.value.subject == "who" and caught.value.remedy and caught.value.file


def test_an_affine_needs_a_grid_with_a_place(tmp_path):
    with pytest.raises(InputError, match="no place") as caught:
        load_scan(bad_scan(tmp_path, "far"), TrainingGrid(SHAPE, (1.0,) * 3))
    assert "centre" in caught.value.remedy


def test_volumes_and_slices_are_not_confused(tmp_path):
    scan = bad_scan(tmp_path, "")
    with pytest.raises(ValueError, match="load_slices"):
        load_scan(scan, TrainingGrid((8, 8), (1.0, 1.0), slice_axis="S"))
    with pytest.raises(ValueError, match="load_scan"):
        load_slices(scan, TrainingGrid(SHAPE, (1.0,) * 3), [0.0])
    with pytest.raises(InputError, match="3 axes, expected 2") as caught:
        load_scan(scan, TrainingGrid((8, 8), (1.0, 1.0)))
    assert "slice axis" in caught.value.remedy
    with pytest.raises(ValueError, match="no intensity"):
        load_scan(scan, TrainingGrid(SHAPE, (1.0,) * 3), "histogram")


def test_each_file_is_interpolated_once(tmp_path, monkeypatch):
    """One call of `Chain.apply` for each file, also through an affine."""
    calls = []
    plain = conform.Chain.apply
    monkeypatch.setattr(conform.Chain, "apply", lambda self, *args: calls.append(args[3]) or plain(self, *args))
    write_affine(tmp_path / "a.mat", np.eye(4))
    files = {"labels": save(tmp_path / "l.nii.gz", ramp(SHAPE) // 8), "mask": save(tmp_path / "m.nii.gz", ramp(SHAPE))}
    scan = TrainingScan("s", save(tmp_path / "i.nii.gz", ramp(SHAPE)), affine=tmp_path / "a.mat", **files)
    load_scan(scan, TrainingGrid((5, 5, 5), (2.0,) * 3, centre=(5.0, 6.0, 4.0)))
    assert sorted(calls) == ["linear", "nearest", "nearest"]
