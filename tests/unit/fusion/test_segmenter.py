"""The segmentation network of the cohort: what it learns, its crop, its files, and its two steps."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from popatlas.errors import InputError
from popatlas.fusion.segmenter import load_segmenter, save_segmenter, segment, train_segmenter
from popatlas.fusion.settings import DataParametersSettings
from popatlas.images.io import read_json, save_image
from popatlas.interfaces.fusion_networks import SegmentScan, TrainSegmenter
from popatlas.measures.overlap import overlap
from tests.unit.fusion_files import AFFINE, SHAPE, VALUES, head

SETTINGS = {"epochs": 12, "voxels": 2000, "rate": 0.01, "seed": 1, "positions": False, "augment": False}
QUICK = {"epochs": 1, "voxels": 500}


@pytest.fixture(scope="module")
def heads():
    return [head(seed) for seed in range(20, 32)]


@pytest.fixture(scope="module")
def trained(heads):
    images, dsegs = zip(*heads[:9], strict=True)
    return train_segmenter(images, dsegs, [str(number) for number in range(9)], DataParametersSettings(**SETTINGS))


@pytest.fixture
def files(tmp_path, heads):
    """Traits of TrainSegmenter for three heads."""
    for number, (image, dseg) in enumerate(heads[:3]):
        save_image(image, AFFINE, tmp_path / f"{number}_brain.nii.gz")
        save_image(dseg, AFFINE, tmp_path / f"{number}_dseg.nii.gz", np.int32)
    return {
        "in_targets": [str(tmp_path / f"{number}_brain.nii.gz") for number in range(3)],
        "in_dsegs": [str(tmp_path / f"{number}_dseg.nii.gz") for number in range(3)],
        "scans": ["sub-0", "sub-1", "sub-2"],
        "settings": QUICK | {"enabled": True, "labels": "jlf", "targets": 64, "gpu": 0},
        "out_network": str(tmp_path / "out" / "net.safetensors"),
        "out_curve": str(tmp_path / "out" / "curve.tsv"),
        "record": str(tmp_path / "train.json"),
    }


def test_it_labels_heads_that_it_has_not_seen(heads, trained):
    np.testing.assert_array_equal(trained.labels, VALUES)
    assert len(trained.losses) == 12
    assert trained.losses[-1] < trained.losses[0] / 4
    for image, truth in heads[9:]:
        dseg, probability = segment(trained.network, trained.labels, image)
        assert dseg.dtype == np.int32
        assert probability.dtype == np.float32
        scores = overlap(truth, dseg)
        assert scores["label"].tolist() == VALUES[1:].tolist()
        assert scores["dice"].mean() > 0.9
        assert scores["dice"].min() > 0.8
        assert 1 / len(VALUES) <= probability.min() < probability.max() <= 1
        # it is less sure where it is wrong
        assert probability[dseg != truth].mean() < probability[dseg == truth].mean() - 0.1


def test_training_is_repeated_by_its_seed_and_ignores_data_parameters(heads):
    images, dsegs = zip(*heads[:2], strict=True)

    def weights(**more):
        found = train_segmenter(images, dsegs, ["a", "b"], DataParametersSettings(**QUICK, **more))
        return found.network.classifier.weight

    first = weights()
    assert (weights() == first).all()
    assert (weights(update="inline", trust_rate=9.0, warm_up=0) == first).all()
    assert (weights(seed=1) != first).any()


def test_a_scan_is_cropped_as_in_training(heads, trained):
    """The head is the same wherever it lies in its grid: what is empty round it has no part in it."""
    image = np.pad(heads[9][0], 2)
    dseg, probability = segment(trained.network, trained.labels, image)
    padded, wide = (segment(trained.network, trained.labels, np.pad(image, ((side, 9), (0, 5), (4, 0)))) for side in (0, 7))
    inside = image != 0
    assert dseg[inside].any()
    for (found, share), side in ((padded, 0), (wide, 7)):
        part = tuple(slice(first, first + n) for first, n in zip((side, 0, 4), image.shape, strict=True))
        np.testing.assert_array_equal(found[part][inside], dseg[inside])
        np.testing.assert_allclose(share[part][inside], probability[inside], atol=1e-5)
        border = np.ones(found.shape, dtype=bool)
        border[part] = False
        assert not found[border].any()
    far = wide[0][-6:], wide[1][-6:]
    assert not far[0].any()
    assert (far[1] == 1).all()


def test_its_file_gives_the_same_labels(heads, trained, tmp_path):
    path = tmp_path / "net.safetensors"
    save_segmenter(trained, DataParametersSettings(**SETTINGS), path)
    network, labels = load_segmenter(path)
    for before, after in zip(
        segment(trained.network, trained.labels, heads[10][0]), segment(network, labels, heads[10][0]), strict=True
    ):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("place", [-1, 200])
def test_a_file_that_was_changed_is_refused(heads, trained, tmp_path, place):
    path = tmp_path / "net.safetensors"
    save_segmenter(trained, DataParametersSettings(**SETTINGS), path)
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    save_image(heads[0][0], AFFINE, tmp_path / "brain.nii.gz")
    with pytest.raises(InputError, match=r"net\.safetensors"):
        SegmentScan(
            in_target=str(tmp_path / "brain.nii.gz"), in_network=str(path), out_file=str(tmp_path / "d.nii.gz")
        ).run()


def test_the_steps_are_the_python_calls(heads, files, tmp_path):
    TrainSegmenter(**files).run()
    images, dsegs = zip(*heads[:3], strict=True)
    python = train_segmenter(images, dsegs, files["scans"], DataParametersSettings(**QUICK))
    network, labels = load_segmenter(files["out_network"])
    assert (network.classifier.weight == python.network.classifier.weight).all()
    curve = pd.read_csv(files["out_curve"], sep="\t")
    assert curve["epoch"].tolist() == [1]
    np.testing.assert_allclose(curve["cross_entropy"], python.losses, rtol=1e-12)
    assert read_json(files["record"])["notes"] == {
        "targets": ["sub-0", "sub-1", "sub-2"], "skipped": {}, "device": "cpu", "labels": 4,
    }  # fmt: skip
    save_image(heads[11][0], AFFINE, tmp_path / "brain.nii.gz")
    outputs = {"out_file": str(tmp_path / "new" / "d.nii.gz"), "out_probability": str(tmp_path / "new" / "p.nii.gz")}
    SegmentScan(in_target=str(tmp_path / "brain.nii.gz"), in_network=files["out_network"], **outputs).run()
    dseg, probability = segment(network, labels, heads[11][0])
    for path, expected in zip(outputs.values(), (dseg, probability), strict=True):
        image = nib.load(path)
        np.testing.assert_array_equal(np.asarray(image.dataobj), expected)
        assert image.get_data_dtype() == expected.dtype
        np.testing.assert_allclose(image.affine, AFFINE)


def test_a_network_of_data_parameters_can_label_scans_too(heads, files, tmp_path):
    from popatlas.interfaces.fusion_networks import TrainDataParameters

    stack = np.stack([heads[0][1], np.roll(heads[0][1], 1, 0)], axis=-1)
    save_image(stack, AFFINE, tmp_path / "labels.nii.gz", np.int32)
    network = str(tmp_path / "trust.safetensors")
    TrainDataParameters(
        in_labels=[str(tmp_path / "labels.nii.gz")], in_targets=files["in_targets"][:1], scans=["sub-0"], settings=QUICK,
        atlases={"sub-0": ["a", "b"]}, out_network=network, out_parameters=str(tmp_path / "p.parquet"),
        out_curve=str(tmp_path / "c.tsv"),
    ).run()  # fmt: skip
    out = str(tmp_path / "d.nii.gz")
    SegmentScan(in_target=files["in_targets"][1], in_network=network, out_file=out).run()
    assert np.isin(np.unique(np.asarray(nib.load(out).dataobj)), VALUES).all()


def test_targets_without_labels_are_skipped_and_noted(files, heads):
    save_image(np.zeros(SHAPE), AFFINE, files["in_dsegs"][1], np.int32)
    TrainSegmenter(**files).run()
    notes = read_json(files["record"])["notes"]
    assert notes["targets"] == ["sub-0", "sub-2"]
    assert notes["skipped"] == {"sub-1": "no label"}
    for path in files["in_dsegs"]:
        save_image(np.zeros(SHAPE), AFFINE, path, np.int32)
    with pytest.raises(InputError, match=r"no image to train a segmentation network on.*Remedy"):
        TrainSegmenter(**files).run()


def test_what_cannot_be_trained_on_is_refused(files, heads):
    with pytest.raises(InputError, match="2 files in in_dsegs for 3 scans"):
        TrainSegmenter(**files | {"in_dsegs": files["in_dsegs"][:2]}).run()
    with pytest.raises(InputError, match="named twice"):
        TrainSegmenter(**files | {"scans": ["a", "b", "a"]}).run()
    image = heads[2][0].copy()
    image[0, 0, 0] = np.inf
    save_image(image, AFFINE, files["in_targets"][2])
    with pytest.raises(InputError, match=r"not finite.*sub-2"):
        TrainSegmenter(**files).run()
    moved = AFFINE.copy()
    moved[2, 3] -= 3
    save_image(heads[1][1], moved, files["in_dsegs"][1], np.int32)
    with pytest.raises(InputError, match=r"differ: origin.*1_dseg\.nii\.gz.*sub-1"):
        TrainSegmenter(**files).run()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros(SHAPE), "is empty"),
        (np.full(SHAPE, np.nan), "not finite"),
        (np.ones((*SHAPE, 2)), "4 axes, the network takes 3"),
    ],
)
def test_what_cannot_be_labelled_is_refused(trained, tmp_path, image, message):
    save_segmenter(trained, DataParametersSettings(**SETTINGS), tmp_path / "net.safetensors")
    save_image(image, AFFINE, tmp_path / "brain.nii.gz", np.float32)
    named = {"in_network": str(tmp_path / "net.safetensors"), "out_file": str(tmp_path / "d.nii.gz"), "subject": "sub-7"}
    with pytest.raises(InputError, match=rf"{message}.*brain\.nii\.gz.*sub-7.*Remedy"):
        SegmentScan(in_target=str(tmp_path / "brain.nii.gz"), **named).run()
    with pytest.raises(InputError, match=r"cannot read network.*none"):
        SegmentScan(in_target=str(tmp_path / "brain.nii.gz"), **named | {"in_network": str(tmp_path / "none")}).run()
