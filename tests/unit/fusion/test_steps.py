"""The steps of label fusion with files: every method, trust through files, what is left out, what is refused."""

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from popatlas.errors import InputError
from popatlas.fusion.candidates import Candidates
from popatlas.fusion.dataparams.data import label_values, trust_target
from popatlas.fusion.dataparams.files import load_parameters, load_trust, save_labelled
from popatlas.fusion.dataparams.scan import overlaps
from popatlas.fusion.dataparams.train import TrustSettings, estimate_trust, network_opinion, train_trust
from popatlas.fusion.fuse import METHODS, fuse
from popatlas.fusion.labels import disputed_mask
from popatlas.fusion.names import MAPS
from popatlas.images.io import read_json, save_image, write_json
from popatlas.interfaces.fuse import FuseLabels
from popatlas.interfaces.trust import TrainTrust
from popatlas.measures.overlap import overlap
from popatlas.networks.segmentation import build_network
from tests.unit.fusion_files import AFFINE, NAMES, SHAPE, VALUES, case

VOTERS = [name for name in METHODS if name != "dataparams"]
TRAINING = {"epochs": 8, "voxels": 800, "trust_rate": 0.3, "augment": False, "seed": 3}
JOINT = {"beta": 4.0, "radius": 1, "search": 1, "rho": 0.1}


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def trust_of(path):
    return pd.read_csv(path, sep="\t", na_values="n/a")


def notes_of(inputs):
    return read_json(inputs["record"])["notes"]


def training_inputs(cases, folder, **more):
    files = {"out_network": "net.safetensors", "out_parameters": "dp.parquet", "out_curve": "curve.tsv"}
    return {
        "in_labels": [one.file("labels") for one in cases],
        "in_targets": [one.file("brain") for one in cases],
        "scans": [one.scan for one in cases],
        "atlases": {one.scan: list(one.names) for one in cases},
        "settings": TRAINING | {"targets": 64, "votes": "joint", "gpu": 0},
        "record": str(folder / "train.json"),
        **{trait: str(folder / name) for trait, name in files.items()},
    } | more


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    return [case(folder, f"sub-{number}/anat/sub-{number}".replace("/", "-"), number) for number in range(3)]


@pytest.fixture(scope="module")
def trained(cohort, tmp_path_factory):
    """Traits of a training that has run; sub-2 was not in it."""
    inputs = training_inputs(cohort[:2], tmp_path_factory.mktemp("trained"))
    TrainTrust(**inputs).run()
    return inputs


@pytest.fixture(scope="module")
def python(cohort):
    """The same training without files."""
    labels = label_values([one.candidates for one in cohort[:2]])
    targets = [trust_target(one.candidates, labels) for one in cohort[:2]]
    return train_trust(targets, labels, TrustSettings(**TRAINING))


@pytest.fixture
def target(tmp_path):
    return case(tmp_path, "sub-9", 9)


def by_hand(candidates, labels, network, trust, by_label, numbers=slice(None), **options):
    """Data-parameter consensus of some candidates, call by call."""
    numbers = list(range(len(candidates.labels)))[numbers] if isinstance(numbers, slice) else numbers
    picked = candidates.pick(numbers)
    opinion = network_opinion(network, trust_target(picked, labels), picked.disputed)
    own = {"parameters": trust[numbers], "label_parameters": by_label[numbers], "labels": labels, "network": opinion}
    return fuse(picked, method="dataparams", **own, **JOINT, **options)


# One scan, every method


@pytest.mark.parametrize("method", VOTERS)
def test_a_method_through_files_is_the_python_call(target, method):
    settings = {"ties": "lowest", "jlf": JOINT, "similarity": {"power": 4.0, "radius": 1}}
    outputs = {f"out_{name}": target.file(name) for name in MAPS} | {"out_trust": target.file("trust", "tsv")}
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
    table = trust_of(outputs["out_trust"])
    np.testing.assert_allclose(table["trust"], expected.trust)
    assert table["parameter"].isna().all()
    assert notes_of(inputs) | {"atlases": 4, "method": method, "left_out": []} == notes_of(inputs)


def test_options_left_out_keep_their_defaults_and_maps_are_written_where_they_are_asked_for(target):
    inputs = target.inputs("jlf")
    before = set(target.folder.iterdir())
    FuseLabels(**inputs).run()
    np.testing.assert_array_equal(voxels(inputs["out_file"]), fuse(target.candidates, method="jlf").dseg)
    assert {path.name for path in set(target.folder.iterdir()) - before} == {"sub-9_jlf_dseg.nii.gz", "sub-9_jlf.json"}
    assert read_json(inputs["record"])["peak_mb"] > 0


def test_the_trust_table_ranks_the_atlases_and_tells_their_overlap(target):
    inputs = target.inputs("global", out_trust=target.file("trust", "tsv"))
    FuseLabels(**inputs).run()
    table, dseg = trust_of(inputs["out_trust"]), voxels(inputs["out_file"])
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


def test_equal_trust_shares_the_better_rank(target):
    inputs = target.inputs("majority", out_trust=target.file("trust", "tsv"))
    FuseLabels(**inputs).run()
    assert trust_of(inputs["out_trust"])["rank"].tolist() == [1, 1, 1, 1]


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
    inputs = target.write().inputs(method, out_trust=target.file("trust", "tsv"), out_probability=target.file("p"))
    FuseLabels(**inputs, **(network if method == "dataparams" else {})).run()
    np.testing.assert_array_equal(voxels(inputs["out_file"]), target.labels[0])
    assert (voxels(inputs["out_probability"]) == 1).all()
    row = trust_of(inputs["out_trust"]).iloc[0]
    assert (row["trust"], row["rank"], row["overlap"]) == (1, 1, 1)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_candidate_is_left_out_and_noted(target, trained, method):
    network = {"in_network": trained["out_network"]} if method == "dataparams" else {}
    target.labels[1] = 0
    inputs = target.write().inputs(method, settings={"jlf": JOINT}, out_trust=target.file("trust", "tsv"))
    FuseLabels(**inputs, **network).run()
    assert notes_of(inputs)["left_out"] == ["fair"]
    table = trust_of(inputs["out_trust"]).set_index("atlas")
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
        TrainTrust(**training).run()
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
    inputs = target.inputs(method, settings={"select": 2, "jlf": JOINT}, out_trust=target.file("trust", "tsv"))
    FuseLabels(**inputs).run()
    assert notes_of(inputs)["left_out"] == ["poor", "lost"]
    assert (trust_of(inputs["out_trust"])["trust"] > 0).tolist() == [True, True, False, False]
    expected = fuse(target.candidates.pick([0, 1]), method=method, **(JOINT if method == "jlf" else {}))
    np.testing.assert_array_equal(voxels(inputs["out_file"]), expected.dseg)


# Training of data parameters


def test_training_through_files_is_the_python_call(cohort, trained, python):
    loaded = load_trust(trained["out_network"])
    assert loaded.settings == TrustSettings(**TRAINING)
    np.testing.assert_array_equal(loaded.labels, VALUES)
    for name, value in python.network.state_dict().items():
        assert (loaded.network.state_dict()[name] == value).all(), name
    for one in cohort[:2]:
        found = load_parameters(trained["out_parameters"], one.scan, NAMES, loaded.labels)
        np.testing.assert_array_equal(found.parameters, python.trust[one.scan])
        np.testing.assert_array_equal(found.label_parameters, python.label_trust[one.scan])
        assert len(set(found.parameters.tolist())) == 4
    curve = pd.read_csv(trained["out_curve"], sep="\t")
    assert curve["epoch"].tolist() == list(range(1, 9))
    np.testing.assert_allclose(curve["cross_entropy"], python.losses, rtol=1e-12)
    notes = notes_of(trained)
    expected = {"targets": [one.scan for one in cohort[:2]], "labels": 4, "skipped": {}, "left_out": {}, "device": "cpu"}
    assert notes == expected


def test_a_displaced_candidate_is_trusted_less(cohort, trained):
    table = pd.read_parquet(trained["out_parameters"])
    whole = table[table["label"] == -1].set_index(["target", "atlas"])["parameter"]
    for one in cohort[:2]:
        assert whole[one.scan, "good"] > whole[one.scan, "lost"] + 0.5


def test_parameters_come_in_the_order_that_is_asked_for(cohort, trained):
    labels, scan = load_trust(trained["out_network"]).labels, cohort[0].scan
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
    TrainTrust(**inputs).run()
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
    TrainTrust(**inputs).run()
    assert set(pd.read_parquet(inputs["out_parameters"])["label"]) == {-1}
    assert load_parameters(inputs["out_parameters"], "sub-1", NAMES, labels).label_parameters is None


def test_targets_need_not_have_the_same_labels(tmp_path):
    one, other = (case(tmp_path, f"sub-{number}", number) for number in range(2))
    one.labels[one.labels == 7] = 0
    other.labels[other.labels == 1000] = 2000
    inputs = training_inputs([one.write(), other.write()], tmp_path, settings=TRAINING | {"epochs": 1})
    TrainTrust(**inputs).run()
    labels = np.array([0, 7, 1000, 2000, 2147483647])
    targets = [trust_target(each.candidates, labels) for each in (one, other)]
    expected = train_trust(targets, labels, TrustSettings(**TRAINING | {"epochs": 1}))
    loaded = load_trust(inputs["out_network"])
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
    TrainTrust(**inputs).run()
    loaded = load_trust(inputs["out_network"])
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
    TrainTrust(**training_inputs([one], tmp_path, settings=TRAINING | {"epochs": 2})).run()
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
    TrainTrust(**inputs).run()
    notes = notes_of(inputs)
    assert notes["targets"] == ["sub-0"]
    assert set(notes["skipped"]) == {"sub-1", "sub-2"}
    assert notes["left_out"]["sub-0"] == ["fair"]
    labels = load_trust(inputs["out_network"]).labels
    kept = ("good", "poor", "lost")
    assert len(load_parameters(inputs["out_parameters"], "sub-0", kept, labels).parameters) == 3
    # and the consensus of such a target finds its parameters, for the same candidates are left out there
    fused = good.inputs("dataparams", in_network=inputs["out_network"], in_parameters=inputs["out_parameters"])
    FuseLabels(**fused).run()
    assert notes_of(fused)["parameters"] == "table"
    with pytest.raises(InputError, match="no target with two candidates"):
        TrainTrust(**training_inputs(cases[1:], tmp_path)).run()


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
        ({"settings": TRAINING | {"network": "large"}}, "unknown network"),
    ]
    for change, message in cases:
        with pytest.raises(InputError, match=message):
            TrainTrust(**inputs | change).run()


# Data-parameter consensus


@pytest.mark.parametrize("votes", ["joint", "label", "softmax"])
def test_consensus_of_a_training_target_takes_the_table(cohort, trained, python, votes, tmp_path):
    one = cohort[0]
    own = {"votes": votes, "network_weight": 0.4, "epochs": 99}
    inputs = one.inputs("dataparams", out_trust=str(tmp_path / "t.tsv"), out_file=str(tmp_path / "d.nii.gz"))
    network = {"in_network": trained["out_network"], "in_parameters": trained["out_parameters"]}
    FuseLabels(**inputs, **network, settings={"jlf": JOINT, "dataparams": own}).run()
    trust = python.trust[one.scan], python.label_trust[one.scan]
    expected = by_hand(one.candidates, python.labels, python.network, *trust, votes=votes, network_weight=0.4)
    np.testing.assert_array_equal(voxels(inputs["out_file"]), expected.dseg)
    table = trust_of(inputs["out_trust"])
    np.testing.assert_allclose(table["trust"], expected.trust, rtol=1e-6)
    np.testing.assert_allclose(table["parameter"], python.trust[one.scan], rtol=1e-6)
    notes = {"atlases": 4, "method": "dataparams", "device": "cpu", "parameters": "table", "left_out": []}
    assert notes_of(inputs) == notes | expected.notes


@pytest.mark.parametrize("votes", ["softmax", "joint"])
def test_without_its_weight_the_network_takes_no_part_in_the_vote(cohort, trained, python, votes, tmp_path):
    one = cohort[0]
    outputs = {"out_file": str(tmp_path / "d.nii.gz"), "out_trust": str(tmp_path / "t.tsv")}
    inputs = one.inputs("dataparams", in_network=trained["out_network"], **outputs)
    own = {"votes": votes, "network_weight": 0}
    FuseLabels(**inputs, in_parameters=trained["out_parameters"], settings={"jlf": JOINT, "dataparams": own}).run()
    trust = python.trust[one.scan], python.label_trust[one.scan]
    expected = by_hand(one.candidates, python.labels, python.network, *trust, **own)
    np.testing.assert_array_equal(voxels(inputs["out_file"]), expected.dseg)
    np.testing.assert_allclose(trust_of(outputs["out_trust"])["trust"], expected.trust, rtol=1e-6)


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
        "out_trust": str(tmp_path / "t.tsv"),
        "out_file": str(tmp_path / "d.nii"),
    }
    FuseLabels(**inputs).run()
    assert notes_of(inputs)["parameters"] == "estimated"
    target = trust_target(one.candidates, python.labels)
    estimated = estimate_trust([target], python.labels, python.network, TrustSettings(**TRAINING))
    trust = estimated.trust[one.scan], estimated.label_trust[one.scan]
    expected = by_hand(one.candidates, python.labels, python.network, *trust)
    np.testing.assert_array_equal(voxels(inputs["out_file"]), expected.dseg)
    np.testing.assert_allclose(trust_of(inputs["out_trust"])["parameter"], trust[0], rtol=1e-6)
    assert len(set(trust[0].tolist())) == 4


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
    inputs = one.inputs("dataparams", in_network=trained["out_network"], out_trust=one.file("trust", "tsv"))
    quality, own = np.array([0.2, 0.9, 0.5, 0.7]), {"votes": votes, "gate_quality": True}
    settings = {"jlf": JOINT, "select": 2, "select_by": by, "dataparams": own}
    FuseLabels(**inputs, settings=settings, in_gates=gates_of(one, quality.tolist())).run()
    filled = one.candidates.pick([0, 2, 3])
    estimated = estimate_trust(
        [trust_target(filled, python.labels)], python.labels, python.network, TrustSettings(**TRAINING)
    )
    raw, by_label = np.full(4, np.nan), np.zeros((4, len(python.labels)))
    raw[[0, 2, 3]], by_label[[0, 2, 3]] = estimated.trust["sub-n"], estimated.label_trust["sub-n"]
    best = sorted([0, 2, 3], key=lambda number: -raw[number])[:2] if by == "trust" else [2, 3]
    chosen = sorted(best)
    assert (0 in chosen) == (by == "trust")
    expected = by_hand(
        one.candidates, python.labels, python.network, raw, by_label, chosen, votes=votes, quality=quality[chosen]
    )
    assert expected.disputed.sum() < filled.disputed.sum()
    np.testing.assert_array_equal(voxels(inputs["out_file"]), expected.dseg)
    table = trust_of(inputs["out_trust"])
    assert np.flatnonzero(table["trust"]).tolist() == chosen
    np.testing.assert_allclose(table["trust"][chosen], expected.trust, rtol=1e-6)
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
    np.testing.assert_allclose(found.trust[kept], expected.trust)


def test_all_candidates_empty_is_background(target, trained):
    target.labels[:] = 0
    inputs = target.write().inputs("dataparams", in_network=trained["out_network"], out_trust=target.file("t", "tsv"))
    FuseLabels(**inputs).run()
    assert not voxels(inputs["out_file"]).any()
    assert trust_of(inputs["out_trust"])["overlap"].isna().all()


def test_gate_quality_weighs_the_atlases(target, trained):
    gates = gates_of(target, (0.9, -0.3, 0.6, 1.0))
    inputs = target.inputs("dataparams", in_network=trained["out_network"], out_trust=target.file("t", "tsv"))
    found = {}
    for used in (None, False, True):
        # in these votes the share of an atlas is its weight; those of patches differ from voxel to voxel
        own = {"votes": "softmax"} | ({} if used is None else {"gate_quality": used})
        settings = {"dataparams": own}
        FuseLabels(**inputs, settings=settings, in_gates=gates).run()
        found[used] = trust_of(inputs["out_trust"])
    weighted = found[False]["trust"] * [0.9, 0, 0.6, 1]
    np.testing.assert_allclose(found[True]["trust"], weighted / weighted.sum(), rtol=1e-5)
    assert (found[False]["trust"] > 0).all()
    np.testing.assert_array_equal(found[None]["trust"], found[False]["trust"])
    FuseLabels(**inputs, settings=settings).run()  # without gates there is nothing to weigh by
    np.testing.assert_array_equal(trust_of(inputs["out_trust"])["trust"], found[False]["trust"])
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


# What is refused


def test_a_label_that_the_network_does_not_know_is_refused(target, trained):
    target.labels[2][target.labels[2] == 7] = 8
    inputs = target.write().inputs("dataparams", in_network=trained["out_network"])
    with pytest.raises(InputError, match=r"not trained on, such as 8 .*sub-9.*Remedy: train again"):
        FuseLabels(**inputs).run()
    assert read_json(inputs["record"])["state"] == "failed"


def test_networks_that_cannot_serve_are_refused(target, trained, tmp_path):
    inputs = target.inputs("dataparams")
    with pytest.raises(InputError, match=r"needs a trained network.*sub-9.*TrainTrust"):
        FuseLabels(**inputs).run()
    with pytest.raises(InputError, match=r"cannot read network.*none\.safetensors"):
        FuseLabels(**inputs, in_network=str(tmp_path / "none.safetensors")).run()
    with pytest.raises(InputError, match=r"cannot read table.*none\.parquet"):
        FuseLabels(**inputs, in_network=trained["out_network"], in_parameters=str(tmp_path / "none.parquet")).run()
    network = load_trust(trained["out_network"]).network
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
    TrainTrust(**training).run()
    inputs = target.inputs("dataparams", in_network=training["out_network"], settings={"dataparams": {"votes": "label"}})
    with pytest.raises(InputError, match=r"need data parameters of labels.*per_label"):
        FuseLabels(**inputs).run()


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


@pytest.mark.parametrize("method", ["global", "local", "jlf", "jlfants", "dataparams"])
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


def test_a_network_of_other_classes_than_labels_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    save_labelled(build_network("light", 3, 3), np.array([0, 4, 6]), {"trust_settings": "{}"}, path)
    np.testing.assert_array_equal(load_trust(path).labels, [0, 4, 6])
