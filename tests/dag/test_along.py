"""Templates along a covariate in the pipeline: which jobs they are, who is in, and what makes them run again."""

from collections import Counter

import pytest

from popatlas.cli.main import main
from popatlas.errors import InputError
from popatlas.images.io import read_table, write_table, write_text
from popatlas.receipts import FOLDER
from popatlas.study.inventory import Inventory
from popatlas.study.opening import clear

from ..cohorts import noise_cohort, noise_labels
from .test_dag import opened, plan
from .test_fusion import fail, leave

NAMES = [f"sub-{number:02d}" for number in range(1, 9)]
SERIES = "tpl-popatlas/tpl-popatlas_desc-along_T1w.nii.gz"
PLAIN = {"atlas": {"members": 3, "iterations": 1}, "fuse": {"atlases": 2, "methods": ["majority"]}}
# ages are 20, 25 ... 55: near 27 are those up to 35 or so
ALONG = {"along": "age", "along_values": [27, 48], "conditional": {"width": 4.5}}
SETTINGS = PLAIN | {"atlas": PLAIN["atlas"] | ALONG}
REPORTED = {"tabulate_cohort", "write_report"}


@pytest.fixture
def cohort(tmp_path):
    noise_cohort(tmp_path / "bids", NAMES)
    return tmp_path


@pytest.fixture
def finished(cohort):
    study = opened(cohort, SETTINGS)
    leave(study, "all")
    return cohort


def left(folder, settings=SETTINGS):
    """Return rule and place of what the next run makes."""
    inventory = Inventory(opened(folder, settings))
    jobs = [inventory.jobs.jobs[name] for name in inventory.needed("all")]
    return Counter((job.rule, job.wildcards.get("place", "")) for job in jobs)


def change_age(folder, name, age):
    people = read_table(folder / "bids/participants.tsv")
    write_table(
        people.assign(age=people["age"].mask(people["participant_id"] == name, age)), folder / "bids/participants.tsv"
    )


def test_without_a_column_there_is_no_job_and_the_template_is_the_same(cohort):
    plain = plan(cohort, PLAIN)
    assert not {"make_along", "publish_along"} & set(plain)
    assert plan(cohort, SETTINGS) == plain | {"make_along": 2, "publish_along": 1}
    assert opened(cohort, SETTINGS).template.version == opened(cohort, PLAIN).template.version


def test_each_template_needs_the_scans_near_its_value(cohort):
    study = opened(cohort, SETTINGS)
    assert study.along.members("1") == [f"{name}/anat/{name}" for name in NAMES[:4]]
    jobs = Inventory(study).jobs
    needs = jobs.jobs[jobs.name("make_along", place="1")].needs
    for name in NAMES:
        scan = f"{name}/anat/{name}"
        wanted = {jobs.name("register_to_template", scan=scan), jobs.name("fuse_labels", scan=scan, method="majority")}
        assert (wanted <= set(needs)) == (name in NAMES[:4]) and (bool(wanted & set(needs)) == (name in NAMES[:4]))
    lines = study.along.listed()["cohort/lists/along-popatlas-1.tsv"]
    (first, *_) = study.along.listed()["cohort/lists/along-popatlas-1-labels.txt"]
    assert first == "sub-01/anat/sub-01_desc-majority_dseg.nii.gz"
    assert lines == ["scan\tvalue", *(f"{name}/anat/{name}\t{20.0 + 5 * number}" for number, name in enumerate(NAMES[:4]))]


def test_memory_and_minutes_grow_with_the_scans(cohort):
    few, many = (
        opened(cohort, {**SETTINGS, "atlas": SETTINGS["atlas"] | {"conditional": {"width": width}}}).along
        for width in (4.5, 30.0)
    )
    place = type("Wildcards", (), {"place": "1"})()
    assert len(few.members("1")) < len(many.members("1"))
    assert few.memory(place) < many.memory(place) and few.minutes(place) < many.minutes(place)


def test_without_fusion_the_labels_of_reference_are_taken(cohort):
    settings = SETTINGS | {"fuse": {"methods": []}}
    study = opened(cohort, settings)
    paths = study.along.listed()["cohort/lists/along-popatlas-1-labels.txt"]
    assert study.along.method == "reference" and paths[0].endswith(
        "derivatives/truth/sub-01/anat/sub-01_desc-truth_dseg.nii.gz"
    )
    leave(study, "all")
    assert left(cohort, settings) == Counter()
    noise_labels(cohort / "bids/derivatives/truth/sub-01/anat/sub-01_desc-truth_dseg.nii.gz", seed=99)
    found = left(cohort, settings)
    assert found["make_along", "1"] == 1 and found["make_along", "2"] == 0
    bare = opened(cohort, settings | {"measure": {"reference": ""}})
    assert bare.along.method == "" and bare.along.places


def test_a_finished_study_makes_nothing(finished):
    assert left(finished) == Counter()


def test_another_age_makes_the_templates_near_it_again_and_no_scan(finished):
    change_age(finished, NAMES[0], 21.0)
    found = left(finished)
    assert found == Counter([("make_along", "1"), ("publish_along", ""), *((rule, "") for rule in REPORTED)])


def test_values_and_width_that_follow_from_the_ages_make_all_templates_again(cohort):
    settings = PLAIN | {"atlas": PLAIN["atlas"] | {"along": "age"}}
    leave(opened(cohort, settings), "all")
    change_age(cohort, NAMES[0], 12.0)
    assert {place for rule, place in left(cohort, settings) if rule == "make_along"} == set("12345")


def test_a_new_subject_changes_the_templates_near_it(finished):
    noise_cohort(finished / "bids", [*NAMES, "sub-09"])
    change_age(finished, "sub-09", 47.0)
    found = left(finished)
    assert found["make_along", "2"] == 1 and found["make_along", "1"] == 0 and found["register_to_template", ""] == 1


def test_a_scan_that_fails_is_left_out(finished):
    fail(finished, f"{NAMES[1]}/anat/{NAMES[1]}")
    assert f"{NAMES[1]}/anat/{NAMES[1]}" not in opened(finished, SETTINGS).along.members("1")
    found = left(finished)
    assert found["make_along", "1"] == 1 and found["make_along", "2"] == 0


def test_a_value_that_fails_make_thin_is_left_out_and_the_rest_stays(finished):
    fail(finished, *(f"{name}/anat/{name}" for name in NAMES[:3]))
    study = opened(finished, SETTINGS)
    assert list(study.along.places.values()) == [48]
    fail(finished, *(f"{name}/anat/{name}" for name in NAMES[:6]))
    assert opened(finished, SETTINGS).along.places == {}
    assert {rule for rule, _ in left(finished)} >= REPORTED


def test_other_settings_of_the_template_are_not_touched(finished):
    other = {**SETTINGS, "atlas": SETTINGS["atlas"] | {"conditional": {"width": 4.5, "bootstrap": 50}}}
    rules = {rule for rule, _ in left(finished, other)}
    assert rules == {"make_along", "publish_along", "write_report"}


def test_what_is_not_asked_for_any_more_is_taken_away(finished):
    inventory = Inventory(opened(finished, PLAIN))
    clear(inventory, "all")
    out = finished / "out"
    assert not (out / SERIES).exists() and not (out / FOLDER / "group/publish_along.json").exists()
    assert (out / "tpl-popatlas/tpl-popatlas_T1w.nii.gz").is_file()


def test_a_subject_who_withdraws_is_in_no_template(finished):
    out = finished / "out"
    write_text(out / "config.yaml", "atlas: {along: age}\n")
    assert main(["withdraw", str(out), "02", "--yes"]) == 0
    assert not (out / SERIES).exists() and not list(out.glob("work/*/*/along/*"))
    assert f"{NAMES[1]}/anat/{NAMES[1]}" not in opened(finished, SETTINGS).along.members("1")
    assert left(finished)["publish_along", ""] == 1


@pytest.mark.parametrize(
    ("atlas", "message"), [({"along": "agee"}, "no column is called 'agee'"), ({"along": "sex"}, "is not of numbers")]
)
def test_columns_that_cannot_be_used_are_refused_before_anything_runs(cohort, atlas, message):
    with pytest.raises(InputError, match=message):
        opened(cohort, PLAIN | {"atlas": PLAIN["atlas"] | atlas})
