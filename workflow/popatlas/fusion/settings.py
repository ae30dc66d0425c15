"""Settings of the fusion methods, and of the data parameters that are trained for one."""

from __future__ import annotations

from typing import Annotated, Literal

from popatlas.networks.backbones import BACKBONES
from popatlas.settings import OneOf, option, settings

Ties = Literal["nearest", "lowest"]
SelectBy = Literal["similarity", "trust"]
Votes = Literal["auto", "softmax", "label", "joint"]
Region = Literal["disputed", "all"]
Prior = Literal["volumes", "frequency"]
Update = Literal["out-of-line", "inline"]
Schedule = Literal["decay", "restarts"]
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
class SimilaritySettings:
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


    """Weights of the methods global and local."""

    power: float = option(
        8.0, "A weight is the correlation with the target to this power; 0 is the majority vote", ge=0, le=100
    )
    radius: int = option(2, "Radius of the window of the method local, voxels", ge=1, le=12)


@settings
class DataParametersSettings:
    """Consensus by data parameters (Weihsbach et al. 2022).

    The rates and decays are the paper's where they fit. With `per_label` each label of a candidate has a parameter too;
    `risk` and `fixed_weighting` are terms of the loss, see `popatlas.fusion.dataparams.train`.
    """

    network: Backbone = option("light", "Network that learns what the candidates have in common")
    targets: int = option(64, "Scans that it is trained on, drawn evenly and frozen once it is trained", ge=1, le=500)
    epochs: int = option(15, "Passes over the training targets, and steps for a new target", ge=1, le=10000)
    batch: int = option(1, "Targets in a step, each with all its candidates", ge=1, le=64)
    update: Update = option("out-of-line", "Network first and then the data parameters, or both at once")
    warm_up: int = option(0, "Epochs before the data parameters start", ge=0, le=10000)
    risk: bool = option(True, "Risk regularisation: candidates gain no weight by being empty")
    fixed_weighting: bool = option(True, "Candidates gain no weight by their size")
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
