"""The consensus by data parameters with files: known and unknown targets, chosen candidates, networks that cannot serve."""

import json

import numpy as np
import pytest
import torch

from popatlas.errors import InputError
from popatlas.fusion.dataparams.data import training_target
from popatlas.fusion.dataparams.files import load_trained, save_labelled
from popatlas.fusion.dataparams.train import estimate_data_parameters
from popatlas.fusion.fuse import fuse
from popatlas.fusion.settings import DataParametersSettings
from popatlas.images.io import read_json, write_json
from popatlas.interfaces.fuse import FuseLabels
from popatlas.interfaces.fusion_networks import TrainDataParameters
from popatlas.networks.segmentation import build_network
from tests.unit.fusion.steps import JOINT, TRAINING, atlas_weights_of, by_hand, notes_of, training_inputs, voxels
from tests.unit.fusion_files import NAMES, VALUES, case


@pytest.mark.parametrize("votes", ["joint", "label", "softmax"])
def test_consensus_of_a_training_target_takes_the_table(cohort, trained, python, votes, tmp_path):
    one = cohort[0]
    own = {"votes": votes, "network_weight": 0.4, "epochs": 99}
    inputs = one.inputs("dataparams", out_atlas_weights=str(tmp_path / "t.tsv"), out_file=str(tmp_path / "d.nii.gz"))
    network = {"in_network": trained["out_network"], "in_parameters": trained["out_parameters"]}
    FuseLabels(**inputs, **network, settings={"jlf": JOINT, "dataparams": own}).run()
    parameters = python.parameters[one.scan], python.label_parameters[one.scan]
    expected = by_hand(one.candidates, python.labels, python.network, *parameters, votes=votes, network_weight=0.4)
    np.testing.assert_array_equal(voxels(inputs["out_file"]), expected.dseg)
    table = atlas_weights_of(inputs["out_atlas_weights"])
    np.testing.assert_allclose(table["trust"], expected.atlas_weights, rtol=1e-6)
    np.testing.assert_allclose(table["parameter"], python.parameters[one.scan], rtol=1e-6)
    notes = {"atlases": 4, "method": "dataparams", "device": "cpu", "parameters": "table", "left_out": []}
    assert notes_of(inputs) == notes | expected.notes


@pytest.mark.parametrize("votes", ["softmax", "joint"])
def test_without_its_weight_the_network_takes_no_part_in_the_vote(cohort, trained, python, votes, tmp_path):
    one = cohort[0]
    outputs = {"out_file": str(tmp_path / "d.nii.gz"), "out_atlas_weights": str(tmp_path / "t.tsv")}
    inputs = one.inputs("dataparams", in_network=trained["out_network"], **outputs)
    own = {"votes": votes, "network_weight": 0}
    FuseLabels(**inputs, in_parameters=trained["out_parameters"], settings={"jlf": JOINT, "dataparams": own}).run()
    parameters = python.parameters[one.scan], python.label_parameters[one.scan]
    expected = by_hand(one.candidates, python.labels, python.network, *parameters, **own)
    np.testing.assert_array_equal(voxels(inputs["out_file"]), expected.dseg)
    np.testing.assert_allclose(atlas_weights_of(outputs["out_atlas_weights"])["trust"], expected.atlas_weights, rtol=1e-6)


@pytest.mark.parametrize("why", ["no table", "other scan", "other atlases"])
def test_unknown_targets_get_estimated_parameters(cohort, trained, python, why, tmp_path):
    one, more = cohort[2 if why == "other scan" else 0], {}
    if why != "no table":
        more["in_parameters"] = trained["out_parameters"]
    if why == "other atlases":
        more["names"] = ["good", "fair", "poor", "new"]
    inputs = one.inputs("dataparams", settings={"jlf": JOINT}, **more)
    inputs |= {
        "in_network": trained["out_network"],
        "out_atlas_weights": str(tmp_path / "t.tsv"),
        "out_file": str(tmp_path / "d.nii"),
    }
    FuseLabels(**inputs).run()
    assert notes_of(inputs)["parameters"] == "estimated"
    target = training_target(one.candidates, python.labels)
    estimated = estimate_data_parameters([target], python.labels, python.network, DataParametersSettings(**TRAINING))
    parameters = estimated.parameters[one.scan], estimated.label_parameters[one.scan]
    expected = by_hand(one.candidates, python.labels, python.network, *parameters)
    np.testing.assert_array_equal(voxels(inputs["out_file"]), expected.dseg)
    np.testing.assert_allclose(atlas_weights_of(inputs["out_atlas_weights"])["parameter"], parameters[0], rtol=1e-6)
    assert len(set(parameters[0].tolist())) == 4


def gates_of(one, quality):
    """Write a gate for each candidate and return the files."""
    for name, ncc in zip(one.names, quality, strict=True):
        write_json(one.file(name, "json"), {"verdict": "pass", "ncc": ncc})
    return [one.file(name, "json") for name in one.names]


@pytest.mark.parametrize(("by", "votes"), [("trust", "joint"), ("similarity", "label"), ("similarity", "joint")])
def test_candidates_are_chosen_before_the_network_is_asked(tmp_path, trained, python, by, votes):
    """The disputed region of the chosen ones is another: an opinion on that of all candidates would not fit."""
    one = case(tmp_path, "sub-n", 7)
    one.labels[1] = 0
    one.images[0], one.images[3] = one.images[3].max() - one.image, one.image  # they choose otherwise than the parameters
    one.write()
    inputs = one.inputs("dataparams", in_network=trained["out_network"], out_atlas_weights=one.file("trust", "tsv"))
    quality, own = np.array([0.2, 0.9, 0.5, 0.7]), {"votes": votes, "gate_quality": True}
    settings = {"jlf": JOINT, "select": 2, "select_by": by, "dataparams": own}
    FuseLabels(**inputs, settings=settings, in_gates=gates_of(one, quality.tolist())).run()
    filled = one.candidates.pick([0, 2, 3])
    estimated = estimate_data_parameters(
        [training_target(filled, python.labels)], python.labels, python.network, DataParametersSettings(**TRAINING)
    )
    raw, by_label = np.full(4, np.nan), np.zeros((4, len(python.labels)))
    raw[[0, 2, 3]], by_label[[0, 2, 3]] = estimated.parameters["sub-n"], estimated.label_parameters["sub-n"]
    best = sorted([0, 2, 3], key=lambda number: -raw[number])[:2] if by == "trust" else [2, 3]
    chosen = sorted(best)
    assert (0 in chosen) == (by == "trust")
    expected = by_hand(
        one.candidates, python.labels, python.network, raw, by_label, chosen, votes=votes, quality=quality[chosen]
    )
    assert expected.disputed.sum() < filled.disputed.sum()
    np.testing.assert_array_equal(voxels(inputs["out_file"]), expected.dseg)
    table = atlas_weights_of(inputs["out_atlas_weights"])
    assert np.flatnonzero(table["trust"]).tolist() == chosen
    np.testing.assert_allclose(table["trust"][chosen], expected.atlas_weights, rtol=1e-6)
    np.testing.assert_allclose(table["parameter"], raw, rtol=1e-6)
    assert notes_of(inputs)["left_out"] == [NAMES[number] for number in range(4) if number not in chosen]


def test_a_choice_leaves_the_label_values_alone(target):
    """There are as many labels as candidates: an array of labels has the length of one of candidates."""
    target.labels[1] = 0
    raw = np.random.default_rng(4).normal(0, 3, (4, 4))
    options = {"parameters": raw[0], "label_parameters": raw, "votes": "label", "labels": VALUES}
    found = fuse(target.candidates, method="dataparams", quality=np.array([0.5, 1, 0.25, 0.125]), **options)
    kept = [0, 2, 3]
    options |= {"parameters": raw[0, kept], "label_parameters": raw[kept]}
    expected = fuse(target.candidates.pick(kept), method="dataparams", quality=np.array([0.5, 0.25, 0.125]), **options)
    np.testing.assert_array_equal(found.dseg, expected.dseg)
    np.testing.assert_allclose(found.atlas_weights[kept], expected.atlas_weights)


def test_all_candidates_empty_is_background(target, trained):
    target.labels[:] = 0
    inputs = target.write().inputs(
        "dataparams", in_network=trained["out_network"], out_atlas_weights=target.file("t", "tsv")
    )
    FuseLabels(**inputs).run()
    assert not voxels(inputs["out_file"]).any()
    assert atlas_weights_of(inputs["out_atlas_weights"])["overlap"].isna().all()


def test_gate_quality_weighs_the_atlases(target, trained):
    gates = gates_of(target, (0.9, -0.3, 0.6, 1.0))
    inputs = target.inputs("dataparams", in_network=trained["out_network"], out_atlas_weights=target.file("t", "tsv"))
    found = {}
    for used in (None, False, True):
        # in these votes the share of an atlas is its weight; those of patches differ from voxel to voxel
        own = {"votes": "softmax"} | ({} if used is None else {"gate_quality": used})
        settings = {"dataparams": own}
        FuseLabels(**inputs, settings=settings, in_gates=gates).run()
        found[used] = atlas_weights_of(inputs["out_atlas_weights"])
    weighted = found[False]["trust"] * [0.9, 0, 0.6, 1]
    np.testing.assert_allclose(found[True]["trust"], weighted / weighted.sum(), rtol=1e-5)
    assert (found[False]["trust"] > 0).all()
    np.testing.assert_array_equal(found[None]["trust"], found[False]["trust"])
    FuseLabels(**inputs, settings=settings).run()  # without gates there is nothing to weigh by
    np.testing.assert_array_equal(atlas_weights_of(inputs["out_atlas_weights"])["trust"], found[False]["trust"])
    with pytest.raises(InputError, match="2 gates for 4 candidates"):
        FuseLabels(**inputs, settings=settings, in_gates=gates[:2]).run()
    write_json(gates[1], {"verdict": "fail", "ncc": None})
    with pytest.raises(InputError, match=r"no correlation.*fair\.json.*sub-9.*register the atlas again"):
        FuseLabels(**inputs, settings=settings, in_gates=gates).run()


def test_a_gpu_that_is_not_there_is_noted(target, trained):
    if torch.cuda.is_available():
        pytest.skip("a GPU is visible")
    inputs = target.inputs("dataparams", in_network=trained["out_network"], gpu=1)
    FuseLabels(**inputs).run()
    notes = notes_of(inputs)
    assert notes["device"] == "cpu"
    assert "no GPU is visible" in notes["fallback"]


def test_a_label_that_the_network_does_not_know_is_refused(target, trained):
    target.labels[2][target.labels[2] == 7] = 8
    inputs = target.write().inputs("dataparams", in_network=trained["out_network"])
    with pytest.raises(InputError, match=r"not trained on, such as 8 .*sub-9.*Remedy: train again"):
        FuseLabels(**inputs).run()
    assert read_json(inputs["record"])["state"] == "failed"


def test_networks_that_cannot_serve_are_refused(target, trained, tmp_path):
    inputs = target.inputs("dataparams")
    with pytest.raises(InputError, match=r"needs a trained network.*sub-9.*TrainDataParameters"):
        FuseLabels(**inputs).run()
    with pytest.raises(InputError, match=r"cannot read network.*none\.safetensors"):
        FuseLabels(**inputs, in_network=str(tmp_path / "none.safetensors")).run()
    with pytest.raises(InputError, match=r"cannot read table.*none\.parquet"):
        FuseLabels(**inputs, in_network=trained["out_network"], in_parameters=str(tmp_path / "none.parquet")).run()
    network = load_trained(trained["out_network"]).network
    other = str(tmp_path / "other.safetensors")
    texts = {
        "not trained for data parameters": {},
        "settings of the network": {"trust_settings": json.dumps({"momentum": 1})},
    }
    for message, metadata in texts.items():
        save_labelled(network, VALUES, metadata, other)
        with pytest.raises(InputError, match=message):
            FuseLabels(**inputs, in_network=other).run()
    for values in (VALUES[:3], VALUES[::-1], VALUES + 1):
        save_labelled(network, values, {"trust_settings": "{}"}, other)
        with pytest.raises(InputError, match="does not tell their labels"):
            FuseLabels(**inputs, in_network=other).run()


def test_votes_by_label_need_their_parameters(target, tmp_path):
    training = training_inputs([target], tmp_path, settings=TRAINING | {"per_label": False, "epochs": 1})
    TrainDataParameters(**training).run()
    inputs = target.inputs("dataparams", in_network=training["out_network"], settings={"dataparams": {"votes": "label"}})
    with pytest.raises(InputError, match=r"need data parameters of labels.*per_label"):
        FuseLabels(**inputs).run()


def test_a_network_of_other_classes_than_labels_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    save_labelled(build_network("light", 3, 3), np.array([0, 4, 6]), {"trust_settings": "{}"}, path)
    np.testing.assert_array_equal(load_trained(path).labels, [0, 4, 6])
