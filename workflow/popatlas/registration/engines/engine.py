"""What an engine is to the rest of the package: its name and words, its settings, and where its code is.

Nothing heavy is imported for it, so that a configuration can be read and a plan be made without loading any engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popatlas.errors import PackageError
from popatlas.registration.schedule import EngineSettings
from popatlas.registration.types import Attempt, Deformation
from popatlas.registry import Entry
from popatlas.settings import find_faults, settings_from

if TYPE_CHECKING:
    from popatlas.registration.pair import Pair

Deform = Callable[["Pair", Attempt, Path, Path, int], Deformation]


@dataclass(frozen=True, kw_only=True)
class Engine(Entry):
    """An engine of the deformable stage; its code is a function `Deform` of pair, attempt, affine file, folder and threads.

    Attributes
    ----------
    name : str
        In the configuration.
    methods : str
        What it is, for the methods text, with the keys of its references.
    settings : type
        Class of its settings.
    presets : mapping of str to settings
        The schedules that are shipped, coarse and quick to fine and slow.
    axes : tuple of int
        Numbers of spatial axes that it takes.
    gpu : bool
        It can use a GPU.
    weights : str
        Key of the configuration's section `register` that names the weights of its network; empty for engines without.
    extra : str
        Extra of the package that it needs, or empty.
    """

    name: str
    methods: str
    settings: type[EngineSettings]
    presets: Mapping[str, EngineSettings] = field(repr=False)
    axes: tuple[int, ...] = (2, 3)
    gpu: bool = False
    weights: str = ""
    extra: str = ""

    def faults(self, preset: Mapping[str, Any], where: str) -> list[str]:
        """Return one line for each thing that is wrong with a schedule of it."""
        if faults := find_faults(self.settings, preset, where):
            return faults
        if not self.weights and settings_from(self.settings, preset, where).idle:
            return [f"{where}.iterations: there are none, so that nothing would be deformed"]
        return []

    def load(self) -> Deform:
        """Return its deformable stage.

        Raises
        ------
        PackageError
            When a package that it needs is not installed.
        """
        try:
            found: Deform = super().load()
        except ImportError as error:
            remedy = f"pip install 'popatlas[{self.extra}]', or choose" if self.extra else "choose"
            raise PackageError(
                f"engine '{self.name}' needs a package that is not installed: {error}",
                remedy=f"{remedy} another register.engine",
            ) from error
        return found
