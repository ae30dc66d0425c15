"""Command lines and configurations that cannot be followed."""

from __future__ import annotations

from ..casebook import STOPS, Case, command

TITLE = "Commands and configuration"

CASES = [
    Case("command", "dataset does not exist", STOPS, "does not exist", command(dataset=False)),
    Case("command", "misspelt key", STOPS, "did you mean 'cohort'", command(settings={"cohrt": {}})),
    Case("command", "bad query", STOPS, "use the columns", command(settings={"cohort": {"query": "aeg > 3"}})),
    Case("command", "unknown subject", STOPS, "did you mean sub-", command(settings={"cohort": {"include": ["sub-11"]}})),
]
