"""Command lines and configurations that cannot be followed."""

from __future__ import annotations

from ..casebook import STOPS, THREE, Case, checked

TITLE = "Commands and configuration"

CASES = [
    Case("command", "dataset does not exist", STOPS, "does not exist", checked({})),
    Case("command", "misspelt key", STOPS, "did you mean 'cohort'", checked({"cohrt": {}}, *THREE)),
    Case("command", "bad query", STOPS, "use the columns", checked({"cohort": {"query": "aeg > 3"}}, *THREE)),
    Case("command", "unknown subject", STOPS, "did you mean sub-", checked({"cohort": {"include": ["sub-11"]}}, *THREE)),
]
