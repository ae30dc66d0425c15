"""Who takes part in the templates along a covariate (`atlas.along`), and where templates are made.

Of each subject one scan takes part, the first that has a value, so that each draw of the bands is one of people. Of a large
cohort so many are drawn evenly over the values, without chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from popatlas.cohort.freeze import draw_evenly
from popatlas.cohort.participants import KEYS, PARTICIPANTS, ages_of
from popatlas.config.sections import Config
from popatlas.errors import InputError, first_few
from popatlas.groupwise.neighbours import FEWEST, kernel_width, near
from popatlas.images.tables import column_of, shown
from popatlas.settings import suggest

if TYPE_CHECKING:
    import pandas as pd

WHERE = "atlas.along"
OFF = f"or set {WHERE}: null"
NOT_TOLD = (*KEYS, "participant_id")
PLACES, TAIL = 5, 10  # templates where none are named, from the 10th to the 90th percentile
STEPS = 20  # such values are round: to about a twentieth of the range


@dataclass(frozen=True)
class Covariate:
    """A covariate, who takes part, and where templates are made.

    Attributes
    ----------
    column : str
        Its column in participants.tsv; empty where no templates along one are asked for.
    of : dict
        Scan that takes part to its value, in the order of the values.
    lacking : tuple of str
        Scans without a value, which take no part.
    width : float
        Of the kernel, units of the covariate.
    wanted : tuple of float
        Where templates are asked for.
    thin : tuple of float
        Those of them that too few subjects are near: no template is made there.
    """

    column: str = ""
    of: dict[str, float] | None = None
    lacking: tuple[str, ...] = ()
    width: float = 0.0
    wanted: tuple[float, ...] = ()
    thin: tuple[float, ...] = ()

    @property
    def values(self) -> list[float]:
        """Where templates are made."""
        return [value for value in self.wanted if value not in self.thin]

    def near(self, value: float) -> dict[str, float]:
        """Return the scans near a value and their weights, which sum to 1."""
        known = self.of or {}
        scans = list(known)
        members, weights = near(list(known.values()), value, self.width, scans)
        return {scans[i]: weight for i, weight in zip(members, weights, strict=True)}

    def describe(self) -> str:
        """Return a sentence: how many templates are made of how many scans, where, and who takes no part."""
        values = ", ".join(f"{value:g}" for value in self.values)
        told = f"{len(self.values)} templates along {self.column} at {values}, of {len(self.of or {})} scans"
        told += f" (width {self.width:.3g})"
        if self.thin:
            told += f"; too few are near {', '.join(f'{value:g}' for value in self.thin)}, which are left out"
        if self.lacking:
            told += f"; {len(self.lacking)} have no value and take no part: {first_few(map(_name, self.lacking))}"
        return told


def covariate_of(config: Config, people: pd.DataFrame, scans: Iterable[str]) -> Covariate:
    """Find out who of some scans takes part, and where templates are made.

    Parameters
    ----------
    config : Config
        Complete configuration.
    people : DataFrame
        From `popatlas.cohort.participants.read_people`.
    scans : iterable of str
        Scans that may take part, in the order in which those of a subject are looked at.

    Returns
    -------
    Covariate
        Without values where no templates along a covariate are asked for.

    Raises
    ------
    InputError
        A column that is not there, is not of numbers, has one value, or a value for fewer than three subjects; values beyond
        it, or that fewer than three subjects are near, where no other value is left.
    """
    column = config.atlas.along
    if column is None:
        return Covariate()
    known, lacking = _known(config, column, people, list(scans))
    taken = draw_evenly(known, config.atlas.along_most, "value")
    of = dict(zip(taken["scan"], map(float, taken["value"]), strict=True))
    numbers = list(of.values())
    width = config.atlas.conditional.width or kernel_width(numbers)
    wanted = config.atlas.along_values or _usual(numbers)
    everyone = Covariate(column, of, lacking, width, tuple(wanted))
    thin = tuple(value for value in wanted if not _is_surrounded(everyone, value))
    if len(thin) == len(wanted):
        what = f"{WHERE}: too few subjects are near {first_few(f'{value:g}' for value in thin)} (width {width:.3g})"
        remedy = f"give values of {column} with more subjects around them (atlas.along_values), a larger width"
        raise InputError(what, remedy=f"{remedy} (atlas.conditional.width), {OFF}")
    return replace(everyone, thin=thin)


def check_covariate(config: Config, people: pd.DataFrame, scans: Sequence[str]) -> Covariate:
    """Find out the same of all scans that can be read, and refuse named values that too few of them are near."""
    found = covariate_of(config, people, scans)
    if config.atlas.along_values and found.thin:
        low, high = min((found.of or {}).values()), max((found.of or {}).values())
        what = f"atlas.along_values: too few subjects are near {first_few(f'{value:g}' for value in found.thin)}"
        remedy = f"leave them out, or set a larger width (atlas.conditional.width); the values go from {low:g} to {high:g}"
        raise InputError(f"{what} (width {found.width:.3g})", remedy=remedy)
    return found


def _known(config: Config, column: str, people: pd.DataFrame, scans: list[str]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return scan and value of one scan of each subject, and the scans without a value."""
    import pandas as pd

    file = path if (path := Path(config.bids_dir) / PARTICIPANTS).is_file() else None
    columns = [str(name) for name in people if name not in NOT_TOLD]
    if column not in columns:
        what = f"{WHERE}: no column is called {shown(column)}{suggest(column, columns)}"
        others = f"name one of {first_few(columns)}" if columns else "write a participants.tsv with the column"
        raise InputError(what, file=file, remedy=f"{others}, {OFF}")
    rows = people.drop_duplicates("scan").set_index("scan").reindex(scans)
    cells = rows[column].fillna("")
    found = column_of(cells)
    if found.kind != "numbers" and not found.bad:
        what = f"{WHERE}: the column {shown(column)} " + ("is empty" if found.kind == "empty" else "is not of numbers")
        raise InputError(what, file=file, remedy=f"name a column of numbers, {OFF}")
    numbers = (ages_of(cells) if column == "age" else found.numbers).astype(float)
    lacking = tuple(str(scan) for scan in numbers.index[numbers.isna()])
    table = pd.DataFrame({"scan": scans, "subject": rows["subject"].to_numpy(), "value": numbers.to_numpy()})
    known = table.dropna(subset="value").drop_duplicates("subject")
    if len(known) < FEWEST:
        without = f"; without: {first_few(map(_name, lacking))}" if lacking else ""
        what = f"{WHERE}: {len(known)} subjects have a value in {shown(column)}, at least {FEWEST} are needed{without}"
        raise InputError(what, file=file, remedy=f"complete the column, {OFF}")
    if known["value"].nunique() < 2:
        what = f"{WHERE}: the column {shown(column)} has one value only ({known['value'].iloc[0]:g})"
        raise InputError(what, file=file, remedy=f"name another column, {OFF}")
    return known, lacking


def _usual(numbers: Sequence[float]) -> list[float]:
    """Return round values from the 10th to the 90th percentile."""
    low, high = np.percentile(numbers, [TAIL, 100 - TAIL])
    digits = int(max(0, np.ceil(-np.log10(max(high - low, 1e-12) / STEPS))))
    return [float(value) for value in dict.fromkeys(np.round(np.linspace(low, high, PLACES), digits).tolist())]


def _is_surrounded(covariate: Covariate, value: float) -> bool:
    """Tell whether enough subjects are near a value, on both sides of it."""
    try:
        around = [(covariate.of or {})[scan] for scan in covariate.near(value)]
    except InputError:
        return False
    return min(around) <= value <= max(around)


def _name(scan: str) -> str:
    return scan.rsplit("/", 1)[-1]
