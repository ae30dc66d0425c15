"""YAML files of the user, read strictly: what YAML would change or drop without a word is refused, with its line.

YAML reads 01 as the number 1, 1:30 as 90, 2024-01-01 as a date, and keeps the last of two equal keys. A subject's name, or
half of a section, would be lost that way. Sizes are bounded, so that no file costs more than a moment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from popatlas.errors import InputError

LARGEST = 1 << 20  # bytes of a file
DEEPEST = 32  # sections in sections
MOST = 100_000  # values, those of aliases counted as often as they are used
STARTS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}
TAG = "tag:yaml.org,2002:"
PLAIN = ("map", "seq", "str", "int", "float", "bool", "null", "merge")
# how YAML 1.1 writes whole numbers that a reader takes for something else: 01, 0x1f, 0b1, 1_000, 1:30
ODD_NUMBER = re.compile(r"[-+]?0[0-9xb_]|.*[_:]")


def read_yaml(path: Path, what: str = "the file") -> Any:
    """Read a YAML file.

    Parameters
    ----------
    path : Path
        The file, in UTF-8.
    what : str
        What it is, for messages.

    Returns
    -------
    any
        Its content: mappings with texts as keys, lists, texts, numbers, booleans and None.

    Raises
    ------
    InputError
        When the file is missing, no text in UTF-8, no YAML, too large or too deep, has a key twice, or a value that YAML
        would take for another one than a reader does.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        message = f"cannot read {what}: {error.strerror}"
        raise InputError(message, file=path.absolute(), remedy="check the path") from error
    if not content:
        raise InputError(f"{what} is empty (0 bytes)", file=path, remedy="write it again; a comment alone would do")
    if len(content) > LARGEST or (b"\0" in content and not content.startswith(tuple(STARTS))):
        raise InputError(f"{what} is no text of at most {LARGEST} bytes", file=path, remedy="give a file of settings")
    return parse_yaml(_decoded(content, what, path), what, path)


def _decoded(content: bytes, what: str, path: Path) -> str:
    encoding, place = "LATIN1", ""
    try:
        if not content.startswith(tuple(STARTS)):
            return content.decode("utf-8-sig")
        encoding = next(name for start, name in STARTS.items() if content.startswith(start))
        place = f"it is in {encoding}"
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        place = f"byte 0x{content[error.start]:02x} in line {line}, perhaps it is in Latin-1"
    remedy = f"save it as UTF-8, for example: iconv -f {encoding} -t UTF-8 {path.name} > new.yaml"
    raise InputError(f"{what} is not in UTF-8 ({place})", file=path, remedy=remedy)


def parse_yaml(text: str, what: str, path: Path | None = None) -> Any:
    """Read YAML from a text; `what` and `path` stand for it in messages. See `read_yaml`."""
    try:
        loader = yaml.SafeLoader(text)
        node = _composed(loader)
        if node is None:
            return None
        _check_size(node)
        for one in _once(node):
            _check(one)
        return loader.construct_document(node)
    except _RefusedError as refused:
        raise InputError(f"{what}, line {refused.line}: {refused}", file=path, remedy=refused.remedy) from None
    except (yaml.YAMLError, ValueError) as error:
        remedy = "indent with spaces, not tabs" if "'\\t'" in str(error) else "check indentation, colons and quotes"
        raise InputError(f"{what} is not valid YAML: {_first_place(error)}", file=path, remedy=remedy) from error


class _RefusedError(Exception):
    """Valid YAML that is refused."""

    def __init__(self, node: yaml.Node, message: str, remedy: str) -> None:
        super().__init__(message)
        self.line, self.remedy = node.start_mark.line + 1, remedy


def _composed(loader: yaml.SafeLoader) -> yaml.Node | None:
    """Return the nodes of the only document; its depth is bounded while it is read."""
    depth, compose = 0, loader.compose_node

    def bounded(parent: yaml.Node | None, index: int) -> yaml.Node | None:
        nonlocal depth
        depth += 1
        if parent is not None and depth > DEEPEST:
            raise _too_deep(parent)
        node = compose(parent, index)
        depth -= 1
        return node

    loader.compose_node = bounded  # type: ignore[method-assign]
    return loader.get_single_node()


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _once(node: yaml.Node) -> Iterator[yaml.Node]:
    """Yield every node once, however many aliases it has."""
    seen, waiting = set(), [node]
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += reversed(_children(one))


def _check_size(root: yaml.Node) -> None:
    """Refuse aliases that make a file of many values, or one without end."""
    found: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def measured(node: yaml.Node) -> tuple[int, int]:
        """Return the number of values in a node, and of levels."""
        if id(node) in open_nodes:
            raise _RefusedError(node, "an alias refers to what it is a part of", "write the values out")
        if id(node) not in found:
            open_nodes.add(id(node))
            parts = [measured(child) for child in _children(node)]
            open_nodes.discard(id(node))
            size, depth = 1 + sum(part[0] for part in parts), 1 + max((part[1] for part in parts), default=0)
            if size > MOST:
                raise _RefusedError(node, f"more than {MOST} values", "write fewer, or no aliases of aliases")
            if depth > DEEPEST:
                raise _too_deep(node)
            found[id(node)] = size, depth
        return found[id(node)]

    measured(root)


def _too_deep(node: yaml.Node) -> _RefusedError:
    return _RefusedError(node, f"more than {DEEPEST} levels of sections in sections", "use fewer levels")


def _check(node: yaml.Node) -> None:
    kind = node.tag.removeprefix(TAG)
    if kind == "timestamp":
        raise _RefusedError(node, f"{node.value} is read as a date", f"quote it: '{node.value}'")
    if kind not in PLAIN:
        raise _RefusedError(node, f"a value of the type {kind}", "use texts, numbers, lists and sections only")
    if isinstance(node, yaml.ScalarNode) and kind in ("int", "float"):
        _check_number(node)
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)


def _check_number(node: yaml.ScalarNode) -> None:
    if ODD_NUMBER.match(node.value):
        remedy, digits = f"quote it: '{node.value}'", node.value.replace("_", "")
        if "_" in node.value and digits.isdigit():
            remedy += f", or write {digits}"
        value = yaml.SafeLoader("").construct_object(node)
        raise _RefusedError(node, f"{node.value} is read as the number {value}", remedy)


def _check_keys(node: yaml.MappingNode) -> None:
    first: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag == f"{TAG}merge":
            continue
        if key.tag != f"{TAG}str":
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or section"
            raise _RefusedError(key, f"the key {shown} is no text", f"quote it, if a key is meant: '{shown}'")
        line = key.start_mark.line + 1
        if key.value in first:
            where = f"in line {first[key.value]} and in line {line}"
            raise _RefusedError(key, f"the key '{key.value}' is there twice, {where}", "keep one of the two")
        first[key.value] = line


def _first_place(error: Exception) -> str:
    """Return problem and place of an error in one line."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"{problem}, line {mark.line + 1}, column {mark.column + 1}" if mark else problem
