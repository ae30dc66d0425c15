"""The examples of the docs run as they are, and print what they say."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
NEAR = 0.15  # share by which a number may differ from the one in the docs: other processors, other versions


def test_there_are_ten():
    assert len(EXAMPLES) >= 10


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_shows(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    assert len(ast.get_docstring(ast.parse(text)).splitlines()) >= 3
    code = text.split('"""', 2)[2].strip()
    assert code in (ROOT / "docs" / "examples" / "index.md").read_text(), "run docs/generate.py"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_its_last_line_says(path, tmp_path):
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir(), temporary.mkdir()
    env = os.environ | {"PYTHONPATH": str(ROOT / "workflow"), "TMPDIR": str(temporary), "POPATLAS_WEIGHTS": str(here)}
    done = subprocess.run([sys.executable, path], cwd=here, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, expected = done.stdout.splitlines()[-1], path.read_text().splitlines()[-1].removeprefix("# ")
    assert NUMBER.sub("#", said) == NUMBER.sub("#", expected)
    numbers = [[float(number) for number in NUMBER.findall(line)] for line in (said, expected)]
    assert numbers[0] == pytest.approx(numbers[1], rel=NEAR, abs=0.02)
    assert [*here.iterdir(), *temporary.glob("tmp*")] == [], "it leaves files behind"
