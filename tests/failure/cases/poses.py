"""Brains that lie otherwise than their header says, are cut off, are of another contrast, or are none at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from popatlas.registration.cohort_gate import stand_apart
from popatlas.registration.gate import judge_again

from ...unit.damaged import GATE, brain, member_outcome, outcome, register
from ..casebook import FAILED, SAID, Case, refusal

TITLE = "Poses and sides of brains"
AGAIN = "the registration is made again"


def refused(damage: str, *, fallback: bool = True) -> Callable[[Path], str]:
    """Register a damaged brain that must not pass, and return the message."""

    def run(folder: Path) -> str:
        found = outcome(damage, folder, fallback=fallback)
        assert found.refusal and not (found.folder / "warp.nii.gz").exists()
        return found.refusal.replace(str(found.folder), str(folder))

    return run


def noted(damage: str) -> Callable[[Path], str]:
    """Register a damaged brain that passes, and return what is said about it."""
    return lambda folder: "; ".join(outcome(damage, folder).gate["notes"])


def other_contrast(folder: Path) -> str:
    gate = outcome("T2-like", folder).gate
    assert gate["verdict"] == "pass" and len(gate["attempts"]) == 2
    return str(gate["attempts"][0]["reasons"][0])


def mirrored_member(folder: Path) -> str:
    found = member_outcome("mirrored", folder)
    assert found.refusal
    return found.refusal.replace(str(found.folder), str(folder))


def bent(folder: Path) -> str:
    """Register with a limit that the displacements exceed."""
    gate = GATE | {"displacement_p95": 2.0}
    said = refusal(lambda: register(brain(1), brain(2), folder, fallback=False, gate=gate))
    assert not (folder / "warp.nii.gz").exists()
    return said


def apart(folder: Path) -> str:
    gates = {f"sub-{number}": {"edges": 0.8 + 0.01 * (number % 3)} for number in range(12)}
    return stand_apart(gates | {"sub-5": {"edges": 0.58}})["sub-5"].reason


def judged_again(folder: Path, **changes: object) -> str:
    """Judge what passed once more, as it is done when stock is taken."""
    numbers = {"scale_max": 1.1, "scale_min": 0.9, "shear": 0.05, "mask_dice": 0.9, "covered": 1.0, "contrast": 1.0}
    numbers |= {"pose": 12.0, "edges_affine": 0.66, "edges": 0.8, "log_jacobian_sd": 0.3, "displacement_p95": 8.0}
    return "; ".join(judge_again(numbers | {"revision": 1} | changes, GATE | {"mask_dice": 0.95}))


CASES = [
    Case(
        "register",
        "header turned by 180 degrees",
        SAID,
        "header may be wrong",
        noted("turned about z"),
        False,
    ),
    Case("register", "left and right exchanged in the header", FAILED, "are exchanged", refused("mirrored")),
    Case(
        "register",
        "left and right exchanged, and upside down",
        FAILED,
        "are exchanged",
        refused("mirrored and turned"),
    ),
    Case("atlas", "a member with left and right exchanged", FAILED, "alignment to the reference failed", mirrored_member),
    Case("register", "the lowest third is missing", SAID, "nothing is known", noted("lowest third missing"), False),
    Case("register", "only the top is there", FAILED, "gate failed", refused("top alone", fallback=False)),
    Case("register", "a T2w image for a T1w", "by edges, whatever the contrast", "contrasts differ", other_contrast, False),
    Case(
        "register",
        "another contrast, and no attempt for it",
        FAILED,
        "the contrasts differ",
        refused("inverted", fallback=False),
    ),
    Case("register", "noise instead of a brain", FAILED, "edges agree by", refused("cloud", fallback=False)),
    Case("register", "bent further than allowed", FAILED, "moves points by", bent),
    Case("register", "far worse than the rest of the cohort", SAID, "stands apart", apart, False),
    Case("register", "limits that are stricter than before", AGAIN, "mask Dice 0.900 below 0.95", judged_again, False),
    Case(
        "register",
        "judged by an earlier gate",
        AGAIN,
        "did not look at edges",
        lambda folder: judged_again(folder, edges=None),
        False,
    ),
]
