"""Tables that somebody else wrote: read as BIDS says, not as a library guesses.

A BIDS table is UTF-8 text: one header line, cells apart by one tab, no quoting, `n/a` where a value is missing. Here every
cell stays the text that it is; what is not such a table is refused with its line. What a column holds is decided
afterwards, from all its cells, and cells that do not fit are known one by one. Tables that popatlas wrote itself have a
reader of their own, `images.io.read_table`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from popatlas.errors import InputError
from popatlas.images.io import PathLike

if TYPE_CHECKING:
    import pandas as pd

SAVE_AS = "save it as a TSV file (BIDS): UTF-8 text, one tab between cells, n/a where there is no value, no quotes"
# how files begin that are no text
KINDS = {
    b"PK\x03\x04": "an Excel or zip file",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF file",
    b"\x00\x00\xfe\xff": "UTF-32 text",
    b"\xff\xfe\x00\x00": "UTF-32 text",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
STRAY = "".join(chr(code) for code in range(0x3001) if chr(code).isspace()) + "\u200b\ufeff"
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
CODE = re.compile(r"[+-]?0[0-9]+")  # 01: a number, but one that is written as a code
MISSING = ("", "n/a")  # in every column, in capital letters or not
WORDS = ("na", "null", "none")  # missing among numbers, words among words: a medication may be none, a region NA
NO_NUMBER = (*WORDS, "nan", ".", "#n/a", "#null!")  # also missing in a column of numbers
EXACT = 2.0**53  # integers from here on are not exact as numbers
SHOWN = 40


def read_text_table(path: PathLike) -> pd.DataFrame:
    """Read a table as text.

    Parameters
    ----------
    path : path-like
        TSV file as BIDS has it. A byte order mark, Windows line ends, empty lines, tabs after the last cell and spaces
        round a cell do not count.

    Returns
    -------
    DataFrame
        Every cell a string, empty where nothing is written; the index is the line in the file, the header being 1.

    Raises
    ------
    InputError
        What is no such table: not UTF-8, another kind of file, other separators, columns without a name or with the same
        one, a line with more or fewer cells than the header.
    """
    import pandas as pd

    lines = _lines(Path(path))
    rows = [(number, [cell.strip(STRAY) for cell in line.split("\t")]) for number, line in enumerate(lines, start=1)]
    rows = [(number, cells) for number, cells in rows if any(cells)]
    if not rows:
        _refuse(path, "the table is empty", "write a header and a line for each row")
    header = _header(rows[0][1], path)
    body = [(number, cells[: len(header)] if not any(cells[len(header) :]) else cells) for number, cells in rows[1:]]
    _require_cells(body, header, path)
    index = pd.Index([number for number, _ in body], name="line", dtype=int)
    return pd.DataFrame([cells for _, cells in body], columns=header, index=index, dtype=object)


def require_columns(table: pd.DataFrame, columns: Sequence[str], path: PathLike, remedy: str = "") -> None:
    """Raise InputError when a table of `read_text_table` lacks a column; a spelling that comes close is named."""
    import difflib

    names = [str(name) for name in table.columns]
    for column in columns:
        if column in names:
            continue
        if f'"{column}"' in names:
            _refuse(path, "the names of its columns are in quotes, which are no part of a BIDS table", SAVE_AS)
        plain = {re.sub(r"[\s-]+", "_", name.casefold()): name for name in names}
        close = difflib.get_close_matches(column.casefold(), list(plain), n=1)
        hint = f"did you mean {plain[close[0]]!r}? It must be written {column}" if close else remedy
        _refuse(path, f"no column {column}, only {', '.join(names[:20])}", hint or SAVE_AS)


def _lines(path: Path) -> list[str]:
    text = _decoded(_content(path), path)
    if "\n" not in text:
        text = text.replace("\r", "\n")  # as Excel on a Mac writes it
    lines = [line.rstrip("\r") for line in text.split("\n")]
    for number, line in enumerate(lines, start=1):
        if "\r" in line or "\x00" in line:
            what = "a line end" if "\r" in line else "a NUL character"
            _refuse(path, f"line {number} has {what} inside a cell", "replace it by a space")
    return lines


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        remedy = "get the file (git annex get, datalad get)" if path.is_symlink() else "check the path and the permissions"
        raise InputError(f"cannot read table: {error.strerror}", file=path, remedy=remedy) from error
    for start, kind in KINDS.items():
        if content.startswith(start):
            _refuse(path, f"this is {kind}, not a table", SAVE_AS)
    if content.startswith(b"version https://git-lfs") or b"/annex/objects/" in content[:200]:
        _refuse(path, "this is a place holder of git, not the table", "get the file (git annex get, git lfs pull)")
    return content


def _decoded(content: bytes, path: Path) -> str:
    if content.count(b"\x00") > len(content) // 4:
        _refuse(path, "this looks like UTF-16 text without a byte order mark", SAVE_AS)
    try:
        return content.decode("utf-8-sig").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        runs = re.findall(rb"[\x80-\xff]+", content)
        single = sum(len(run) == 1 for run in runs) > len(runs) / 2  # accents stand alone, other scripts in words
        kind = "it seems Latin-1 or Windows-1252" if single else "in an encoding that is not known"
        start = max(content.rfind(b"\n", 0, error.start), content.rfind(b"\t", 0, error.start)) + 1
        cell = re.split(rb"[\t\r\n]", content[start : start + SHOWN])[0].decode("cp1252", "replace")
        raise InputError(
            f"line {line} is not UTF-8 but {kind} ({shown(cell)})",
            file=path,
            remedy="save the file as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW",
        ) from error


def _header(cells: Sequence[str], path: PathLike) -> list[str]:
    names = list(cells)
    while names and not names[-1]:
        names.pop()
    if len(names) == 1:
        separators = {",": "commas", ";": "semicolons", "|": "bars", "  ": "spaces", "<": "marks of HTML or XML"}
        found = next((name for mark, name in separators.items() if mark in names[0]), None)
        if found:
            _refuse(path, f"its header {shown(names[0])} has {found} between the columns, not tabs", SAVE_AS)
    for number, name in enumerate(names, start=1):
        if not name:
            _refuse(path, f"column {number} has no name", "name it in the header, or remove the column")
        if names.index(name) + 1 != number:
            both = f"columns {names.index(name) + 1} and {number} are both named {shown(name)}"
            _refuse(path, both, "rename one of them, or remove it")
    return names


def _require_cells(rows: Sequence[tuple[int, Sequence[str]]], header: Sequence[str], path: PathLike) -> None:
    ragged = [(number, len(cells)) for number, cells in rows if len(cells) != len(header)]
    if not ragged:
        return
    number, count = ragged[0]
    others = f", and {len(ragged) - 1} more lines like it" if len(ragged) > 1 else ""
    remedy = "give every line as many cells as the header: n/a where there is no value, no tab or line end inside a cell"
    if len(ragged) == len(rows) and all(cells == len(header) + 1 for _, cells in ragged):
        remedy = "the names of rows seem to have no header: write the table without them, or name their column"
    _refuse(path, f"line {number} has {count} cells and the header has {len(header)}{others}", remedy)


def _refuse(path: PathLike, message: str, remedy: str) -> NoReturn:
    raise InputError(message, file=path, remedy=remedy)


def shown(cell: str) -> str:
    """Return a cell for a message: in quotes, not too long, no control characters."""
    return repr(cell if len(cell) <= SHOWN else f"{cell[:SHOWN]}...")


def is_missing(cell: str) -> bool:
    """Tell whether a cell of any column holds no value: `n/a`, or nothing."""
    return cell.casefold() in MISSING


def number_of(cell: str) -> float | None:
    """Return the number that a cell is: `12`, `-3.5`, `1e3`; not `12,5`, `12 y`, `>89`, `inf` or `1_000`."""
    if not NUMBER.fullmatch(cell):
        return None
    value = float(cell)
    exact = abs(value) < EXACT or not cell.lstrip("+-").isdigit()
    return value if exact and abs(value) != float("inf") else None


@dataclass(frozen=True)
class Column:
    """What a column of text holds.

    Attributes
    ----------
    kind : {"numbers", "truth", "text", "empty"}
        All its cells are numbers; true or false; anything else; no cell has a value.
    text : Series of string
        The cells, missing ones as NA.
    numbers : Series of Float64
        The cells that are numbers, the others as NA.
    bad : tuple of int
        Places of the cells that are no numbers, where at least half of the others are.
    """

    kind: Literal["numbers", "truth", "text", "empty"]
    text: pd.Series[str]
    numbers: pd.Series[float]
    bad: tuple[int, ...] = ()

    @property
    def is_code(self) -> bool:
        """Its numbers are written like codes: 01, 007."""
        return self.kind == "numbers" and bool(self.text.str.fullmatch(CODE.pattern).any())


def column_of(cells: pd.Series[str]) -> Column:
    """Find out what a column holds.

    Parameters
    ----------
    cells : Series of str
        As `read_text_table` gives them. Missing are, in capital letters or not, empty cells and `n/a`, and in a column of
        numbers also NA, null, none, NaN, `.`, `#N/A` and `#NULL!`. Where no cell is a number, NA, null and none are text.
    """
    import pandas as pd

    plain = cells.astype(object).where(cells.notna(), "").astype(str)
    folded = plain.str.casefold()
    values = pd.Series([number_of(cell) for cell in plain], index=plain.index, dtype="Float64")
    absent = folded.isin(MISSING)
    text = plain.astype("string").mask(absent)
    absent_number = absent | folded.isin(NO_NUMBER)
    numbers, others = values.notna(), values.isna() & ~absent_number
    if absent.all():
        return Column("empty", text, values)
    if not others.any() and (numbers.any() or not folded.isin(WORDS).any()):
        kind: Literal["numbers", "empty"] = "numbers" if numbers.any() else "empty"
        return Column(kind, text.mask(absent_number), values)
    if folded[~absent].isin(["true", "false"]).all():
        return Column("truth", text, values)
    mostly = numbers.sum() >= others.sum()
    return Column("text", text, values, tuple(place for place, odd in enumerate(others) if odd and mostly))
