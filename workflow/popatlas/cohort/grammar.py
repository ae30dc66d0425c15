"""The grammar of `cohort.query`: conditions on columns, and nothing else.

    age >= 18 and (sex == 'F' or site in ['HH', 'Guys']) and not missing(`diagnosis code`)

A text becomes a tree of numbers, texts, lists, columns and signs; nothing in it is ever looked up in Python. pandas' `query`
and `eval`, numexpr and asteval run code that the text or a cell holds (attributes, calls, `@`); simpleeval guards the same
by lists of what is forbidden, and Python's own parser takes letters that only look like those of a column for them. None of
them tells numbers from text or counts missing values. `&` and `|` bind as loosely as `and` and `or`, as in pandas.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from popatlas.errors import ConfigError
from popatlas.images.tables import EXACT, shown

LONGEST, DEEPEST = 10_000, 40
TOKEN = re.compile(
    r"""(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]))
    |(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?P<column>`[^`]+`)
    |(?P<name>[^\W\d]\w*)
    |(?P<sign>==|!=|<=|>=|[<>()\[\],+\-*/&|~.])""",
    re.VERBOSE | re.DOTALL,
)
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
KEYWORDS = ("and", "or", "not", "in", "True", "False")
SAME = {"&": "and", "|": "or"}
FORMS = ("isin", "between", "isna", "isnull", "notna", "notnull", "str.startswith", "str.endswith")
KNOWN = "missing(col), col.isin([...]), col.between(a, b), col.isna(), col.notna(), col.str.startswith('x') (or endswith)"
DATE = re.compile(r"[0-9]{4}-[0-9]{2}(-[0-9]{2}(T[0-9:.]+)?)?")
HINTS = {
    "**": "powers are not known",
    "//": "divide by /",
    "=": "write == to compare",
    "!": "write not, or !=",
    "@": "write the value itself: there are no variables",
}


@dataclass(frozen=True)
class Value:
    """A number, a text, True or False."""

    value: float | str | bool


@dataclass(frozen=True)
class Listed:
    """A list of numbers, or of texts."""

    values: tuple[float, ...] | tuple[str, ...]


@dataclass(frozen=True)
class Name:
    """A column."""

    name: str


@dataclass(frozen=True)
class Form:
    """One of `FORMS`, or `missing`, asked about a column."""

    form: str
    column: Name
    values: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Signed:
    """A sign before a value: `not`, `-`, `+`."""

    sign: str
    value: Node


@dataclass(frozen=True)
class Joined:
    """Values with signs between them, one fewer, that are worked off from the left: `and`; `or`; `+` `-`; `*` `/`."""

    signs: tuple[str, ...]
    values: tuple[Node, ...]


@dataclass(frozen=True)
class Compared:
    """A < B <= C, A in [...]: one sign fewer than values."""

    signs: tuple[str, ...]
    values: tuple[Node, ...]


Node = Value | Listed | Name | Form | Signed | Joined | Compared


def refuse(query: str, message: str, remedy: str) -> NoReturn:
    """Raise the ConfigError of a query."""
    text = query if len(query) <= 100 else f"{query[:100]}..."
    raise ConfigError(f"cohort.query {text!r}: {message}. Remedy: {remedy}")


def parse(query: str) -> Node:
    """Return the tree of a query.

    Raises
    ------
    ConfigError
        What is not in the grammar, with its place; what is too long or nested too deeply.
    """
    reader = _Reader(query.strip())
    tree = reader.condition()
    kind, word = reader.next()
    if kind != "end":
        reader.refuse(f"{shown(word)} is not expected there", "combine conditions by and, or, not")
    return tree


class _Reader:
    """One walk over the words of a query; each method reads what its name says."""

    def __init__(self, query: str) -> None:
        self.query, self.depth, self.place = query, 0, 0
        if len(query) > LONGEST:
            self.refuse(f"it has {len(query)} characters", f"use at most {LONGEST}; cohort.include lists subjects")
        self.tokens = self.split()

    def refuse(self, message: str, remedy: str) -> NoReturn:
        """Raise ConfigError with the query."""
        refuse(self.query, message, remedy)

    def split(self) -> list[tuple[str, str]]:
        """Return the words of the query with their kinds, an end last."""
        found, place = [], 0
        while rest := self.query[place:].lstrip():
            place = len(self.query) - len(rest)
            odd = next((sign for sign in HINTS if rest.startswith(sign) and rest[:2] not in COMPARISONS), "")
            match = None if odd else TOKEN.match(rest)
            if match is None:
                what = "a quote that is not closed" if rest[0] in "'\"`" else shown(odd or rest[0])
                self.refuse(
                    f"{what} at character {place + 1} is not understood", HINTS.get(odd, "write, for example, age > 50")
                )
            kind, word = str(match.lastgroup), match.group()
            word = SAME.get(word, word)
            found.append(("sign" if kind == "name" and word in KEYWORDS else kind, word))
            place += match.end()
        return [*found, ("end", "")]

    def next(self) -> tuple[str, str]:
        """Take a word."""
        token = self.tokens[self.place]
        self.place += token[0] != "end"
        return token

    def takes(self, *words: str) -> str:
        """Take the next word if it is one of these signs, and return it."""
        kind, word = self.tokens[self.place]
        if kind != "sign" or word not in words:
            return ""
        return self.next()[1]

    def needs(self, word: str) -> str:
        """Take a sign that must follow."""
        if not self.takes(word):
            found = self.tokens[self.place][1]
            self.refuse(f"{shown(word)} is expected before {shown(found) if found else 'its end'}", "correct it")
        return word

    def inside(self) -> None:
        """Count how deep brackets and signs lie in each other."""
        self.depth += 1
        if self.depth > DEEPEST:
            self.refuse("it is nested too deeply", f"use at most {DEEPEST} brackets or signs inside each other")

    # From the loosest to the tightest

    def joined(self, part: Callable[[], Node], *signs: str) -> Node:
        """Read values that one of the signs stands between."""
        values, found = [part()], []
        while sign := self.takes(*signs):
            found.append(sign)
            values.append(part())
        return Joined(tuple(found), tuple(values)) if found else values[0]

    def condition(self) -> Node:
        """Read A or B."""
        return self.joined(self.both, "or")

    def both(self) -> Node:
        """Read A and B."""
        return self.joined(self.negation, "and")

    def negation(self) -> Node:
        """Read not A."""
        if not self.takes("not"):
            return self.comparison()
        self.inside()
        tree = Signed("not", self.negation())
        self.depth -= 1
        return tree

    def comparison(self) -> Node:
        """Read A < B <= C, A in [...]."""
        values: list[Node] = [self.sum()]
        signs: list[str] = []
        while True:
            sign = self.takes(*COMPARISONS, "in") or (self.takes("not") and f"not {self.needs('in')}")
            if not sign:
                return Compared(tuple(signs), tuple(values)) if signs else values[0]
            signs.append(sign)
            values.append(self.sum())

    def sum(self) -> Node:
        """Read A + B - C."""
        return self.joined(self.product, "+", "-")

    def product(self) -> Node:
        """Read A * B / C."""
        return self.joined(self.signed, "*", "/")

    def signed(self) -> Node:
        """Read -A, ~A."""
        if not (sign := self.takes("-", "+", "~")):
            return self.atom()
        self.inside()
        tree = self.signed()
        self.depth -= 1
        if sign != "~" and isinstance(tree, Value) and isinstance(tree.value, float):
            return Value(-tree.value if sign == "-" else tree.value)
        return Signed("not" if sign == "~" else sign, tree)

    def atom(self) -> Node:
        """Read a number, a text, a list, a column, or a condition in brackets."""
        kind, word = self.next()
        if kind == "number":
            return self.number(word)
        if kind == "text":
            return self.text(word)
        if kind == "column":
            return self.column(Name(word.strip("`").strip()))
        if kind == "name":
            return self.missing(word) if self.takes("(") else self.column(Name(word))
        if word in ("True", "False"):
            return Value(word == "True")
        if word not in ("(", "["):
            found = shown(word) if word else "its end"
            self.refuse(f"a value is expected before {found}", "write, for example, age > 50 and sex == 'F'")
        self.inside()
        tree = self.listed([], "]") if word == "[" else self.bracket()
        self.depth -= 1
        return tree

    def bracket(self) -> Node:
        """Read a condition in round brackets, or a list that has them."""
        tree = self.condition()
        if self.takes(","):
            return self.listed([tree], ")")
        self.needs(")")
        return tree

    def listed(self, first: list[Node], end: str) -> Listed:
        """Read the rest of a list of values."""
        nodes = [*first, *self.values(end)]
        numbers = tuple(node.value for node in nodes if isinstance(node, Value) and isinstance(node.value, float))
        texts = tuple(node.value for node in nodes if isinstance(node, Value) and isinstance(node.value, str))
        if nodes and len(nodes) in (len(numbers), len(texts)):
            return Listed(numbers or texts)
        self.refuse("a list must hold numbers, or texts in quotes", "write, for example, site in ['HH', 'Guys']")

    def values(self, end: str) -> list[Node]:
        """Read values up to a bracket."""
        found: list[Node] = []
        while not self.takes(end):
            found.append(self.sum())
            if not self.takes(","):
                self.needs(end)
                break
        return found

    def number(self, word: str) -> Value:
        """Return a number that is not too large to be exact."""
        value = float(word)
        if value == float("inf") or (word.isdigit() and value >= EXACT):
            self.refuse(f"the number {shown(word)} is too large", "compare smaller numbers")
        return Value(value)

    def text(self, word: str) -> Value:
        """Return a text without its quotes."""
        inner = word[1:-1]
        if re.sub(r"\\['\"\\]", "", inner).count("\\"):
            self.refuse(f"a backslash in {shown(word)} means nothing", "write two for one of them")
        return Value(re.sub(r"\\(['\"\\])", r"\1", inner).strip())  # cells have no spaces around them either

    def column(self, column: Name) -> Node:
        """Read a column, and what is asked about it."""
        if not self.takes("."):
            return column
        form = self.next()[1]
        if form == "str" and self.takes("."):
            form = f"str.{self.next()[1]}"
        if form not in FORMS:
            self.refuse(f"{shown(f'{column.name}.{form}')} is not known", f"use {KNOWN}")
        self.needs("(")
        self.inside()
        values = tuple(self.values(")"))
        self.depth -= 1
        return Form(form, column, values)

    def missing(self, name: str) -> Node:
        """Read the column of missing(...)."""
        if name != "missing":
            self.refuse(f"{shown(f'{name}(...)')} is not known", f"use {KNOWN}")
        kind, word = self.next()
        if kind not in ("name", "column"):
            self.refuse("missing(...) asks about a column", "write, for example, missing(age)")
        self.needs(")")
        return Form("missing", Name(word.strip("`").strip()))
