import subprocess
import sys

import pytest

from popatlas.cli.main import CLOSED_PIPE, VERBS, build_parser, main, parse, translate_bids_app
from popatlas.cli.snake import check_options, command, profile_folder, study_config
from popatlas.cohort.view import hide, view_of
from popatlas.config.load import load_config
from popatlas.errors import ConfigError
from popatlas.fusion.methods import METHODS
from popatlas.resources import workflow_root
from popatlas.study.benchstudy import bench_config
from popatlas.study.opening import only_looks


def test_the_bids_app_form_is_the_run_verb():
    assert translate_bids_app(["bids", "out", "participant", "--cores", "3"]) == [
        "run", "bids", "out", "--until", "subjects", "--cores", "3",
    ]  # fmt: skip
    assert translate_bids_app(["bids", "out", "group"]) == ["run", "bids", "out"]
    assert translate_bids_app(["run", "bids", "out"]) == ["run", "bids", "out"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    if verb == "step":
        assert main(["step", "--help"]) == 0
    else:
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
    assert "usage: popatlas" in capsys.readouterr().out


def test_unknown_options_of_run_go_to_snakemake_others_are_refused(capsys):
    assert parse(["run", "b", "o", "--forceall"]).snakemake == ["--forceall"]
    assert main(["status", "o", "--forceall"]) == 2
    assert "unrecognized arguments: --forceall" in capsys.readouterr().err


def test_the_bench_takes_known_methods_and_hands_the_rest_on(capsys):
    args = parse(["fuse", "bench", "b", "o", "--methods", "majority", "local", "--forceall"])
    assert (args.action, args.methods, args.snakemake) == ("bench", ["majority", "local"], ["--forceall"])
    assert parse(["fuse", "bench"]).methods == [name for name in METHODS if name != "jlfants"]
    for line, message in ((["fuse", "bench", "--methods", "jfl"], "invalid choice: 'jfl'"), (["fuse"], "required: bench")):
        with pytest.raises(SystemExit):
            parse(line)
        assert message in capsys.readouterr().err


def test_the_bench_changes_what_it_compares_and_nothing_else():
    config = load_config({"fuse": {"maps": False, "segmenter": {"enabled": True, "labels": "jlf"}, "jlf": {"beta": 2.0}}})
    found = bench_config(config, ["majority", "dataparams"])
    before, after = config.content, found.content
    assert {key for key in before["fuse"] if after["fuse"][key] != before["fuse"][key]} == {
        *("methods", "bench", "maps", "segmenter")
    }
    assert found.fuse.methods == ("majority", "dataparams")
    assert {**after, "fuse": {}} == {**before, "fuse": {}}
    with pytest.raises(ConfigError, match=r"at least 2 are needed \(fuse\.atlases: 0\)"):
        bench_config(load_config({"fuse": {"atlases": 0}}), ["majority"])


def test_profiles_are_found_by_name_or_path(tmp_path):
    for name in ("aws-batch", "default", "kubernetes", "lsf", "pbs", "sge", "slurm", "slurm-gpu"):
        assert (profile_folder(name) / "profile.yaml").is_file()
    assert profile_folder(str(tmp_path)) == tmp_path
    with pytest.raises(ConfigError, match="aws-batch, default, kubernetes, lsf, pbs, sge, slurm, slurm-gpu"):
        profile_folder("nonsense")


def test_snakemake_gets_the_shipped_snakefile_and_the_extra_options(tmp_path):
    args = parse(["run", "b", "o", "--cores", "3", "--set-resources", "fuse_labels:mem_mb=9"])
    line = command(tmp_path / "c.yaml", args, ["all"], ["--dry-run"])
    assert str(workflow_root() / "Snakefile") in line
    assert line[line.index("--cores") + 1] == "3"
    assert line[-2:] == ["--set-resources", "fuse_labels:mem_mb=9"]


@pytest.mark.parametrize(
    ("options", "dry"),
    [
        (["-n"], True),
        (["-np"], True),
        (["--dry-run"], True),
        (["--dryrun"], True),
        ([], False),
        (["--forcerun", "normalise_brain", "-F"], False),
        (["--no-hooks", "-k"], False),
    ],
)
def test_a_dry_run_is_known_by_snakemakes_options(options, dry):
    assert only_looks(options) is dry


@pytest.mark.parametrize(
    "option", ["-n", "--dry-run", "--lint", "--dag", "--summary", "-S", "--unlock", "--list-target-rules"]
)
def test_what_only_looks_is_known(option):
    assert only_looks(["all", option, "--cores", "2"])
    assert not only_looks(["all", "--cores", "2", "-k", "-F", "--forcerun", "fuse_labels", "--latency-wait", "3"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--configfile", "other.yaml"], "give --config FILE"),
        (["--configf=other.yaml"], "give --config FILE"),
        (["-C", "out_dir=elsewhere"], "give --config FILE"),
        (["-d", "elsewhere"], "give OUT_DIR"),
        (["--directory", "elsewhere"], "give OUT_DIR"),
        (["-sSnakefile"], "that of popatlas"),
        (["--workflow-profile", "mine"], "give --profile"),
        (["--slurm-array-jobs", "all"], "the memory of the first"),
    ],
)
@pytest.mark.parametrize("verb", ["run", "plan"])
def test_options_that_would_run_another_study_are_refused(verb, options, words, tmp_path, capsys):
    """Snakemake would work on another study than the one whose books are kept."""
    assert main([verb, str(tmp_path), str(tmp_path / "out"), *options]) == 1
    said = capsys.readouterr().err
    assert options[0].split("=")[0] in said and words in said
    assert not (tmp_path / "out").exists()


def test_arrays_are_refused_in_a_profile_too(tmp_path):
    (tmp_path / "profile.yaml").write_text("executor: slurm\nslurm-array-jobs: all\n")
    with pytest.raises(ConfigError, match="the memory of the first; leave it out"):
        study_config(parse(["run", "bids", "out", "--profile", str(tmp_path)]))


def test_options_about_jobs_go_on_to_snakemake():
    check_options(["--set-resources", "a:mem_mb=1", "--retries", "2", "--show-failed-logs", "-n", "--dry-run", "--forceall"])


def test_a_look_ahead_writes_and_removes_in_a_view(tmp_path):
    out = tmp_path / "out"
    with view_of(out) as view:
        (view / "cohort" / "new.tsv").write_text("x")
    assert not out.exists()
    files = (
        "cohort/index.tsv",
        "cohort/receipts/a/b.json",
        "sub-1/anat/one",
        "sub-1/anat/two",
        "sub-2/anat/one",
        ".snakemake/x",
    )
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)
    with pytest.raises(ConfigError), view_of(out) as view:
        assert not (view / ".snakemake").exists()
        (view / "cohort" / "index.tsv").write_text("after")
        for name in ("sub-1/anat/one", "cohort/receipts/a/b.json", "sub-9/none"):
            hide(view, name)
            assert not (view / name).exists()
        assert (view / "sub-1/anat/two").read_text() == "sub-1/anat/two"
        assert (view / "sub-2/anat/one").is_file()
        raise ConfigError("stopped")
    assert {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()} == {
        name: name for name in files
    }


@pytest.mark.parametrize("line", [["plan"], ["run", "-n"]])
def test_a_look_ahead_draws_no_demo_cohort(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(line) == 0
    said = capsys.readouterr().out
    assert f"would draw 8 heads (seed 1) in {tmp_path / 'results/demo/bids'}" in said
    assert list(tmp_path.iterdir()) == []
    assert main([*line, "--set", "simulate.subjects=3"]) == 0 and "would draw 3 heads" in capsys.readouterr().out
    assert main([*line, "--set", "simulate.enabled=false"]) == 1
    assert "the dataset does not exist" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_errors_are_shown_without_traceback(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 1
    assert "there is no ledger" in capsys.readouterr().err


def test_a_reader_who_leaves_early_sees_no_traceback():
    code = "import sys; from popatlas.cli.main import main; sys.stdin.readline(); sys.exit(main(['train']))"
    ends = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    listing = subprocess.Popen([sys.executable, "-c", code], text=True, **ends)
    listing.stdout.close()
    _, errors = listing.communicate("go\n")
    assert listing.returncode == CLOSED_PIPE and not errors


def test_the_help_names_all_verbs():
    text = build_parser().format_help()
    assert all(verb in text for verb in VERBS)
