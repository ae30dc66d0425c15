"""The step that trains data parameters: the Python call, the table it leaves, what it skips, and lists it refuses."""

import numpy as np
import pandas as pd
import pytest
import torch

from popatlas.errors import InputError
from popatlas.fusion.dataparams.data import training_target
from popatlas.fusion.dataparams.files import load_parameters, load_trained
from popatlas.fusion.dataparams.train import train_data_parameters
from popatlas.fusion.settings import DataParametersSettings
from popatlas.images.io import save_image
from popatlas.interfaces.fuse import FuseLabels
from popatlas.interfaces.fusion_networks import TrainDataParameters
from tests.unit.fusion.steps import TRAINING, notes_of, training_inputs, voxels
from tests.unit.fusion_files import AFFINE, NAMES, VALUES, case


def test_training_through_files_is_the_python_call(cohort, trained, python):
    loaded = load_trained(trained["out_network"])
    assert loaded.settings == DataParametersSettings(**TRAINING)
    np.testing.assert_array_equal(loaded.labels, VALUES)
    for name, value in python.network.state_dict().items():
        assert (loaded.network.state_dict()[name] == value).all(), name
    for one in cohort[:2]:
        found = load_parameters(trained["out_parameters"], one.scan, NAMES, loaded.labels)
        np.testing.assert_array_equal(found.parameters, python.parameters[one.scan])
        np.testing.assert_array_equal(found.label_parameters, python.label_parameters[one.scan])
        assert len(set(found.parameters.tolist())) == 4
    curve = pd.read_csv(trained["out_curve"], sep="\t")
    assert curve["epoch"].tolist() == list(range(1, 9))
    np.testing.assert_allclose(curve["cross_entropy"], python.losses, rtol=1e-12)
    notes = notes_of(trained)
    expected = {"targets": [one.scan for one in cohort[:2]], "labels": 4, "skipped": {}, "left_out": {}, "device": "cpu"}
    assert notes == expected


def test_a_displaced_candidate_gets_less_weight(cohort, trained):
    table = pd.read_parquet(trained["out_parameters"])
    whole = table[table["label"] == -1].set_index(["target", "atlas"])["parameter"]
    for one in cohort[:2]:
        assert whole[one.scan, "good"] > whole[one.scan, "lost"] + 0.5


def test_parameters_come_in_the_order_that_is_asked_for(cohort, trained):
    labels, scan = load_trained(trained["out_network"]).labels, cohort[0].scan
    forth, back = (load_parameters(trained["out_parameters"], scan, names, labels) for names in (NAMES, NAMES[::-1]))
    np.testing.assert_array_equal(forth.parameters, back.parameters[::-1])
    np.testing.assert_array_equal(forth.label_parameters, back.label_parameters[::-1])
    assert load_parameters(trained["out_parameters"], "sub-other", NAMES, labels) is None
    assert load_parameters(trained["out_parameters"], scan, NAMES[:3], labels) is None
    assert load_parameters(trained["out_parameters"], scan, (*NAMES, "new"), labels) is None


def test_the_table_has_a_row_for_each_label_of_each_candidate(tmp_path):
    one = case(tmp_path, "sub-1", 1)
    one.labels[3][one.labels[3] == 1000] = 7
    inputs = training_inputs([one.write()], tmp_path, settings=TRAINING | {"epochs": 1})
    TrainDataParameters(**inputs).run()
    table = pd.read_parquet(inputs["out_parameters"])
    assert list(table) == ["target", "atlas", "label", "parameter"]
    assert set(table["target"]) == {"sub-1"}
    found = table.groupby("atlas")["label"].agg(list)
    assert found["good"] == [-1, *VALUES]
    assert found["lost"] == [-1, 0, 7, 2147483647]
    labels = np.array(VALUES)
    assert load_parameters(inputs["out_parameters"], "sub-1", NAMES, labels).label_parameters[3, 2] == 0
    with pytest.raises(InputError, match=r"labels that the network does not know.*Remedy: remove the network"):
        load_parameters(inputs["out_parameters"], "sub-1", NAMES, labels[:3])
    inputs |= {"settings": TRAINING | {"epochs": 1, "per_label": False}}
    TrainDataParameters(**inputs).run()
    assert set(pd.read_parquet(inputs["out_parameters"])["label"]) == {-1}
    assert load_parameters(inputs["out_parameters"], "sub-1", NAMES, labels).label_parameters is None


def test_targets_need_not_have_the_same_labels(tmp_path):
    one, other = (case(tmp_path, f"sub-{number}", number) for number in range(2))
    one.labels[one.labels == 7] = 0
    other.labels[other.labels == 1000] = 2000
    inputs = training_inputs([one.write(), other.write()], tmp_path, settings=TRAINING | {"epochs": 1})
    TrainDataParameters(**inputs).run()
    labels = np.array([0, 7, 1000, 2000, 2147483647])
    targets = [training_target(each.candidates, labels) for each in (one, other)]
    expected = train_data_parameters(targets, labels, DataParametersSettings(**TRAINING | {"epochs": 1}))
    loaded = load_trained(inputs["out_network"])
    np.testing.assert_array_equal(loaded.labels, labels)
    assert (loaded.network.classifier.weight == expected.network.classifier.weight).all()
    found = pd.read_parquet(inputs["out_parameters"]).groupby(["target", "atlas"])["label"].agg(list)
    assert found["sub-0", "good"] == [-1, 0, 1000, 2147483647]
    assert found["sub-1", "good"] == [-1, 0, 7, 2000, 2147483647]


def test_a_label_of_the_atlases_that_no_target_received_is_known(tmp_path):
    one, later = (case(tmp_path, f"sub-{number}", number) for number in range(2))
    dseg = one.labels[0].copy()
    dseg[0, 0, 0] = 55
    save_image(dseg, AFFINE, one.file("atlas"), np.int32)
    inputs = training_inputs([one], tmp_path, settings=TRAINING | {"epochs": 2}, in_dsegs=[one.file("atlas")])
    TrainDataParameters(**inputs).run()
    loaded = load_trained(inputs["out_network"])
    np.testing.assert_array_equal(loaded.labels, sorted({*VALUES, 55}))
    assert all(torch.isfinite(value).all() for value in loaded.network.state_dict().values())
    assert np.isfinite(pd.read_csv(inputs["out_curve"], sep="\t")["cross_entropy"]).all()
    assert 55 not in set(pd.read_parquet(inputs["out_parameters"])["label"])
    later.labels[:, 0, 0, 0] = 55
    later.labels[3, 0, 0, 0] = 0  # it is disputed
    fused = later.write().inputs("dataparams", in_network=inputs["out_network"])
    FuseLabels(**fused).run()
    assert voxels(fused["out_file"])[0, 0, 0] in (0, 55)
    assert notes_of(fused)["parameters"] == "estimated"


def test_training_prints_its_progress(tmp_path, capsys):
    one = case(tmp_path, "sub-1", 1)
    TrainDataParameters(**training_inputs([one], tmp_path, settings=TRAINING | {"epochs": 2})).run()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.split(":")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert lines[1].endswith(", 0 s left")
    assert "cross-entropy" in lines[0]


def test_targets_that_tell_nothing_are_skipped_and_noted(tmp_path):
    good, empty, single = (case(tmp_path, f"sub-{number}", number) for number in range(3))
    good.labels[1] = 0
    empty.labels[:] = 0
    single.labels[1:] = 0
    cases = [one.write() for one in (good, empty, single)]
    inputs = training_inputs(cases, tmp_path, settings=TRAINING | {"epochs": 1})
    TrainDataParameters(**inputs).run()
    notes = notes_of(inputs)
    assert notes["targets"] == ["sub-0"]
    assert set(notes["skipped"]) == {"sub-1", "sub-2"}
    assert notes["left_out"]["sub-0"] == ["fair"]
    labels = load_trained(inputs["out_network"]).labels
    kept = ("good", "poor", "lost")
    assert len(load_parameters(inputs["out_parameters"], "sub-0", kept, labels).parameters) == 3
    # and the consensus of such a target finds its parameters, for the same candidates are left out there
    fused = good.inputs("dataparams", in_network=inputs["out_network"], in_parameters=inputs["out_parameters"])
    FuseLabels(**fused).run()
    assert notes_of(fused)["parameters"] == "table"
    with pytest.raises(InputError, match="no target with two candidates"):
        TrainDataParameters(**training_inputs(cases[1:], tmp_path)).run()


def test_training_refuses_lists_that_do_not_fit(cohort, tmp_path):
    pair = list(cohort[:2])
    inputs = training_inputs(pair, tmp_path)
    cases = [
        ({"scans": ["sub-0"]}, "2 files in in_labels for 1 scans"),
        ({"in_targets": inputs["in_targets"][:1]}, "1 files in in_targets for 2 scans"),
        ({"scans": [cohort[0].scan] * 2}, "named twice"),
        ({"atlases": {cohort[0].scan: list(NAMES)}}, rf"not named .*{cohort[1].scan}"),
        ({"atlases": inputs["atlases"] | {cohort[1].scan: ["a", "a", "b", "c"]}}, "atlas is named twice"),
        ({"atlases": inputs["atlases"] | {cohort[1].scan: ["a", "b"]}}, rf"2 names for 4 candidates .*{cohort[1].scan}"),
        ({"settings": TRAINING | {"network": "large"}}, r"fuse\.dataparams\.network: 'large' should be 'light' or 'lraspp'"),
    ]
    for change, message in cases:
        with pytest.raises(InputError, match=message):
            TrainDataParameters(**inputs | change).run()
