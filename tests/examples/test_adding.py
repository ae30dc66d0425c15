"""What the pages `add-a-...` say is tried in a copy of the project: all of it is added, and the tests that they name run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "developers").glob("add-*.md"))
PARTS = ("benchmarks", "docs", "envs", "profiles", "rules", "tests", "workflow")
FILES = ("README.md", "Snakefile", "config.yaml", "constraints.txt", "mkdocs.yml", "pyproject.toml", "requirements.lock")
BLOCK = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def add(page, root):
    """Write the files that a page shows, and change those of which it shows a part."""
    for kind, name, text in BLOCK.findall(page.read_text()):
        path = root / name
        if kind != "diff":
            assert not path.exists(), f"{page.name}: {name} is there already"
            path.write_text(text)
            continue
        old, new = ("".join(f"{line[1:]}\n" for line in text.splitlines() if line[0] in signs) for signs in (" -", " +"))
        content = path.read_text()
        assert content.count(old) == 1, f"{page.name}: {name} does not hold these lines once:\n{old}"
        path.write_text(content.replace(old, new))


def commands(page):
    """Return the paths and words of the tests by name (`pytest -k`) that a page says to run."""
    found = [shlex.split(line, comments=True) for line in re.findall(r"^pytest .*$", page.read_text(), re.MULTILINE)]
    return [
        ([word for word in line if word.startswith("tests/")], line[line.index("-k") + 1]) for line in found if "-k" in line
    ]


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A copy of the project to which all has been added that the pages add."""
    root = tmp_path_factory.mktemp("grown")
    for name in PARTS:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", ".snakemake"))
    for name in FILES:
        shutil.copy(ROOT / name, root / name)
    for page in PAGES:
        add(page, root)
    return root


def run(root, *line):
    env = os.environ | {"PYTHONPATH": str(root / "workflow")}
    done = subprocess.run([sys.executable, *line], cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, line))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_every_page_shows_something_to_add_and_to_run():
    assert len(PAGES) >= 8
    for page in PAGES:
        assert BLOCK.search(page.read_text()) and commands(page) and "docs/generate.py" in page.read_text(), page.name


def test_what_the_pages_add_is_taken_by_docs_schemas_and_tests(grown):
    run(grown, "docs/generate.py")
    found = [command for page in PAGES for command in commands(page)]
    paths = dict.fromkeys(path for paths, _ in found for path in paths)
    words = " or ".join(words for _, words in found)
    said = run(grown, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", words, *paths)
    assert int(re.search(r"(\d+) passed", said)[1]) > 100
