"""Who takes part in templates along a covariate, where they are made, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from popatlas.cohort.along import check_covariate, covariate_of
from popatlas.config.load import load_config
from popatlas.errors import InputError

AGES = [20.0 + 2 * number for number in range(20)]
SCANS = [f"sub-{number:02d}/anat/sub-{number:02d}" for number in range(20)]


def people(scans=SCANS, **columns):
    """Return the table of participants as it is read: text, empty where a value is missing."""
    keys = {"scan": scans, "subject": [scan.split("/")[0] for scan in scans], "session": [""] * len(scans)}
    return pd.DataFrame(keys | {"participant_id": keys["subject"]} | columns).astype(str)


def config(folder, column="age", **atlas):
    return load_config({"bids_dir": str(folder), "atlas": {"along": column} | atlas})


def test_nothing_is_asked_for_by_default(tmp_path):
    assert covariate_of(config(tmp_path, None), people(), SCANS).values == []


def test_values_are_round_and_from_the_10th_to_the_90th_percentile(tmp_path):
    found = covariate_of(config(tmp_path), people(age=AGES), SCANS)
    low, high = np.percentile(AGES, [10, 90])
    assert len(found.values) == 5 and found.thin == ()
    assert np.allclose(found.values, np.linspace(low, high, 5), atol=0.5) and all(
        value == round(value) for value in found.values
    )
    assert list((found.of or {}).values()) == AGES
    assert "5 templates along age at" in found.describe() and "of 20 scans" in found.describe()
    small = covariate_of(config(tmp_path, "iq"), people(iq=[age / 1000 for age in AGES]), SCANS)
    assert len(set(small.values)) == 5


def test_weights_are_those_of_the_kernel(tmp_path):
    found = covariate_of(config(tmp_path, conditional={"width": 4.0}), people(age=AGES), SCANS)
    near = found.near(40.0)
    odds = {scan: np.exp(-0.5 * ((age - 40) / 4) ** 2) for scan, age in zip(SCANS, AGES, strict=True) if scan in near}
    assert near == pytest.approx({scan: odd / sum(odds.values()) for scan, odd in odds.items()})
    assert sum(near.values()) == pytest.approx(1) and len(near) < 20


def test_scans_without_a_value_take_no_part_and_are_named(tmp_path):
    cells = ["" if number == 3 else "-999" if number == 5 else age for number, age in enumerate(AGES)]
    found = covariate_of(config(tmp_path), people(age=cells), SCANS)
    assert found.lacking == (SCANS[3], SCANS[5]) and not set(found.lacking) & set(found.of or {})
    assert "2 have no value and take no part: sub-03, sub-05" in found.describe()


def test_each_subject_counts_once(tmp_path):
    scans = [f"sub-{name}/ses-{visit}/anat/sub-{name}_ses-{visit}" for name in "abcd" for visit in (1, 2)]
    ages = ["", 31, 40, 41, 50, 51, 60, 61]
    found = covariate_of(config(tmp_path, conditional={"width": 30.0}), people(scans, age=ages), scans)
    assert [scan.rsplit("/")[-1] for scan in found.of or {}] == ["sub-a_ses-2", "sub-b_ses-1", "sub-c_ses-1", "sub-d_ses-1"]


def test_of_a_large_cohort_so_many_are_drawn_evenly_over_the_values(tmp_path):
    found = covariate_of(config(tmp_path, along_most=6), people(age=AGES), SCANS)
    ages = list((found.of or {}).values())
    assert len(ages) == 6 and (ages[0], ages[-1]) == (AGES[0], AGES[-1]) and np.ptp(np.diff(ages)) <= 2
    again = covariate_of(config(tmp_path, along_most=6), people(age=AGES), SCANS[::-1])
    assert again.of == found.of


def test_values_that_too_few_are_near_are_left_out_after_scans_have_failed(tmp_path):
    settings = config(tmp_path, along_values=[30, 56], conditional={"width": 3.0})
    whole = check_covariate(settings, people(age=AGES), SCANS)
    assert whole.values == [30, 56]
    left = covariate_of(settings, people(age=AGES), SCANS[:15])
    assert (left.values, left.thin) == ([30], (56,))
    assert "too few are near 56, which are left out" in left.describe()
    with pytest.raises(InputError, match="too few subjects are near 56"):
        check_covariate(settings, people(age=AGES), SCANS[:15])


BAD = {
    "no such column": ("agee", {}, "no column is called 'agee', did you mean 'age'"),
    "words": ("sex", {}, "'sex' is not of numbers"),
    "empty": ("iq", {}, "'iq' is empty"),
    "one value": ("site", {}, r"'site' has one value only \(3\)"),
    "few": ("score", {}, "2 subjects have a value in 'score', at least 3 are needed; without: sub-02"),
    "beyond": ("age", {"along_values": [90]}, "too few subjects are near 90"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_columns_that_cannot_be_used_are_refused_with_a_remedy(tmp_path, case):
    column, atlas, message = BAD[case]
    table = people(age=AGES, sex=["F", "M"] * 10, iq=[""] * 20, site=["3"] * 20, score=["1", "2", *[""] * 18])
    with pytest.raises(InputError, match=message) as error:
        check_covariate(config(tmp_path, column, **atlas), table, SCANS)
    assert error.value.remedy
