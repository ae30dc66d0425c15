"""Steps on damaged brains: right, or refused with what to look at; never wrong without a word."""

from dataclasses import replace

import numpy as np
import pytest

from popatlas.errors import InputError
from popatlas.images.io import read_json
from popatlas.registration.gate import GATE_REVISION, judge
from tests.unit.damaged import GATE, brain, overlap, random_turn, register, rigid


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untouched")
    gate = register(brain(1), brain(2), folder)
    return gate, overlap(brain(1), brain(2), folder)


def test_an_untouched_pair_passes_at_the_first_attempt_without_a_note(untouched):
    gate, labels = untouched
    assert (gate["verdict"], len(gate["attempts"]), gate["notes"]) == ("pass", 1, [])
    assert "found_from" not in gate["attempts"][0]
    assert labels > 0.7
    assert gate["pose"] > 8 and gate["edges"] > gate["edges_affine"] > 0.6
    assert gate["contrast"] > 0.95 and gate["sides"] > 0.4 and gate["covered"] == 1


def test_what_is_judged_stands_in_the_file_and_can_be_judged_again(untouched):
    gate = untouched[0]
    assert gate["revision"] == GATE_REVISION
    numbers = {name: value for name, value in gate.items() if isinstance(value, int | float) and name != "revision"}
    assert judge(numbers, GATE) == []
    for name in GATE:
        worse = {"scale": [0.99, 1.0], "nonpositive_jacobian": -1, "inverse_error": 0}.get(name)
        if worse is None:
            worse = -1e9 if name in ("shear", "log_jacobian_sd", "displacement_p95") else 1e9
        assert judge(numbers, GATE | {name: worse}) != [], name


@pytest.mark.parametrize("turn", [(180, 0, 0), (0, 0, 180), tuple(random_turn(5, 140))])
def test_a_turned_header_is_repaired_and_told(turn, untouched, tmp_path):
    moving = brain(2).turned(turn)
    gate = register(brain(1), moving, tmp_path, fallback=False)
    assert gate["verdict"] == "pass"
    assert overlap(brain(1), moving, tmp_path) > 0.97 * untouched[1]
    assert gate["turned"] == pytest.approx(np.linalg.norm(turn), abs=15)
    assert "orientation in its header may be wrong" in gate["notes"][0]
    if turn == (0, 0, 180):
        assert "about the head-foot axis" in gate["notes"][0]


@pytest.mark.parametrize("turn", [(0, 0, 0), (0, 180, 0)], ids=["mirrored", "and turned"])
def test_exchanged_sides_are_refused_at_once(turn, tmp_path):
    moving = brain(2).mirrored().turned(turn)
    with pytest.raises(
        InputError, match=r"left and right are exchanged.*moving/brain\.nii\.gz.*sub-07.*orientation in the header"
    ):
        register(brain(1), moving, tmp_path)
    gate = read_json(tmp_path / "gate.json")
    assert (gate["verdict"], len(gate["attempts"])) == ("fail", 1)
    assert gate["sides"] < GATE["sides"]
    assert not (tmp_path / "warp.nii.gz").exists()


@pytest.mark.parametrize("contrast", ["inverted", "T2-like"])
def test_another_contrast_goes_to_the_attempt_that_looks_at_edges(contrast, untouched, tmp_path):
    moving = brain(2).recoloured(contrast)
    gate = register(brain(1), moving, tmp_path)
    assert gate["verdict"] == "pass"
    assert "the contrasts differ" in gate["attempts"][0]["reasons"][0]
    assert len(gate["attempts"]) == 2
    assert overlap(brain(1), moving, tmp_path) > 0.9 * untouched[1]


def test_without_such_a_fallback_another_contrast_is_refused(tmp_path):
    with pytest.raises(InputError, match="the contrasts differ"):
        register(brain(1), brain(2).recoloured("inverted"), tmp_path, fallback=False)


@pytest.mark.parametrize("part", [(2, 0.3, 1.0), (1, 0.35, 1.0)])
def test_a_cropped_brain_is_right_where_it_is_and_the_rest_is_told(part, untouched, tmp_path):
    moving = brain(2).cropped(*part)
    gate = register(brain(1), moving, tmp_path)
    assert gate["verdict"] == "pass"
    assert gate["mask_dice"] > 0.9  # where the image is
    assert "of the fixed brain: nothing is known of the rest" in gate["notes"][0]
    assert overlap(brain(1), moving, tmp_path) > 0.85 * untouched[1]


def test_too_small_a_part_is_refused(tmp_path):
    with pytest.raises(InputError, match="registration gate failed"):
        register(brain(1), brain(2).cropped(2, 0.72, 1.0), tmp_path, fallback=False)


def test_what_is_no_brain_at_all_is_refused(tmp_path):
    """A cloud of noise in the shape of a brain overlaps perfectly and can be bent to correlate."""
    noise = np.random.default_rng(0).uniform(0.2, 1, brain(2).image.shape)
    cloud = replace(brain(2), image=noise * brain(2).mask)
    with pytest.raises(InputError, match=r"edges agree by 0\.4"):
        register(brain(1), cloud, tmp_path, fallback=False)


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
    with pytest.raises(InputError, match=r"alignment to the reference failed: left and right are exchanged.*Remedy"):
        rigid(brain(1), brain(2).mirrored(), tmp_path)
    assert not (tmp_path / "warped.nii.gz").exists()
