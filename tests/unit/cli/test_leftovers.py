"""Jobs of a killed run: none are looked for where none were submitted, and a queue that does not answer is no empty one."""

import pytest

from popatlas.cluster.leftovers import RUNS, end_leftovers
from popatlas.errors import InputError


@pytest.fixture
def out(tmp_path, monkeypatch):
    """Return an output folder, with programs of Slurm that are found before real ones."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / RUNS).parent.mkdir()
    return tmp_path


def program(out, name, script):
    path = out / "bin" / name
    path.write_text(f'#!/bin/sh\necho "{name} $*" >> {out}/asked\n{script}\n')
    path.chmod(0o755)


def test_a_folder_that_submitted_nothing_asks_nothing(out):
    program(out, "squeue", "exit 1")
    assert end_leftovers(out) == 0 and not (out / "asked").exists()


def test_jobs_of_all_runs_are_cancelled_once(out):
    (out / RUNS).write_text("one\ntwo\none\n")
    program(out, "squeue", f"[ -e {out}/cancelled ] || printf '7 RUNNING\\n8 PENDING\\n9 COMPLETING\\n'")
    program(out, "scancel", f"touch {out}/cancelled")
    assert end_leftovers(out) == 2 and not (out / RUNS).exists()
    asked = (out / "asked").read_text().splitlines()
    assert "--name=one,two" in asked[0] and asked[1:3] == ["scancel --name=one", "scancel --name=two"]


def test_a_queue_that_does_not_answer_refuses_the_run(out):
    (out / RUNS).write_text("one\n")
    program(out, "squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(InputError, match=r"does not answer: Unable to contact.*Remedy"):
        end_leftovers(out)
    assert (out / RUNS).exists(), "what is not known stays to be asked"
