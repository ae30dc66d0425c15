"""A sessions table that cannot be used costs its subject the values of its sessions, and not the study."""

import pytest

from popatlas.cohort.index import index_cohort
from popatlas.cohort.participants import read_people
from popatlas.config.load import load_config
from popatlas.errors import InputError
from tests.cohorts import noise_cohort, noise_image

BAD = {
    "ragged": (b"session_id\tage\nses-1\t30\t31\n", "line 2 has 3 cells"),
    "UTF-16": ("session_id\tage\nses-1\t30\n".encode("utf-16"), "UTF-16 text"),
    "empty": (b"", "the table is empty"),
    "another column": (b"session\tage\nses-1\t30\n", "no column session_id"),
}


def ages(folder):
    """Index two subjects with two sessions each; return their ages by scan."""
    index = index_cohort(load_config(bids_dir=str(folder / "bids")), folder / "out")
    assert list(index["state"]) == ["ok"] * 4
    people = read_people(folder / "out")
    return dict(zip(people["scan"].str.rsplit("/", n=1).str[-1], people["age"], strict=True))


@pytest.fixture
def tables(tmp_path):
    """Return the paths of the two subjects' sessions tables; the first one is good, ages of participants.tsv are others."""
    root = noise_cohort(tmp_path / "bids", [], labels=False)
    for number, name in enumerate(("sub-01", "sub-02")):
        for visit in (1, 2):
            noise_image(root / f"{name}/ses-{visit}/anat/{name}_ses-{visit}_T1w.nii.gz", seed=2 * number + visit)
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t29\nsub-02\t39\n")
    paths = [root / name / f"{name}_sessions.tsv" for name in ("sub-01", "sub-02")]
    paths[0].write_text("session_id\tage\nses-1\t30\nses-2\t32\n")
    return paths


@pytest.mark.parametrize("kind", BAD)
def test_a_table_that_cannot_be_used_is_named_and_the_others_tell(tmp_path, tables, capsys, kind):
    tables[1].write_bytes(BAD[kind][0])
    assert ages(tmp_path) == {"sub-01_ses-1": "30", "sub-01_ses-2": "32", "sub-02_ses-1": "", "sub-02_ses-2": ""}
    said = capsys.readouterr().err
    assert said.count("sub-02 is without the values of its sessions table") == 1
    assert BAD[kind][1] in said and str(tables[1]) in said and "Remedy" in said


def test_a_link_to_nothing_is_named_too(tmp_path, tables, capsys):
    tables[1].symlink_to("annexed")
    assert ages(tmp_path)["sub-01_ses-2"] == "32"
    assert "sub-02 is without the values" in capsys.readouterr().err


@pytest.mark.parametrize("others", [True, False])
def test_a_header_without_rows_tells_nothing(tmp_path, tables, capsys, others):
    tables[1].write_text("session_id\tage\n")
    if not others:
        tables[0].unlink()
    found = ages(tmp_path)
    assert (found["sub-01_ses-2"], found["sub-02_ses-2"]) == ("32" if others else "29", "39")
    assert "sub-02 is without" not in capsys.readouterr().err


def test_participants_are_still_refused(tmp_path, tables):
    (tmp_path / "bids/participants.tsv").write_text("participant_id\tage\nsub-01\t29\t3\n")
    with pytest.raises(InputError, match="line 2 has 3 cells"):
        ages(tmp_path)
