"""Names of before that are still taken, with a word about the one of today."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from popatlas.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from popatlas.settings import Content

KEYS = {("register", "ladder"): ("register", "fallback")}  # of the configuration
OPTIONS = {  # of `popatlas step`
    "--rung": "--attempt",
    "--out_trust": "--out_atlas_weights",
    "--out_receipt": "--out_batch_record",
    "--in_receipt": "--in_batch_record",
}
COLUMNS = {"subject": "participant_id", "session": "session_id"}  # of the tables of scans and groups
STEPS = {"TabulateTrust": "TabulateAtlasWeights", "TrainTrust": "TrainDataParameters"}


def with_keys_of_today(content: Mapping[str, object]) -> Content:
    """Return what a user wrote with keys of the configuration as they are called now.

    Raises
    ------
    ConfigError
        When a key is there by both of its names.
    """
    found = copy.deepcopy(dict(content))
    for (section, old), (_, new) in KEYS.items():
        part = found.get(section)
        if not isinstance(part, dict) or old not in part:
            continue
        if new in part:
            raise ConfigError(f"{section}.{old} is called {section}.{new} now, and both are there. Remedy: remove the old")
        part[new] = part.pop(old)
        _say(f"{section}.{old}", f"{section}.{new}")
    return found


def with_options_of_today(options: Sequence[str]) -> list[str]:
    """Return the options of a step as they are called now."""
    found = []
    for option in options:
        name, equals, value = option.partition("=")
        if name in OPTIONS:
            _say(name, OPTIONS[name])
        found.append(f"{OPTIONS.get(name, name)}{equals}{value}")
    return found


def step_of_today(name: str) -> str:
    """Return the name of a step as it is called now."""
    if name in STEPS:
        _say(name, STEPS[name])
    return STEPS.get(name, name)


def with_columns_of_today(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table that an earlier version wrote with its columns as they are called now."""
    names = {old: new for old, new in COLUMNS.items() if old in table.columns and new not in table.columns}
    return table.rename(columns=names)


def _say(old: str, new: str) -> None:
    print(f"popatlas: {old} is called {new} now; the old name is still taken", file=sys.stderr)
