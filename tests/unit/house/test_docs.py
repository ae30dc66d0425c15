"""The docs: pages that are made of the code are as they would be made now, examples give what they show, names exist."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest
from docs.architecture import api_pages, imports, layer_table, layers, modules, packages, picture, reduced, rule_table

from popatlas.fusion.methods import METHODS
from popatlas.networks.architectures import ARCHITECTURES
from popatlas.networks.backbones import BACKBONES
from popatlas.registration.engines.registry import ENGINES
from popatlas.regularisers.registry import REGULARISERS
from popatlas.similarity.registry import SIMILARITIES

DOCS = Path(__file__).parents[3] / "docs"
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if path.name != "README.md"]
REGISTRIES = {
    "similarities": SIMILARITIES,
    "regularisers": REGULARISERS,
    "fusion-methods": METHODS,
    "networks": ARCHITECTURES | BACKBONES,
    "engines": ENGINES,
}


@pytest.mark.parametrize("page", REGISTRIES)
def test_every_entry_of_a_registry_has_its_section_with_formula_and_source(page):
    text = (DOCS / "reference" / f"{page}.md").read_text()
    for name, entry in REGISTRIES[page].items():
        found = re.search(rf"(?ms)^## `{name}`: {re.escape(entry.title)}\n(.*?)(?=^#|\Z)", text)
        assert found, f"run docs/generate.py: {name} is not in {page}.md"
        assert entry.formula in found[1]
        assert f"][{entry.code.replace(':', '.')}]" in found[1]


def exists(name):
    """Tell whether a dotted name is a module or something in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError as error:
            if not error.name.startswith("popatlas"):  # of an extra that is not installed: the module is there
                return True
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def shown(page):
    """Return the modules that a page adds as an example; tests/examples really adds them."""
    files = re.findall(r'^```python title="workflow/(.*)\.py"$', page.read_text(), re.MULTILINE)
    return {file.replace("/", ".") for file in files}


def test_what_the_docs_call_by_its_name_exists():
    added = set().union(*map(shown, (DOCS / "developers").glob("add-*.md")))
    named = {(name, page.name) for page in PAGES for name in re.findall(r"\bpopatlas(?:\.[a-zA-Z_]\w*)+", page.read_text())}
    own = {(name, page) for name, page in named if name.split(".")[1] in layers()}
    assert len(own) > 100
    missing = [(name, page) for name, page in sorted(own) if not exists(name)]
    assert [(name, page) for name, page in missing if not any(f"{name}.".startswith(f"{one}.") for one in added)] == []


def test_the_reference_has_all_packages():
    pages = dict(api_pages())
    assert {path.stem for path in (DOCS / "api").glob("*.md")} == {*packages(), "modules"}
    for place, text in pages.items():
        assert text in (DOCS / f"{place}.md").read_text(), "run docs/generate.py"
        assert f"{place}.md" in (DOCS.parent / "mkdocs.yml").read_text(), f"{place}.md is not in the navigation"


def test_the_page_of_the_architecture_is_made_of_the_code_as_it_is():
    page = (DOCS / "developers" / "architecture.md").read_text()
    assert layer_table() in page and rule_table() in page, "run docs/generate.py"
    drawn = (DOCS / "images" / "packages.svg").read_text()
    assert drawn == picture(), "run docs/generate.py"
    assert {name for name in re.findall(r">(\w+)</text>", drawn)} == {*packages(), *modules()}
    assert drawn.count("<path marker-end") == len(reduced(imports()))


def test_what_follows_from_other_imports_is_not_drawn():
    assert reduced({"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}}) == [("a", "b"), ("b", "c"), ("c", "d")]


def test_the_examples_of_frames_and_units_give_what_they_show():
    blocks = re.findall(r"```pycon\n(.*?)```", (DOCS / "developers" / "frames.md").read_text(), re.DOTALL)
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "frames.md", None, 0)
    assert len(examples.examples) > 20
    assert doctest.DocTestRunner().run(examples).failed == 0


ON_A_STUDY = ("tables.md", "jacobians.md")  # tests/e2e runs what these pages do with the results of a study
NOT_RUN = "<!-- not run: "  # the line above a block that needs what a page does not make
BLOCKS = [
    pytest.param(bool(marked), code, id=f"{page.stem}-{number}")
    for page in sorted([*DOCS.glob("*.md"), *(DOCS / "stages").glob("*.md"), *(DOCS / "howto").glob("*.md")])
    if page.name not in ON_A_STUDY
    for number, (marked, code) in enumerate(
        re.findall(rf"(?ms)^({re.escape(NOT_RUN)}[^\n]+\n)?```python\n(.*?)^```", page.read_text())
    )
]


@pytest.mark.parametrize(("marked", "code"), BLOCKS)
def test_python_on_a_page_runs_and_imports_what_there_is(marked, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = ast.parse(code)
    if marked:
        tree.body = [part for part in tree.body if isinstance(part, ast.Import | ast.ImportFrom)]
    exec(compile(tree, "page", "exec"), {})
