import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from nipype.interfaces.base import Directory, File, isdefined, traits

from popatlas.cli.main import main as popatlas_main
from popatlas.cli.step import command_line, main, parse_traits
from popatlas.errors import InputError
from popatlas.images.io import atomic_path, read_json, sha256, write_if_changed
from popatlas.interfaces import STEPS, load_interface
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface
from popatlas.renamed import with_options_of_today


class CopyInputSpec(PopatlasInputSpec):
    in_file = File(exists=True, mandatory=True, desc="text")
    numbers = traits.List(traits.Int(), desc="numbers")
    options = traits.Dict(desc="options")
    loud = traits.Bool(False, usedefault=True, desc="upper case")
    out_file = File(mandatory=True, desc="copy")
    out_notes = File(desc="what was noted")
    out_parts = traits.List(File(), desc="not one file")
    out_folder = Directory(desc="not a file")


class Copy(PopatlasInterface):
    """Copy a text file, or fail on the word `bad`."""

    input_spec = CopyInputSpec

    def _execute(self):
        text = Path(self.inputs.in_file).read_text()
        self.notes["letters"] = len(text)
        if text == "bad":
            raise InputError("bad text", file=self.inputs.in_file, subject=self.inputs.subject, remedy="write better")
        with atomic_path(self.inputs.out_file) as temporary:
            temporary.write_text(text.upper() if self.inputs.loud else text)


class Size(Copy):
    """Write the size of a file."""

    def _execute(self):
        Path(self.inputs.out_file).write_text(str(Path(self.inputs.in_file).stat().st_size))


class Swap(Copy):
    """Replace the input, as somebody may do while a step runs."""

    def _execute(self):
        super()._execute()
        source = Path(self.inputs.in_file)
        source.write_text("evil" if self.inputs.loud else source.read_text())


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("good")
    return path


def test_a_step_records_what_it_did(source, tmp_path):
    record = tmp_path / "logs" / "record.json"
    result = Copy(in_file=str(source), out_file=str(tmp_path / "new" / "out.txt"), record=str(record), loud=True).run()
    assert Path(result.outputs.out_file).read_text() == "GOOD"
    content = read_json(record)
    assert content["state"] == "ok"
    assert content["inputs"]["in_file"]["sha256"]
    assert content["inputs"]["loud"] is True
    assert content["versions"]["numpy"]


def test_the_outputs_of_a_step_are_the_files_among_its_inputs(source, tmp_path):
    spec = Copy.output_spec
    assert set(spec().copyable_trait_names()) == {"out_file", "out_notes"}
    assert [spec.class_traits()[name].trait_type.exists for name in ("out_file", "out_notes")] == [True, False]
    assert spec.class_traits()["out_file"].desc == "copy"
    outputs = Copy(in_file=str(source), out_file=str(tmp_path / "out.txt"), out_folder=str(tmp_path)).run().outputs
    assert outputs.out_file == str(tmp_path / "out.txt")
    assert not isdefined(outputs.out_notes)
    assert pickle.loads(pickle.dumps(outputs)).out_file == outputs.out_file  # as Nipype does with results
    assert Size.output_spec is not spec  # each has its own, which is found by its name


def test_a_receipt_tells_of_inputs_of_any_size(source, tmp_path):
    """Without its checksum nobody would see that a large input is another one now."""
    with source.open("r+b") as stream:
        stream.truncate((256 << 20) + 1)
    receipt = tmp_path / "receipt.json"
    Size(in_file=str(source), out_file=str(tmp_path / "out.txt"), receipt=str(receipt), made_of="x").run()
    (digest,) = read_json(receipt)["inputs"].values()
    assert digest == sha256(source)


def test_values_that_are_too_many_for_a_command_line_come_from_a_file(tmp_path):
    numbers, options = tmp_path / "numbers.txt", tmp_path / "options.json"
    numbers.write_text("1\n2\n30\n")
    options.write_text('{"a b": ["c", 1]}')
    found = parse_traits(Copy, ["--in_file", "x", "--out_file", "y", "--numbers", f"@{numbers}", "--options", f"@{options}"])
    assert (found["numbers"], found["options"]) == ([1, 2, 30], {"a b": ["c", 1]})


def test_a_failing_step_says_why_and_leaves_no_output(source, tmp_path):
    source.write_text("bad")
    record = tmp_path / "record.json"
    with pytest.raises(InputError, match=r"bad text \[file: .*in\.txt\] \[subject: sub-1\]\. Remedy: write better"):
        Copy(in_file=str(source), out_file=str(tmp_path / "out.txt"), record=str(record), subject="sub-1").run()
    content = read_json(record)
    assert (content["state"], content["message"], content["remedy"]) == ("failed", "bad text", "write better")
    assert content["notes"] == {"letters": 3}  # what was found out until then: the attempts of a registration, for one
    assert not (tmp_path / "out.txt").exists()


def test_a_file_that_is_replaced_while_a_step_reads_it_leaves_no_result(source, tmp_path):
    files = {"in_file": str(source), "out_file": str(tmp_path / "out.txt"), "receipt": str(tmp_path / "receipt.json")}
    Swap(**files).run()  # another time, the same content
    with pytest.raises(InputError, match=r"was replaced while it ran \(in_file\)"):
        Swap(**files, loud=True).run()
    assert not (tmp_path / "receipt.json").exists() and not (tmp_path / "out.txt").exists()


def test_options_become_traits_of_their_type():
    parsed = parse_traits(
        Copy,
        ["--in_file", "a b.txt", "--numbers", "1", "2", "--options", '{"k": [1]}', "--loud", "true", "--out_file", "c"],
    )
    assert parsed == {"in_file": "a b.txt", "numbers": [1, 2], "options": {"k": [1]}, "loud": True, "out_file": "c"}


def test_the_first_line_of_a_log_repeats_the_step_when_it_is_pasted(tmp_path, monkeypatch):
    """Quotes, blanks and JSON come through a shell, and relative paths mean the same files from any folder."""
    monkeypatch.chdir(tmp_path)
    name = """it's "q" $HOME `w` #1 \\ {x} *"""
    options = ["--in_file", name, "--numbers", "1", "2", "--options", json.dumps({"k": [1, "a b"]}), "--out_file", "c d"]
    program = tmp_path / "popatlas"
    program.write_text(f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([os.getcwd(), *sys.argv[1:]]))\n")
    program.chmod(0o755)
    found = subprocess.run(
        ["bash", "-c", command_line("Copy", options)],
        cwd="/",
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    folder, *arguments = json.loads(found.stdout)
    assert folder == str(tmp_path) and arguments == ["step", "Copy", *options]
    assert parse_traits(Copy, arguments[2:]) == parse_traits(Copy, options)


def test_every_listed_interface_can_be_loaded_and_documents_itself():
    for name in STEPS:
        interface = load_interface(name)
        assert issubclass(interface, PopatlasInterface)
        assert interface.__doc__
        spec = interface.input_spec()
        for trait in spec.copyable_trait_names():
            assert spec.trait(trait).desc, f"{name}.{trait} has no description"


def test_an_unknown_step_is_refused(capsys):
    import argparse

    assert main(argparse.Namespace(name="Nonsense", options=[])) == 2
    assert "no step is called 'Nonsense'" in capsys.readouterr().err


def test_atomic_path_leaves_nothing_behind_on_failure(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "image.nii.gz") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_write_if_changed_keeps_the_time_stamp(tmp_path):
    path = tmp_path / "table.tsv"
    assert write_if_changed(path, "a") is True
    stamp = path.stat().st_mtime_ns
    assert write_if_changed(path, "a") is False
    assert path.stat().st_mtime_ns == stamp
    assert json.dumps(path.read_text()) == '"a"'


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--in_index", "nope", "--config", "c", "--derivatives", ".", "--out_ledger", "l"], 1, "'in_index' trait"),
        (["--in_index"], 2, "expected one argument"),
    ],
)
def test_inputs_that_a_step_does_not_take_are_told_without_a_traceback(options, code, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        found = popatlas_main(["step", "SettleLedger", *options])
    except SystemExit as stop:
        found = stop.code
    said = capsys.readouterr().err
    assert found == code
    assert words in said and "Traceback" not in said


def test_a_number_of_an_option_is_finite(capsys):
    with pytest.raises(SystemExit):
        parse_traits(load_interface("MakeReference"), ["--resolution_mm", "nan", "--out_file", "a", "--out_mask", "b"])
    assert "nan is not a finite number" in capsys.readouterr().err


def test_options_of_before_are_taken_and_their_names_of_today_told(capsys):
    names = ("in_fixed", "in_moving", "in_fixed_mask", "in_moving_mask", "out_affine", "out_warped")
    options = [text for name in names for text in (f"--{name}", "file")]
    found = parse_traits(load_interface("RegisterRigid"), [*options, "--rung", '{"start": "mass"}'])
    assert found["attempt"] == {"start": "mass"}
    assert "--rung is called --attempt now" in capsys.readouterr().err
    assert parse_traits(load_interface("RegisterRigid"), [*options, '--rung={"start": "mass"}']) == found


@pytest.mark.parametrize(("old", "new"), [("TabulateTrust", "TabulateAtlasWeights"), ("TrainTrust", "TrainDataParameters")])
def test_the_old_name_of_a_step_is_still_taken(old, new, capsys):
    with pytest.raises(SystemExit) as stopped:
        popatlas_main(["step", old, "--help"])
    said = capsys.readouterr()
    assert stopped.value.code == 0 and f"popatlas step {new}" in said.out
    assert f"{old} is called {new} now" in said.err


def test_the_old_names_of_the_batch_record_and_of_atlas_weights_are_still_taken(capsys):
    found = with_options_of_today(["--out_receipt", "a", "--in_receipt", "b", "--out_trust", "c"])
    assert found == ["--out_batch_record", "a", "--in_batch_record", "b", "--out_atlas_weights", "c"]
    assert capsys.readouterr().err.count("the old name is still taken") == 3


def test_a_step_waits_for_no_plots_and_statistics_of_ants():
    code = (
        "import sys; from popatlas.images.antspy import deterministic_ants, spare_ants; spare_ants(); "
        "ants = deterministic_ants(); print(ants.make_image((4, 4)).shape, 'matplotlib' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["(4,", "4)", "False"]
