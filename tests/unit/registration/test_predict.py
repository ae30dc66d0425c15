"""The step that predicts a batch, and the registration that takes what it left."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch

from popatlas.config.attempts import registration_settings, resolve_attempt
from popatlas.config.load import load_config
from popatlas.errors import InputError
from popatlas.images.io import load_image, read_json, save_image, sha256, write_json
from popatlas.interfaces import load_interface
from popatlas.reasons import code_of
from popatlas.registration.batch import FILES, Predictor, Request
from popatlas.registration.engines.registry import planned_attempt
from tests.unit.registration.test_engines import GATE, QUICK
from tests.unit.registration.test_engines import pair as pair  # a 4 mm brain and a warped one
from tests.zoo import lock_network, tiny_network

SCANS = tuple(f"sub-0{number}/anat/sub-0{number}" for number in (1, 2, 3))
ONE, BROKEN, OTHER = SCANS


@pytest.fixture
def cohort(pair, tmp_path, monkeypatch):
    """Three scans, the second without contrast, and a template."""
    monkeypatch.setenv("POPATLAS_WEIGHTS", str(tmp_path / "own"))
    lock_network(tmp_path, tiny_network(spread=0.01))
    for scan, name in zip(SCANS, ("moving", "fixed", "fixed"), strict=True):
        (tmp_path / scan).parent.mkdir(parents=True)
        for kind in ("", "_mask"):
            shutil.copy(pair / f"{name}{kind}.nii.gz", tmp_path / f"{scan}{kind}.nii.gz")
    image = load_image(tmp_path / f"{BROKEN}.nii.gz")
    save_image(np.full(image.shape, 0.5, np.float32), image.affine, tmp_path / f"{BROKEN}.nii.gz")
    for name in ("fixed", "fixed_mask"):
        shutil.copy(pair / f"{name}.nii.gz", tmp_path / f"{name}.nii.gz")
    return tmp_path


def attempt(preset="quick", **changes):
    one = resolve_attempt(load_config({"register": {"engine": "network", "weights": "tiny"}}), preset)
    return one | {"preset": one["preset"] | changes}


def predict(folder, scans=SCANS, how=None, **options):
    """Run the step and return its batch record."""
    load_interface("PredictDeformations")(
        in_fixed=str(folder / "fixed.nii.gz"),
        in_fixed_mask=str(folder / "fixed_mask.nii.gz"),
        in_brains=[str(folder / f"{scan}.nii.gz") for scan in scans],
        in_masks=[str(folder / f"{scan}_mask.nii.gz") for scan in scans],
        scans=list(scans),
        attempt=how or attempt(),
        out_folder=str(folder / "network"),
        out_batch_record=str(folder / "batch-1.json"),
        record=str(folder / "record.json"),
        **options,
    ).run()
    return read_json(folder / "batch-1.json")


def state_of(folder, scan):
    return {name: (folder / "network" / scan / name).stat().st_mtime_ns for name in FILES}


def test_a_broken_scan_costs_its_batch_nothing_and_a_repeated_batch_only_what_is_missing(cohort, capsys):
    record = predict(cohort)
    assert list(record) == list(SCANS)
    assert [entry["state"] for entry in record.values()] == ["ok", "failed", "ok"]
    broken = record[BROKEN]["message"]
    assert f"[file: {cohort}/{BROKEN}.nii.gz] [subject: {BROKEN}]" in broken and "Remedy: check the skull" in broken
    assert record[ONE]["device"] == "cpu" and record[ONE]["peak_mb"] > 100
    assert set(record[ONE]["seconds"]) == {"align", "predict", "refine"}
    assert record[ONE]["seconds"]["align"] > 0
    assert not list((cohort / "network" / BROKEN).glob("*"))
    said = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in said if line.startswith("sub-0")] == [
        f"{ONE}: ok",
        f"{BROKEN}: failed",
        f"{OTHER}: ok",
    ]

    kept = {scan: state_of(cohort, scan) for scan in (ONE, OTHER)}
    again = predict(cohort)
    assert [again[scan]["message"] for scan in (ONE, OTHER)] == ["kept", "kept"]
    assert {scan: state_of(cohort, scan) for scan in kept} == kept
    assert again[ONE]["seconds"] == record[ONE]["seconds"]
    # one file is gone: its scan alone is done again, and is the same
    before = sha256(cohort / "network" / OTHER / FILES[1])
    (cohort / "network" / OTHER / FILES[1]).unlink()
    third = predict(cohort)
    assert (third[ONE]["message"], third[OTHER]["message"]) == ("kept", "predicted")
    assert state_of(cohort, ONE) == kept[ONE]
    assert sha256(cohort / "network" / OTHER / FILES[1]) == before


@pytest.mark.parametrize("change", ["older than the brain", "older than the template", "other settings", "other weights"])
def test_what_was_made_of_something_else_is_made_again(cohort, change):
    assert predict(cohort, [OTHER])[OTHER]["message"] == "predicted"
    first, how = state_of(cohort, OTHER), attempt()
    later = max(first.values()) + 10**9
    if change == "older than the brain":
        os.utime(cohort / f"{OTHER}.nii.gz", ns=(later, later))
    if change == "older than the template":
        os.utime(cohort / "fixed_mask.nii.gz", ns=(later, later))
    if change == "other settings":
        how = attempt("fast")
    if change == "other weights":
        lock_network(cohort, tiny_network(seed=1))
        how = attempt()
    assert predict(cohort, [OTHER], how)[OTHER]["message"] == "predicted"
    assert all(time > first[name] for name, time in state_of(cohort, OTHER).items())


def test_where_the_weights_are_and_gpus_that_nobody_sees_do_not_count(cohort):
    predict(cohort, [OTHER])
    shutil.copy(cohort / "own" / "tiny.safetensors", cohort / "copy.safetensors")
    how = attempt(weights=str(cohort / "copy.safetensors"))
    assert predict(cohort, [OTHER], how, gpu=1)[OTHER]["message"] == "kept"
    notes = read_json(cohort / "record.json")["notes"]
    if not torch.cuda.is_available():
        assert (notes["device"], notes["fallback"]) == ("cpu", "no GPU is visible: the CPU is used")


def test_settings_tell_where_the_weights_are(cohort):
    shutil.move(cohort / "own" / "tiny.safetensors", cohort / "moved.safetensors")
    settings = {"register": {"engine": "network", "weights": str(cohort / "moved.safetensors")}}
    planned = registration_settings(load_config(settings), "quick")
    assert "weights" not in planned["preset"]
    with pytest.raises(InputError, match=r"does not say where the weights are.*Remedy: give settings"):
        predict(cohort, [OTHER], planned)
    write_json(cohort / "config.yaml", settings)
    assert predict(cohort, [OTHER], planned, settings=str(cohort / "config.yaml"))[OTHER]["message"] == "predicted"
    # a pair of its own, without a prediction
    files = {"in_fixed": "fixed", "in_fixed_mask": "fixed_mask", "in_moving": OTHER, "in_moving_mask": f"{OTHER}_mask"}
    files |= {f"out_{name}": f"alone_{name}" for name in ("warp", "warped")}
    load_interface("RegisterImages")(
        **{name: str(cohort / f"{file}.nii.gz") for name, file in files.items()},
        out_affine=str(cohort / "alone.mat"),
        out_gate=str(cohort / "alone.json"),
        attempt=planned,
        fallback=[],
        gate=GATE | {"similarity_gain": -1.0},
        settings=str(cohort / "config.yaml"),
        subject=OTHER,
    ).run()
    assert [row["engine"] for row in read_json(cohort / "alone.json")["attempts"]] == ["network"]


def test_a_scan_that_fails_now_leaves_nothing_from_before(cohort):
    predict(cohort, [OTHER])
    shutil.copy(cohort / f"{BROKEN}.nii.gz", cohort / f"{OTHER}.nii.gz")
    assert predict(cohort, [OTHER])[OTHER]["state"] == "failed"
    assert not list((cohort / "network" / OTHER).glob("*"))


def test_weights_that_are_not_those_of_the_plan_fail_the_whole_batch(cohort):
    how = attempt()
    lock_network(cohort, tiny_network(seed=1))
    with pytest.raises(InputError, match="weights tiny were replaced"):
        predict(cohort, how=how)
    assert not (cohort / "batch-1.json").exists()


class Narrow(torch.nn.Module):
    """A network that has memory for so many pairs only."""

    def __init__(self, net, room):
        super().__init__()
        self.net, self.room, self.sizes = net, room, []

    def forward(self, fixed, moving):
        self.sizes.append(len(moving))
        if len(moving) > self.room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return self.net(fixed, moving)

    def inverse(self, found):
        return self.net.inverse(found)


@pytest.mark.parametrize(("room", "sizes", "good"), [(2, [2], 2), (1, [2, 1, 1], 2), (0, [2, 1, 1, 1], 0)])
def test_a_group_that_does_not_fit_goes_one_by_one_and_then_each_error_is_its_own(cohort, room, sizes, good, capsys):
    """Two of three scans can be read; at once, halved, and at last alone."""
    predictor = Predictor(planned_attempt(attempt()), str(cohort / "fixed.nii.gz"), str(cohort / "fixed_mask.nii.gz"), "cpu")
    predictor.net = Narrow(predictor.net, room)
    requests = [
        Request(scan, cohort / f"{scan}.nii.gz", cohort / f"{scan}_mask.nii.gz", cohort / "out" / scan) for scan in SCANS
    ]
    outcomes = {request.scan: outcome for request, outcome in predictor.run(requests)}
    assert predictor.net.sizes == sizes
    errors = {scan: outcome.error for scan, outcome in outcomes.items()}
    codes = [outcomes[scan].code for scan in (ONE, OTHER, BROKEN)]
    assert codes == ["" if good else "oom", "" if good else "oom", "input"]
    assert list(errors) == list(SCANS) and "all voxels are equal" in errors[BROKEN]
    assert [errors[scan] == "" for scan in (ONE, OTHER)] == [good > 0] * 2
    assert len(list((cohort / "out").rglob("warp.nii.gz"))) == good
    if not good:
        assert "1 pair(s) of" in errors[ONE] and "register.network.batch" in errors[ONE]
        assert "now one by one" in capsys.readouterr().out


# RegisterImages takes a prediction


def register(folder, scan, fallback=(), **gate):
    out = folder / "registered"
    files = {
        "in_fixed": folder / "fixed.nii.gz",
        "in_fixed_mask": folder / "fixed_mask.nii.gz",
        "in_moving": folder / f"{scan}.nii.gz",
        "in_moving_mask": folder / f"{scan}_mask.nii.gz",
        "in_prediction": folder / "network" / scan,
        "in_batch_record": folder / "batch-1.json",
        "out_affine": out / "affine.mat",
        "out_gate": out / "gate.json",
        **{f"out_{name}": out / f"{name}.nii.gz" for name in ("warp", "inverse_warp", "composed", "warped", "logjacobian")},
    }
    options = {"attempt": attempt(), "fallback": list(fallback), "gate": GATE | gate, "subject": scan}
    load_interface("RegisterImages")(**options, **{name: str(path) for name, path in files.items()}).run()
    return read_json(out / "gate.json")


def test_a_prediction_is_published_and_judged_and_nothing_is_computed_again(cohort):
    predict(cohort, [ONE])
    (cohort / "own" / "tiny.safetensors").unlink()  # whoever computed it again would need the weights
    gate = register(cohort, ONE)
    assert (gate["verdict"], gate["engine"], gate["start"], len(gate["attempts"])) == ("pass", "network", "mass", 1)
    assert gate["ncc"] > 0.5 and gate["nonpositive_jacobian"] == 0
    for name, published in zip(FILES, ("affine.mat", "warp.nii.gz", "inverse_warp.nii.gz"), strict=True):
        assert sha256(cohort / "network" / ONE / name) == sha256(cohort / "registered" / published)


def test_a_failed_prediction_is_the_first_attempt_and_the_fallbacks_follow(cohort):
    predict(cohort)
    for kind in ("", "_mask"):  # good for the engine that comes next
        shutil.copy(cohort / f"{ONE}{kind}.nii.gz", cohort / f"{BROKEN}{kind}.nii.gz")
    gate = register(cohort, BROKEN, [QUICK])
    assert (gate["verdict"], gate["engine"]) == ("pass", "ants")
    assert gate["attempts"][0]["engine"] == "network"
    (reason,) = gate["attempts"][0]["reasons"]
    assert reason.startswith("the prediction failed: image is empty: all voxels are equal")


def test_a_scan_whose_only_attempt_failed_in_a_batch_fails_for_the_same_reason(cohort):
    predict(cohort)
    entries = read_json(cohort / "batch-1.json")
    assert entries[BROKEN]["code"] == "input" and "code" not in entries[ONE]
    write_json(cohort / "batch-1.json", {ONE: {"state": "failed", "code": "disk", "message": "the disk is gone"}})
    with pytest.raises(InputError, match=r"every attempt.*the prediction failed: the disk is gone") as caught:
        register(cohort, ONE)
    assert code_of(caught.value) == "disk"


def test_a_prediction_that_fails_the_gate_or_is_gone_has_fallbacks_too(cohort):
    predict(cohort, [ONE])
    found = register(cohort, ONE)
    more = found["ncc"] - found["ncc_before"] + 0.01
    gate = register(cohort, ONE, [QUICK], similarity_gain=more)
    assert gate["verdict"] == "pass"
    assert [row["engine"] for row in gate["attempts"]] == ["network", "ants"]
    assert "correlation rose" in gate["attempts"][0]["reasons"][0]
    (cohort / "network" / ONE / FILES[2]).unlink()
    gate = register(cohort, ONE, [QUICK])
    assert "was made and is gone" in gate["attempts"][0]["reasons"][0]
    assert "delete" in gate["attempts"][0]["reasons"][0]
