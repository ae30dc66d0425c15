"""The steps of label fusion with files: every method, the table of atlas weights, what is left out, what is refused."""

import nibabel as nib
import numpy as np
import pytest

from popatlas.errors import InputError
from popatlas.fusion.candidates import Candidates
from popatlas.fusion.dataparams.scan import overlaps
from popatlas.fusion.fuse import fuse
from popatlas.fusion.labels import disputed_mask
from popatlas.fusion.methods import MAPS, METHODS
from popatlas.images.io import read_json, save_image
from popatlas.interfaces.fuse import FuseLabels
from popatlas.interfaces.fusion_networks import TrainDataParameters
from popatlas.measures.overlap import overlap
from tests.unit.fusion.steps import JOINT, TRAINING, atlas_weights_of, notes_of, training_inputs, voxels
from tests.unit.fusion_files import AFFINE, NAMES, SHAPE, VALUES, case

VOTERS = [name for name, entry in METHODS.items() if not entry.trained]


# One scan, every method


@pytest.mark.parametrize("method", VOTERS)
def test_a_method_through_files_is_the_python_call(target, method):
    settings = {"ties": "lowest", "jlf": JOINT, "similarity": {"power": 4.0, "radius": 1}}
    outputs = {f"out_{name}": target.file(name) for name in MAPS} | {"out_atlas_weights": target.file("trust", "tsv")}
    inputs = target.inputs(method, settings=settings, **outputs)
    FuseLabels(**inputs).run()
    own = {"global": {"power": 4.0}, "local": settings["similarity"], "jlf": JOINT, "jlfants": JOINT}
    expected = fuse(target.candidates, method=method, ties="lowest", **own.get(method, {}))
    image = nib.load(inputs["out_file"])
    assert image.get_data_dtype() == np.int32
    np.testing.assert_allclose(image.affine, AFFINE)
    np.testing.assert_array_equal(voxels(inputs["out_file"]), expected.dseg)
    np.testing.assert_array_equal(np.unique(expected.dseg), VALUES)
    for name in MAPS:
        assert nib.load(target.file(name)).get_data_dtype() == np.float32
        np.testing.assert_array_equal(voxels(target.file(name)), getattr(expected, name)())
    table = atlas_weights_of(outputs["out_atlas_weights"])
    np.testing.assert_allclose(table["trust"], expected.atlas_weights)
    assert table["parameter"].isna().all()
    assert notes_of(inputs) | {"atlases": 4, "method": method, "left_out": []} == notes_of(inputs)


def test_options_left_out_keep_their_defaults_and_maps_are_written_where_they_are_asked_for(target):
    inputs = target.inputs("jlf")
    before = set(target.folder.iterdir())
    FuseLabels(**inputs).run()
    np.testing.assert_array_equal(voxels(inputs["out_file"]), fuse(target.candidates, method="jlf").dseg)
    assert {path.name for path in set(target.folder.iterdir()) - before} == {"sub-9_jlf_dseg.nii.gz", "sub-9_jlf.json"}
    assert read_json(inputs["record"])["peak_mb"] > 0


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("jlf", {"jlf": {"raduis": 2}}, r"fuse\.jlf: unknown key 'raduis', did you mean 'radius'"),
        ("local", {"similarity": {"power": -1}}, r"fuse\.similarity\.power: -1 should be greater than or equal to 0"),
        ("global", {"similarity": {"radius": 2.5}}, r"fuse\.similarity\.radius: 2\.5 should be a valid integer"),
    ],
)
def test_options_that_a_method_has_not_or_cannot_have_are_refused(target, method, settings, message):
    with pytest.raises(InputError, match=message):
        FuseLabels(**target.inputs(method, settings=settings)).run()


def test_the_atlas_weights_table_ranks_the_atlases_and_tells_their_overlap(target):
    inputs = target.inputs("global", out_atlas_weights=target.file("trust", "tsv"))
    FuseLabels(**inputs).run()
    table, dseg = atlas_weights_of(inputs["out_atlas_weights"]), voxels(inputs["out_file"])
    assert list(table) == ["scan", "method", "atlas", "trust", "rank", "parameter", "overlap"]
    assert table["atlas"].tolist() == list(NAMES)
    assert set(table["scan"]) == {"sub-9"}
    assert set(table["method"]) == {"global"}
    assert table["trust"].sum() == pytest.approx(1, abs=1e-6)
    assert table["rank"].tolist() == [1, 2, 3, 4]
    assert table["trust"].is_monotonic_decreasing
    expected = [overlap(dseg, one)["dice"].mean() for one in target.labels]
    np.testing.assert_allclose(table["overlap"], expected, rtol=1e-12)
    assert expected[0] > 0.9 > 0.5 > expected[3]  # the labels are those of the good candidate, mostly


def test_equal_atlas_weights_shares_the_better_rank(target):
    inputs = target.inputs("majority", out_atlas_weights=target.file("trust", "tsv"))
    FuseLabels(**inputs).run()
    assert atlas_weights_of(inputs["out_atlas_weights"])["rank"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("left_out", [(), (1,)])
def test_overlap_counts_labels_of_either_image(left_out):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (3, 6, 5, 4)).astype(np.int32)
    labels[:, :3] = labels[0, :3]
    labels[2][labels[2] == 3] = 9
    labels[list(left_out)] = 0
    dseg = np.where(disputed_mask(labels) & (labels[0] == 2), 5, labels[0])
    expected = [overlap(dseg, one)["dice"].mean() for one in labels]
    np.testing.assert_allclose(overlaps(Candidates(labels), dseg), expected, rtol=1e-12)
    assert np.isnan(overlaps(Candidates(np.zeros((1, 2, 2), np.int32)), np.zeros((2, 2), np.int32))).all()


@pytest.mark.parametrize("method", METHODS)
def test_one_candidate_is_the_result(target, trained, method):
    target.labels, target.images, target.names = target.labels[:1], target.images[:1], ("good",)
    network = {"in_network": trained["out_network"], "in_parameters": trained["out_parameters"]}
    inputs = target.write().inputs(method, out_atlas_weights=target.file("trust", "tsv"), out_probability=target.file("p"))
    FuseLabels(**inputs, **(network if method == "dataparams" else {})).run()
    np.testing.assert_array_equal(voxels(inputs["out_file"]), target.labels[0])
    assert (voxels(inputs["out_probability"]) == 1).all()
    row = atlas_weights_of(inputs["out_atlas_weights"]).iloc[0]
    assert (row["trust"], row["rank"], row["overlap"]) == (1, 1, 1)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_candidate_is_left_out_and_noted(target, trained, method):
    network = {"in_network": trained["out_network"]} if method == "dataparams" else {}
    target.labels[1] = 0
    inputs = target.write().inputs(method, settings={"jlf": JOINT}, out_atlas_weights=target.file("trust", "tsv"))
    FuseLabels(**inputs, **network).run()
    assert notes_of(inputs)["left_out"] == ["fair"]
    table = atlas_weights_of(inputs["out_atlas_weights"]).set_index("atlas")
    assert (table.loc["fair", "trust"], table.loc["fair", "overlap"]) == (0, 0)
    assert table.loc["fair", "rank"] == table["rank"].max() == (table["trust"] > 0).sum() + 1
    assert np.isnan(table.loc["fair", "parameter"])
    assert table["trust"].sum() == pytest.approx(1, abs=1e-6)
    found = voxels(inputs["out_file"])
    kept = [0, 2, 3]
    target.labels, target.images, target.names = target.labels[kept], target.images[kept], tuple(NAMES[i] for i in kept)
    again = target.write().inputs(method, settings={"jlf": JOINT})
    FuseLabels(**again, **network).run()
    np.testing.assert_array_equal(voxels(again["out_file"]), found)
    assert notes_of(again)["left_out"] == []


@pytest.mark.parametrize("method", METHODS)
def test_more_labels_than_a_byte_holds(tmp_path, method):
    many = case(tmp_path, "sub-m", 5)
    cells = np.ravel_multi_index(np.indices(SHAPE) // 2, [n // 2 for n in SHAPE])
    many.truth = np.where(many.truth > 0, 300 + 5 * cells, 0).astype(np.int32)
    many.labels = np.stack([np.roll(many.truth, shift, (0, 1, 2)) for shift in ((0, 0, 0), (1, 0, 0), (0, -1, 0))])
    many.images, many.names = many.images[:3], NAMES[:3]
    values = np.unique(many.write().labels)
    assert len(values) > 150
    assert values[-1] - values[0] > 255
    network = {}
    if method == "dataparams":
        training = training_inputs([many], tmp_path, settings=TRAINING | {"epochs": 1})
        TrainDataParameters(**training).run()
        network = {"in_network": training["out_network"], "in_parameters": training["out_parameters"]}
    inputs = many.inputs(method, settings={"jlf": JOINT})
    FuseLabels(**inputs, **network).run()
    found = voxels(inputs["out_file"])
    agreed = ~many.candidates.disputed
    np.testing.assert_array_equal(found[agreed], many.labels[0][agreed])
    assert (found[None] == many.labels).any(axis=0).mean() > 0.95
    assert np.isin(found, values).all()
    assert found.max() > 255


@pytest.mark.parametrize("method", ["majority", "jlf"])
def test_selection_keeps_the_most_similar_images(target, method):
    inputs = target.inputs(method, settings={"select": 2, "jlf": JOINT}, out_atlas_weights=target.file("trust", "tsv"))
    FuseLabels(**inputs).run()
    assert notes_of(inputs)["left_out"] == ["poor", "lost"]
    assert (atlas_weights_of(inputs["out_atlas_weights"])["trust"] > 0).tolist() == [True, True, False, False]
    expected = fuse(target.candidates.pick([0, 1]), method=method, **(JOINT if method == "jlf" else {}))
    np.testing.assert_array_equal(voxels(inputs["out_file"]), expected.dseg)


# Training of data parameters


# Data-parameter consensus


# What is refused


def test_candidates_of_another_grid_are_refused(target):
    moved = AFFINE.copy()
    moved[0, 3] += 1
    for name, data in (("images", target.images), ("brain", target.image[None])):
        save_image(np.moveaxis(data, 0, -1).squeeze(), moved, target.file(name))
        with pytest.raises(InputError, match=r"differ: origin.*sub-9.*Remedy: propagate the atlases again"):
            FuseLabels(**target.inputs("jlf")).run()
        target.write()
    save_image(target.image[:-1], AFFINE, target.file("brain"))
    with pytest.raises(InputError, match="differ: shape"):
        FuseLabels(**target.inputs("majority")).run()


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.needs_images])
def test_images_are_needed_where_they_are_looked_at(target, method):
    inputs = target.inputs(method)
    del inputs["in_images"]
    with pytest.raises(InputError, match=r"needs the candidate images and the target .*labels\.nii\.gz.*sub-9"):
        FuseLabels(**inputs).run()
    with pytest.raises(InputError, match="atlas selection needs the candidate images"):
        FuseLabels(**inputs | {"method": "majority", "settings": {"select": 1}}).run()


@pytest.mark.parametrize("value", [0.5, 3e9, np.nan])
def test_values_that_are_no_labels_are_refused(target, value):
    labels = np.moveaxis(target.labels, 0, -1).astype(np.float64)
    save_image(labels, AFFINE, target.file("labels"), np.float64)
    FuseLabels(**target.inputs("majority")).run()
    np.testing.assert_array_equal(voxels(target.file("majority_dseg")), fuse(target.labels).dseg)
    labels[3, 3, 3, 2] = value
    save_image(labels, AFFINE, target.file("labels"), np.float64)
    with pytest.raises(InputError, match=r"not whole numbers.*labels\.nii\.gz.*sub-9"):
        FuseLabels(**target.inputs("majority")).run()


def test_names_that_do_not_fit_are_refused(target):
    with pytest.raises(InputError, match=r"2 names for 4 candidates .*labels\.nii\.gz.*sub-9"):
        FuseLabels(**target.inputs("majority") | {"names": ["a", "b"]}).run()
