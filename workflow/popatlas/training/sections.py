"""Every key of a recipe with its default, type, range and meaning; reading one needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from popatlas.networks.architectures import ARCHITECTURES
from popatlas.regularisers.registry import NAMES, Reduction
from popatlas.settings import Content, OneOf, option, settings
from popatlas.similarity.registry import SIMILARITIES
from popatlas.training.settings import AugmentSettings, MotionSettings, SynthesisSettings

Intensity = Literal["robust", "zscore", "none"]
Order = Literal["any", "listed"]
Voxels = Annotated[int, Field(ge=8)]
Sigma = Annotated[float, Field(ge=0)]


@settings
class NetworkSection:
    """What is trained."""

    name: Annotated[str, OneOf(tuple(ARCHITECTURES))] = option("fast", "Architecture")
    options: Content = option({}, "Its options")


@settings
class GridSection:
    """What the network sees: all images are brought to this grid through their affines."""

    shape: tuple[Voxels, ...] = option(
        (80, 96, 80), "Voxels along each axis; two entries for a 2D network", min_length=2, max_length=3
    )
    spacing_mm: float = option(2.0, "Voxel size, mm", gt=0)
    slice_axis: Literal["", "R", "A", "S"] = option("", "Direction across the slices of a 2D network")
    slices_mm: tuple[float, float] = option(
        (-40.0, 40.0), "Lowest and highest place of a slice, mm from the middle of the volume"
    )
    stripped: bool = option(True, "Brains without skull: part of the contract of the weights")
    affine_first: bool = option(True, "Images are aligned affinely before: part of the contract of the weights")


@settings
class DataSection:
    """Where pairs come from."""

    source: Literal["scans", "labels", "shapes"] = option(
        "scans", "Where pairs come from: images of the table, images drawn from its label maps, or no data at all"
    )
    pairs: Literal["different", "same"] = option(
        "different", "What is registered: two scans, or a scan and its moved copy, whose motion is known (scans only)"
    )
    intensity: Intensity = option("robust", "Scaling of images")
    order: Order = option("any", "Which image of a pair is the fixed one: either, or the first of a group")


@settings
class AugmentSection:
    """Random changes of scans, drawn anew for each pair."""

    common: MotionSettings = option(MotionSettings(), "Motion of both images together")
    each: AugmentSettings = option(AugmentSettings(), "Motion and look of each image")


@settings
class SynthesisSection:
    """How images are made from label maps."""

    contrast: Literal["each", "same"] = option("each", "Contrasts of the images of a pair")
    compare: Literal["images", "scans"] = option(
        "images", "What the similarity compares: the synthetic images, or the scans behind them"
    )
    options: SynthesisSettings = option(SynthesisSettings(), "Strength of the synthesis")


@settings
class SimilaritySection:
    """How alike the images are."""

    name: Annotated[str, OneOf(tuple(SIMILARITIES))] = option("lncc", "Similarity")
    options: Content = option({}, "Its options")
    weight: float = option(1.0, "Weight in the loss", ge=0)


@settings
class RegulariserSection:
    """How smooth the fields are that the network names."""

    name: Annotated[str, OneOf(NAMES)] = option("diffusion", "Penalty")
    weight: float = option(1.0, "Weight in the loss", ge=0)
    reduction: Reduction = option(
        "sum", "Terms of a voxel: their sum, the mean over the components of the field, or that over derivatives too"
    )


@settings
class AffineSection:
    """Penalties on affine stages."""

    determinant: float = option(0.0, "Weight of the penalty on volume change", ge=0)
    orthogonality: float = option(0.0, "Weight of the penalty on shear and scaling", ge=0)


@settings
class LabelsSection:
    """Overlap of labels that are drawn for each pair."""

    kind: Literal["dice", "multiscale_dice", "cross_entropy"] = option("dice", "How label maps are compared")
    weight: float = option(0.0, "Weight in the loss", ge=0)
    count: int = option(16, "Labels drawn for each pair", ge=1)
    shrink: Literal[1, 2, 4] = option(1, "Label maps are compared on a grid so many times coarser")
    sigmas: tuple[Sigma, ...] = option(
        (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0), "Gaussians of the multiscale kinds, mm", min_length=1
    )
    prefilter: bool = option(False, "Smooth the maps by each Gaussian before they are warped, not after")


@settings
class PaintedSection:
    """Similarity of the label maps, painted with the same random grey values."""

    weight: float = option(0.0, "Weight in the loss", ge=0)


@settings
class BoxesSection:
    """Mean squared difference of the boxes around labels."""

    weight: float = option(0.0, "Weight in the loss", ge=0)
    count: int = option(13, "Labels drawn for each pair", ge=1)
    jitter: float = option(0.0, "Random error of each side, share of its length", ge=0, le=0.5)


@settings
class MaskSection:
    """Cross-entropy of the mask branch."""

    weight: float = option(0.0, "Weight in the loss", ge=0)


@settings
class PoseSection:
    """Distance of the last affine stage from the motion that is known."""

    kind: Literal["grid", "euler"] = option(
        "grid",
        "Root mean square distance of the voxels under the two maps, mm (transformed-grid distance), or mean squared error "
        "of Euler angles in degrees and shifts in mm",
    )
    weight: float = option(0.0, "Weight in the loss; needs data.pairs: same", ge=0)


@settings
class LossSection:
    """What is minimised: a sum of terms, each with a weight; 0 leaves one out."""

    similarity: SimilaritySection = option(SimilaritySection(), "How alike the images are")
    regulariser: RegulariserSection = option(RegulariserSection(), "How smooth the fields are that the network names")
    affine: AffineSection = option(AffineSection(), "Penalties on affine stages")
    labels: LabelsSection = option(LabelsSection(), "Overlap of labels that are drawn for each pair")
    painted: PaintedSection = option(
        PaintedSection(), "Similarity of the label maps, painted with the same random grey values"
    )
    boxes: BoxesSection = option(BoxesSection(), "Mean squared difference of the boxes around labels")
    mask: MaskSection = option(MaskSection(), "Cross-entropy of the mask branch")
    pose: PoseSection = option(PoseSection(), "Distance of the last affine stage from the motion that is known")


@settings
class ScheduleSection:
    """How long and how fast."""

    steps: int = option(20000, "Steps of the training", ge=1)
    batch: int = option(1, "Pairs of a step; fewer go through the network at once where memory ends", ge=1)
    rate: float = option(1e-4, "Learning rate (Adam)", gt=0)
    warm_up: int = option(0, "Steps in which the rate rises", ge=0)
    decay: Literal["constant", "cosine", "halving"] = option("constant", "How the rate falls")
    halve_from: int = option(0, "First step of a halved rate", ge=0)
    halve_every: int = option(1000, "Steps between halvings", ge=1)
    clip: float = option(0.0, "Longest gradient; 0: any", ge=0)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Type of the network's arithmetic; auto is bfloat16 on a GPU that has it"
    )
    record_every: int = option(50, "Steps of a row of the curve", ge=1)
    validate_every: int = option(500, "Steps between validations", ge=1)
    validation_pairs: int = option(8, "Pairs of a validation", ge=1)
    patience: int = option(20, "Validations without a better score after which the training ends", ge=1)
    least_gain: float = option(0.0, "Smallest gain that counts as better", ge=0)
    checkpoint_every: int = option(200, "Steps between checkpoints", ge=1)
    seed: int = option(0, "Seed", ge=0)


@settings
class Sections:
    """A recipe: architecture x transform x similarity x regulariser x supervision x schedule."""

    name: str = option("base", "Lower case letters, digits, dots and hyphens", pattern="^[a-z0-9][a-z0-9.-]*$")
    title: str = option("Defaults of all recipes", "One line", min_length=1)
    reference: str = option("", "Paper, with its DOI")
    network: NetworkSection = option(NetworkSection(), "What is trained")
    grid: GridSection = option(GridSection(), "What the network sees")
    data: DataSection = option(DataSection(), "Where pairs come from")
    augment: AugmentSection = option(AugmentSection(), "Random changes of scans, drawn anew for each pair")
    synthesis: SynthesisSection = option(SynthesisSection(), "How images are made from label maps")
    loss: LossSection = option(LossSection(), "What is minimised")
    schedule: ScheduleSection = option(ScheduleSection(), "How long and how fast")
