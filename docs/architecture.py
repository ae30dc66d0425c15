"""The packages from top to bottom: their table, and the pages of the API reference.

The order is that of pyproject.toml, which a test holds the imports to; what each is for is the first line of its docstring.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "workflow" / "popatlas"


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
    yield "api/modules", "# Modules\n\nSingle modules, which all packages may use.\n\n" + "\n".join(parts)


def filled(page: str, name: str, content: str) -> str:
    """Return a page with new content between the marks `<!-- NAME: ... -->` and `<!-- end -->`."""
    found = re.compile(rf"(<!-- {name}: [^>]* -->\n\n).*?(\n<!-- end -->)", re.DOTALL)
    if len(found.findall(page)) != 1:
        raise ValueError(f"no place for {name}")
    return found.sub(lambda marks: f"{marks[1]}{content}{marks[2]}", page)
