"""The lock of OUT_DIR: one run at a time, refused before a byte is written, taken over from what is dead."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from popatlas.cli.process import supervise, supervise_all
from popatlas.cohort.lock import NAME, TOKEN, Holder, Lock, acquire, take_over
from popatlas.errors import InputError
from popatlas.images.io import write_text


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def holder_of(process):
    import psutil

    return replace(Holder.here(), pid=process.pid, born=psutil.Process(process.pid).create_time())


def write(folder, holder):
    write_text(folder / NAME, json.dumps(asdict(holder)))


def test_a_second_run_is_refused_and_changes_nothing(tmp_path, sleeper):
    write(tmp_path, holder_of(sleeper))
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(
        InputError, match=rf"another run works .*process {sleeper.pid}, host .*Remedy: wait .*kill {sleeper.pid}"
    ):
        acquire(tmp_path)
    assert (tmp_path / NAME).read_bytes() == before and list(tmp_path.iterdir()) == [tmp_path / NAME]


def test_a_lock_is_given_back_and_can_be_taken_again(tmp_path):
    first = acquire(tmp_path)
    with pytest.raises(InputError):
        acquire(tmp_path)
    first.release()
    second = acquire(tmp_path)
    first.release()  # it is not ours any more
    assert (tmp_path / NAME).is_file()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_dead_run_is_taken_over_and_named(tmp_path, sleeper, capsys):
    holder = holder_of(sleeper)
    sleeper.kill()
    sleeper.wait()
    write(tmp_path, holder)
    acquire(tmp_path).release()
    assert f"ended without a word (process {sleeper.pid}" in capsys.readouterr().err
    # another process has its number now
    write(tmp_path, replace(Holder.here(), born=1.0))
    acquire(tmp_path).release()


@pytest.mark.parametrize("kind", ["snakemake", "step"])
def test_the_last_jobs_of_a_killed_run_are_waited_for(tmp_path, capsys, kind):
    program = tmp_path / "popatlas"
    program.write_text("import time; time.sleep(1.5)")
    last = subprocess.Popen([sys.executable, program, "step"], cwd=tmp_path if kind == "step" else None)
    helper = holder_of(last)
    helpers = [[helper.pid, helper.born]] * (kind == "snakemake")
    write(tmp_path, replace(Holder.here(), pid=2**22 - 1, helpers=helpers))
    started = time.monotonic()
    acquire(tmp_path).release()
    last.wait()
    assert time.monotonic() - started > 0.5
    assert f"waiting for its last jobs (process {last.pid})" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["another machine", "garbage"])
def test_what_cannot_be_judged_is_refused_unless_forced(tmp_path, content, capsys):
    if content == "garbage":
        write_text(tmp_path / NAME, "garbage")
    else:
        write(tmp_path, replace(Holder.here(), host="node-17"))
        os.utime(tmp_path / NAME, (time.time() - 7200,) * 2)
    with pytest.raises(InputError, match="--force-unlock") as refused:
        acquire(tmp_path)
    if content != "garbage":
        assert "a run on node-17 holds" in str(refused.value) and "last sign of life 120 min ago" in str(refused.value)
    acquire(tmp_path, force=True).release()


def test_plain_snakemake_respects_the_lock_and_that_of_a_run_serves_its_snakemake(tmp_path, monkeypatch):
    lock = acquire(tmp_path)
    with pytest.raises(InputError, match="another run works"):
        take_over(tmp_path)
    monkeypatch.setenv(TOKEN, lock.holder.token)
    take_over(tmp_path)
    lock.release()


# The process that a run controls

TREE = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("child", child.pid, file=sys.stderr, flush=True)
time.sleep(60)
"""


def run(folder, code, after=None):
    """Supervise a Python program and return its outcome; `after` is called in a thread with what it has said so far."""
    lock = acquire(folder)
    timer = threading.Timer(1.5, after) if after else None
    if timer:
        timer.start()
    try:
        return supervise([sys.executable, "-c", code], folder, dict(os.environ), lock)
    finally:
        lock.release()


TIMED = "import sys, time; a = time.monotonic(); time.sleep(0.7); print(a, time.monotonic(), file=sys.stderr)"


def side_by_side(folder, codes, at_once, after=None):
    lock = acquire(folder)
    timer = threading.Timer(2.0, after) if after else None
    if timer:
        timer.start()
    try:
        return supervise_all([([sys.executable, "-c", code], dict(os.environ)) for code in codes], at_once, folder, lock)
    finally:
        lock.release()


def test_several_programs_run_side_by_side_and_no_more(tmp_path):
    outcome = side_by_side(tmp_path, [TIMED] * 3, 2)
    times = sorted(tuple(map(float, line.split())) for line in outcome.text.splitlines())
    assert (outcome.code, len(times)) == (0, 3)
    running = [sum(begin <= moment < end for begin, end in times) for moment, _ in times]
    assert max(running) == 2, "two at a time"


def test_one_that_is_killed_stops_the_others_and_those_that_wait(tmp_path, capsys):
    killed = "import os, time; time.sleep(1.5); os.kill(os.getpid(), 9)"
    outcome = side_by_side(tmp_path, [TREE, killed, "raise SystemExit('never begun')"], 2)
    said = capsys.readouterr().err
    assert (outcome.code, outcome.stopped_by) == (-9, 0)
    assert "never begun" not in said
    assert not is_alive(int(said.split("child ")[1].split()[0]))


def test_a_signal_stops_all_of_them(tmp_path, capsys):
    outcome = side_by_side(tmp_path, [TREE, TREE, "raise SystemExit('never begun')"], 2, lambda: os.kill(os.getpid(), 2))
    said = capsys.readouterr().err
    assert (outcome.stopped_by, said.count("stopping; the jobs that run")) == (2, 1)
    assert "never begun" not in said and said.count("child ") == 2
    assert not any(is_alive(int(part.split()[0])) for part in said.split("child ")[1:])


def test_what_is_said_is_kept_and_the_code_is_handed_on(tmp_path, capsys):
    outcome = run(tmp_path, "import sys; print('Job stats:', file=sys.stderr); sys.exit(5)")
    assert (outcome.code, outcome.stopped_by, outcome.text) == (5, 0, "Job stats:\n")
    assert capsys.readouterr().err == "Job stats:\n"


def is_alive(pid):
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_when_snakemake_is_killed_its_jobs_are_ended(tmp_path):
    def kill():
        pid = int(json.loads((tmp_path / NAME).read_text())["helpers"][0][0])
        os.kill(pid, signal.SIGKILL)

    outcome = run(tmp_path, TREE, kill)
    assert (outcome.code, outcome.stopped_by) == (-signal.SIGKILL, 0)
    assert not is_alive(int(outcome.text.split()[1]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_run_ends_snakemake_and_its_jobs(tmp_path, number, capsys):
    outcome = run(tmp_path, TREE, lambda: os.kill(os.getpid(), number))
    assert outcome.stopped_by == number
    assert not is_alive(int(outcome.text.split()[1]))
    assert "stopping" in capsys.readouterr().err


def test_when_the_run_is_killed_snakemake_is_asked_to_stop(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from popatlas.cohort.lock import acquire; "
        "from popatlas.cli.process import supervise; folder = Path(sys.argv[1]); "
        "supervise([sys.executable, '-c', 'import time; time.sleep(60)'], folder, dict(os.environ), acquire(folder))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    deadline = time.monotonic() + 30
    while not (tmp_path / NAME).is_file() or not json.loads((tmp_path / NAME).read_text())["helpers"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    pid = int(json.loads((tmp_path / NAME).read_text())["helpers"][0][0])
    process.kill()
    process.wait()
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_lock_that_was_taken_by_force_is_left_to_its_new_owner(tmp_path, capsys):
    lock = acquire(tmp_path)
    other = acquire(tmp_path, force=True)
    text = (tmp_path / NAME).read_text()
    os.utime(tmp_path / NAME, (1, 1))
    for use in (lock.beat, lambda: lock.adopt(os.getpid())):
        with pytest.raises(
            InputError, match=r"another run has taken this output folder by force .*Remedy: let the other run"
        ):
            use()
    assert (tmp_path / NAME).read_text() == text and (tmp_path / NAME).stat().st_mtime == 1
    other.release()
    lock.beat()
    assert f'"token": "{lock.holder.token}"' in (tmp_path / NAME).read_text(), "one that was deleted is ours again"


def test_a_run_whose_lock_is_taken_ends_its_snakemake(tmp_path, capsys):
    began = time.time()
    with pytest.raises(InputError, match="another run has taken this output folder"):
        run(tmp_path, TREE, after=lambda: acquire(tmp_path, force=True))
    assert time.time() - began < 30
    (child,) = (int(line.split()[-1]) for line in capsys.readouterr().err.splitlines() if line.startswith("child"))
    assert not is_alive(child)
    assert (tmp_path / NAME).is_file(), "of the new owner"


def test_a_lock_shows_signs_of_life(tmp_path):
    lock = acquire(tmp_path)
    old = time.time() - 3600
    os.utime(lock.path, (old, old))
    lock.beat()
    assert lock.path.stat().st_mtime > old + 3000
    assert isinstance(lock, Lock)
    lock.release()
