"""Fields that follow from others: made again, and removed only where what would be made instead is the same."""

import numpy as np
import pytest

from popatlas.images.io import save_image, sha256
from popatlas.receipts import Receipt
from popatlas.study.retention import Fields, make_again, size_of, take_away
from popatlas.transforms.composed import grid_of
from popatlas.transforms.itk import read_displacement, write_affine, write_displacement
from tests.unit.transforms.test_chain import displacement

SHAPE, SCAN = (14, 12, 10), "sub-01/anat/sub-01"
KEPT = {"affine": f"{SCAN}_affine.mat", "warp": f"{SCAN}_warp.nii.gz", "inverse_warp": f"{SCAN}_back.nii.gz"}
WANTED = {"composed": f"{SCAN}_there.nii.gz", "inverse_composed": f"{SCAN}_whole_back.nii.gz"}


@pytest.fixture
def fields(tmp_path):
    """A registration whose receipt names what is kept."""
    template = np.diag([2.0, 2.0, 2.0, 1.0])
    brain = np.diag([1.9, 2.1, 2.0, 1.0])
    brain[:3, 3] = (1, 2, -1)
    rng = np.random.default_rng(0)
    for name, affine in (("template", template), ("brain", brain)):
        save_image(rng.random(SHAPE, dtype=np.float32), affine, tmp_path / f"{name}.nii.gz")
    grid = grid_of(tmp_path / "template.nii.gz")
    matrix = np.eye(4)
    matrix[:3, :3] += rng.normal(0, 0.05, (3, 3))
    (tmp_path / SCAN).parent.mkdir(parents=True)
    write_affine(tmp_path / KEPT["affine"], matrix, centre=grid.centre)
    for seed, name in enumerate(("warp", "inverse_warp")):
        write_displacement(tmp_path / KEPT[name], displacement(grid, seed)[0], grid, rounded=True)
    receipt = tmp_path / "receipt.json"
    made = [str(tmp_path / path) for path in KEPT.values()]
    found = Receipt.of("0" * 16, {}, made)
    named = {path: found.outputs[str(tmp_path / path)] for path in KEPT.values()}
    Receipt("0" * 16, {}, named).write(receipt)
    return Fields(tmp_path, SCAN, str(receipt), KEPT, "template.nii.gz", "brain.nii.gz", WANTED)


def outputs(fields):
    return Receipt.read(fields.receipt).outputs


def test_fields_are_made_and_noted(fields):
    assert size_of([fields]) > 0, "an estimate, before they are there"
    summary = make_again([fields])
    assert (summary.scans, summary.faults) == (1, {}) and summary.size == size_of([fields])
    for path in WANTED.values():
        assert outputs(fields)[path] == ((fields.out_dir / path).stat().st_size, sha256(fields.out_dir / path))
    grid = read_displacement(fields.out_dir / WANTED["inverse_composed"])[1]
    assert grid.same_as(grid_of(fields.out_dir / "brain.nii.gz")), "the way back is on the grid of the scan"


def test_fields_that_are_the_same_are_removed_and_others_stay(fields):
    make_again([fields])
    before = {path: sha256(fields.out_dir / path) for path in WANTED.values()}
    summary = take_away([fields], workers=2)  # one scan: no second process
    assert (summary.scans, summary.worst, summary.faults) == (1, 0.0, {}) and summary.size > 0
    assert set(outputs(fields)) == set(KEPT.values())
    assert not any((fields.out_dir / path).exists() for path in WANTED.values())
    make_again([fields])
    assert {path: sha256(fields.out_dir / path) for path in WANTED.values()} == before


@pytest.mark.parametrize(("moved", "stays"), [(0.005, False), (0.5, True)])
def test_a_field_that_differs_is_kept(fields, moved, stays):
    """That of a registration from before fields were rounded differs by a thousandth of a voxel; another one by more."""
    make_again([fields])
    path = fields.out_dir / WANTED["composed"]
    values, grid = read_displacement(path)
    write_displacement(path, values + moved, grid)
    summary = take_away([fields])
    assert path.exists() == stays and bool(summary.faults) == stays
    if stays:
        assert "differs by 0.866 voxels" in summary.faults[SCAN] and WANTED["composed"] in outputs(fields)
    else:
        assert 0.008 < summary.worst < 0.01


@pytest.mark.parametrize("name", list(KEPT))
def test_nothing_is_removed_where_something_to_make_it_from_is_missing(fields, name):
    make_again([fields])
    (fields.out_dir / KEPT[name]).write_text("garbage")
    summary = take_away([fields])
    assert summary.scans == 0 and list(summary.faults) == [SCAN]
    assert all((fields.out_dir / path).exists() for path in WANTED.values())


def test_a_scan_of_which_nothing_can_be_made_stops_no_other(fields, tmp_path):
    broken = Fields(tmp_path, "sub-02/anat/sub-02", fields.receipt, dict.fromkeys(KEPT, "nothing"), "", "", WANTED)
    summary = make_again([broken, fields])
    assert summary.scans == 1 and list(summary.faults) == ["sub-02/anat/sub-02"]
