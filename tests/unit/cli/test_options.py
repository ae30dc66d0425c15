"""What users write: spellings of BIDS Apps, folders behind options, settings, options that nobody knows."""

import subprocess
import sys
from pathlib import Path

import pytest

from popatlas.cli.arguments import UsageError
from popatlas.cli.main import main, parse, translate_bids_app
from popatlas.cli.options import FLAGS, check_known, options_of
from popatlas.cli.snake import is_cluster, is_quiet, study_config
from popatlas.errors import ConfigError, PopatlasError

from ...cohorts import noise_cohort


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    noise_cohort(tmp_path / "bids", ["sub-A", "sub-B"], labels=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("cores", ["--cores", "--n_cpus", "--n-cpus", "--nprocs", "-c", "--nthreads"])
def test_spellings_of_bids_apps_are_taken(cores, capsys):
    line = ["bids", "out", "participant", "--participant_label", "01", "02", cores, "3", "--skip_bids_validation"]
    args = parse(translate_bids_app([*line, "--work-dir", "/scratch"]))
    assert (args.bids_dir, args.out_dir, args.until) == (Path("bids"), Path("out"), "subjects")
    assert (args.participant_label, args.cores, args.snakemake) == (["01", "02"], 3, [])
    assert "--work-dir is not needed" in capsys.readouterr().err


def test_the_level_of_a_bids_app_may_stand_anywhere():
    line = ["bids", "out", "--participant_label", "01", "group"]
    assert translate_bids_app(line) == ["run", "bids", "out", "--participant_label", "01"]
    assert translate_bids_app(["status", "group"]) == ["status", "group"]


def test_the_w_of_snakemake_is_still_that_of_snakemake(capsys):
    assert parse(["run", "b", "o", "-w", "60"]).snakemake == ["--latency-wait", "60"]
    assert parse(["run", "b", "o", "-w", "/scratch"]).snakemake == []
    assert "--work-dir is not needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        ["--participant-label", "A", "B", "bids", "out"],
        ["--participant-label", "A", "B", "./bids", "new/out"],
        ["--participant-label", "A", "B", "--", "bids", "out"],
        ["bids", "out", "--participant-label", "A", "B"],
        ["bids", "--participant-label", "A", "B", "--cores", "1", "out"],
        ["--cores", "1", "--participant-label", "A", "--participant-label", "B", "bids", "out"],
    ],
)
@pytest.mark.parametrize("verb", ["plan", "run"])
def test_labels_do_not_swallow_the_folders(line, verb, dataset):
    args = parse([verb, *line])
    assert args.participant_label == ["A", "B"]
    assert args.bids_dir.resolve() == dataset / "bids" and args.out_dir.name == "out"
    config = study_config(args)
    assert config.cohort.include == ("sub-A", "sub-B") and config.bids_dir == str(dataset / "bids")


def test_labels_stay_labels_where_no_folder_is_meant(dataset):
    (dataset / "B").mkdir()
    args = parse(["plan", "--participant-label", "A", "B", "C"])
    assert (args.participant_label, args.bids_dir) == (["A", "B", "C"], None)
    with pytest.raises(ConfigError, match="OUT_DIR is missing"):
        study_config(parse(["plan", "--participant-label", "A", "bids"]))


def test_settings_of_the_command_line_go_before_the_file(dataset):
    (dataset / "c.yaml").write_text("preprocess: {resolution_mm: 3.0}\nfuse: {methods: [majority, jlf]}\n")
    line = ["--config", "c.yaml", "--set", "preprocess.resolution_mm=1.5", "fuse.methods=[majority]"]
    config = study_config(parse(["run", "bids", "out", *line, "--set", "atlas.label=mine"]))
    assert (config.preprocess.resolution_mm, config.fuse.methods, config.atlas.label) == (1.5, ("majority",), "mine")
    config = study_config(parse(["plan", "--set", "out_dir=elsewhere", "register.ladder=[]", "bids", "out"]))
    assert config.register.fallback == () and config.bids_dir == str(dataset / "bids")
    bench = parse(["fuse", "bench", "bids", "out", "--set", "fuse.maps=false"])
    assert study_config(bench).fuse.maps is False


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("preprocess.resolution=1", "unknown key 'resolution', did you mean 'resolution_mm'?"),
        ("preproces.resolution_mm=1", "unknown key 'preproces', did you mean 'preprocess'?"),
        ("preprocess.resolution_mm=fine", "preprocess.resolution_mm"),
        ("atlas.members=[1", "atlas.members is not valid YAML"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, words, dataset):
    with pytest.raises(PopatlasError) as caught:
        study_config(parse(["run", "bids", "out", "--set", setting]))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["run", "b", "o", "--participant-lable", "01"], "--participant-lable. Did you mean --participant-label?"),
        (["run", "b", "o", "--foreal"], "--foreal. Did you mean --forceall?"),
        (
            ["run", "b", "o", "--session_label", "1"],
            "there is no option --session_label. Remedy: choose sessions by --query",
        ),
        (["plan", "b", "o", "--retries", "many"], "--retries/--restart-times/-T: invalid int value: 'many'. Remedy:"),
        (["run", "b", "o", "--forceall", "p"], "what is p? Remedy: BIDS_DIR and OUT_DIR go before the options"),
        (["run", "--set", "a=b", "b", "o", "p"], "which of b o p are folders?"),
        (["status", "o", "--jsn"], "unrecognized arguments: --jsn. Did you mean --json?"),
        (["check", "b", "--forceall"], "unrecognized arguments: --forceall"),
        (["weights", "list", "--jso=1"], "--json"),
    ],
)
def test_an_option_that_nobody_knows_costs_one_line_and_code_2(line, words, capsys):
    try:
        assert main(line) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and said[0].startswith(f"popatlas {line[0]}: ")
    except SystemExit as stop:  # of argparse itself: an abbreviation with a value that it does not take
        assert stop.code == 2
        said = capsys.readouterr().err.splitlines()
    assert words in said[-1]


def test_options_of_snakemake_are_known():
    known = options_of(parse(["run", "b", "o"]).parser)
    for options in (
        ["--set-resources", "fuse_labels:mem_mb=9", "--retries", "2", "--show-failed-logs", "-n", "--forceall"],
        ["-np"],
        ["--forcerun", "normalise_brain", "-k"],
        ["--executor", "local", "--latency-wait=3"],
        [],
    ):
        check_known(options, known)
    with pytest.raises(UsageError):
        check_known(["--nonsense"], known)


def test_who_runs_the_jobs_and_who_is_silent_is_known():
    assert not is_cluster(parse(["run", "b", "o"]))
    assert is_cluster(parse(["run", "b", "o", "--profile", "slurm"]))
    assert is_cluster(parse(["run", "b", "o", "--executor=slurm"]))
    assert not is_cluster(parse(["run", "b", "o", "--profile", "slurm", "-e", "local"]))
    assert [is_quiet([option]) for option in ("-q", "--quiet", "-n", "--query")] == [True, True, False, False]


def test_common_flags_of_snakemake_take_no_values_and_load_no_parser():
    from snakemake.cli import get_argument_parser

    flags = {name for action in get_argument_parser()._actions if action.nargs == 0 for name in action.option_strings}
    assert flags >= FLAGS
    code = (
        "import sys; from popatlas.cli.options import check_known; check_known(['-n', '-p'], ()); "
        "print('snakemake' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
