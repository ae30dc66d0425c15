"""The metrics of the published tables: what each is, its unit, which direction is better, and the function that measures it.

A new one that compares two label images, two images or looks at a deformation is a module with a function and an entry
here: tables, data dictionary, summary, schema and docs follow. Others are made by the steps that know them (gate, landmarks,
truth of a simulation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from popatlas.registry import load_code


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes
    ----------
    description : str
        What it is.
    unit : str
        "1" where it has none.
    better : {"higher", "lower", "neither"}
        The good side.
    minimum, maximum : float or None
        Its range.
    code : str
        ``module:function`` that measures it, maybe with others, see the tables below; empty for those that are no such
        comparison.
    slow : bool
        `measure.surface: false` leaves it out.
    scan, bench : bool
        It stands in the tables of scans, and in those of the bench of the fusion methods.
    """

    description: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    minimum: float | None = None
    maximum: float | None = None
    code: str = ""
    slow: bool = False
    scan: bool = True
    bench: bool = False

    def published(self) -> dict[str, object]:
        """Return what the data dictionary says besides its meaning."""
        return {"Units": self.unit, "Better": self.better, "Minimum": self.minimum, "Maximum": self.maximum}


_OVERLAP = "fused label against the reference label, resampled to the grid of the fused label with nearest neighbour"
_SURFACE = "between the border voxels of fused and reference label; missing where one image lacks the label"
_OVERLAPS = "popatlas.measures.overlap:overlaps"
_SURFACES = "popatlas.measures.surface:surfaces"
_VOLUME_ERRORS = "popatlas.measures.volumes:volume_errors"
_SIMILARITY = "popatlas.measures.similarity:similarity"
_JACOBIAN = "popatlas.measures.jacobian:summarise_log_jacobian"

# of fused and reference labels: functions of a `LabelPair` to name and values, one for each label
OF_LABELS: dict[str, Metric] = {
    "dice": Metric(f"Dice coefficient 2|A∩B|/(|A|+|B|), {_OVERLAP}", "1", "higher", 0, 1, code=_OVERLAPS, bench=True),
    "jaccard": Metric(f"Jaccard index |A∩B|/|A∪B|, {_OVERLAP}", "1", "higher", 0, 1, code=_OVERLAPS),
    "volume_similarity": Metric(f"1 - ||A|-|B||/(|A|+|B|), {_OVERLAP}", "1", "higher", 0, 1, code=_OVERLAPS),
    "hd95": Metric(
        f"95th percentile Hausdorff distance (larger of both directions) {_SURFACE}",
        "mm",
        "lower",
        0,
        code=_SURFACES,
        slow=True,
        bench=True,
    ),
    "assd": Metric(
        f"average symmetric surface distance {_SURFACE}", "mm", "lower", 0, code=_SURFACES, slow=True, bench=True
    ),
    "volume_error": Metric(
        "volume of the fused label minus that of the reference label, in percent of the latter",
        "%",
        "neither",
        -100,
        code=_VOLUME_ERRORS,
        scan=False,
        bench=True,
    ),
    "volume_error_ml": Metric(
        "volume of the fused label minus that of the reference label",
        "ml",
        "neither",
        code=_VOLUME_ERRORS,
        scan=False,
        bench=True,
    ),
}

# of two images: functions of fixed, moving and mask to name and value
OF_IMAGES: dict[str, Metric] = {
    "correlation": Metric(
        "Pearson correlation of subject and template intensities in the brain", "1", "higher", -1, 1, code=_SIMILARITY
    ),
    "local_correlation": Metric(
        "mean squared correlation of subject and template in cubes of 7 voxels", "1", "higher", 0, 1, code=_SIMILARITY
    ),
    "nmi": Metric(
        "normalised mutual information (H(A)+H(B))/H(A,B) of subject and template", "1", "higher", 1, 2, code=_SIMILARITY
    ),
}

# of a deformation: functions of its log Jacobian and a mask to name and value
OF_FIELDS: dict[str, Metric] = {
    "log_jacobian_mean": Metric(
        "mean log Jacobian determinant of the map from template to subject points in the template brain; positive: the "
        "subject is larger",
        "1",
        "neither",
        code=_JACOBIAN,
    ),
    "log_jacobian_sd": Metric(
        "standard deviation of the log Jacobian determinant in the brain", "1", "neither", 0, code=_JACOBIAN
    ),
    "nonpositive_jacobian": Metric(
        "share of brain voxels with a Jacobian determinant <= 0", "1", "lower", 0, 1, code=_JACOBIAN
    ),
}

_GATE = {
    "passed": Metric("1 when the gate let an attempt at the registration pass, 0 when it did not", "1", "higher", 0, 1),
    "scale_min": Metric("smallest singular value of the affine of an attempt", "1", "neither", 0),
    "scale_max": Metric("largest singular value of the affine of an attempt", "1", "neither", 0),
    "shear": Metric("shear of the affine of an attempt", "1", "lower", 0),
    "reflected": Metric("1 when the affine of an attempt mirrors the image", "1", "lower", 0, 1),
    "mask_dice": Metric("Dice of the template's brain mask and that of the scan after an attempt", "1", "higher", 0, 1),
    "nonpositive_jacobian": Metric("share of template brain voxels with a Jacobian determinant <= 0", "1", "lower", 0, 1),
    "folds": Metric("share of template brain voxels at which some one-sided differences fold", "1", "lower", 0, 1),
    "ncc_before": Metric("correlation in the template's brain before any registration", "1", "neither", -1, 1),
    "ncc_affine": Metric("correlation in the template's brain after the affine stage of an attempt", "1", "higher", -1, 1),
    "ncc": Metric("correlation in the template's brain after an attempt", "1", "higher", -1, 1),
    "inverse_error": Metric(
        "mean distance between a point and itself after the way there and back, by the warps of an attempt",
        "voxel",
        "lower",
        0,
    ),
    "diverged": Metric("1 when the optimisation of an attempt diverged", "1", "lower", 0, 1),
    "pose": Metric(
        "standard deviations by which the edges of scan and template agree better after the affine of an attempt than after "
        "the same affine turned by right angles: 7 to 20 in the right pose, at most 5 in a wrong one",
        "SD",
        "higher",
    ),
    "start_distance": Metric(
        "distance between the affine of an attempt and the start that its linear stage went from: root mean square over the "
        "voxels of the template",
        "mm",
        "neither",
        0,
    ),
    "attempt_distance": Metric(
        "distance between the affines of an attempt and of the one before, as gate_start_distance; missing for the first",
        "mm",
        "neither",
        0,
    ),
    "turned": Metric("degrees by which the affine of an attempt turns", "degree", "lower", 0, 180),
    "sides": Metric(
        "asymmetry of the scan's brain along that of people: about 1 in people, -1 in their mirror images; missing where no "
        "whole brain is seen",
        "1",
        "higher",
    ),
    "covered": Metric("share of the template's brain in the field of view of the scan", "1", "higher", 0, 1),
    "contrast": Metric(
        "correlation after the affine of an attempt over the one that Gaussian intensities of the same mutual information "
        "have: about 1 when scan and template have one contrast",
        "1",
        "higher",
    ),
    "one_contrast": Metric("1 when the engine of an attempt needs images of one contrast", "1", "neither", 0, 1),
    "edges_affine": Metric(
        "agreement of edges, mean squared cosine of the gradients on a grid of about 4 mm, after the affine of an attempt",
        "1",
        "higher",
        0,
        1,
    ),
    "edges": Metric("agreement of edges, as in gate_edges_affine, after an attempt", "1", "higher", 0, 1),
    "nmi": Metric("normalised mutual information on the same grid after an attempt", "1", "higher", 1, 2),
    "log_jacobian_sd": Metric(
        "standard deviation of the log Jacobian determinant of an attempt in the template's brain", "1", "lower", 0
    ),
    "displacement": Metric("mean distance by which the deformation after the affine moves points", "mm", "lower", 0),
    "displacement_p95": Metric("95th percentile of the distance of gate_displacement", "mm", "lower", 0),
}

METRICS: dict[str, Metric] = {
    **{name: metric for name, metric in OF_LABELS.items() if metric.scan},
    "volume": Metric(
        "volume of a label (of the fused labels by method, of the reference, or of the brain mask)", "ml", "neither", 0
    ),
    **OF_IMAGES,
    **OF_FIELDS,
    "landmark_x": Metric("landmark mapped to the template, x (left to right, RAS)", "mm", "neither"),
    "landmark_y": Metric("landmark mapped to the template, y (posterior to anterior, RAS)", "mm", "neither"),
    "landmark_z": Metric("landmark mapped to the template, z (inferior to superior, RAS)", "mm", "neither"),
    "landmark_error": Metric(
        "distance in the template between a landmark of a scan and the mean of the other scans' landmarks of that name",
        "mm",
        "lower",
        0,
    ),
    **{
        f"affine_{axis}": Metric(
            f"where the affine takes the middle of the template's grid (label middle) and the points one standard deviation "
            f"of the grid from it along each axis (x, y, z), {axis} coordinate in the scan, RAS; for scans with a session",
            "mm",
            "neither",
        )
        for axis in "xyz"
    },
    "session_distance": Metric(
        "distance between the affines of a session and of the one before (label): root mean square over the voxels of the "
        "template; how differently the head lay, and what session_shape_distance tells",
        "mm",
        "neither",
        0,
    ),
    "session_shape_distance": Metric(
        "as session_distance after the best rigid motion of one onto the other: sizes and shears that the two affines see "
        "differently, in adults an error of a scanner or of a registration",
        "mm",
        "lower",
        0,
    ),
    "mask_dice": Metric("Dice of the brain mask against the true brain mask", "1", "higher", 0, 1),
    "known_field_error": Metric(
        "mean distance, at points of the template brain, between where a scan's registration followed by its true "
        "inverse deformation leads in MNI space and where those of the other scans lead on average",
        "mm",
        "lower",
        0,
    ),
    "known_field_error_p95": Metric("95th percentile of the distance of known_field_error", "mm", "lower", 0),
    "pairwise_field_error": Metric(
        "mean distance in MNI space between a scan and the next scan of the cohort, as in known_field_error",
        "mm",
        "lower",
        0,
    ),
    "template_error": Metric(
        "mean distance between points of the template brain and the same anatomy in the true mean anatomy, after the "
        "best rigid alignment",
        "mm",
        "lower",
        0,
    ),
    "template_correlation": Metric(
        "correlation of the template with the brain that the cohort was simulated from, carried to the template",
        "1",
        "higher",
        -1,
        1,
    ),
    **{f"gate_{name}": metric for name, metric in _GATE.items()},
    "truth_points": Metric("points of the template brain at which the truth was compared", "points", "neither", 0),
}
# leave-one-atlas-out bench of the fusion methods
BENCH_METRICS = {name: metric for name, metric in OF_LABELS.items() if metric.bench}


def unit_of(metric: str) -> str:
    """Return the unit of a metric; an unknown name is a KeyError."""
    return METRICS[metric].unit


def measure(metrics: Mapping[str, Metric], *what: object) -> dict[str, Any]:
    """Measure what some metrics of one of the tables need.

    Parameters
    ----------
    metrics : mapping of str to Metric
        Name to metric; one function may measure several of them.
    *what
        What their functions take.

    Returns
    -------
    dict
        Name to value or values, in the order of `metrics`.
    """
    found: dict[str, Any] = {}
    for code in dict.fromkeys(metric.code for metric in metrics.values()):
        found |= load_code(code)(*what)
    return {name: found[name] for name in metrics}
