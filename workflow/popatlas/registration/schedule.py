"""What the settings of all engines share: they are schedules, which a configuration calls presets, and can be told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Self

from popatlas.settings import as_content


class EngineSettings(ABC):
    """Settings of an engine: a schedule of its deformable stage, which a configuration calls a preset."""

    @property
    @abstractmethod
    def one_contrast(self) -> bool:
        """Whether intensities are compared in a way that needs them to go together in both images."""

    @abstractmethod
    def schedule(self) -> str:
        """Return the schedule in words, for the methods text."""

    def with_similarity(self, name: str) -> Self | None:
        """Return the same schedule by another similarity with its own defaults; None for engines that cannot."""
        return None


def by(numbers: Iterable[int]) -> str:
    """Return the numbers of levels as the methods text writes them: 100×60×12."""
    return "\N{MULTIPLICATION SIGN}".join(map(str, numbers))


def plainly(settings: EngineSettings) -> str:
    """Return all settings with their values, for the methods text."""
    return ", ".join(f"{key} {value}" for key, value in as_content(settings).items())


def check_levels(**levels: tuple[int, ...]) -> None:
    """Raise ValueError unless all have one entry for each level."""
    lengths = [len(values) for values in levels.values()]
    if len(set(lengths)) > 1:
        raise ValueError(f"{', '.join(levels)} need one entry for each level, got {', '.join(map(str, lengths))}")
