"""The benchmark of large cohorts on a tiny one, and what its simulator must keep to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.scale import overhead as beside
from benchmarks.scale.__main__ import growth, main
from benchmarks.scale.cohort import make_cohort
from benchmarks.scale.measure import Row
from benchmarks.scale.overhead import Spent
from benchmarks.scale.simulate import Machine, Simulation

from popatlas.config.load import load_config
from popatlas.study.inventory import Inventory
from popatlas.study.study import open_study


@pytest.fixture(scope="module")
def inventory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    make_cohort(folder / "bids", 12)
    config = load_config({"atlas": {"members": 4}}, bids_dir=str(folder / "bids"), out_dir=str(folder / "out"))
    return Inventory(open_study(config.content, main=True))


@pytest.fixture(scope="module")
def wanted(inventory):
    """Jobs of Snakemake, each of which may run several of the study."""
    runs = Simulation(inventory, Machine(1, 0.0, 0.0, 0.0)).runs
    return list(dict.fromkeys(runs[name] for name in inventory.jobs.needed(inventory.jobs.wanted("all"), frozenset())))


def simulated(inventory, slots, *, killed=0.0, start=0.0, poll=0.0, submit=0.0, seed=0):
    inventory.made = frozenset()
    simulation = Simulation(inventory, Machine(slots, start, poll, submit), seed, killed)
    return simulation, simulation.run()


def test_one_slot_takes_all_the_work_and_many_no_less_than_the_longest_chain(inventory, wanted):
    one, found = simulated(inventory, 1)
    assert found["jobs"] == len(wanted) == len(one.made)
    assert one.now - one.controller == pytest.approx(one.books.work)
    many, _ = simulated(inventory, 1000)
    assert many.books.work / 1000 < many.now < one.now / 4
    assert one.ideal() == pytest.approx(one.books.work, rel=0.1)
    assert many.ideal() < many.now - many.controller < 2 * many.ideal(), "passes wait for each other"
    slow, _ = simulated(inventory, 1, start=2.0)
    assert slow.now - one.now == pytest.approx(2.0 * len(wanted))
    submitting, _ = simulated(inventory, 1000, submit=1.0)
    assert submitting.now > len(wanted), "no job starts before it is submitted"


def test_what_is_killed_is_tried_again_and_costs_its_scan_and_nothing_else(inventory, wanted):
    template = inventory.jobs.name("publish_template")
    runs = (simulated(inventory, 4, killed=0.1, seed=seed) for seed in range(99))
    run, found = next((run, found) for run, found in runs if run.failed and template in run.made)
    assert run.books.lost > 0 and found["lost work, %"] > 0
    assert found["jobs"] > len(run.made)
    assert run.made | run.failed >= {name for name in wanted if run.jobs[name].scan}
    hurt = {run.jobs[name].scan for name in run.failed} - {""}
    whole = {job.scan for job in inventory.jobs.jobs.values()} - {""} - hurt
    assert whole
    assert all(name in run.made for name in wanted if run.jobs[name].scan in whole)


def test_growth_is_the_power_of_the_number_of_subjects():
    (row,) = growth([Row(n, "plan", 1.0, n**1.5, 100.0) for n in (100, 1000, 10000)])
    assert (row["from"], row["to"]) == (1000, 10000)
    assert (row["cpu_s"], row["MB"]) == (pytest.approx(1.5), pytest.approx(0.0))


def test_the_overhead_is_what_more_subjects_take_beside_the_work_of_their_steps(monkeypatch, tmp_path):
    """A run takes 40 s whatever it does, a subject 10: 5 of work, 2 of starts, 2 of imports and 1 of checks."""
    runs = iter([1, 3])
    monkeypatch.setattr(beside, "_simulate", lambda *_: None)
    monkeypatch.setattr(beside, "_run", lambda *_: Spent(40 + 10 * (n := next(runs)), 8 * n, 2 * n, n, 4 * n))
    (tmp_path / "out/report").mkdir(parents=True)
    (tmp_path / "out/report/index.html").touch()
    rows = {row["what"].removesuffix(", CPU s"): row["per subject"] for row in beside.overhead(tmp_path, 2)}
    assert (rows["processes that run steps"], rows["overhead"]) == (4, 5)
    assert [value for what, value in rows.items() if what.startswith("of it")] == [2, 1, 2]


STEP = """
from popatlas.interfaces.base import PopatlasInterface
class Step(PopatlasInterface):
    def _execute(self):
        import colorsys
        for _ in range(3_000_000):
            pass
Step().run()
"""


def test_a_process_of_steps_notes_the_time_of_its_parts(tmp_path):
    folder = Path(beside.__file__).parent / "spent"
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    for line in (STEP, "import popatlas"):
        environment = os.environ | {"PYTHONPATH": path, beside.SPENT: str(tmp_path)}
        subprocess.run([sys.executable, "-c", line], check=True, env=environment, cwd=tmp_path)
    (told,) = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    assert told["steps"] > 0.02 > told["imports"] and told["steps"] > told["checks"]


@pytest.mark.slow
def test_the_benchmark_runs_on_a_tiny_cohort(tmp_path):
    file = tmp_path / "scale.json"
    main(["--quick", "--subjects", "4", "--out", str(tmp_path), "--json", str(file)])
    found = json.loads(file.read_text())["rows"]
    assert [row["what"] for row in found["Commands"]] == [
        "check", "plan of a new study", "first job of a new study", "plan of a finished study", "status", "tables", "pages",
        "first job of two subjects more",
    ]  # fmt: skip
    assert all(row["seconds"] > 0 and row["MB"] > 50 for row in found["Commands"])
    assert [row["slots"] for row in found["Simulated runs"]] == [1, 16, 256]
