"""Labels and masks of others in every step that reads them: exact numbers, and refusals that name file and subject."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popatlas.errors import InputError
from popatlas.fusion.bench import run_bench
from popatlas.fusion.candidates import Candidates
from popatlas.fusion.fuse import fuse
from popatlas.fusion.methods import METHODS
from popatlas.fusion.propagate import propagate
from popatlas.images.io import save_image
from popatlas.interfaces import load_interface
from popatlas.measures.scan import ScanFiles, measure_scan, resample_labels
from popatlas.registration.engines.instance.settings import Settings
from popatlas.registration.engines.instance.terms import Side, deform_files
from popatlas.registration.pair import load_pair
from popatlas.training.conform import load_labels, load_scan
from popatlas.training.grid import TrainingGrid
from popatlas.training.structures import renumbered
from popatlas.training.table import TrainingScan
from popatlas.training.validation import mean_dice
from tests.unit.fusion_files import AFFINE, head

LARGEST = 2**31 - 1
SCAN = "sub-1/anat/sub-1"


def odd(data, affine=AFFINE, sform=1, qform=1):
    """Return what writes an image as other programs may do."""

    def write(path):
        image = nib.Nifti1Image(data, affine, dtype=data.dtype)
        image.set_sform(affine, code=sform)
        image.set_qform(affine, code=qform)
        nib.save(image, path)
        return path

    return write


def apart(data):
    """Return what writes an image whose sform and qform lie 6 mm apart."""

    def write(path):
        image = nib.load(odd(data)(path))
        image.set_qform(AFFINE + 6 * np.eye(4, k=3), code=1)
        nib.save(image, path)
        return path

    return write


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A brain with three labels and its mask."""
    folder = tmp_path_factory.mktemp("one")
    image, labels = head(1)
    save_image(image, AFFINE, folder / "brain.nii.gz")
    save_image((image != 0).astype(np.uint8), AFFINE, folder / "mask.nii.gz")
    return folder / "brain.nii.gz", labels, folder / "mask.nii.gz"


# Propagation


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, LARGEST), min_size=2, max_size=40, unique=True),
    st.sampled_from(["nearestNeighbor", "genericLabel"]),
)
def test_ids_come_through_propagation_exactly(tmp_path_factory, ids, interpolator):
    folder = tmp_path_factory.mktemp("ids")
    labels = np.resize([0, *ids], (4, 4, 4)).repeat(2, 0).astype(np.int32)
    brain = odd(np.ones(labels.shape, np.float32))(folder / "brain.nii")
    found, _ = propagate(brain, [odd(labels)(folder / "dseg.nii")], [brain], [[]], interpolator)
    np.testing.assert_array_equal(found[0], labels)


def test_28_labels_above_16_million_stay_28_from_the_atlas_to_the_table(tmp_path):
    """They were 8: ANTs reads integers as float32."""
    ids = 2**24 + np.arange(1, 29)
    labels = np.zeros((18, 8, 8), np.int32)
    labels[2:16, 2:6, 2:6] = ids.reshape(7, 4, 1, 1).reshape(28)[
        (np.arange(14)[:, None, None] // 2) * 4 + np.arange(4)[:, None]
    ]
    brain = odd((labels > 0) * np.float32(0.5) + np.random.default_rng(0).random(labels.shape, np.float32) * (labels > 0))
    files = {name: str(tmp_path / f"{name}.nii.gz") for name in ("brain", "dseg", "labels", "images", "majority")}
    brain(files["brain"])
    odd(labels)(files["dseg"])
    candidates, images = propagate(Path(files["brain"]), [Path(files["dseg"])] * 2, [Path(files["brain"])] * 2, [[], []])
    assert len(np.unique(candidates)) == 29
    given = Candidates(candidates, images[0], images)
    for method in [name for name, entry in METHODS.items() if not entry.trained]:
        np.testing.assert_array_equal(fuse(given, method=method).dseg, labels)
    save_image(np.moveaxis(candidates, 0, -1), AFFINE, files["labels"], np.int32)
    step = load_interface("FuseLabels")
    step(method="majority", in_labels=files["labels"], out_file=files["majority"]).run()
    table = measure_scan(ScanFiles(SCAN, labels={"majority": Path(files["majority"])}, reference=Path(files["dseg"])))
    table.to_csv(tmp_path / "table.tsv", sep="\t", index=False)
    dice = pd.read_csv(tmp_path / "table.tsv", sep="\t", dtype={"label": str}).query("metric == 'dice'")
    assert dice["label"].tolist() == [str(label) for label in ids]
    assert (dice["value"] == 1).all()
    np.testing.assert_array_equal(resample_labels(Path(files["dseg"]), nib.load(files["brain"])), labels)


@pytest.mark.parametrize(
    "written",
    [
        lambda labels: odd(labels * 0.9999999),
        lambda labels: odd((labels % 1_000_000).astype(np.float32) * np.float32(0.9999999)),
        lambda labels: odd(labels[..., None]),
        lambda labels: odd(labels.astype(np.uint32)),
        lambda labels: odd(labels.astype(np.int64)),
    ],
    ids=["float64", "float32", "4D", "uint32", "int64"],
)
def test_atlases_are_propagated_as_they_are(one, tmp_path, written):
    brain, labels, _ = one
    labels = np.where(labels == LARGEST, 1007, labels)  # 1e-3 of it is more than rounding
    found, _ = propagate(brain, [written(labels)(tmp_path / "dseg.nii.gz")], [brain], [[]])
    np.testing.assert_array_equal(found[0], labels)


def propagated(one, dseg, folder):
    brain = str(one[0])
    import ants

    affine = ants.new_ants_transform(dimension=3, transform_type="AffineTransform")
    ants.write_transform(affine, str(folder / "a.mat"))
    save_image(np.zeros((*one[1].shape, 1, 3)), AFFINE, folder / "w.nii.gz", np.float32)
    return load_interface("PropagateLabels")(
        in_target=brain, in_dsegs=[str(dseg)], in_brains=[brain], in_warps=[str(folder / "w.nii.gz")],
        in_affines=[str(folder / "a.mat")], out_labels=str(folder / "l.nii.gz"), out_images=str(folder / "i.nii.gz"),
        subject="sub-9",
    ).run()  # fmt: skip


FAULTS = {
    "NaN": (lambda labels: odd(np.where(labels == 0, np.nan, labels)), "voxel.* NaN"),
    "fractions": (lambda labels: odd(labels * 0.5), "lie between"),
    "negative": (lambda labels: odd(-labels), "negative"),
    "large": (lambda labels: odd(labels.astype(np.int64) + (labels > 0) * 2**31), "label 4294967295"),
    "4D": (lambda labels: odd(np.stack([labels] * 2, -1)), "4 axes"),
    "no forms": (lambda labels: odd(labels, sform=0, qform=0), "neither sform nor qform"),
    "forms apart": (apart, "6 mm apart"),
    "empty": (lambda labels: odd(labels * 0), "no label"),
    "off the brain": (lambda labels: odd(labels, AFFINE + 30 * np.eye(4, k=3)), "do not lie on the brain"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_atlases_that_cannot_be_used_are_refused_by_the_step(one, tmp_path, fault):
    written, words = FAULTS[fault]
    with pytest.raises(InputError, match=rf"{words}.*dseg\.nii\.gz.*sub-9.*Remedy"):
        propagated(one, written(one[1])(tmp_path / "dseg.nii.gz"), tmp_path)


# Measures


def volumes_and_dice(table):
    found = table[table["method"].isin(["reference", "jlf"])]
    return found.pivot_table(index=["method", "label"], columns="metric", values="value")


@pytest.mark.parametrize("fault", FAULTS)
def test_references_that_cannot_be_used_are_refused(one, tmp_path, fault):
    written, words = FAULTS[fault]
    reference = written(one[1])(tmp_path / "ref.nii.gz")
    labels = {"jlf": odd(one[1])(tmp_path / "jlf.nii.gz")}
    with pytest.raises(InputError, match=rf"{words}.*ref\.nii\.gz.*sub-1.*Remedy"):
        measure_scan(ScanFiles(SCAN, mask=one[2], labels=labels, reference=reference))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_references_and_edited_labels_that_lost_a_little_score_one(one, tmp_path, shape):
    """Dice of 0.9999999 n was 0, and (x, y, z, 1) ended the measurement."""
    labels = np.where(one[1] == LARGEST, 1007, one[1])
    lost = (labels * 0.9999999).reshape(*labels.shape, *shape)
    right = {"jlf": odd(labels)(tmp_path / "jlf.nii.gz")}
    exact = ScanFiles(SCAN, mask=one[2], labels=right, reference=right["jlf"])
    changed = ScanFiles(
        SCAN, mask=one[2], labels={"jlf": odd(lost)(tmp_path / "j.nii.gz")}, reference=odd(lost)(tmp_path / "r.nii.gz")
    )
    found = volumes_and_dice(measure_scan(changed))
    pd.testing.assert_frame_equal(found, volumes_and_dice(measure_scan(exact)))
    assert (found.loc["jlf", "dice"] == 1).all()


@pytest.mark.parametrize("scale", [0.9999999, 255, 0.6])
def test_an_edited_mask_keeps_its_volume(one, tmp_path, scale):
    """Of 0.9999999 nothing was left, as all values are cut to whole numbers."""
    inside = nib.load(one[2]).get_fdata()
    edited = odd(inside * scale)(tmp_path / "mask.nii.gz")
    volume = measure_scan(ScanFiles(SCAN, mask=edited))["value"].iloc[0]
    assert volume == pytest.approx(inside.sum() * 0.008)
    with pytest.raises(InputError, match=r"not finite: 1 voxel.*mask\.nii\.gz.*sub-1"):
        measure_scan(ScanFiles(SCAN, mask=odd(with_nan(inside))(tmp_path / "mask.nii.gz")))


def test_a_mask_that_was_edited_on_another_grid_is_not_measured(one, tmp_path):
    """The header of an editor that knows no millimetres: the brain would have an eighth of its volume."""
    edited = odd(nib.load(one[2]).get_fdata(), np.eye(4))(tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match=r"grids of brain and its mask differ: spacing.*mask\.nii\.gz.*sub-1.*Remedy"):
        measure_scan(ScanFiles(SCAN, mask=edited, brain=one[0]))


def with_nan(data):
    changed = data.copy()
    changed[0, 0, 0] = np.nan
    return changed


def test_the_bench_reads_labels_alike(one, tmp_path):
    labels = np.where(one[1] == LARGEST, 1007, one[1])
    (tmp_path / SCAN).parent.mkdir(parents=True)
    odd(labels * 1.0000001)(tmp_path / f"{SCAN}_desc-jlf_dseg.nii.gz")
    odd(labels)(tmp_path / f"{SCAN}_desc-majority_dseg.nii.gz")
    reference = odd(labels * 0.9999999)(tmp_path / "r.nii.gz")
    table = run_bench(tmp_path, [SCAN], [reference], ["jlf", "majority"]).table
    assert (table.query("metric == 'dice'")["value"] == 1).all()


# Registration and preprocessing


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("scale", [0.9999999, 255, 0.6])
def test_a_pair_has_masks_of_zero_and_one(one, tmp_path, scale, shape):
    inside = nib.load(one[2]).get_fdata()
    mask = odd((inside * scale).reshape(*inside.shape, *shape))(tmp_path / "m.nii.gz")
    pair = load_pair(str(one[0]), str(mask), str(one[0]), str(one[2]), "sub-1")
    np.testing.assert_array_equal(pair.fixed_mask.numpy(), inside)
    np.testing.assert_array_equal(pair.moving_mask.numpy(), inside)


def test_an_edited_raw_mask_is_published_as_it_is(one, tmp_path):
    inside = nib.load(one[2]).get_fdata()
    outputs = {f"out_{name}": str(tmp_path / f"{name}.nii.gz") for name in ("brain", "mask")}
    common = {"in_file": str(one[0]), "volume_ml": [1.0, 100.0], "out_qc": str(tmp_path / "qc.json"), "subject": "sub-1"}
    step, edited = load_interface("NormaliseBrain"), tmp_path / "edited.nii.gz"
    step(in_mask=str(odd(inside * 0.9999999)(edited)), **common, **outputs).run()
    np.testing.assert_array_equal(nib.load(outputs["out_mask"]).get_fdata(), inside)
    with pytest.raises(InputError, match=r"negative|from -1.*edited\.nii\.gz.*sub-1"):
        step(in_mask=str(odd(inside - 1.0)(edited)), **common, **outputs).run()


def test_labels_of_the_instance_engine_are_not_merged(one, tmp_path):
    """2^24 and 2^24 + 1 are one number in float32: two structures drew together."""
    files = {name: odd((one[1] > 0) * np.int32(2**24 + name))(tmp_path / f"{name}.nii.gz") for name in (0, 1)}
    options = Settings(shrink=(1,), iterations=(0,), field_shrink=(1,))
    with pytest.raises(InputError, match="0 labels are common"):
        deform_files(Side(one[0], labels=files[0]), Side(one[0], labels=files[1]), options, tmp_path)


@pytest.mark.parametrize("kind", ["forms", "text"])
def test_an_existing_template_needs_a_header(one, tmp_path, kind):
    template = tmp_path / "t.nii.gz"
    if kind == "forms":
        odd(nib.load(one[0]).get_fdata(), sform=0, qform=0)(template)
    else:
        template.write_text("no image")
    outputs = {"template": "nii.gz", "mask": "nii.gz", "convergence": "tsv", "description": "json"}
    with pytest.raises(InputError, match=r"(neither sform nor qform|cannot read).*t\.nii\.gz.*Remedy"):
        load_interface("DescribeTemplate")(
            in_template=str(template), label="x", version="0",
            **{f"out_{name}": str(tmp_path / f"o_{name}.{end}") for name, end in outputs.items()},
        ).run()  # fmt: skip
    assert not list(tmp_path.glob("o_*"))


# Training


@pytest.mark.parametrize("ndim", [2, 3])
def test_labels_of_a_training_scan_lie_on_its_image(one, tmp_path, ndim):
    image, labels = nib.load(one[0]).get_fdata(dtype=np.float32), one[1]
    shape, place = ((20, 18), np.diag([2.0, 2, 1, 1])) if ndim == 2 else (image.shape, AFFINE)
    image, labels = (data[:, :, 8] if ndim == 2 else data for data in (image, labels))
    files = odd(image, place)(tmp_path / "i.nii.gz"), odd(labels.astype(np.int32), place)(tmp_path / "l.nii.gz")
    scan, grid = TrainingScan("sub-1", files[0], labels=files[1]), TrainingGrid(shape, (2.0,) * ndim)
    assert set(load_scan(scan, grid).labels.unique().tolist()) == set(np.unique(labels).tolist())
    for moved, words in ((labels, "moved, up to 6 mm"), (labels[:-1], "outside of the field of view")):
        odd(moved.astype(np.int32), place + (6 if len(moved) == 20 else 60) * np.eye(4, k=3))(files[1])
        for load in (load_scan, load_labels):
            with pytest.raises(InputError, match=rf"{words}.*l\.nii\.gz.*sub-1.*Remedy"):
                load(scan, grid)


def test_large_numbers_are_renumbered_for_tables():
    maps = [
        torch.tensor(values, dtype=torch.int32).reshape(1, 1, 2, 2) for values in ([0, 5, LARGEST, 9], [5, 5, 70_000, 0])
    ]
    one, other = renumbered(*maps)
    assert one.flatten().tolist() == [0, 1, 4, 2] and other.flatten().tolist() == [1, 1, 3, 0]
    assert renumbered(maps[1] % 100)[0] is not None and renumbered() == ()
    small = maps[1].clamp(max=60_000)
    assert renumbered(small)[0] is small


def test_dice_of_training_does_not_depend_on_the_size_of_ids():
    """A table up to the largest label would take 16 GB."""
    small = torch.randint(0, 4, (3, 1, 1, 10, 10, 10), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    large = torch.tensor([0, 7, 2_000_000_000, LARGEST], dtype=torch.int32)[small.long()]
    assert mean_dice(*large) == mean_dice(*small) > 0
