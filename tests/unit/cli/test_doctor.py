"""`popatlas doctor` on sites that answer in other ways: programs of Slurm are stand-ins that print what real ones print."""

import stat
from types import SimpleNamespace

import pytest
import yaml

from popatlas.cli.main import main
from popatlas.cli.notes import plugin_note
from popatlas.cluster import site
from popatlas.cluster.limits import room

SINFO = """\
batch*|2-00:00:00|192000|48|(null)
long|14-00:00:00|192000|48|(null)
a100|1-00:00:00|500000|64|gpu:a100:4(S:0-1)
"""
CONFIG = "AccountingStorageType   = accounting_storage/{kind}\nMaxArraySize      = 1001\nMaxJobCount       = 10000"
# columns of an association, then name and limits of a QOS; a stand-in prints both whatever it is asked for
LIMITS = "lab42||50|200|||cpu=64||1-00:00:00|normal|normal\nnormal|40|120|||||\nother|1|1|||||"
QUOTA = """\
Disk quotas for user me (uid 1):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
      /dev/sda1 {used} 90000000 100000000       0     500       0       0       0
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Return a function that makes programs, each of which prints a text and ends with a code."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(**texts):
        usual = {name: "" for name in site.PROGRAMS} | {"sinfo": SINFO, "scontrol": CONFIG.format(kind="slurmdbd")}
        for name, text in (usual | texts).items():
            code, said = text if isinstance(text, tuple) else (0, text)
            program = folder / name
            program.write_text(f"#!/bin/sh\necho \"$0 $*\" >> {tmp_path}/asked\ncat <<'END'\n{said}\nEND\nexit {code}\n")
            program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return make


def test_a_machine_without_slurm_is_told_what_it_can_do(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "no Slurm here: sbatch" in said and "without a profile" in said


def test_partitions_accounts_and_gpus_are_found_and_go_into_the_profile(cluster, tmp_path, capsys):
    cluster(sacctmgr="lab42\n")
    assert main(["doctor", "--write", str(tmp_path / "site")]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "partition batch, default: nodes of 48 cores and 192 GB, jobs up to 2-00:00:00" in said
    assert "partition a100, with GPUs" in said and "accounting is on" in said
    profile = yaml.safe_load((tmp_path / "site/profile.yaml").read_text())
    assert "slurm_account=lab42" in profile["default-resources"] and "slurm-no-account" not in profile
    assert not any(item.startswith("slurm_partition") for item in profile["default-resources"])  # the default one serves
    assert {rule["slurm_partition"] for rule in profile["set-resources"].values() if rule["gpu"] == 1} == {"a100"}


def test_without_a_default_partition_one_is_named(cluster, tmp_path):
    cluster(sinfo=SINFO.replace("batch*", "batch"))
    assert main(["doctor", "--write", str(tmp_path / "site")]) == 0
    profile = yaml.safe_load((tmp_path / "site/profile.yaml").read_text())
    assert "slurm_partition=batch" in profile["default-resources"] and profile["slurm-no-account"] is True


def test_several_accounts_have_to_be_chosen_from(cluster, capsys):
    cluster(sacctmgr="lab1\nlab2\n")
    assert main(["doctor"]) == 1
    assert "several accounts: lab1, lab2" in capsys.readouterr().out
    assert main(["doctor", "--account", "lab2"]) == 0


def test_a_controller_that_does_not_answer_and_a_refused_job_are_told(cluster, capsys):
    cluster(sinfo=(1, "slurm_load_partitions: Unable to contact slurm controller"))
    assert main(["doctor"]) == 1
    assert "Unable to contact slurm controller" in capsys.readouterr().out
    cluster(sbatch=(1, "sbatch: error: Batch job submission failed: Invalid account"))
    assert main(["doctor", "--submit"]) == 1
    assert "Invalid account" in capsys.readouterr().out


def test_jobs_are_sent_where_they_will_run(cluster, tmp_path):
    cluster(sacctmgr="lab42\n", sbatch="1")
    assert main(["doctor", "--submit"]) == 0
    sent = [line for line in (tmp_path / "asked").read_text().splitlines() if "sbatch" in line]
    assert len(sent) == 2 and "--partition" not in sent[0] and "--partition=a100 --gpus=1" in sent[1]
    assert all("--account=lab42" in line for line in sent)
    assert main(["doctor", "--partition", "none"]) == 1


def test_limits_of_slurm_are_told_and_the_profile_keeps_to_them(cluster, tmp_path, capsys):
    cluster(sacctmgr=LIMITS)
    assert main(["doctor", "--account", "lab42"]) == 1
    said = capsys.readouterr().out
    assert "LACK  Slurm takes 120 jobs of yours at a time (maxsubmitjobsperuser of QOS normal)" in said
    assert "Remedy: --jobs 108, or jobs: 108" in said
    assert "40 jobs of yours run at a time (maxjobsperuser of QOS normal)" in said
    assert "MaxArraySize 1001" in said and "grptres of account lab42: cpu=64" in said
    assert main(["doctor", "--account", "lab42", "--write", str(tmp_path / "site")]) == 0
    assert yaml.safe_load((tmp_path / "site/profile.yaml").read_text())["jobs"] == 108
    assert main(["doctor", "--account", "none"]) == 0, "the limits of another account are not ours"
    cluster(scontrol="MaxJobCount = 100")
    assert main(["doctor"]) == 1
    assert "Slurm takes 100 jobs of yours at a time (MaxJobCount)" in capsys.readouterr().out


def test_quotas_and_the_number_of_files_are_told(cluster, tmp_path, capsys, monkeypatch):
    cluster(quota=QUOTA.format(used="60000000"), lfs="/a/long/path\n 100 0 1000 - 999999* 0 1000000 -")
    assert main(["doctor", str(tmp_path / "new" / "out")]) == 1
    said = capsys.readouterr().out
    assert "ok    quota on /dev/sda1: 60 of 90 GB used" in said
    assert "LACK  quota on /a/long/path: 0 of 0 GB, 999999 of 1000000 files used" in said
    assert "ask for a larger quota" in said and f"results may go to {tmp_path}/new/out: " in said
    cluster(quota=(1, QUOTA.format(used="95000000*")), lfs=(1, "not on a Lustre file system"))
    assert main(["doctor"]) == 1
    assert "LACK  quota on /dev/sda1: 95 of 90 GB used" in capsys.readouterr().out
    few = SimpleNamespace(f_files=1_000_000, f_favail=5, f_bavail=10**9, f_blocks=10**9, f_bfree=10**9, f_frsize=4096)
    monkeypatch.setattr("os.statvfs", lambda place: few)
    found = room(tmp_path, "results may go to", "elsewhere")
    assert (found.good, found.remedy) == (False, "elsewhere") and "5 files are free" in found.what


def test_an_old_plugin_is_told_with_the_line_that_mends_it(monkeypatch, capsys):
    monkeypatch.setattr(site.metadata, "version", lambda name: "2.6.1")
    found = site.plugin_finding()
    assert not found.good and found.remedy == site.FAST_LINE
    plugin_note("slurm")
    assert f"Remedy: {site.FAST_LINE}" in capsys.readouterr().err
    plugin_note(None)
    assert capsys.readouterr().err == "", "of no run on this machine"
