"""A finished study that is moved, damaged, changed and interrupted: it is repaired, or it says what is missing."""

import re
import shutil
import threading
import time

import psutil
import pytest
import yaml

from popatlas.images.io import read_json, read_table

from .conftest import GOOD, SETTINGS, Workspace

pytestmark = pytest.mark.e2e


def scan(number):
    return f"sub-0{number}/anat/sub-0{number}"


@pytest.fixture(scope="module")
def moved(first_run, tmp_path_factory):
    """The finished study and its dataset in another folder."""
    finished = first_run[0]
    work = Workspace(tmp_path_factory.mktemp("moved"))
    shutil.copytree(finished.bids, work.bids)
    shutil.copytree(finished.out, work.out)
    work.config.write_text(yaml.safe_dump(SETTINGS))
    return work


def kill_step(out_dir, step, stop):
    """Kill the first process of a step in a folder, as a kernel without memory does."""
    while not stop.is_set():
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            try:
                if step in words and process.cwd() == str(out_dir):
                    process.kill()
                    return
            except psutil.Error:
                continue
        time.sleep(0.02)


def values_of(work, method):
    metrics = read_table(work.out / "group" / "metrics.parquet")
    return metrics[metrics["method"] == method]


def test_what_is_lost_or_damaged_is_made_again_and_nothing_else(moved):
    assert "everything is up to date" in moved.popatlas("plan", "--no-retry", check=False).stdout
    lost = [f"{scan(1)}_from-T1w_to-tiny_mode-image_xfm.nii.gz", f"{scan(3)}_desc-jlf_dseg.nii.gz", "group/volumes.tsv"]
    garbage = f"{scan(2)}_from-T1w_to-tiny_mode-image_desc-warp_xfm.nii.gz"
    before = moved.digests("sub-0*/anat/*") | moved.digests("group/*") | moved.digests("tpl-tiny/*")
    for path in lost:
        (moved.out / path).unlink()
    (moved.out / garbage).write_bytes(b"garbage")
    (moved.out / "sub-01" / "anat" / ".tmp-0a1b.nii.gz").write_bytes(b"half")
    result = moved.popatlas("run", "--no-retry", check=False)
    assert result.returncode == 3, result.stdout[-3000:] + result.stderr[-3000:]
    assert f"{garbage} was changed or damaged" in result.stderr
    after = moved.digests("sub-0*/anat/*") | moved.digests("group/*") | moved.digests("tpl-tiny/*")
    changed = {path for path in after if after[path] != before.get(path)}
    contents = {path for path in after if after[path][0] != before.get(path, ("",))[0]}
    assert contents == set(), "the same again, to the byte"
    assert {*lost, garbage} <= changed
    # labels by the other methods come from the same job, which keeps them: they are dated anew, no more
    fused = re.compile("_desc-(?:jlf|majority|staple)_")
    assert all(path.startswith(("sub-01/", "sub-02/", "group/")) or fused.search(path) for path in changed), changed
    kept = (moved.out / f"logs/jobs/{scan(3)}_fuse_scan.log").read_text().splitlines()
    assert sorted(kept) == ["FuseLabels: kept", "FuseLabels: kept", "FuseLabels: ok"]
    assert not list(moved.out.rglob(".tmp-*"))


def test_a_job_that_is_killed_costs_its_scan_and_no_old_value_stays(moved):
    """The preset is another one: labels of the former one must not be in the tables of a scan that lost its new ones."""
    good = set(
        values_of(moved, "jlf")["participant_id"]
    )  # more than `GOOD` where subjects were added to the first run before
    assert good >= set(GOOD)
    settings = SETTINGS | {
        "register": SETTINGS["register"] | {"preset": "fast"},
        "fuse": SETTINGS["fuse"] | {"methods": ["local"]},
    }
    moved.config.write_text(yaml.safe_dump(settings))
    stop = threading.Event()
    killer = threading.Thread(target=kill_step, args=(moved.out, "FuseLabels", stop))
    killer.start()
    result = moved.popatlas("run", "--no-retry", check=False)
    stop.set()
    killer.join()
    assert result.returncode == 3, result.stdout[-3000:] + result.stderr[-3000:]
    ledger = read_table(moved.out / "cohort" / "ledger.tsv")
    (failed,) = ledger.loc[(ledger["stage"] == "fuse") & (ledger["state"] == "failed"), "subject"]
    assert failed in good and f"{failed}/anat/{failed} failed at fuse" in result.stderr
    assert set(values_of(moved, "local")["participant_id"]) == good - {failed}
    assert values_of(moved, "jlf").empty
    assert "setting(s) changed since the last run" in result.stdout and "register.preset: quick -> fast" in result.stdout
    # the next run repairs it
    result = moved.popatlas("run", check=False)
    assert result.returncode == 3, "of the scans that are broken"
    assert set(values_of(moved, "local")["participant_id"]) == good
    members = read_json(moved.out / "group" / "members.json")
    assert set(members["made_from"]) == {f"{name}/anat/{name}_desc-metrics_table.tsv" for name in good}
