"""The sections of `fuse` in a configuration: settings of the fusion methods and of the network that learns their labels."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

from popatlas.fusion.methods import METHODS
from popatlas.fusion.settings import Backbone, DataParametersSettings, JointSettings, SimilaritySettings, StapleSettings
from popatlas.settings import Content, OneOf, option, settings, settings_from


@settings
class SegmenterSettings:
    """Network trained on fused labels, for scans without registration."""

    enabled: bool = option(False, "Train the network and label every scan with it (method segmenter)")
    labels: Annotated[str, OneOf(tuple(METHODS))] = option(
        "jlf", "Fusion method whose labels it learns; one of fuse.methods"
    )
    network: Backbone = option("light", "Network")
    targets: int = option(64, "Scans that it is trained on, drawn evenly and frozen once it is trained", ge=1, le=500)
    epochs: int = option(40, "Passes over the training targets", ge=1, le=10000)
    rate: float = option(0.005, "Learning rate", gt=0, le=1)
    voxels: int = option(20_000, "Voxels of an image that are looked at in a step", ge=100, le=10_000_000)
    positions: bool = option(True, "The network also sees where in the image a voxel is")
    augment: bool = option(True, "Random intensities, noise and affine in training")
    seed: int = option(0, "Seed of the training", ge=0, le=2**63 - 1)
    gpu: int = option(
        0,
        "GPUs asked for by training and labelling; 0 for the CPU, which is also used when no GPU is visible",
        ge=0,
        le=8,
    )

    def training(self) -> DataParametersSettings:
        """Return the same for the trainer of data parameters; those never start here."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        shared = {item.name for item in fields(DataParametersSettings)}
        return DataParametersSettings(**{name: value for name, value in own.items() if name in shared})


SECTIONS: dict[str, type[object]] = {
    "staple": StapleSettings,
    "jlf": JointSettings,
    "similarity": SimilaritySettings,
    "dataparams": DataParametersSettings,
    "segmenter": SegmenterSettings,
}


def section(name: str, fuse: Content) -> object:
    """Return the settings of a section of `fuse`; options left out are those of their preset, or the defaults."""
    kind, given = SECTIONS[name], fuse.get(name, {})
    if kind is DataParametersSettings:
        given = DataParametersSettings.completed(given)
    return settings_from(kind, given, f"fuse.{name}")


def given_options(method: str, fuse: Content) -> Content:
    """Return the options that the function of a method takes, as far as `fuse` gives them.

    Raises
    ------
    InputError
        For an option that its sections do not have, or an impossible value.
    """
    entry = METHODS[method]
    for name in entry.sections:
        section(name, fuse)
    given = fuse.get(entry.sections[0], {}) if entry.sections else {}
    return {name: value for name, value in given.items() if name in (entry.options or given)}


def describe(method: str, fuse: Content) -> str:
    """Return in words how a method fuses with the settings of `fuse`, for the methods text."""
    entry = METHODS[method]
    return entry.cited if entry.words is None else entry.words(*(section(name, fuse) for name in entry.sections))
