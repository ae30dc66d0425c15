"""`cohort.query` evaluated on the columns of participants.tsv: numbers as numbers, text as text, missing as unknown.

A value that is missing makes a condition unknown: neither it nor its opposite is true, and what is combined with it follows
the logic of three values (unknown or true is true). A row is chosen where the query is true.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, assert_never

import pandas as pd

from popatlas.cohort.grammar import DATE, Compared, Form, Joined, Listed, Name, Node, Signed, Value, parse, refuse
from popatlas.errors import first_few
from popatlas.images.tables import Column, column_of, is_missing, shown

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip
TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
EXAMPLE = "write, for example, age > 50 and sex == 'F'"


@dataclass(frozen=True)
class Selection:
    """What a query chose.

    Attributes
    ----------
    chosen : Series of bool
        For each row whether the query is true.
    unknown : dict
        Row (its label) to the columns whose missing value leaves the query undecided.
    notes : tuple of str
        What a reader should know: texts that no cell has.
    """

    chosen: pd.Series[bool]
    unknown: dict[Hashable, list[str]]
    notes: tuple[str, ...]


def select(table: pd.DataFrame, query: str, texts: Iterable[str] = ()) -> Selection:
    """Find the rows for which a query is true.

    Parameters
    ----------
    table : DataFrame
        Cells are text, as `images.tables` reads them.
    query : str
        In the language of `cohort.grammar`.
    texts : iterable of str
        Columns that are text whatever they look like (names of participants).

    Raises
    ------
    ConfigError
        What is not in the language, a column that does not exist, numbers compared with text, with the cells at fault.
    """
    query = query.strip()
    evaluation = _Evaluation(table, query, frozenset(texts))
    result = evaluation.truth(evaluation.value(parse(query)))
    absent = {name: evaluation.absent(name) for name in evaluation.columns}
    unknown = {row: [name for name, rows in absent.items() if rows[row]] for row in result.index[result.isna()]}
    return Selection(result.fillna(False).astype(bool), unknown, tuple(evaluation.notes))


@dataclass(frozen=True)
class _Cells:
    """A column that is not yet taken for numbers, text or truth."""

    name: str
    column: Column


# A value is a number, a text, True or False, a list of them, a column, or computed: Float64 (numbers) or boolean (truth)
Operand = float | str | bool | tuple[float, ...] | tuple[str, ...] | _Cells | pd.Series


class _Evaluation:
    """The columns that a query uses, and the values of its parts."""

    def __init__(self, table: pd.DataFrame, query: str, texts: frozenset[str]) -> None:
        self.table, self.query, self.texts = table, query, texts
        self.columns: dict[str, Column] = {}
        self.notes: list[str] = []

    def refuse(self, message: str, remedy: str) -> NoReturn:
        """Raise ConfigError with the query."""
        refuse(self.query, message, remedy)

    def value(self, node: Node) -> Operand:
        """Return the value of a part of the query."""
        match node:
            case Value(value):
                return value
            case Listed(values):
                return values
            case Name(name):
                return self.cells(name)
            case Form():
                return self.form(node)
            case Signed("not", part):
                return ~self.truth(self.value(part))
            case Signed(sign, part):
                return self.calculated("*", -1.0 if sign == "-" else 1.0, self.value(part))
            case Joined(signs, parts):
                return self.joined(signs, [self.value(part) for part in parts])
            case Compared(signs, parts):
                return self.chain(signs, [self.value(part) for part in parts])
            case _:
                assert_never(node)

    # Columns

    def cells(self, name: str) -> _Cells:
        """Return a column by its name, as it is written."""
        if name not in self.table.columns:
            close = difflib.get_close_matches(name, [str(column) for column in self.table.columns], n=1)
            odd = "" if name.isascii() else f" (written {name!a})"
            hint = f"did you mean {close[0]}? " if close and not odd else ""
            self.refuse(f"there is no column {shown(name)}{odd}", f"{hint}use the columns {self.names()}")
        if name not in self.columns:
            column = column_of(self.table[name])
            self.columns[name] = Column("text", column.text, column.numbers) if name in self.texts else column
        return _Cells(name, self.columns[name])

    def names(self) -> str:
        """Return the columns that there are."""
        return first_few([str(name) for name in self.table.columns], 20)

    def absent(self, name: str) -> pd.Series[bool]:
        """Tell for each row whether it has no value in a column that is used."""
        return self.columns[name].text.isna()

    def truth(self, value: Operand) -> pd.Series:
        """Return a condition, or a column of true and false; NA is unknown."""
        if isinstance(value, pd.Series) and value.dtype == "boolean":
            return value
        if isinstance(value, _Cells) and value.column.kind in ("truth", "empty"):
            return value.column.text.str.casefold().eq("true").astype("boolean")
        what = f"the column {value.name}" if isinstance(value, _Cells) else "a value"
        self.refuse(f"{what} stands where a condition on a column is expected", f"{EXAMPLE}, with brackets after ~")

    def numbers(self, value: Operand) -> float | pd.Series:
        """Return the numbers of a column, computed ones, or a number."""
        if isinstance(value, _Cells):
            if value.column.kind not in ("numbers", "empty"):
                self.refuse_numbers(value)
            return value.column.numbers
        if isinstance(value, float) or (isinstance(value, pd.Series) and value.dtype == "Float64"):
            return value
        kind = "a text" if isinstance(value, str) else "a list" if isinstance(value, tuple) else "a condition"
        self.refuse(f"{kind} stands where a number is expected", EXAMPLE)

    def refuse_numbers(self, cells: _Cells) -> NoReturn:
        """Name the cells that keep a column from being numbers."""
        text, bad = cells.column.text, cells.column.bad
        if not bad:
            values = first_few(shown(str(value)) for value in text.dropna().unique())
            self.refuse(f"{cells.name} is a column of text ({values}), not of numbers", "compare it with a text in quotes")
        who = self.table["participant_id"] if "participant_id" in self.table else pd.Series("", index=text.index)
        named = first_few(f"{shown(text.iloc[place])} ({who.iloc[place]})" for place in bad)
        self.refuse(
            f"{cells.name} is no column of numbers: {len(bad)} of its {text.count()} cells are none: {named}",
            "correct them in the table, or write n/a where there is no value",
        )

    def text(self, value: Operand, texts: Iterable[str] = ()) -> pd.Series:
        """Return the text of a column that is compared with texts; texts that no cell has are noted."""
        if not isinstance(value, _Cells):
            self.refuse("a text is compared with what is no column", EXAMPLE)
        column, wanted = value.column, list(texts)
        if any(map(is_missing, wanted)):
            self.refuse(
                f"{value.name} is compared with a missing value", f"write missing({value.name}), or not missing(...)"
            )
        if column.kind == "numbers" and not column.is_code:
            self.refuse(f"{value.name} is a column of numbers and is compared with a text", "write numbers without quotes")
        counts = column.text.value_counts()
        holds = first_few(f"{shown(str(cell))} ({count})" for cell, count in counts.items()) or "nothing"
        notes = [f"no cell of {value.name} is {shown(text)}; it holds {holds}" for text in wanted if text not in counts]
        self.notes += [note for note in dict.fromkeys(notes) if note not in self.notes]
        return column.text

    # Conditions

    def joined(self, signs: tuple[str, ...], values: list[Operand]) -> Operand:
        """Return values joined by `and`, `or` or arithmetic, from the left."""
        found = values[0]
        for sign, value in zip(signs, values[1:], strict=True):
            if sign == "and":
                found = self.truth(found) & self.truth(value)
            elif sign == "or":
                found = self.truth(found) | self.truth(value)
            else:
                found = self.calculated(sign, found, value)
        return found

    def calculated(self, sign: str, left: Operand, right: Operand) -> float | pd.Series:
        """Return a sum, difference, product or ratio; what is not finite is missing."""
        one, two = self.numbers(left), self.numbers(right)
        if isinstance(one, float) and isinstance(two, float):
            try:
                found: float = ARITHMETIC[sign](one, two)
            except ZeroDivisionError:
                found = float("inf")
            if abs(found) < float("inf"):
                return found
            self.refuse("it computes a number that is not finite", "correct it")
        values: pd.Series = ARITHMETIC[sign](one, two)
        return values.mask(~(values.abs() < float("inf")).fillna(False))

    def condition(self, found: pd.Series) -> pd.Series:
        """Return truth that may be unknown."""
        return found.astype("boolean")

    def chain(self, signs: tuple[str, ...], values: list[Operand]) -> pd.Series:
        """Return where all comparisons of a chain hold."""
        found = [self.compared(*part) for part in zip(values, signs, values[1:], strict=False)]
        result = found[0]
        for one in found[1:]:
            result = result & one
        return result

    def compared(self, left: Operand, sign: str, right: Operand) -> pd.Series:
        """Return where a comparison holds; NA where a value is missing."""
        if isinstance(right, tuple):
            return self.member(left, sign, right)
        if sign in ("in", "not in"):
            self.refuse(f"{sign} needs a list", "write, for example, site in ['HH', 'Guys']")
        if isinstance(left, str | bool):
            left, right, sign = right, left, TURNED.get(sign, sign)
        if isinstance(right, bool):
            if sign not in ("==", "!="):
                self.refuse("True and False have no order", "compare them by == and !=")
            return self.truth(left) if right == (sign == "==") else ~self.truth(left)
        both = [isinstance(value, _Cells) and value.column.kind in ("text", "truth") for value in (left, right)]
        if isinstance(right, str) or all(both):
            return self.compared_text(left, sign, right)
        one, two = self.numbers(left), self.numbers(right)
        if isinstance(one, float) and isinstance(two, float):
            self.refuse("it compares two numbers", f"compare a column with one; there are {self.names()}")
        return self.condition(COMPARISONS[sign](one, two))

    def compared_text(self, left: Operand, sign: str, right: Operand) -> pd.Series:
        """Compare a column with a text, or two columns of text; of texts only dates have an order."""
        is_equality = sign in ("==", "!=")
        text = self.text(left, [right] if isinstance(right, str) and is_equality else ())
        other = right if isinstance(right, str) else self.text(right)
        if not is_equality:
            dates = [*text.dropna(), *([other] if isinstance(other, str) else other.dropna())]
            if not all(DATE.fullmatch(date) for date in dates):
                if isinstance(left, _Cells) and left.column.bad:
                    self.refuse_numbers(left)
                self.refuse("texts have no order, but for dates (2024-05-31)", "compare them by ==, != and in")
        return self.condition(COMPARISONS[sign](text, other))

    def member(self, left: Operand, sign: str, values: tuple[float, ...] | tuple[str, ...]) -> pd.Series:
        """Return where a value is in a list; == and != with a list mean the same, as in pandas."""
        if sign not in ("in", "not in", "==", "!="):
            self.refuse("a list has no order", "use in and not in")
        cells = self.text(left, values) if isinstance(values[0], str) else self.numbers(left)
        if isinstance(cells, float):
            self.refuse("it looks for a number in a list", f"look for a column; there are {self.names()}")
        found = cells.isin(values).astype("boolean").mask(cells.isna())
        return found if sign in ("in", "==") else ~found

    def form(self, node: Form) -> pd.Series:
        """Return what one of the few forms that look like functions says about a column."""
        cells = self.cells(node.column.name)
        values = [self.value(part) for part in node.values]
        match node.form, values:
            case "missing" | "isna" | "isnull", []:
                return self.absent(cells.name).astype("boolean")
            case "notna" | "notnull", []:
                return (~self.absent(cells.name)).astype("boolean")
            case "isin", [tuple() as listed]:
                return self.member(cells, "in", listed)
            case "between", [low, high]:
                return self.compared(cells, ">=", low) & self.compared(cells, "<=", high)
            case "str.startswith" | "str.endswith", [str() as text]:
                ends = self.text(cells).str
                found = ends.startswith(text) if node.form == "str.startswith" else ends.endswith(text)
                return self.condition(found)
        self.refuse(f"{cells.name}.{node.form}(...) has other values in its brackets", EXAMPLE)
