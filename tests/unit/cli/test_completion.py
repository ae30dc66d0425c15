"""Completion by the shell: verbs, options, their values, steps and files, in a real bash."""

import subprocess
import sys

import pytest

from popatlas.cli.completion import SHELLS, script
from popatlas.cli.main import build_parser, main

TRY = """
source "$1"; shift
cd "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_popatlas; echo "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    """Return what completes a line in a folder with a file and a folder."""
    pytest.importorskip("shtab", reason="popatlas[completion]")
    folder = tmp_path_factory.mktemp("completion")
    (folder / "words.bash").write_text(script(build_parser(), "bash"))
    (folder / "mine").mkdir()
    (folder / "mine.yaml").touch()

    def complete(*words):
        line = ["bash", "-c", TRY, "bash", str(folder / "words.bash"), str(folder), "popatlas", *words]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()

    return complete


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("sta",), ["status"]),
        (("run", "--unt"), ["--until"]),
        (("run", "--until", "seg"), ["segmentations"]),
        (("run", "mi"), ["mine", "mine.yaml"]),
        (("plan", "--config", "mine.y"), ["mine.yaml"]),
        (("step", "FuseL"), ["FuseLabels"]),
        (("weights", "ver"), ["verify"]),
    ],
)
def test_bash_completes_a_line(bash, line, words):
    assert sorted(bash(*line)) == words


def test_every_shell_gets_its_script(bash, capsys):
    for shell in SHELLS:
        with pytest.raises(SystemExit) as stopped:
            main(["--completion", shell])
        assert stopped.value.code == 0 and "popatlas" in capsys.readouterr().out


def test_without_shtab_the_remedy_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as stopped:
        main(["--completion", "bash"])
    assert stopped.value.code == 1 and "pip install 'popatlas[completion]'" in capsys.readouterr().err
