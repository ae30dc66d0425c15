"""Real runs in places where nothing is as usual: an unknown user, odd names, OUT_DIR on another disk, no network."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from ..hostility import BALLS, ODD, brains, watched, without_a_home

pytestmark = pytest.mark.e2e
POPATLAS = [sys.executable, "-m", "popatlas.cli.main"]


def state_of(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """Return what a run printed, its folders, and what it asked a network."""
    root = tmp_path_factory.mktemp("hostile")
    bids, out, notes = brains(root / f"in {ODD}"), root / f"out {ODD}", root / "notes"
    memory = Path(tempfile.mkdtemp(dir="/dev/shm")) if os.access("/dev/shm", os.W_OK) else None
    if memory is not None:  # OUT_DIR on another disk, by a link
        out.symlink_to(memory / f"out {ODD}")
        (memory / f"out {ODD}").mkdir()
    notes.touch()
    (root / "config.yaml").write_text(yaml.safe_dump(BALLS))
    before = state_of(bids)
    line = [*POPATLAS, "run", bids, out, "--config", root / "config.yaml", "--until", "preprocess", "--cores", "2"]
    result = subprocess.run(line, env=without_a_home(notes), capture_output=True, text=True, check=False)
    yield result, bids, out, before, notes.read_text()
    if memory is not None:
        shutil.rmtree(memory)


def test_a_user_without_home_name_or_folder_for_temporary_files_can_run(hostile_run):
    result, _, out, _, _ = hostile_run
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("sub-01", "sub-02"):
        assert (out / name / "anat" / f"{name}_desc-brain_T1w.nii.gz").is_file()
    assert "Traceback" not in result.stdout + result.stderr


def test_what_was_missing_is_said_once(hostile_run):
    said = hostile_run[0].stderr
    assert said.count("TMPDIR (/proc/nothing)") == 1
    assert said.count("the home folder /dev/null/home") == 1
    logs = [path.read_text() for path in (hostile_run[2] / "logs").rglob("*.log")]
    assert logs and not any("home folder" in text for text in logs)


def test_nothing_is_written_into_the_dataset(hostile_run):
    _, bids, _, before, _ = hostile_run
    assert state_of(bids) == before


def test_nobody_asks_a_network(hostile_run):
    assert hostile_run[4] == ""


@pytest.mark.parametrize("verb", ["plan", "status", "check"])
def test_other_verbs_go_on_there(hostile_run, verb, tmp_path):
    _, bids, out, _, _ = hostile_run
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(BALLS))
    (tmp_path / "notes").touch()
    arguments = {"plan": [bids, out], "status": [out], "check": [bids]}[verb]
    settings = [] if verb == "status" else ["--config", tmp_path / "config.yaml"]
    line = [*POPATLAS, verb, *arguments, *settings]
    result = subprocess.run(line, env=without_a_home(tmp_path / "notes"), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "notes").read_text() == ""


LOAD_ALL = """
from popatlas.interfaces import STEPS, load_interface
for name in STEPS:
    load_interface(name)()
import sys
sys.exit("requests" in sys.modules or "urllib3" in sys.modules)
"""


def test_no_step_asks_a_network_when_it_is_made(tmp_path):
    """Nipype asked a server for its newest version, in each step."""
    (tmp_path / "notes").touch()
    environment = {
        name: value for name, value in watched(tmp_path / "notes").items() if name not in ("NO_ET", "NIPYPE_NO_ET")
    }
    result = subprocess.run([sys.executable, "-c", LOAD_ALL], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "notes").read_text() == ""


def test_the_spy_sees_what_it_should(tmp_path):
    code = "import socket; socket.getaddrinfo('localhost', 80); socket.socket().connect_ex(('127.0.0.1', 9))"
    environment = watched(tmp_path / "notes")
    subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True)
    assert (tmp_path / "notes").read_text().count("\n") == 2
