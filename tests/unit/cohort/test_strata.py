"""Draws over site, sex and age: each stratum has its share, and in it the young and the old ones."""

import numpy as np
import pandas as pd
import pytest

from popatlas.cohort.freeze import draw_evenly
from popatlas.cohort.strata import MOST, in_turns, known_strata


def people(count, seed=0):
    rng = np.random.default_rng(seed)
    site = np.where(np.arange(count) % 10 < 7, "Guys", np.where(np.arange(count) % 10 < 9, "HH", "IOP"))
    return pd.DataFrame({
        "scan": [f"s{number:04d}" for number in range(count)],
        "Site": site,
        "sex": rng.choice(["M", "f", "F"], count),
        "age": rng.uniform(20, 80, count),
    })  # fmt: skip


def drawn(table, count):
    strata = known_strata(table.astype(str), list(table["scan"]))
    return strata, draw_evenly(in_turns(table, strata, "age"), count, "place")


@pytest.mark.parametrize("count", [20, 50, 200])
def test_a_draw_has_the_shares_of_the_cohort_and_its_ages(count):
    table = people(1000)
    strata, found = drawn(table, count)
    assert len(found) == count and found["scan"].is_unique
    assert list(strata) == ["site", "sex"] and set(strata["sex"]) == {"m", "f"}, "case says nothing"
    whole, part = (strata.loc[list(frame["scan"])].value_counts(normalize=True) for frame in (table, found))
    assert (part.reindex(whole.index, fill_value=0) - whole).abs().max() <= 1.01 / count
    ages = table["age"].quantile([0.1, 0.5, 0.9]) - found["age"].quantile([0.1, 0.5, 0.9])
    assert ages.abs().max() < (8 if count == 20 else 4)
    again = drawn(table.sample(frac=1, random_state=1), count)[1]
    assert list(again["scan"]) == list(found["scan"]), "nothing is left to chance"


def test_small_strata_are_not_passed_over_in_a_larger_draw():
    table = people(300)
    strata, found = drawn(table, 60)
    assert set(map(tuple, strata.loc[list(found["scan"])].to_numpy())) == set(map(tuple, strata.to_numpy()))


def test_columns_that_tell_no_groups_are_left_out():
    table = people(100)
    scans = list(table["scan"])
    assert known_strata(table.assign(sex="F").astype(str), scans).columns.tolist() == ["site"]
    assert known_strata(table.drop(columns="sex").assign(Site=table["scan"]), scans).empty and len(scans) > MOST
    assert known_strata(pd.DataFrame(), scans).empty
    missing = known_strata(table[50:].astype(str), scans)
    assert (missing.iloc[:50] == "").all(axis=None), "who is not known is a stratum"
