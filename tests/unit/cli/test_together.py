"""Several steps in one process: each has its own books, and one that fails costs those that follow from it and no other."""

import json

import pytest

from popatlas.cli.together import Part, run_all, split
from popatlas.errors import InputError
from popatlas.images.io import read_json
from popatlas.receipts import Receipt

from .test_step import Copy


def part(folder, name, text, *, follows=False):
    (folder / f"{name}.in").write_text(text)
    given = {"in_file": folder / f"{name}.in", "out_file": folder / f"{name}.out", "made_of": f"of {text}"}
    given |= {"receipt": folder / f"receipts/{name}.json", "record": folder / f"logs/{name}.log.json"}
    return Part(name, tuple(f"{key}={value}" for key, value in given.items()), follows)


def options(part):
    return dict(option.split("=", 1) for option in part.options)


@pytest.fixture
def run(capfd):
    """Run steps; return the exit code and what became of each."""

    def copy(part, inputs):
        print(f"copying {part.name}", flush=True)
        try:
            Copy(**inputs).run()
        except InputError as error:
            return error.message
        return ""

    def done(*parts):
        code = run_all(parts, options, copy, lambda part: f"popatlas step {part.name}")
        return code, dict(line.split(": ", 1) for line in capfd.readouterr().out.splitlines())

    return done


def test_a_command_line_is_parted_at_then_and_also():
    assert split("A", ["--x", "1", "--then", "B", "--y", "--also", "C"]) == [
        Part("A", ("--x", "1"), follows=False), Part("B", ("--y",), follows=True), Part("C", (), follows=False),
    ]  # fmt: skip
    assert split("A", ["--x", "1"]) == [Part("A", ("--x", "1"), follows=False)]
    assert split("A", ["--also"])[1].name == ""


def test_each_step_has_a_log_a_record_and_a_receipt_and_is_kept_while_they_agree(run, tmp_path):
    parts = [part(tmp_path, "a", "one"), part(tmp_path, "b", "two", follows=True)]
    assert run(*parts) == (0, {"a": "ok", "b": "ok"})
    assert (tmp_path / "logs/b.log").read_text() == "popatlas step b\ncopying b\n"
    assert read_json(tmp_path / "logs/a.log.json")["state"] == "ok"
    assert run(*parts) == (0, {"a": "kept", "b": "kept"})
    (tmp_path / "a.out").write_text("damaged")
    assert run(*parts) == (0, {"a": "ok", "b": "kept"})
    (tmp_path / "b.out").unlink()
    assert run(*parts) == (0, {"a": "kept", "b": "ok"})
    assert run(part(tmp_path, "a", "other"), parts[1]) == (0, {"a": "ok", "b": "kept"})
    receipt = tmp_path / "receipts/a.json"
    receipt.write_text(json.dumps(read_json(receipt) | {"outputs": {}}))
    assert run(part(tmp_path, "a", "other")) == (0, {"a": "ok"}), "a receipt without the file that is asked for"


def test_a_step_whose_input_came_out_differently_is_made_again(run, tmp_path):
    first, second = part(tmp_path, "a", "one"), part(tmp_path, "b", "two", follows=True)
    # b reads what a makes, under the same fingerprint whatever comes out
    second = Part("b", (f"in_file={tmp_path / 'a.out'}", *second.options[1:]), follows=True)
    assert run(first, second) == (0, {"a": "ok", "b": "ok"})
    assert run(first, second) == (0, {"a": "kept", "b": "kept"})
    (tmp_path / "a.out").unlink()
    (tmp_path / "a.in").write_text("as another version makes it")
    assert run(first, second) == (0, {"a": "ok", "b": "ok"})
    assert (tmp_path / "b.out").read_text() == (tmp_path / "a.out").read_text()


def test_a_step_that_fails_costs_those_that_follow_from_it_and_no_other(run, tmp_path):
    parts = [part(tmp_path, "a", "bad"), part(tmp_path, "b", "two", follows=True), part(tmp_path, "c", "three")]
    (tmp_path / "a.out").write_text("of the last time")
    assert run(*parts) == (1, {"a": "failed: bad text", "b": "not begun", "c": "ok"})
    assert "bad text" in (tmp_path / "logs/a.log").read_text()
    assert read_json(tmp_path / "logs/a.log.json")["state"] == "failed"
    assert not (tmp_path / "a.out").exists(), "nothing that is not what was asked for lies there"
    assert Receipt.read(tmp_path / "receipts/a.json") is None and Receipt.read(tmp_path / "receipts/c.json") is not None
    (tmp_path / "a.in").unlink()
    code, found = run(*parts)
    assert (code, found["c"]) == (1, "kept") and found["a"].startswith("failed: TraitError"), "what nobody foresaw"
    assert "Traceback" in (tmp_path / "logs/a.log").read_text()
