"""Registrations are judged again by the limits of today: what passes is kept, what does not is made again."""

import json
import shutil

from popatlas.config.load import load_config
from popatlas.registration.gate import GATE_REVISION
from popatlas.study.inventory import REFUSED, SUPERSEDED

from .test_dag import opened
from .test_fusion import leave
from .test_inventory import SCAN, SETTINGS, cohort, left, stock

__all__ = ["cohort"]  # a fixture

SHOWS_SETTINGS = {("write_report", "")}


def gated(folder, settings=SETTINGS, scans=("",), **changes):
    """Leave gate files as the step writes them, of some scans with other content, and take stock with other settings."""
    numbers = {"scale_max": 1.1, "scale_min": 0.9, "shear": 0.05, "mask_dice": 0.97, "covered": 1.0, "contrast": 1.0}
    numbers |= {"pose": 12.0, "edges_affine": 0.66, "edges": 0.8, "log_jacobian_sd": 0.3, "displacement_p95": 8.0}
    gate = {"verdict": "pass", "revision": GATE_REVISION, "limits": limits(), **numbers}

    def content(path):
        found = gate | (changes if any(scan in path for scan in scans) else {})
        return json.dumps(found) if path.endswith("_registration.json") else ""

    shutil.rmtree(folder / "out")
    leave(opened(folder, SETTINGS), "all", content)
    return stock(folder, settings)


def limits(**changes):
    return load_config().content["register"]["gate"] | changes


def with_limits(**changes):
    return SETTINGS | {"register": {"gate": changes}}


def test_other_limits_judge_registrations_again_and_repeat_those_that_fail(cohort):
    assert left(gated(cohort, scans=[SCAN], mask_dice=0.91)) == {}
    assert set(left(stock(cohort, with_limits(mask_dice=0.9)))) == SHOWS_SETTINGS, "all pass these too"
    inventory = stock(cohort, with_limits(mask_dice=0.95))
    found = left(inventory)
    assert {scan for (rule, scan), verdict in found.items() if verdict == REFUSED} == {SCAN}
    assert found["register_to_template", SCAN] == REFUSED
    assert found["measure_scan", SCAN] == found["tabulate_cohort", ""] == SUPERSEDED
    assert "for it does not pass the gate as it is now: 1 register_to_template (sub-02)" in "\n".join(
        inventory.explain("all")
    )


def test_what_was_judged_by_the_limits_of_today_is_not_judged_again(cohort):
    """Otherwise what a step lets pass and the stock does not would be made again for ever."""
    given = with_limits(mask_dice=0.99)
    assert set(left(gated(cohort, given, limits=limits(mask_dice=0.99)))) == SHOWS_SETTINGS


def test_what_an_earlier_gate_did_not_look_at_is_made_again(cohort):
    assert left(gated(cohort, revision=GATE_REVISION - 1)) == {}, "all numbers are there, and good"
    found = left(gated(cohort, scans=[SCAN], revision=GATE_REVISION - 1, edges=None))
    assert [place for place, verdict in found.items() if verdict == REFUSED] == [("register_to_template", SCAN)]
