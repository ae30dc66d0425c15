"""Bad input of each kind: what follows and the message. The docs' table is made from the cases in `cases/`.

`POPATLAS_WRITE_DOCS=1 pytest tests/failure/test_bad_input.py` writes docs/bad-input.md anew.
"""

from __future__ import annotations

import os
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest

from . import cases
from .casebook import Case

TABLE = Path(__file__).parents[2] / "docs" / "bad-input.md"
HEAD = """# Bad input

What popatlas says and does when an input cannot be used, {count} cases. These tables are written by `tests/failure`, from
what the code really answers; a test fails when they are out of date.
"""
SECTION = """
## {title}

| stage | input | what follows | message |
|---|---|---|---|
"""
NUMBER = re.compile(r"\d+(?:\.\d+)?")
MODULES = [import_module(f"{cases.__name__}.{module.name}") for module in pkgutil.iter_modules(cases.__path__)]
CASES = [(module.TITLE, case) for module in MODULES for case in module.CASES]
ROWS: dict[int, str] = {}


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{case.stage}-{case.name}" for _, case in CASES])
def test_bad_input_is_explained(number: int, tmp_path: Path) -> None:
    case: Case = CASES[number][1]
    message = case.make(tmp_path)
    assert case.words in message, message
    assert "remedy" in message.lower() or not case.remedy, message
    shown = " ".join(message.replace(str(tmp_path), "").replace("|", "/").replace("[", r"\[").split())
    ROWS[number] = f"| {case.stage} | {case.name} | {case.follows} | {shown} |\n"


def test_the_docs_show_these_messages() -> None:
    if len(ROWS) < len(CASES):
        pytest.fail("run the whole module: the tables are made from all cases")
    text = HEAD.format(count=len(CASES))
    for number, (title, _) in enumerate(CASES):
        if number == 0 or CASES[number - 1][0] != title:
            text += SECTION.format(title=title)
        text += ROWS[number]
    if os.environ.get("POPATLAS_WRITE_DOCS") == "1":
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(text)
    shown = TABLE.read_text()
    assert NUMBER.sub("#", shown) == NUMBER.sub("#", text)
    # what is measured on images differs by a hair between processors
    found = [[float(number) for number in NUMBER.findall(page)] for page in (shown, text)]
    assert found[0] == pytest.approx(found[1], rel=0.02)
