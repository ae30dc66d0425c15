"""The packages from top to bottom: their table, their picture, and the pages of the API reference.

The order is that of pyproject.toml, which a test holds the imports to; what each is for is the first line of its docstring.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import grimp
from docs.drawing import draw, reduced

from popatlas.interfaces import INTERFACES

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "workflow" / "popatlas"
RULE = re.compile(
    r"^(?P<indent> *)(?:rule (?P<name>\w+):|use rule (?P<parent>\w+) as (?P<heir>\w+) with:)\n"
    r"(?P<body>(?:(?P=indent) +.*\n|\n)*)",
    re.MULTILINE,
)


def layers() -> tuple[str, ...]:
    """Return the packages and modules from top to bottom."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    return tuple(next(contract["layers"] for contract in contracts if contract["id"] == "layers"))


def packages() -> tuple[str, ...]:
    """Return those layers that are packages, from top to bottom."""
    return tuple(name for name in layers() if (SOURCE / name).is_dir())


def modules() -> tuple[str, ...]:
    """Return those layers that are single modules, from top to bottom."""
    return tuple(name for name in layers() if not (SOURCE / name).is_dir())


def purpose(name: str) -> str:
    """Return the first line of the docstring of a layer."""
    place = SOURCE / name / "__init__.py" if name in packages() else SOURCE / f"{name}.py"
    text = ast.get_docstring(ast.parse(place.read_text(encoding="utf-8"))) or ""
    return text.split("\n")[0]


def layer_table() -> str:
    """Return the table of all layers, each with a link to its page of the reference."""
    rows = [f"| [`{name}`]({page_of(name)}) | {purpose(name)} |" for name in layers()]
    return "\n".join(["| package or module | what it is for |", "|---|---|", *rows]) + "\n"


def page_of(name: str) -> str:
    """Return the page of a layer, as seen from docs/developers."""
    return f"../api/{name}.md" if name in packages() else f"../api/modules.md#popatlas.{name}"


def api_pages() -> Iterator[tuple[str, str]]:
    """Yield place and text of each page of the reference; mkdocstrings fills them from the docstrings."""
    for name in packages():
        yield f"api/{name}", f"# popatlas.{name}\n\n::: popatlas.{name}\n"
    parts = [f"::: popatlas.{name}\n    options: {{show_root_heading: true, heading_level: 2}}\n" for name in modules()]
    yield "api/modules", "# Modules\n\nSingle modules, which belong to no package.\n\n" + "\n".join(parts)


def rule_table() -> str:
    """Return the table of all rules: the step of each, and what it does."""
    rows = [f"| `{name}` | {', '.join(map(step_of, steps))} | {meaning} |" for name, steps, meaning in rules()]
    return "\n".join(["| rule | step | what it does |", "|---|---|---|", *rows]) + "\n"


# the step of `popatlas.study.tissues.Tissues.step`, which some scans have
DIVISION = ("{params.division}", "SegmentTissues --then")


def rules() -> Iterator[tuple[str, list[str], str]]:
    """Yield name, steps and first line of each rule that makes something, as the Snakefile includes them."""
    steps: dict[str, list[str]] = {}
    listed = re.search(r"for stage in \((.+?)\):", (ROOT / "Snakefile").read_text(encoding="utf-8"), re.S)
    assert listed is not None
    included = [f"rules/{name}.smk" for name in re.findall(r'"(\w+)"', listed[1])]
    for place in included:
        text = (ROOT / place).read_text(encoding="utf-8")
        for match in re.finditer(RULE, text):
            name, parent = match["name"] or match["heir"], match["parent"]
            found = re.findall(r"(?:popatlas step|--then|--also) (\w+)", match["body"].replace(*DIVISION))
            found += ["FuseLabels"] if "study.fuse.steps" in match["body"] else []
            steps[name] = found or steps.get(parent, [])
            if steps[name]:
                meaning = re.search(r'"""(.+?)"""', match["body"], re.DOTALL)
                yield name, steps[name], escape(" ".join((meaning[1] if meaning else "").split()))


def step_of(name: str) -> str:
    """Return a link to a step in the reference."""
    return f"[`{name}`][{INTERFACES[name]}.{name}]"


def filled(page: str, name: str, content: str) -> str:
    """Return a page with new content between the marks `<!-- NAME: ... -->` and `<!-- end -->`."""
    found = re.compile(rf"(<!-- {name}: [^>]* -->\n).*?(<!-- end -->)", re.DOTALL)
    if len(found.findall(page)) != 1:
        raise ValueError(f"no place for {name}")
    return found.sub(lambda marks: f"{marks[1]}\n{content}\n{marks[2]}", page)


def imports() -> dict[str, set[str]]:
    """Return the packages that each package imports, also within functions and for types."""
    graph = grimp.build_graph("popatlas", cache_dir=None)
    found: dict[str, set[str]] = {name: set() for name in packages()}
    for name in packages():
        inside = {f"popatlas.{name}", *graph.find_descendants(f"popatlas.{name}")}
        for module in inside:
            for target in graph.find_modules_directly_imported_by(module):
                layer = f"{target}.".split(".")[1]
                if layer in found and layer != name:
                    found[name].add(layer)
    return found


def picture() -> str:
    """Return the picture of the packages, made from the imports."""
    return draw(
        reduced(imports()),
        modules(),
        "An arrow: imports. Arrows that follow from others are left out.",
        "Single modules, which belong to no package",
    )
