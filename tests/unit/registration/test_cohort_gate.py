"""Who stands apart from a cohort: known answers."""

import numpy as np
import pytest

from popatlas.registration.cohort_gate import FEWEST, stand_apart


def cohort(count=20, **changes):
    rng = np.random.default_rng(0)
    gates = {
        f"sub-{number:02d}": {
            "verdict": "pass",
            "edges": 0.8 + 0.02 * rng.standard_normal(),
            "nmi": 1.2 + 0.01 * rng.standard_normal(),
            "log_jacobian_sd": 0.35 + 0.05 * rng.standard_normal(),
            "displacement_p95": 8 + rng.standard_normal(),
        }
        for number in range(count)
    }
    gates["sub-03"] |= changes
    return gates


@pytest.mark.parametrize("seed", range(20))
def test_nobody_stands_apart_from_a_clean_cohort(seed):
    rng = np.random.default_rng(seed)
    assert stand_apart({str(n): {"edges": 0.8 + 0.03 * rng.standard_normal(), "nmi": 1.2} for n in range(40)}) == {}
    assert stand_apart(cohort()) == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"edges": 0.55}, "edges agree by 0.55, those of the others by 0.8"),
        ({"nmi": 1.02}, "the mutual information is 1.020"),
        ({"log_jacobian_sd": 0.9}, "the log-Jacobian varies by 0.90, that of the others by 0.3"),
        ({"displacement_p95": 21.0}, "moves points by 21.0 mm"),
    ],
)
def test_one_that_is_much_worse_is_named_with_the_numbers(change, words):
    found = stand_apart(cohort(**change))
    assert list(found) == ["sub-03"]
    assert words in found["sub-03"].reason
    assert found["sub-03"].metric == next(iter(change))
    assert found["sub-03"].deviations > 6


def test_being_much_better_is_no_fault():
    assert stand_apart(cohort(edges=1.0, nmi=1.9, log_jacobian_sd=0.0, displacement_p95=0.0)) == {}


def test_all_that_is_odd_is_said_the_oddest_first():
    found = stand_apart(cohort(edges=0.3, displacement_p95=20.0))["sub-03"]
    assert found.metric == "edges"
    assert found.reason.index("edges") < found.reason.index("moves points")


def test_few_scans_tell_nothing_and_a_single_odd_one_does_not_hide_itself():
    few = dict(list(cohort(edges=0.3).items())[: FEWEST - 1])
    assert stand_apart(few) == {}
    assert list(stand_apart(dict(list(cohort(edges=0.3).items())[:FEWEST]))) == ["sub-03"]


@pytest.mark.parametrize("value", [None, float("nan"), "0.3", True])
def test_what_is_no_number_is_left_out(value):
    assert stand_apart(cohort(edges=value)) == {}


def test_equal_values_have_a_smallest_spread():
    """Without one, the first difference in the last digit would be infinitely far away."""
    gates = {str(number): {"edges": 0.8} for number in range(15)}
    assert stand_apart(gates | {"odd": {"edges": 0.79}}) == {}
    assert list(stand_apart(gates | {"odd": {"edges": 0.6}})) == ["odd"]
