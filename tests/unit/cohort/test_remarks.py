"""What has to be said of registrations that passed: by the gate of each, and by the cohort."""

from popatlas.cli.main import main
from popatlas.cohort.remarks import COLUMNS, TABLE, read_remarks, remark_lines, remarks, write_remarks
from popatlas.images.io import write_json, write_text

TURNED = "the image lies turned by 180 degrees about the head-foot axis of the fixed one"


def cohort(count=12, **changes):
    gates = {f"sub-{number:02d}/anat/sub-{number:02d}": {"edges": 0.8} for number in range(1, count + 1)}
    gates["sub-03/anat/sub-03"] |= changes
    return gates


def words(*numbers):
    return [(f"sub-{number:02d}/anat/sub-{number:02d}", "register", TURNED) for number in numbers]


def leave(out_dir, gates, said=()):
    files = {scan: f"{scan}_gate.json" for scan in gates}
    for scan, gate in gates.items():
        write_json(out_dir / files[scan], gate)
    write_remarks(out_dir, said, files)


def test_a_clean_cohort_needs_no_word(tmp_path):
    assert remarks([], cohort()).empty
    leave(tmp_path, cohort())
    assert list(read_remarks(tmp_path).columns) == COLUMNS
    assert list(remark_lines(tmp_path, 5)) == []


def test_doubts_and_who_stands_apart_are_said_with_the_numbers(tmp_path):
    leave(tmp_path, cohort(edges=0.55), words(3))
    found = read_remarks(tmp_path)
    assert set(found["scan"]) == {"sub-03/anat/sub-03"} and set(found["stage"]) == {"register"}
    (line,) = remark_lines(tmp_path, 5)
    assert line.startswith(f"look at sub-03: {TURNED}; the registration stands apart from the cohort: edges agree by 0.55")


def test_many_are_counted(tmp_path):
    leave(tmp_path, cohort(), words(*range(1, 13)))
    *named, rest = remark_lines(tmp_path, 5)
    assert len(named) == 5
    assert rest == f"... and at 7 more, see {tmp_path / TABLE}"


def test_gates_of_another_time_and_damaged_ones_say_nothing(tmp_path):
    gates = cohort()
    leave(tmp_path, gates)
    (first, second) = list(gates)[:2]
    write_text(tmp_path / f"{first}_gate.json", "[1")
    write_json(tmp_path / f"{second}_gate.json", {"verdict": "pass", "edges": None})
    write_remarks(tmp_path, [], {scan: f"{scan}_gate.json" for scan in gates})
    assert read_remarks(tmp_path).empty


def test_status_says_it_and_its_code_stays(tmp_path, capsys):
    row = "sub-03/anat/sub-03\tsub-03\t\tregister\tok\t\t"
    write_text(tmp_path / "cohort" / "ledger.tsv", f"scan\tsubject\tsession\tstage\tstate\treason\tlog\n{row}\n")
    leave(tmp_path, cohort(), words(3))
    assert main(["status", str(tmp_path)]) == 0
    assert f"\n\nlook at sub-03: {TURNED}\n" in capsys.readouterr().out
    assert main(["status", str(tmp_path), "--json"]) == 0
    assert TURNED in capsys.readouterr().out
