"""Steps on damaged brains: right, or refused with what to look at; never wrong without a word."""

import re

import numpy as np
import pytest

from popatlas.registration.gate import GATE_REVISION, judge
from tests.unit.damaged import GATE, TURNS, brain, member_outcome, outcome, rigid


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    return outcome("untouched", tmp_path_factory.mktemp("untouched"))


def test_an_untouched_pair_passes_at_the_first_attempt_without_a_note(untouched):
    gate = untouched.gate
    assert (gate["verdict"], len(gate["attempts"]), gate["notes"]) == ("pass", 1, [])
    assert "found_from" not in gate["attempts"][0]
    assert untouched.overlap > 0.7
    assert gate["pose"] > 8 and gate["edges"] > gate["edges_affine"] > 0.6
    assert gate["contrast"] > 0.95 and gate["sides"] > 0.4 and gate["covered"] == 1


def test_what_is_judged_stands_in_the_file_and_can_be_judged_again(untouched):
    gate = untouched.gate
    assert gate["revision"] == GATE_REVISION
    numbers = {name: value for name, value in gate.items() if isinstance(value, int | float) and name != "revision"}
    assert judge(numbers, GATE) == []
    for name in GATE:
        worse = {"scale": [0.99, 1.0], "nonpositive_jacobian": -1, "folds": -1, "inverse_error": 0}.get(name)
        if worse is None:
            worse = -1e9 if name in ("shear", "log_jacobian_sd", "displacement_p95") else 1e9
        assert judge(numbers, GATE | {name: worse}) != [], name


@pytest.mark.parametrize("damage", TURNS)
def test_a_turned_header_is_repaired_and_told(damage, untouched, tmp_path):
    found = outcome(damage, tmp_path)
    assert (found.gate["verdict"], len(found.gate["attempts"])) == ("pass", 1)
    assert found.overlap > 0.97 * untouched.overlap
    assert found.gate["turned"] == pytest.approx(np.linalg.norm(TURNS[damage]), abs=15)
    assert "orientation in its header may be wrong" in found.gate["notes"][0]
    if damage == "turned about z":
        assert "about the head-foot axis" in found.gate["notes"][0]


@pytest.mark.parametrize("damage", ["mirrored", "mirrored and turned"])
def test_exchanged_sides_are_refused_at_once(damage, tmp_path):
    found = outcome(damage, tmp_path)
    told = r"left and right are exchanged.*moving/brain\.nii\.gz.*sub-07.*orientation in the header"
    assert re.search(told, found.refusal)
    assert (found.gate["verdict"], len(found.gate["attempts"])) == ("fail", 1)
    assert found.gate["sides"] < GATE["sides"]
    assert not (found.folder / "warp.nii.gz").exists()


@pytest.mark.parametrize("contrast", ["inverted", "T2-like"])
def test_another_contrast_goes_to_the_attempt_that_looks_at_edges(contrast, untouched, tmp_path):
    found = outcome(contrast, tmp_path)
    assert found.gate["verdict"] == "pass"
    assert "the contrasts differ" in found.gate["attempts"][0]["reasons"][0]
    assert len(found.gate["attempts"]) == 2
    assert found.overlap > 0.9 * untouched.overlap


def test_without_such_a_fallback_another_contrast_is_refused(tmp_path):
    assert "the contrasts differ" in outcome("inverted", tmp_path, fallback=False).refusal


@pytest.mark.parametrize("damage", ["lowest third missing", "back missing"])
def test_a_cropped_brain_is_right_where_it_is_and_the_rest_is_told(damage, untouched, tmp_path):
    found = outcome(damage, tmp_path)
    assert found.gate["verdict"] == "pass"
    assert found.gate["mask_dice"] > 0.9  # where the image is
    assert "of the fixed brain: nothing is known of the rest" in found.gate["notes"][0]
    assert found.overlap > 0.85 * untouched.overlap


def test_too_small_a_part_is_refused(tmp_path):
    assert "registration gate failed" in outcome("top alone", tmp_path, fallback=False).refusal


def test_what_is_no_brain_at_all_is_refused(tmp_path):
    """A cloud of noise in the shape of a brain overlaps perfectly and can be bent to correlate."""
    assert "edges agree by 0.4" in outcome("cloud", tmp_path, fallback=False).refusal


def test_a_member_of_a_template_is_turned_upright(tmp_path):
    upright, turned = (tmp_path / name for name in ("upright", "turned"))
    expected = rigid(brain(1), brain(2), upright)
    moving = brain(2).turned((180, 0, 0))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    back = lps @ brain(2).affine @ np.linalg.inv(moving.affine) @ lps
    corners = np.c_[np.random.default_rng(0).uniform(-60, 60, (20, 3)), np.ones(20)]
    distance = np.linalg.norm(corners @ (back @ rigid(brain(1), moving, turned) - expected).T, axis=1)
    assert distance.max() < 1.0  # mm


def test_a_mirrored_member_of_a_template_is_refused(tmp_path):
    found = member_outcome("mirrored", tmp_path)
    assert re.search(r"alignment to the reference failed: left and right are exchanged.*Remedy", found.refusal)
    assert not (found.folder / "warped.nii.gz").exists()
