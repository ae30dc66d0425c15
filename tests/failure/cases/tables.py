"""Tables of users that are no tables, contradict themselves or the dataset, and queries on them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from popatlas.cohort.along import check_covariate
from popatlas.cohort.freeze import freeze_atlas_members
from popatlas.cohort.index import index_cohort
from popatlas.cohort.names import freeze_label_names
from popatlas.cohort.participants import read_people
from popatlas.config.load import load_config
from popatlas.errors import PopatlasError
from popatlas.measures.landmarks import read_landmarks
from popatlas.training.table import read_training_table

from ...cohorts import noise_cohort
from ..casebook import LEFT_OUT, SAID, STOPS, Case, notices, refusal

TITLE = "Tables"
MISSING = "the values are missing for the scan, the run goes on"
NOT_SELECTED = "scan `excluded`, the others go on"
AGES = "participant_id\tage\tsex\nsub-1\t20\tF\nsub-2\t40\tM\nsub-3\t60\tF\nsub-4\t70\tM\n"
GOOD = "participant_id\tage\tsex\nsub-1\t20\tF\nsub-2\t40\tM\nsub-3\t60\tF\n"


def listed(text: str | bytes, name: str = "participants.tsv", members: int = 0, **cohort: object) -> Callable[[Path], str]:
    """Index three subjects with a table, perhaps draw members, and return what is said or raised."""

    def run(folder: Path) -> str:
        root = noise_cohort(folder / "bids", ["sub-1", "sub-2", "sub-3"], labels=False)
        (root / "participants.tsv").unlink()
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        config = load_config({"cohort": cohort, "atlas": {"members": members or "all"}}, bids_dir=str(root))

        def work() -> None:
            index = index_cohort(config, folder / "out")
            if members:
                freeze_atlas_members(config, index, list(index["scan"]), folder / "out")

        try:
            return notices(work)
        except PopatlasError as error:
            return str(error)

    return run


def along(text: str, **atlas: object) -> Callable[[Path], str]:
    """Ask for templates along a column of a table, and return the refusal."""

    def run(folder: Path) -> str:
        root = noise_cohort(folder / "bids", ["sub-1", "sub-2", "sub-3", "sub-4"], labels=False)
        (root / "participants.tsv").write_text(text)
        config = load_config({"atlas": {"along": "age"} | atlas}, bids_dir=str(root))
        scans = list(index_cohort(config, folder / "out")["scan"])
        return refusal(lambda: check_covariate(config, read_people(folder / "out"), scans))

    return run


def two_subjects_fit(folder: Path) -> str:
    root = noise_cohort(folder / "bids", ["sub-01", "sub-001"], labels=False)
    (root / "participants.tsv").write_text("participant_id\tage\n1\t20\n")
    return notices(lambda: index_cohort(load_config(bids_dir=str(root)), folder / "out")).splitlines()[0]


def paths(text: str) -> Callable[[Path], str]:
    """Index a table of paths that is refused."""

    def run(folder: Path) -> str:
        (folder / "cohort.tsv").write_text(text)
        return refusal(lambda: index_cohort(load_config(bids_dir=str(folder / "cohort.tsv")), folder / "out"))

    return run


def atlases(text: str) -> Callable[[Path], str]:
    """Index a dataset with a table of external atlases that is refused."""

    def run(folder: Path) -> str:
        root = noise_cohort(folder / "bids", ["sub-1"], labels=False)
        (folder / "atlases.tsv").write_text(text)
        config = load_config({"fuse": {"atlases": str(folder / "atlases.tsv")}}, bids_dir=str(root))
        return refusal(lambda: index_cohort(config, folder / "out"))

    return run


def names(text: str, encoding: str = "utf-8") -> Callable[[Path], str]:
    """Collect names of labels from a table that is left out."""

    def run(folder: Path) -> str:
        (folder / "dseg.tsv").write_text(text, encoding)

        def work() -> None:
            assert freeze_label_names(load_config(), [str(folder / "dseg.nii.gz")], [], folder / "out") == {}

        return notices(work)

    return run


def visits(folder: Path) -> str:
    root = noise_cohort(folder / "bids", ["sub-1", "sub-2"], labels=False)
    (root / "sub-2" / "sub-2_sessions.tsv").write_text("session_id\tage\nses-1\t30\t31\n")
    return notices(lambda: index_cohort(load_config(bids_dir=str(root)), folder / "out"))


def refused(reader: Callable[[Path], object], text: str) -> Callable[[Path], str]:
    """Read a table that is refused."""

    def run(folder: Path) -> str:
        (folder / "table.tsv").write_text(text)
        return refusal(lambda: reader(folder / "table.tsv"))

    return run


def broken_link(folder: Path) -> str:
    root = noise_cohort(folder / "bids", ["sub-1"], labels=False)
    (root / "participants.tsv").unlink()
    (root / "participants.tsv").symlink_to(folder / "objects" / "gone")
    return refusal(lambda: index_cohort(load_config(bids_dir=str(root)), folder / "out"))


LATIN = "participant_id\tname\nsub-1\tMüller\n".encode("latin-1")
BAD_AGE = GOOD.replace("40", ">89")

CASES = [
    Case("table", "separated by commas", STOPS, "commas between the columns", listed(GOOD.replace("\t", ","))),
    Case("table", "Latin-1", STOPS, "line 2 is not UTF-8 but it seems Latin-1", listed(LATIN)),
    Case("table", "UTF-16, as Excel writes it", STOPS, "UTF-16", listed(GOOD.encode("utf-16"))),
    Case("table", "an Excel file", STOPS, "an Excel or zip file", listed(b"PK\x03\x04...")),
    Case("table", "not there, but another kind", SAID, "participants.xlsx is not read", listed(b"PK", "participants.xlsx")),
    Case("table", "a link whose file was not got", STOPS, "git annex get", broken_link),
    Case("table", "a line with a cell too many", STOPS, "line 3 has 4 cells", listed(GOOD.replace("40", "40\t41"))),
    Case("table", "a line that is cut", STOPS, "line 4 has 2 cells", listed(GOOD.replace("60\tF", "60"))),
    Case("table", "cells in quotes", STOPS, "in quotes", listed(GOOD.replace("participant_id", '"participant_id"'))),
    Case("table", "a column twice", STOPS, "both named 'age'", listed(GOOD.replace("sex", "age"))),
    Case("table", "ids have another name", STOPS, "did you mean", listed(GOOD.replace("participant_id", "Participant ID"))),
    Case("participants", "zeros lost from an id", SAID, "'01' is sub-1", listed(GOOD.replace("sub-1", "01")), remedy=False),
    Case("participants", "an id that two subjects fit", MISSING, "'1' (sub-001 or sub-01)", two_subjects_fit),
    Case("participants", "a subject twice, two ages", MISSING, "(lines 2, 5). Remedy", listed(GOOD + "sub-1\t21\tF\n")),
    Case("participants", "a subject without row", SAID, "no row: sub-2", listed(GOOD.replace("sub-2\t40\tM\n", "")),
         remedy=False),
    Case("participants", "an age that is none, in a draw", SAID, "count as 40, the median: sub-2",
         listed(GOOD.replace("40", "4O"), members=2), remedy=False),
    Case("participants", "no ages, in a draw", SAID, "by name, not by age", listed(GOOD.replace("age", "iq"), members=2),
         remedy=False),
    Case("query", "on a column with bad cells", STOPS, "'>89' (sub-2)", listed(BAD_AGE, query="age > 30")),
    Case("query", "text compared with a number", STOPS, "is a column of text ('F', 'M')", listed(GOOD, query="sex == 1")),
    Case("query", "numbers compared with a text", STOPS, "is a column of numbers", listed(GOOD, query="age > '30'")),
    Case("query", "of what is not known", NOT_SELECTED, "1 scan(s) lack what it asks for",
         listed(GOOD.replace("40", "n/a"), query="age > 30"), remedy=False),
    Case("query", "a text that no cell has", SAID, "no cell of sex is 'female'", listed(GOOD, query="sex != 'female'"),
         remedy=False),
    Case("query", "Python", STOPS, "'@' at character 10", listed(GOOD, query='note.map(@__builtins__.get("eval"))')),
    Case("query", "a function", STOPS, "'age.to_csv' is not known", listed(GOOD, query="age.to_csv('f')")),
    Case("along", "no such column", STOPS, "did you mean 'age'", along(AGES, along="agee")),
    Case("along", "a column of words", STOPS, "'sex' is not of numbers", along(AGES, along="sex")),
    Case("along", "an empty column", STOPS, "'age' is empty", along(re.sub(r"\t\d+\t", "\tn/a\t", AGES))),
    Case("along", "one age for all", STOPS, "one value only (20)", along(re.sub(r"\t\d+\t", "\t20\t", AGES))),
    Case("along", "ages missing for too many", STOPS, "2 subjects have a value in 'age'",
         along(AGES.replace("40", "n/a").replace("60", "-999"))),
    Case("along", "nobody near a value", STOPS, "too few subjects are near 90", along(AGES, along_values=[90])),
    Case("paths", "a scan twice", STOPS, "listed twice (line 3)", paths("subject\tt1w\n01\ta.nii\nsub-01\tb.nii\n")),
    Case("paths", "no column t1w", STOPS, "no column 't1w'", paths("subject\timage\n01\ta.nii\n")),
    Case("atlases", "an empty cell", STOPS, "is empty (line 2)", atlases("atlas\tt1w\tdseg\nA\ta.nii\tn/a\n")),
    Case("names", "a label with two names", LEFT_OUT, "label 1 is named 'a' and 'b'", names("index\tname\n1\ta\n1\tb\n")),
    Case("names", "an index that is no label", LEFT_OUT, "'1.5' is no label", names("index\tname\n1.5\ta\n")),
    Case("names", "UTF-16, as Excel writes it", LEFT_OUT, "UTF-16 text", names("index\tname\n1\ta\n", "utf-16")),
    Case("sessions", "a line with a cell too many", MISSING, "sub-2 is without the values of its sessions table", visits),
    Case("landmarks", "a decimal comma", STOPS, "line 2: ", refused(read_landmarks, "name\tx\ty\tz\na\t1,5\t2\t3\n")),
    Case("training", "no column image", STOPS, "no column image", refused(read_training_table, "subject\tt1w\n01\ta\n")),
]  # fmt: skip
