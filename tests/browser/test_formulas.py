"""The formulas of the docs in a browser: KaTeX, which is carried along, draws every one of them."""

import html
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

DOCS = Path(__file__).parents[2] / "docs"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
FORMULA = re.compile(r"\$\$\n(?P<shown>.+?)\n\$\$|\$(?P<inline>[^\s$](?:[^$\n]*[^\s$])?)\$", re.DOTALL)


def formulas():
    """Yield each formula of the docs, and whether it has a line of its own."""
    for page in sorted(DOCS.rglob("*.md")):
        for match in FORMULA.finditer(CODE.sub("", page.read_text())):
            yield match["shown"] or match["inline"], bool(match["shown"])


def test_every_formula_is_drawn(tmp_path):
    if CHROMIUM is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Chromium is not installed: apt-get install chromium")
        pytest.skip("Chromium is not installed")
    found = list(formulas())
    assert len(found) > 40
    places = [
        f'<div class="arithmatex">\\[{html.escape(text)}\\]</div>'
        if shown
        else f'<span class="arithmatex">\\({html.escape(text)}\\)</span>'
        for text, shown in found
    ]
    scripts = [(DOCS / "vendor/katex/katex.min.js").as_uri(), (DOCS / "scripts/formulas.js").as_uri()]
    page = tmp_path / "formulas.html"
    page.write_text("<!doctype html><body>" + "".join(places) + "".join(f'<script src="{uri}"></script>' for uri in scripts))
    line = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        f"--user-data-dir={tmp_path / 'user'}",
    ]
    drawn = subprocess.run([*line, page.as_uri()], capture_output=True, text=True, check=True, timeout=120).stdout
    assert re.findall(r'class="katex-error"[^>]*title="([^"]*)"', drawn) == []
    assert "#cc0000" not in drawn, "a command that KaTeX does not know"
    assert drawn.count('<span class="katex">') == len(found)


def test_the_pages_load_what_draws_them():
    settings = (DOCS.parent / "mkdocs.yml").read_text()
    for name in ("vendor/katex/katex.min.css", "vendor/katex/katex.min.js", "scripts/formulas.js"):
        assert name in settings and (DOCS / name).is_file()
    fonts = re.findall(r"url\(fonts/([\w-]+\.woff2)\)", (DOCS / "vendor/katex/katex.min.css").read_text())
    assert fonts and [name for name in fonts if not (DOCS / "vendor/katex/fonts" / name).is_file()] == []
