"""Who is an outlier: hardly ever one of a few normal scans, and always one that is far off."""

import numpy as np
import pandas as pd
import pytest

from popatlas.report.limits import CHANCES, FEWEST, LIMITS, SCANS, farthest, limit, simulate
from popatlas.report.outliers import OUTLIER, Measure, far_scans, limits, outlier_scores, robust_z

COHORTS = 20_000


def normal(scans, cohorts=COHORTS, seed=0):
    return np.random.default_rng([seed, scans]).standard_normal((cohorts, scans))


def measure(key="m", better="neither", smallest=0.0):
    return Measure(key, key, "", better, 3, "", smallest)


@pytest.mark.parametrize("scans", [5, 8, 20, 35, 200])
def test_of_normal_scans_one_is_called_an_outlier_in_one_cohort_of_twenty(scans):
    far = farthest(normal(scans)) > limit(scans)
    assert 0.04 < far.mean() < 0.056  # the standard error is 0.0015


@pytest.mark.parametrize("scans", [8, 20])
def test_the_chance_does_not_grow_with_the_number_of_measures(scans):
    """Ten measures that know nothing of each other: the hardest case."""
    distance = farthest(normal(scans, 100_000)).reshape(10_000, 10).max(axis=1)
    assert 0.04 < (distance > limit(scans, 10)).mean() < 0.058
    assert (distance > 3.5).mean() > 0.6, "as it was, whatever the number of scans"


def test_eight_healthy_scans_are_no_outliers_on_one_page():
    rng = np.random.default_rng(8)
    keys = [f"m{number}" for number in range(14)]
    called = 0
    for _ in range(100):
        table = pd.DataFrame(rng.standard_normal((8, 14)), columns=keys, index=list("abcdefgh"))
        called += (outlier_scores(table, [measure(key) for key in keys])["score"] > OUTLIER).any()
    assert called <= 12  # at most 5 are expected


@pytest.mark.parametrize("scans", [12, 20, 200])
def test_a_gross_outlier_is_found_and_its_measure_named(scans):
    found = 0
    for seed in range(100):
        table = pd.DataFrame(normal(scans, 10, seed).T, columns=[f"m{number}" for number in range(10)])
        table.loc[3, "m4"] = 40.0
        scores = outlier_scores(table, [measure(f"m{number}") for number in range(10)])
        found += scores.loc[3, "score"] > OUTLIER and scores.loc[3, "measure"] == "m4"
    assert found >= 98


def test_the_limit_falls_with_scans_and_rises_with_measures():
    at = [limit(scans) for scans in range(FEWEST, 31)]
    assert all(after < before for before, after in zip(at[::2], at[2::2], strict=False)), "odd and even numbers differ"
    assert limit(8, 1) < limit(8, 5) < limit(8, 20) < limit(8, 60)
    assert limit(100) < limit(10_000) < limit(100_000) < 8
    assert limit(FEWEST - 1) == np.inf and 3.5 < limit(200) < 4.5
    between = [limit(35, 3), limit(30, 3), limit(40, 3)]
    assert sorted(between)[1] == between[0]


@pytest.mark.parametrize("scans", [5, 8, 50])
def test_the_table_is_what_its_simulation_says(scans):
    again = simulate(scans, CHANCES[:3], 40_000, seed=99)
    np.testing.assert_allclose(LIMITS[scans][:3], again, rtol=0.08)
    assert set(LIMITS) == set(SCANS) and {len(row) for row in LIMITS.values()} == {len(CHANCES)}


def test_each_measure_has_the_limit_of_the_scans_that_have_it():
    table = pd.DataFrame(
        {"all": np.arange(30.0), "few": [*np.arange(6.0), *[np.nan] * 24], "two": [1.0, 2.0, *[np.nan] * 28]}
    )
    far = limits(table, [measure(name) for name in table])
    assert far == {"all": limit(30, 2), "few": limit(6, 2), "two": np.inf}
    assert far_scans(table["two"], measure("two"), far["two"]) == {}


def test_a_share_that_most_scans_have_at_zero_makes_no_outlier_of_the_others():
    values = pd.Series([0.0] * 6 + [1e-6, 2e-5])
    assert (robust_z(values, "lower") == 0).all()
    assert robust_z(values, "lower", smallest=1e-4).max() == pytest.approx(0.2)
    assert robust_z(pd.Series([0.0] * 7 + [0.5]), "lower", smallest=1e-4).max() > limit(8, 20)


def test_the_score_is_the_share_of_the_limit_so_that_measures_of_few_scans_compare():
    values = normal(20, 2, 5).T
    table = pd.DataFrame(values, columns=["a", "b"])
    table.loc[8:, "b"] = np.nan
    both = [measure("a"), measure("b")]
    far, scores = limits(table, both), outlier_scores(table, both)
    expected = pd.DataFrame({name: robust_z(table[name]) / far[name] for name in table}).max(axis=1)
    np.testing.assert_allclose(scores["score"], expected)
