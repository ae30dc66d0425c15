"""Temporary files of steps: where they go, and that none stays."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from popatlas.cli import main as cli
from popatlas.scratch import PREFIX, scratch

HANG = """
from pathlib import Path
from popatlas.scratch import scratch
with scratch(Path()) as folder:
    print(folder, flush=True)
    input()
"""


@pytest.fixture
def disk(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    monkeypatch.setenv("POPATLAS_SCRATCH", str(tmp_path / "$DISK"))
    monkeypatch.setenv("DISK", "disk of node 7")
    return tmp_path / "disk of node 7"


def test_temporary_files_go_to_the_scratch_disk_and_are_gone_afterwards(disk, tmp_path):
    before = dict(os.environ), tempfile.gettempdir()
    with scratch(tmp_path) as folder, scratch(tmp_path / "another study") as other:
        assert folder.is_relative_to(disk) and other.parent != folder.parent
        with tempfile.NamedTemporaryFile(delete=False) as file:
            assert Path(file.name).is_relative_to(other)
        assert os.environ["TMPDIR"] == str(other)
        assert folder.parent.stat().st_mode & 0o077 == 0
    assert (dict(os.environ), tempfile.gettempdir()) == before
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("variables", [{"SLURM_TMPDIR": "site"}, {"POPATLAS_SCRATCH": "/proc/none", "SLURM_TMPDIR": "site"}])
def test_the_disk_of_the_site_comes_next(tmp_path, monkeypatch, capsys, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, os.path.join(tmp_path, value))  # noqa: PTH118
    with scratch(tmp_path) as folder:
        assert folder.is_relative_to(tmp_path / "site")
    assert ("is not used" in capsys.readouterr().err) == (len(variables) == 2)


def test_without_one_it_is_the_usual_folder(tmp_path, monkeypatch):
    for name in ("POPATLAS_SCRATCH", "SLURM_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    with scratch(tmp_path) as folder:
        assert folder.parent.parent == Path(os.environ["TMPDIR"]).parents[1]
        assert folder.parent.name.startswith(PREFIX)


def test_what_a_killed_step_left_is_removed_by_the_next(disk, tmp_path):
    steps = [
        subprocess.Popen([sys.executable, "-c", HANG], stdin=-1, stdout=-1, text=True, cwd=tmp_path, env=dict(os.environ))
        for _ in range(2)
    ]
    dead, alive = (Path(step.stdout.readline().strip()) for step in steps)
    (dead / "large").write_text("x")
    steps[0].kill()
    steps[0].wait()
    with scratch(tmp_path):
        assert not dead.exists() and alive.is_dir()
    steps[1].communicate("\n")
    assert list(disk.iterdir()) == []


def test_a_step_works_there(disk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr("popatlas.cli.step.main", lambda args: seen.append(tempfile.gettempdir()) or 0)
    assert cli.main(["step", "X"]) == 0
    assert Path(seen[0]).is_relative_to(disk)
    assert list(disk.iterdir()) == []


def test_a_folder_of_somebody_else_is_not_used(disk, tmp_path):
    with scratch(tmp_path) as folder:
        name = folder.parent
    (tmp_path / "trap").mkdir()
    name.symlink_to(tmp_path / "trap")
    with scratch(tmp_path) as folder:
        assert folder.parent == disk
    assert list((tmp_path / "trap").iterdir()) == [] and not folder.exists()
