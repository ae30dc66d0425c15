"""ANTsPy as everyone here uses it."""

from __future__ import annotations

from typing import Any


def deterministic_ants() -> Any:
    """Import ants in its repeatable mode (one ITK thread; `random_seed` alone is ignored by ANTsPy 0.6.3)."""
    import ants

    ants.config.set_ants_deterministic(True)
    return ants
