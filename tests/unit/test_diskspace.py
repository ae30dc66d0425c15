"""Full disks: who notices, which folder is named, and what ITK writes where nothing fits any more."""

import errno
import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from popatlas.cli.step import main as run_step
from popatlas.cohort import space
from popatlas.cohort.space import check_space, needed_bytes
from popatlas.config.load import load_config
from popatlas.diskspace import existing, out_of_space, temporary_folder
from popatlas.errors import InputError
from popatlas.failures import describe, foreseen, last_words, stopping, unforeseen
from popatlas.images import io
from popatlas.images.io import atomic_path, read_json, require_whole, save_image, write_text


def full(*_, **__):
    """Do what a write on a full disk does."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_folder_of_a_full_disk_is_named_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    for folder, remedy in (("tmp", "set TMPDIR to a folder with more"), ("out", "choose a folder on another disk")):
        error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / folder / "x.nii.gz"))
        told = out_of_space(error)
        assert str(existing(tmp_path / folder)) in str(told) and remedy in told.remedy
        assert "is full" in describe(error)
    quota = OSError(errno.EDQUOT, "Disk quota exceeded", str(tmp_path / "x"))
    assert "quota" in str(out_of_space(quota))


def test_an_error_that_followed_from_a_full_disk_is_explained_by_it():
    for wrap in (lambda: wrapped(), lambda: during()):
        with pytest.raises(InputError) as caught:
            wrap()
        assert out_of_space(caught.value) is not None
    assert out_of_space(InputError("something else")) is None
    assert out_of_space(OSError(errno.EACCES, "Permission denied", "x")) is None


def wrapped():
    try:
        full()
    except OSError as error:
        raise InputError("cannot write") from error


def during():
    try:
        full()
    except OSError:
        raise InputError("cannot write")  # noqa: B904


def test_a_write_that_fails_tells_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(tmp_path / "out" / "x.tsv", "x")
    assert caught.value.filename == str(tmp_path / "out" / "x.tsv")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("end", ["nii", "nii.gz"])
def test_an_image_of_which_a_part_is_missing_is_not_published(end, tmp_path):
    """As ITK leaves it on a full disk, without an error."""
    whole = tmp_path / f"whole.{end}"
    save_image(np.random.default_rng(0).random((12, 12, 12)), np.eye(4), whole)
    content = whole.read_bytes()
    require_whole(whole)
    for length in (0, 3, 100, 400, len(content) - 5):
        with pytest.raises(OSError, match="written in part only") as caught, atomic_path(tmp_path / f"x.{end}") as temporary:
            temporary.write_bytes(content[:length])
        assert foreseen(caught.value) is not None
        assert not (tmp_path / f"x.{end}").exists()
    with atomic_path(tmp_path / f"x.{end}") as temporary:
        temporary.write_bytes(content)


def test_a_gzip_file_that_is_whole_but_holds_less_than_its_header_says_is_refused(tmp_path):
    save_image(np.zeros((12, 12, 12), np.float32), np.eye(4), tmp_path / "a.nii")
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()[:-100]))
    with pytest.raises(OSError, match="in part only"):
        require_whole(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("everything", [False, True], ids=["outputs", "record too"])
def test_a_step_on_a_full_disk_names_it_in_its_record_and_on_stderr(everything, tmp_path, monkeypatch, capsys):
    save_image(np.random.default_rng(0).random((36, 36, 36)), np.diag([2.0, 2.0, 2.0, 1.0]), tmp_path / "in.nii.gz")
    record, written = tmp_path / "logs" / "r.json", []
    write = io.write_text

    def write_once(path, text):
        written.append(path)
        if everything and len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, text)

    monkeypatch.setattr(io, "write_text", write_once)
    monkeypatch.setattr("nibabel.save", full)
    options = {"in_file": "in.nii.gz", "out_file": "out/x.nii.gz", "record": "logs/r.json"}
    line = [part for name, value in options.items() for part in (f"--{name}", str(tmp_path / value))]
    line += ["--resolution_mm", "2", "--n4", '{"enabled": false}']

    class Arguments:
        name, options = "CorrectAndConform", line

    assert run_step(Arguments) == 1
    said = capsys.readouterr().err
    assert f"the folder {tmp_path / 'out'} is full" in said and "Remedy: free some space" in said
    found = read_json(record)
    assert found["state"] == "failed" and str(tmp_path / "out") in found["message"] and "free some space" in found["remedy"]


def test_a_registration_on_a_full_disk_has_no_fallback(monkeypatch):
    from popatlas.registration import fallback

    tried = []
    monkeypatch.setattr(fallback, "try_once", lambda *_: (tried.append(1), full()))
    with pytest.raises(OSError, match="No space left"):
        list(fallback.try_in_turn(None, [None, None], {}, lambda made: pytest.fail("published")))
    assert tried == [1]


def index_of(*scans, shape="100x100x100", state="ok"):
    return pd.DataFrame([{"scan": scan, "state": state, "shape": shape, "spacing_mm": "2x2x2"} for scan in scans])


@pytest.mark.parametrize(("out", "tmp", "message"), [
    (1e12, 1e12, ""), (1e7, 1e12, "10 MB are free, 2 scan.s. will take 24 MB at least.*choose a folder on another disk"),
    (1e12, 1e6, "1 MB are free, one job will take 16 MB at least.*set TMPDIR"),
])  # fmt: skip
def test_a_run_that_cannot_end_for_lack_of_space_is_refused(out, tmp, message, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(space, "free_bytes", lambda folder: tmp if folder == temporary_folder() else out)
    config, index = load_config(), index_of("a/b", "c/d")
    if not message:
        return check_space(config, index, tmp_path / "out")
    with pytest.raises(InputError, match=message):
        check_space(config, index, tmp_path / "out")
    check_space(config, index_of("a/b", state="excluded"), tmp_path / "out")
    for scan in ("a/b", "c/d"):  # what is done needs no more
        write_text(tmp_path / "out" / f"{scan}_desc-metrics_table.tsv", "x")
    check_space(config, index, tmp_path / "out")
    return None


def test_space_grows_with_the_scans_and_their_resolution():
    fine = load_config({"preprocess": {"resolution_mm": 1.0}})
    assert needed_bytes(index_of("a"), load_config()) == 100**3 * 4 * space.VOLUMES_PER_SCAN
    assert needed_bytes(index_of("a", "b"), fine) == 2 * 200**3 * 4 * space.VOLUMES_PER_SCAN


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "Permission denied [file: /x]. Remedy: ask for the right",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "can only be read"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), "check the path"),
        (MemoryError(), "memory ended. Remedy"),
        (InputError("known", remedy="do"), "known. Remedy: do"),
    ],
)
def test_errors_of_the_system_are_told_in_a_line(error, words):
    assert words in str(foreseen(error))


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), OSError("no file"), RecursionError()])
def test_errors_of_the_program_are_not(error, tmp_path, monkeypatch):
    assert foreseen(error) is None
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = unforeseen(error, ["run", "a"])
    assert type(error).__name__ in said and "Remedy: report it" in said
    (file,) = tmp_path.iterdir()
    assert str(file) in said
    assert "arguments: ['run', 'a']" in file.read_text()
    monkeypatch.setattr("tempfile.tempdir", "/dev/null")
    assert type(error).__name__ in unforeseen(error, [])


def test_an_error_inside_of_snakemake_ends_it_with_one_message(capsys):
    with pytest.raises(SystemExit) as stop, stopping():
        raise InputError("wrong", remedy="right")
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert said == "popatlas: error: wrong. Remedy: right\n"
    assert last_words(f"Config file ...\n{said}") == "wrong. Remedy: right"
    assert last_words(" other\n") == "other"
    with pytest.raises(KeyError), stopping():
        raise KeyError("x")
