"""Settings of the fusion methods, and of the data parameters that are trained for one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from popatlas.networks.backbones import BACKBONES
from popatlas.settings import Content, OneOf, as_content, merge, option, settings, settings_from

Ties = Literal["nearest", "lowest"]
SelectBy = Literal["similarity", "trust"]
Region = Literal["disputed", "all"]
Prior = Literal["volumes", "frequency"]
Votes = Literal["auto", "softmax", "label", "joint"]
Update = Literal["out-of-line", "inline"]
Schedule = Literal["decay", "restarts"]
Preset = Literal["default", "paper"]
Backbone = Annotated[str, OneOf(tuple(BACKBONES))]
BY_PATCHES = ("auto", "joint")  # votes that joint label fusion may serve


@settings
class JointSettings:
    """Joint label fusion."""

    beta: float = option(4.0, "Exponent of the intensity difference", gt=0)
    radius: int = option(1, "Patch radius, voxels", ge=0, le=6)
    search: int = option(1, "Search radius, voxels", ge=0, le=6)
    rho: float = option(0.1, "Regularisation of the weights", gt=0)


@settings
class StapleSettings:
    """Multi-label STAPLE."""

    region: Region = option(
        "disputed",
        "Voxels that the reliability of atlases is estimated at: those where they differ, or all in the box of the labels",
    )
    prior: Prior = option(
        "volumes",
        "How probable a label is before anyone is asked: such that volumes are those of the atlases on average, or its "
        "frequency in the atlases",
    )


@settings
class SimilaritySettings:
    """Weights of the methods global and local."""

    power: float = option(
        8.0, "A weight is the correlation with the target to this power; 0 is the majority vote", ge=0, le=100
    )
    radius: int = option(2, "Radius of the window of the method local, voxels", ge=1, le=12)


@settings
class DataParametersSettings:
    """Consensus by data parameters (Weihsbach et al. 2022).

    The rates and decays are the paper's where they fit. With `per_label` each label of a candidate has a parameter too;
    `risk` and `fixed_weighting` are terms of the loss, see `popatlas.fusion.dataparams.train`. In a configuration options
    that are left out are those of the preset; in Python `of_preset` gives them.
    """

    preset: Preset = option("default", "Where options that are left out come from: our defaults, or the paper")
    network: Backbone = option("light", "Network that learns what the candidates have in common")
    targets: int = option(64, "Scans that it is trained on, drawn evenly and frozen once it is trained", ge=1, le=500)
    epochs: int = option(15, "Passes over the training targets, and steps for a new target", ge=1, le=10000)
    batch: int = option(1, "Targets in a step, each with all its candidates", ge=1, le=64)
    update: Update = option("out-of-line", "Network first and then the data parameters, or both at once")
    warm_up: int = option(0, "Epochs before the data parameters start", ge=0, le=10000)
    risk: bool = option(True, "Risk regularisation: candidates gain no weight by being empty")
    fixed_weighting: bool = option(True, "Candidates gain no weight by their size")
    class_weights: bool = option(True, "Rare labels weigh more in the loss of the network, by their frequency^-0.35")
    per_label: bool = option(True, "Learn a parameter for each label of a candidate too")
    votes: Votes = option(
        "auto",
        "What the data parameters weight: votes, votes by label, or joint label fusion; auto takes joint label fusion where "
        "the atlases look like the target, else votes",
    )
    network_weight: float = option(0.3, "Share of the network's own opinion in the result", ge=0, le=1)
    gate_quality: bool = option(False, "Multiply the weight of an atlas by the quality of its registration at the gate")
    rate: float = option(0.005, "Learning rate of the network", gt=0, le=1)
    schedule: Schedule = option(
        "decay",
        "How the learning rate falls: times decay after each epoch, or along a cosine with warm restarts",
    )
    decay: float = option(0.95, "Factor of the learning rate after each epoch", gt=0, le=1)
    restart: int = option(
        500,
        "Steps until the first warm restart; each period is twice as long as the one before",
        ge=1,
        le=1_000_000,
    )
    trust_rate: float = option(0.1, "Learning rate of the data parameters", gt=0, le=10)
    voxels: int = option(20_000, "Voxels of an image that are looked at in a step", ge=100, le=10_000_000)
    positions: bool = option(True, "The network also sees where in the image a voxel is")
    augment: bool = option(True, "Random intensities, noise and affine in training")
    bend: float = option(
        0.0,
        "Random B-spline deformation in training, standard deviation of its control points in voxels",
        ge=0,
        le=20,
    )
    seed: int = option(0, "Seed of the training", ge=0, le=2**63 - 1)
    gpu: int = option(
        0,
        "GPUs asked for by training and fusion; 0 for the CPU, which is also used when no GPU is visible",
        ge=0,
        le=8,
    )

    @classmethod
    def completed(cls, given: Mapping[str, Any]) -> Content:
        """Return options with those of their preset where they are left out."""
        return merge(as_content(cls()) | dict(PRESETS.get(str(given.get("preset", "default")), {})), given)

    @classmethod
    def laid_over(cls, below: Mapping[str, Any], above: Mapping[str, Any]) -> Content:
        """Return complete options with others over them; what the preset below has set gives way to another preset."""
        if above.get("preset", below.get("preset")) == below.get("preset"):
            return merge(dict(below), above)
        shipped = cls.completed({"preset": below.get("preset")})
        chosen = {key: value for key, value in below.items() if key not in shipped or value != shipped[key]}
        return cls.completed(merge(chosen, above))

    @classmethod
    def of_preset(cls, preset: Preset, **changes: object) -> Self:
        """Return the options of a preset, some of them changed; InputError for a name or a value that cannot be."""
        return settings_from(cls, cls.completed({"preset": preset, **changes}), "fuse.dataparams")


# what a preset changes of the defaults; paper: Weihsbach et al. 2022, and their published code where the text is silent
PRESETS: dict[str, Content] = {
    "default": {},
    "paper": {
        "network": "lraspp",
        "epochs": 40,
        "batch": 8,
        "per_label": False,
        "votes": "softmax",
        "network_weight": 0.0,
        "rate": 0.01,
        "decay": 0.99,
        "voxels": 10_000_000,
        "positions": False,
        "bend": 1.0,
    },
}
