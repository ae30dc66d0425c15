"""How a job of Slurm ended, by its log."""

import pytest

from popatlas.cluster.ends import NOISE, end_of, explained
from popatlas.reasons import code_of_words

FAILED = "SLURM-job '7' failed, SLURM status is: 'FAILED'. "


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (
            "slurmstepd-vm: error: Detected 1 oom-kill event(s) in StepId=7.0. Some of your processes may have been killed",
            "oom",
        ),
        ("srun: error: vm: task 0: Out Of Memory", "oom"),
        ("slurmstepd: error: *** JOB 7 ON vm CANCELLED AT 2026-12-01T03:59:35 DUE TO TIME LIMIT ***", "time"),
        ("slurmstepd: error: *** JOB 7 ON vm CANCELLED AT 2026-12-01T03:59:35 DUE TO PREEMPTION ***", "signal"),
        ("slurmstepd: error: *** JOB 7 ON vm CANCELLED AT 2026-12-01T03:59:35 DUE TO NODE FAILURE ***", "signal"),
        ("NoMemoryForJokesError", "unknown"),
    ],
)
def test_the_log_tells_what_the_state_does_not(tmp_path, line, code):
    log = tmp_path / "7.log"
    log.write_text("x" * 30_000 + f"\n{line}\nsrun: error: vm: task 0: Exited with exit code 1\n")
    said = explained(FAILED + NOISE, [log, None])
    assert code_of_words(said) == code
    assert said.startswith("SLURM-job '7' failed, SLURM status is: 'FAILED'") and "unavailable" not in said


def test_a_log_that_is_not_there_tells_nothing(tmp_path):
    assert end_of(tmp_path / "none") == ""
    assert explained("", [tmp_path / "none"]) == ""
    assert explained(FAILED, []) == FAILED
