"""Files of arrays. The workers import this, and what they import counts as their memory: it needs NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from popatlas.images.io import atomic_path


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], compress: bool = False) -> None:
    """Write arrays by name as .npz, whole or not at all."""
    save = np.savez_compressed if compress else np.savez
    named: dict[str, Any] = dict(arrays)  # of ndarrays, but mypy takes one of them for the option `allow_pickle`
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        save(stream, **named)
