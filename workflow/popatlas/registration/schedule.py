"""What the settings of all engines share: they are schedules, which a configuration calls presets, and can be told."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from popatlas.settings import Content, as_content, merge, settings_from


@dataclass(frozen=True)
class Follows:
    """What a setting follows: another one, which decides what its values mean, and its default for each value of that."""

    choice: str
    defaults: Mapping[str, Any]


class EngineSettings(ABC):
    """Settings of an engine: a schedule of its deformable stage, which a configuration calls a preset.

    Attributes
    ----------
    FOLLOWS : mapping of str to Follows
        Settings that mean something else, or nothing, once another one is chosen.
    """

    FOLLOWS: ClassVar[Mapping[str, Follows]] = {}

    @property
    @abstractmethod
    def one_contrast(self) -> bool:
        """Whether intensities are compared in a way that needs them to go together in both images."""

    @abstractmethod
    def schedule(self) -> str:
        """Return the schedule in words, for the methods text."""

    @property
    def idle(self) -> bool:
        """Whether it has no iterations: none at all, or at none of its levels."""
        found = getattr(self, "iterations", None)
        return found is not None and not any(found if isinstance(found, tuple) else (found,))

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> Content:
        """Return values of settings with what follows from them, where that is left out."""
        content = dict(values)
        for key, follows in cls.FOLLOWS.items():
            chosen = content.get(follows.choice)
            if key not in content and isinstance(chosen, str) and chosen in follows.defaults:
                content[key] = follows.defaults[chosen]
        return content

    @classmethod
    def laid_over(cls, below: Mapping[str, Any], above: Mapping[str, Any]) -> Content:
        """Return the content of a schedule with values of the user over it; what follows another choice does not stay."""
        kept = dict(below)
        for key, follows in cls.FOLLOWS.items():
            chosen, before = above.get(follows.choice), below.get(follows.choice)
            if isinstance(chosen, str) and chosen != before and chosen in follows.defaults:
                kept.pop(key, None)
        return cls.completed(merge(kept, above))

    def changed(self, **changes: object) -> Self:
        """Return the same schedule with other values of some settings; InputError for a name or a value that cannot be.

        What follows another choice, such as the options of a similarity, takes its default unless it is given.
        """
        values: Content = as_content(changes)
        return settings_from(type(self), self.laid_over(as_content(self), values) | values, "schedule")

    def with_similarity(self, name: str, **options: object) -> Self | None:
        """Return the same schedule by another similarity, with defaults for options left out; None for engines without."""
        return None


def by(numbers: Iterable[int]) -> str:
    """Return the numbers of levels as the methods text writes them: 100×60×12."""
    return "\N{MULTIPLICATION SIGN}".join(map(str, numbers))


def plainly(settings: EngineSettings, leave_out: Iterable[str] = ()) -> str:
    """Return all settings with their values, for the methods text, but those that do not count."""
    return ", ".join(f"{key} {value}" for key, value in as_content(settings).items() if key not in leave_out)


def check_levels(**levels: tuple[float, ...]) -> None:
    """Raise ValueError unless all have one entry for each level."""
    lengths = [len(values) for values in levels.values()]
    if len(set(lengths)) > 1:
        raise ValueError(f"{', '.join(levels)} need one entry for each level, got {', '.join(map(str, lengths))}")
