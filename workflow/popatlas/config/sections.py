"""The sections of a configuration, with types, ranges, meanings and defaults of their keys.

The schema of `config.yaml`, the table of the docs and the messages about wrong values are made from these classes, and
`config.yaml` is checked against them. Settings that a package uses itself are in that package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from popatlas.fusion.methods import METHODS
from popatlas.fusion.sections import SegmenterSettings
from popatlas.fusion.settings import (
    DataParametersSettings,
    JointSettings,
    SelectBy,
    SimilaritySettings,
    StapleSettings,
    Ties,
)
from popatlas.groupwise.neighbours import ConditionalSettings
from popatlas.groupwise.settings import MixtureSettings
from popatlas.groupwise.xcoreg.settings import XCoRegSettings
from popatlas.preprocess.settings import PreprocessSettings
from popatlas.registration.engines.instance.settings import SimilarityName
from popatlas.registration.engines.registry import ENGINES
from popatlas.registration.types import LINEAR, STARTS
from popatlas.settings import Content, OneOf, Positive, as_content, option, settings

Text = Annotated[str, Field(min_length=1)]
Entity = str | int | None
Entities = Entity | Annotated[tuple[Entity, ...], Field(min_length=1)]
EngineName = Annotated[str, OneOf(tuple(ENGINES))]
Start = Annotated[str, OneOf(STARTS)]
Linear = Annotated[str, OneOf(LINEAR)]
Method = Annotated[str, OneOf(tuple(METHODS))]
Unique = Field(json_schema_extra={"uniqueItems": True})
DEFAULT = "default"  # the preset of an engine that others are laid over
REFERENCE = "reference"  # labels that a network is trained on: those of measure.reference


@settings
class Simulate:
    """Demo cohort, drawn only when bids_dir does not exist yet."""

    enabled: bool = option(True, "Draw the demo cohort when bids_dir does not exist")
    subjects: int = option(8, "Number of simulated subjects", ge=2, le=100_000)
    seed: int = option(1, "Seed of the simulation", ge=0)


@settings
class Cohort:
    """Which scans belong to the study."""

    query: str = option(
        "",
        "Condition on the columns of participants.tsv, asked of each scan with the values of its own session, for example "
        "age > 50 and sex == 'F'; comparisons, in [...], and, or, not, + - * /, missing(col), `column names in backticks`; "
        "a scan that lacks a value it asks for is not selected",
    )
    include: tuple[str, ...] = option((), "Only these subjects; empty means all")
    exclude: tuple[str, ...] = option((), "Never these subjects")
    filter: Mapping[str, Entities | Mapping[str, Entities]] = option(
        {},
        "BIDS entities (short or full name) that an image must have: value, pattern with *, list of values, null for none; "
        "of the T1w, or under the suffix of a channel",
    )
    prefer: Annotated[tuple[Text, ...], Unique] = option(
        (),
        "Entities as in file names (acq-mprage), or labels of any entity (mprage), the most wanted first; they decide among "
        "images that can be used",
    )
    run: Literal["first", "last"] = option("first", "Which run is used of images that are equal in all else")
    channels: Annotated[tuple[Annotated[str, Field(pattern="^[A-Za-z0-9]+$")], ...], Unique] = option(
        ("T2w",), "Extra channels (BIDS suffixes), rigidly aligned to the T1w where they exist"
    )
    spacing_mm: tuple[Positive, Positive] = option((0.3, 6.0), "Lowest and highest plausible voxel spacing, mm")
    min_shape: int = option(32, "Fewest voxels along any axis", ge=4)


@settings
class NetworkEngine:
    """How the engine network works."""

    batch: int = option(8, "Scans that one job predicts with one loaded network, on a GPU at once", ge=1, le=256)


@settings
class UniGradIconEngine:
    """How the engine unigradicon works."""

    weights: str = option(
        "unigradicon",
        "Imported weights of uniGradICON: a name of the zoo, or the path of a locked .safetensors file",
        min_length=1,
    )


@settings
class Attempt:
    """One way to try; engine, linear and preset are those of the registration when left out."""

    start: Start = option("mass", "Where the linear stage starts")
    engine: EngineName | None = option(None, "Engine of the deformable stage")
    linear: Linear | None = option(None, "Engine of the rigid and affine stage")
    preset: str | None = option(
        None,
        "Schedule of that engine; left out that of the registration, or default where it has none of that name",
        min_length=1,
    )
    similarity: SimilarityName | None = option(None, "Similarity instead of that of the schedule, with its own defaults")


@settings
class Gate:
    """Limits of a plausible registration."""

    pose: float = option(6.0, "Least standard deviations by which the edges agree better than after turns by right angles")
    sides: float = option(-0.15, "Lowest asymmetry of the brain: 1 in people, -1 in their mirror images", le=1)
    covered: float = option(0.55, "Least share of the fixed brain that the moving image holds", ge=0, le=1)
    contrast: float = option(
        0.85,
        "Least correlation as a share of what the mutual information allows, for similarities that need one contrast",
        le=1,
    )
    edges: float = option(0.5, "Least agreement of edges (mean squared cosine) after the last stage", ge=0, le=1)
    edges_gain: float = option(-0.05, "Least rise of the agreement of edges from the affine to the last stage", ge=-1, le=1)
    mask_dice: float = option(0.85, "Lowest Dice of the brain masks", ge=0, le=1)
    scale: tuple[Positive, Positive] = option((0.6, 1.6), "Lowest and highest singular value of the affine")
    shear: float = option(0.3, "Largest shear of the affine", ge=0)
    nonpositive_jacobian: float = option(0.001, "Largest share of brain voxels with Jacobian <= 0", ge=0, le=1)
    folds: float = option(0.01, "Largest share of brain voxels that fold towards some of their neighbours", ge=0, le=1)
    log_jacobian_sd: float = option(0.8, "Largest standard deviation of the log-Jacobian in the brain", gt=0)
    displacement_p95: float = option(25.0, "Largest 95th percentile of the displacement after the affine, mm", gt=0)
    similarity_gain: float = option(0.0, "Least rise of the correlation in the fixed brain", ge=-1, le=1)
    inverse_error: float = option(1.0, "Largest mean inverse consistency error, voxels", ge=0)


def shipped_presets() -> dict[str, dict[str, Content]]:
    """Return the presets of all engines as a configuration holds them."""
    return {
        name: {preset: as_content(found) for preset, found in engine.presets.items()} for name, engine in ENGINES.items()
    }


FALLBACK = (
    Attempt(start="mass", engine="instance", similarity="ngf"),
    Attempt(start="global"),
    Attempt(start="search", engine="ants", linear="ants"),
)


@settings
class Register:
    """Registration to the template."""

    engine: EngineName = option("instance", "Engine of the deformable stage")
    linear: Linear = option("affine", "Engine of the rigid and affine stage")
    preset: str = option("default", "Name of the schedule used for the last registration to the final template")
    presets: Mapping[EngineName, Mapping[str, Mapping[str, Any]]] = option(
        shipped_presets(), "Named schedules of each engine's deformable stage"
    )
    weights: str = option(
        "brain-t1w",
        "Weights of the engine network: a name of the zoo, or the path of a locked .safetensors file",
        min_length=1,
    )
    network: NetworkEngine = option(NetworkEngine(), "How the engine network works")
    unigradicon: UniGradIconEngine = option(UniGradIconEngine(), "How the engine unigradicon works")
    gpu: int = option(0, "GPUs asked for by a registration of the engines instance, network and unigradicon", ge=0, le=8)
    fallback: tuple[Attempt, ...] = option(FALLBACK, "What is tried after a registration fails the gate, in order")
    gate: Gate = option(Gate(), "Limits of a plausible registration")


# for skull-stripped T1w heads: four classes leave the fluid to the background (benchmarks.groupwise, part atlas)
GROUP = XCoRegSettings(classes=8, fluid=1.5, elastic=0.3)


@settings
class Atlas:
    """Unbiased groupwise template."""

    label: str = option("popatlas", "Name of the template (letters and digits)", pattern="^[A-Za-z0-9]+$")
    template: str | None = option(
        None,
        "Existing brain-only template to register to instead of building one; its mask is taken from beside it (*_mask), or "
        "derived",
    )
    method: Literal["mean", "xcoreg"] = option(
        "mean",
        "How the template is built: all members registered to their mean by turns (mean), or as one group to a common space "
        "(xcoreg, one iteration), which finds its classes too",
    )
    xcoreg: XCoRegSettings = option(GROUP, "How the group is registered with method xcoreg")
    members: (
        Literal["all"]
        | Annotated[int, Field(ge=2)]
        | Annotated[tuple[str, ...], Field(min_length=2, json_schema_extra={"uniqueItems": True})]
    ) = option("all", "Subjects that the template is built from: all, a number or a list")
    most_members: int = option(200, "Of a larger cohort, so many with `members: all`, evenly over site, sex and age", ge=2)
    iterations: int = option(3, "Template iterations", ge=1, le=50)
    presets: tuple[str, ...] = option(
        ("quick", "quick", "fast"), "Schedule of each iteration; the last one repeats", min_length=1
    )
    shape_step: float = option(1.0, "Share of the mean deformation removed at each iteration", gt=0, le=1)
    sharpen: float = option(0.0, "Weight of unsharp masking of the mean image", ge=0, le=1)
    along: str | None = option(
        None,
        "Column of numbers of participants.tsv, such as age, that templates are made along; null for none",
        min_length=1,
    )
    along_values: Annotated[tuple[float, ...], Field(min_length=1), Unique] | None = option(
        None, "Its values where templates are made; null for five from its 10th to its 90th percentile"
    )
    along_most: int = option(100, "Scans that take part in them; of more, so many, evenly over the column", ge=3)
    conditional: ConditionalSettings = option(ConditionalSettings(), "How they are made")

    @property
    def is_grouped(self) -> bool:
        """Tell whether the template is built by registering its members as one group."""
        return self.template is None and self.method == "xcoreg"

    @property
    def passes(self) -> int:
        """Iterations that are made: a group is registered once."""
        return 1 if self.method == "xcoreg" else self.iterations


@settings
class Tissues:
    """Tissues of each scan: a map and volumes of CSF, grey and white matter."""

    enabled: bool = option(True, "Divide each brain into its tissues")
    maps: str | None = option(
        None,
        "Tissue maps of an existing template (atlas.template): probabilities of CSF, GM and WM along the last axis; left "
        "out they are found in the brains",
    )
    channels: Annotated[tuple[str, ...], Unique] = option(
        (), "Extra channels (cohort.channels) that are used beside the T1w; a scan that lacks one gets no tissues"
    )
    mixture: MixtureSettings = option(MixtureSettings(), "Mixtures of Gaussians of the tissues")


@settings
class Fuse:
    """Label propagation and fusion."""

    methods: Annotated[tuple[Method, ...], Unique] = option(("majority", "staple", "jlf"), "Fusion methods; empty for none")
    atlases: Annotated[int, Field(ge=0)] | Annotated[tuple[str, ...], Unique] | Annotated[str, Field(pattern=r"\.tsv$")] = (
        option(3, "Labelled atlases: a number, a list of subjects, or a TSV with columns atlas, t1w, dseg")
    )
    labels: str = option(
        "derivatives/truth/{scan}_desc-truth_dseg.nii.gz",
        "Pattern of the label images inside bids_dir, with {scan}, {subject} or {session}",
    )
    through: Literal["template", "direct"] = option("template", "Path of propagation")
    ties: Ties = option("nearest", "Rule at equal votes: the label of the nearest undisputed voxel, or the smallest label")
    select: int = option(0, "Use only so many candidates of each target, the best ones; 0 for all", ge=0, le=1000)
    select_by: SelectBy = option(
        "similarity",
        "What makes a candidate good: correlation with the target, or its data parameter (dataparams only; the other "
        "methods then go by similarity)",
    )
    maps: bool = option(True, "Write maps of probability, agreement and entropy beside the fused labels")
    space: Literal["preproc", "native"] = option(
        "preproc", "Grid of the labels: the preprocessed one only, or that of each raw image too (space-orig)"
    )
    staple: StapleSettings = option(StapleSettings(), "Multi-label STAPLE")
    jlf: JointSettings = option(JointSettings(), "Joint label fusion")
    similarity: SimilaritySettings = option(SimilaritySettings(), "Weights of the methods global and local")
    dataparams: DataParametersSettings = option(
        DataParametersSettings(), "Consensus by data parameters (Weihsbach et al. 2022)"
    )
    segmenter: SegmenterSettings = option(
        SegmenterSettings(), "Network trained on fused labels, for scans without registration"
    )
    bench: bool = option(False, "Compare the fusion methods on the labelled atlases, each left out in turn, in every run")


@settings
class Train:
    """Registration network trained on the cohort."""

    recipe: str | None = option(None, "Name of a recipe, or a YAML file; null trains nothing", min_length=1)
    changes: Mapping[str, Mapping[str, Any] | str] = option({}, "Sections and keys that are laid over the recipe")
    scans: int = option(
        200, "Most scans that it is trained on, drawn evenly and frozen once the training has begun", ge=3, le=10_000
    )
    validation: float = option(0.1, "Share of their subjects that chooses the best step; at least one subject", gt=0, le=0.5)
    labels: Annotated[str, OneOf((REFERENCE, *METHODS))] | None = option(
        None, "Labels that it learns from or is validated by: a fusion method, the files of measure.reference, or none"
    )
    gpus: int = option(0, "GPUs of the job, with one process each; 0 for the CPU", ge=0, le=8)
    minutes: float = option(
        0.0, "Minutes after which the job stops with a checkpoint; 0 for a little less than its runtime", ge=0
    )
    name: str | None = option(None, "Name of the network; null for the name of the recipe", pattern="^[a-z0-9][a-z0-9._-]*$")


@settings
class Measure:
    """Measures and tables."""

    reference: str = option(
        "derivatives/truth/{scan}_desc-truth_dseg.nii.gz",
        "Pattern of reference label images inside bids_dir; empty for none",
    )
    landmarks: str = option(
        "derivatives/truth/{scan}_desc-truth_landmarks.tsv",
        "Pattern of landmark tables inside bids_dir; empty for none",
    )
    truth: str = option("derivatives/truth", "Folder inside bids_dir with the truth of a simulated cohort; empty for none")
    surface: bool = option(True, "Surface distances per label")
    min_voxels: int = option(1, "Fewest voxels of a reference label that is scored", ge=1)


@settings
class Report:
    """QC report."""

    per_page: int = option(50, "Subjects on a page of the montage", ge=1, le=1000)


@settings
class Config:
    """A complete configuration; `popatlas.config.load.load_config` reads one."""

    bids_dir: str = option(
        "results/demo/bids",
        "BIDS dataset, or a TSV of paths (columns subject, t1w, optionally session and one column per extra channel)",
        min_length=1,
    )
    out_dir: str = option("results/demo/derivatives", "Folder of everything that popatlas writes", min_length=1)
    retention: Literal["minimal", "standard", "full"] = option(
        "standard",
        "What is kept of a scan: all results (standard), these without the fields that follow from others (minimal), or the "
        "labels and images of atlases that trained methods fuse too (full)",
    )
    simulate: Simulate = option(Simulate(), "Demo cohort, drawn only when bids_dir does not exist yet")
    cohort: Cohort = option(Cohort(), "Which scans belong to the study")
    preprocess: PreprocessSettings = option(
        PreprocessSettings(), "Bias correction, resampling, skull stripping, intensities"
    )
    register: Register = option(Register(), "Registration to the template")
    atlas: Atlas = option(Atlas(), "Unbiased groupwise template")
    tissues: Tissues = option(Tissues(), "Tissues of each scan")
    fuse: Fuse = option(Fuse(), "Label propagation and fusion")
    train: Train = option(Train(), "Registration network trained on the cohort")
    measure: Measure = option(Measure(), "Measures and tables")
    report: Report = option(Report(), "QC report")

    @property
    def content(self) -> Content:
        """The same as nested mappings, numbers as they were written: what is saved, and what fingerprints are made of."""
        content: Content = self.__dict__.get("_content") or as_content(self)
        return content
