"""Tissue maps of a template: known tissues in noisy brains, priors on another grid, maps that are given, refusals."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from popatlas.errors import InputError
from popatlas.groupwise.tissues import tissue_maps
from popatlas.images.io import read_json, save_image
from popatlas.interfaces import load_interface
from popatlas.measures.wide import wide_volumes

LEVELS = np.array([0.0, 0.3, 0.7, 1.0])
SHAPE = (24, 24, 20)


def anatomy(shift=0):
    """Return nested boxes: 0 outside, 1 CSF, 2 GM, 3 WM."""
    labels = np.zeros(SHAPE, int)
    for tissue, margin in ((1, 3), (2, 5), (3, 8)):
        labels[margin + shift : -margin or None, margin:-margin, margin:-margin] = tissue
    return labels


def brain(labels, seed, noise=0.06):
    image = LEVELS[labels] + noise * np.random.default_rng(seed).standard_normal(SHAPE)
    return torch.from_numpy((image * (labels > 0)).astype(np.float32)), torch.from_numpy(labels > 0)


def test_the_maps_are_the_shares_of_the_brains():
    """Where the brains differ by two voxels, half of them have each tissue."""
    both = [anatomy(0), anatomy(2)]
    maps = tissue_maps([lambda i=i: brain(both[i % 2], i) for i in range(8)])
    truth = np.stack([np.mean([labels == tissue for labels in both], 0) for tissue in (1, 2, 3)])
    seen = np.mean([labels > 0 for labels in both], 0)
    expected = np.divide(truth, seen, where=seen > 0, out=np.zeros_like(truth))
    assert np.abs(maps.numpy() - expected).mean() < 0.01
    assert float(maps.sum(0).max()) == pytest.approx(1, abs=1e-5)


def test_one_brain_is_enough():
    labels = anatomy()
    maps = tissue_maps([lambda: brain(labels, 1)])
    assert np.mean((maps.argmax(0).numpy() + 1 == labels)[labels > 0]) > 0.98


def test_a_brain_that_cannot_be_divided_is_left_out_and_named():
    flat = (torch.ones(SHAPE), torch.from_numpy(anatomy() > 0))
    said = []
    maps = tissue_maps([lambda: brain(anatomy(), 1), lambda: flat], progress=said.append)
    torch.testing.assert_close(maps, tissue_maps([lambda: brain(anatomy(), 1)]))
    assert said[0].startswith("brain 2 is left out of the maps: contrast 1 is constant")
    with pytest.raises(InputError, match="is constant"):
        tissue_maps([lambda: flat])


def test_without_brains_it_is_refused():
    with pytest.raises(InputError, match="of no brain"):
        tissue_maps([])


@pytest.fixture
def files(tmp_path):
    labels = anatomy()
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    image, mask = brain(labels, 3)
    save_image(image.numpy(), affine, tmp_path / "brain.nii.gz", np.float32)
    save_image(mask.numpy(), affine, tmp_path / "mask.nii.gz", np.uint8)
    return tmp_path, labels, affine


def classify(folder, **more):
    step = load_interface("ClassifyTemplate")(
        in_template=str(folder / "brain.nii.gz"),
        in_brains=[str(folder / "brain.nii.gz")],
        in_masks=[str(folder / "mask.nii.gz")],
        out_maps=str(folder / "maps.nii.gz"),
        out_description=str(folder / "maps.json"),
        **{key: str(value) for key, value in more.items()},
    )
    step.run()
    return np.asarray(nib.load(folder / "maps.nii.gz").dataobj)


def test_a_template_is_divided_and_a_scan_by_it_through_its_registration(files):
    """The scan lies 4 mm from the template, which its affine tells; the tissues come out at the right place."""
    folder, labels, affine = files
    maps = classify(folder)
    assert read_json(folder / "maps.json")["LabelMap"] == ["CSF", "GM", "WM"]
    assert np.mean((maps.argmax(-1) + 1 == labels)[labels > 0]) > 0.98
    moved = affine.copy()
    moved[0, 3] = 4.0
    for name in ("brain", "mask"):
        values = np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj)
        save_image(values, moved, folder / f"scan_{name}.nii.gz", values.dtype)
    from popatlas.images.grid import Grid
    from popatlas.transforms.itk import write_affine, write_displacement

    shift = torch.eye(4, dtype=torch.float64)
    shift[0, 3] = -4.0  # LPS
    write_affine(folder / "affine.mat", shift)
    write_displacement(folder / "back.nii.gz", torch.zeros(3, *SHAPE), Grid.from_file(folder / "brain.nii.gz"))
    load_interface("SegmentTissues")(
        in_images=[str(folder / "scan_brain.nii.gz")],
        in_mask=str(folder / "scan_mask.nii.gz"),
        in_prior=str(folder / "maps.nii.gz"),
        in_affine=str(folder / "affine.mat"),
        in_inverse_warp=str(folder / "back.nii.gz"),
        names=["CSF", "GM", "WM"],
        out_posterior=str(folder / "posterior.nii.gz"),
        out_labels=str(folder / "dseg.nii.gz"),
        out_volumes=str(folder / "volumes.tsv"),
    ).run()
    found = np.asarray(nib.load(folder / "dseg.nii.gz").dataobj)
    assert np.mean((found == labels)[labels > 0]) > 0.98
    volumes = pd.read_csv(folder / "volumes.tsv", sep="\t")
    truth = [0.008 * (labels == tissue).sum() for tissue in (1, 2, 3)]
    assert volumes["volume_ml"].to_numpy() == pytest.approx(truth, rel=0.05)


def test_maps_that_are_given_are_taken_as_they_are_and_wrong_ones_refused(files):
    folder, labels, affine = files
    given = np.stack([labels == tissue for tissue in (1, 2, 3)], -1).astype(np.float32)
    save_image(given, affine, folder / "given.nii.gz", np.float32)
    np.testing.assert_array_equal(classify(folder, in_maps=folder / "given.nii.gz"), given)
    for wrong, words in ((2 * given, "no probabilities of CSF, GM, WM"), (given[..., :2], "no probabilities")):
        save_image(wrong, affine, folder / "wrong.nii.gz", np.float32)
        with pytest.raises(InputError, match=words):
            classify(folder, in_maps=folder / "wrong.nii.gz")
    for order in ((1, 2, 0), (2, 1, 0)):  # as other programs have them, and from bright to dark
        save_image(given[..., order], affine, folder / "wrong.nii.gz", np.float32)
        with pytest.raises(InputError, match=r"is not brighter than .*in this order"):
            classify(folder, in_maps=folder / "wrong.nii.gz")
    save_image(given * [1, 1, 0], affine, folder / "wrong.nii.gz", np.float32)
    with pytest.raises(InputError, match="WM is nowhere in the template"):
        classify(folder, in_maps=folder / "wrong.nii.gz")
    save_image(given[:-1], affine, folder / "wrong.nii.gz", np.float32)
    with pytest.raises(InputError, match="does not lie on the grid of brain"):
        classify(folder, in_maps=folder / "wrong.nii.gz")


@pytest.mark.parametrize("levels", [(0.3, 0.6, 1.0), (0.3, 0.3, 1.0), (1.0, 1.0, 1.0)])
def test_a_brain_with_fewer_intensities_than_tissues_is_named(files, levels):
    folder, labels, affine = files
    save_image(np.array([0, *levels])[labels], affine, folder / "brain.nii.gz", np.float32)
    if len(set(levels)) == 3:
        assert np.mean((classify(folder).argmax(-1) + 1 == labels)[labels > 0]) == 1, "without noise"
        return
    with pytest.raises(InputError, match=r"brain\.nii\.gz"):
        classify(folder)


def test_tissues_that_are_not_where_those_of_a_t1w_are_get_said(files):
    """A T2w that is called T1w: its brightest class is at the rim, and the numbers come out all the same."""
    folder, labels, affine = files

    def said(levels, maps):
        image = np.array([0, *levels])[labels] + 0.03 * np.random.default_rng(0).standard_normal(SHAPE)
        save_image(image * (labels > 0), affine, folder / "brain.nii.gz", np.float32)
        step = load_interface("SegmentTissues")(
            in_images=[str(folder / "brain.nii.gz")],
            in_mask=str(folder / "mask.nii.gz"),
            in_prior=str(folder / maps),
            names=["CSF", "GM", "WM"],
            out_posterior=str(folder / "posterior.nii.gz"),
        )
        step.run()
        return step.said

    right = np.stack([labels == tissue for tissue in (1, 2, 3)], -1).astype(np.float32)
    save_image(right, affine, folder / "right.nii.gz", np.float32)
    save_image(right[..., ::-1], affine, folder / "turned.nii.gz", np.float32)
    assert said((0.3, 0.6, 1.0), "right.nii.gz") == []
    assert "is not brighter" in said((1.0, 0.6, 0.3), "right.nii.gz")[0], "this scan alone is no T1w"
    assert "lies no deeper" in said((1.0, 0.6, 0.3), "turned.nii.gz")[0], "nor are those that the maps were found in"


def test_columns_of_structures_keep_their_names_when_there_are_tissues():
    rows = [("majority", "csf", 1.0), ("majority", "Gm", 2.0), ("tissues", "CSF", 3.0), ("tissues", "GM", 4.0)]
    table = pd.DataFrame(rows, columns=["method", "label", "value"])
    table = table.assign(metric="volume", participant_id="sub-01", session_id="")
    wide = wide_volumes(table, table[["participant_id", "session_id"]].drop_duplicates(), None, {1: "csf"})
    assert list(wide.columns[2:]) == ["majority_csf", "majority_gm", "tissues_csf", "tissues_gm"]
    assert wide.iloc[0, 2:].tolist() == [1.0, 2.0, 3.0, 4.0]
