"""The data dictionary: every column and every metric of the published tables, with unit and meaning."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

KEYS = ["subject", "session", "template", "method", "label"]
COLUMNS = [*KEYS, "metric", "value", "unit"]
# method of rows that describe no label fusion
REFERENCE, MASK, AFFINE, REGISTRATION, TRUTH = "reference", "mask", "affine", "registration", "truth"
ATTEMPT = "attempt"  # with a number: attempt-1
BRAIN = "brain"  # label of rows that describe the whole brain
GROUP = "group"  # subject of rows that describe the cohort


@dataclass(frozen=True)
class Metric:
    """One metric: what it is, its unit, which direction is better, and its range."""

    description: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    minimum: float | None = None
    maximum: float | None = None


_OVERLAP = "fused label against the reference label, resampled to the grid of the fused label with nearest neighbour"
_SURFACE = "between the border voxels of fused and reference label; missing where one image lacks the label"

_GATE = {
    "passed": Metric("1 when the gate let an attempt at the registration pass, 0 when it did not", "1", "higher", 0, 1),
    "scale_min": Metric("smallest singular value of the affine of an attempt", "1", "neither", 0),
    "scale_max": Metric("largest singular value of the affine of an attempt", "1", "neither", 0),
    "shear": Metric("shear of the affine of an attempt", "1", "lower", 0),
    "reflected": Metric("1 when the affine of an attempt mirrors the image", "1", "lower", 0, 1),
    "mask_dice": Metric("Dice of the template's brain mask and that of the scan after an attempt", "1", "higher", 0, 1),
    "nonpositive_jacobian": Metric("share of template brain voxels with a Jacobian determinant <= 0", "1", "lower", 0, 1),
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
    "dice": Metric(f"Dice coefficient 2|A∩B|/(|A|+|B|), {_OVERLAP}", "1", "higher", 0, 1),
    "jaccard": Metric(f"Jaccard index |A∩B|/|A∪B|, {_OVERLAP}", "1", "higher", 0, 1),
    "volume_similarity": Metric(f"1 - ||A|-|B||/(|A|+|B|), {_OVERLAP}", "1", "higher", 0, 1),
    "hd95": Metric(f"95th percentile Hausdorff distance (larger of both directions) {_SURFACE}", "mm", "lower", 0),
    "assd": Metric(f"average symmetric surface distance {_SURFACE}", "mm", "lower", 0),
    "volume": Metric(
        "volume of a label (of the fused labels by method, of the reference, or of the brain mask)", "ml", "neither", 0
    ),
    "correlation": Metric("Pearson correlation of subject and template intensities in the brain", "1", "higher", -1, 1),
    "local_correlation": Metric(
        "mean squared correlation of subject and template in cubes of 7 voxels", "1", "higher", 0, 1
    ),
    "nmi": Metric("normalised mutual information (H(A)+H(B))/H(A,B) of subject and template", "1", "higher", 1, 2),
    "log_jacobian_mean": Metric(
        "mean log Jacobian determinant of the map from template to subject points in the template brain; positive: the "
        "subject is larger",
        "1",
        "neither",
    ),
    "log_jacobian_sd": Metric("standard deviation of the log Jacobian determinant in the brain", "1", "neither", 0),
    "nonpositive_jacobian": Metric("share of brain voxels with a Jacobian determinant <= 0", "1", "lower", 0, 1),
    "landmark_x": Metric("landmark mapped to the template, x (left to right, RAS)", "mm", "neither"),
    "landmark_y": Metric("landmark mapped to the template, y (posterior to anterior, RAS)", "mm", "neither"),
    "landmark_z": Metric("landmark mapped to the template, z (inferior to superior, RAS)", "mm", "neither"),
    "landmark_error": Metric(
        "distance in the template between a landmark of a scan and the mean of the other scans' landmarks of that name",
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
BENCH_METRICS: dict[str, Metric] = {
    **{name: METRICS[name] for name in ("dice", "hd95", "assd")},
    "volume_error": Metric(
        "volume of the fused label minus that of the reference label, in percent of the latter", "%", "neither", -100
    ),
    "volume_error_ml": Metric("volume of the fused label minus that of the reference label", "ml", "neither"),
}
# numbers of the gate that stand beside the trust, of the registration of the target and of the atlas
TRUST_GATE = ("mask_dice", "ncc_affine", "ncc", "nonpositive_jacobian", "inverse_error")
TRUST_SIDES = ("target", "atlas")

COLUMN_TEXT = {
    "subject": "participant, with the prefix sub-; 'group' for values of the whole cohort",
    "session": "session, with the prefix ses-; empty where the dataset has no sessions",
    "template": "template label and the first 8 digits of its version hash, label@version",
    "method": "label fusion method (of fuse.methods), or what was measured: reference (reference labels), mask "
    "(brain mask), affine (after the affine stage only), registration (after the full transform), attempt-1, attempt-2 ... "
    "(each attempt at the registration; the last is the one that stands), truth (simulation)",
    "label": "name of the structure, its number where no name is known, the name of the landmark, brain, or what an attempt "
    "at the registration was: engine-linear-start",
    "metric": "name of the metric, see metrics",
    "value": "value of the metric; missing where undefined",
    "unit": "unit of the value",
}

BENCH_COLUMN_TEXT = {
    "scan": "held-out atlas that was labelled from all others, as a scan key",
    "method": "label fusion method",
    "label": "name of the structure, its number where no name is known",
    "metric": "name of the metric, see metrics",
    "value": "value of the metric; missing where undefined",
    "unit": "unit of the value",
}
TRUST_COLUMN_TEXT = {
    "scan": "target of the fusion, as a scan key",
    "subject": "participant, with the prefix sub-",
    "session": "session, with the prefix ses-; empty where the dataset has no sessions",
    "method": "label fusion method",
    "atlas": "atlas whose labels were propagated, as a scan key",
    "trust": "share of the atlas in the decision, sums to 1 over the atlases of a target",
    "rank": "place of the atlas among those of the target, 1 for the most trusted",
    "parameter": "data parameter, before the sigmoid; missing for methods without",
    "overlap": "Dice coefficient of the propagated and the fused labels, mean over labels",
    **{
        f"{side}_{name}": f"registration of the {side}: {_GATE[name].description.replace('an attempt', 'it')}"
        for side in TRUST_SIDES
        for name in TRUST_GATE
    },
}


def unit_of(metric: str) -> str:
    """Return the unit of a metric; an unknown name is a KeyError."""
    return METRICS[metric].unit


def dictionary() -> dict[str, Any]:
    """Return the data dictionary as plain data for JSON."""
    return {
        "columns": COLUMN_TEXT,
        "metrics": {name: asdict(metric) for name, metric in METRICS.items()},
        "other_tables": {
            "volumes.tsv": "one row per scan: subject, session, columns of participants.tsv, then one column per "
            "method and label (method_label), in ml",
            "summary.tsv": "per template, method and metric: values are averaged over labels within a scan first; "
            "then number of scans, mean, standard deviation (n - 1), minimum and maximum over scans",
            "members.json": "scans in the tables, with the SHA-256 of the table of each (made_from), and scans left out "
            "with stage, state and reason",
        },
    }


def bench_dictionary() -> dict[str, Any]:
    """Return the data dictionary of group/fusion-bench as plain data for JSON."""
    return {
        "columns": BENCH_COLUMN_TEXT,
        "metrics": {name: asdict(metric) for name, metric in BENCH_METRICS.items()},
    }


def trust_dictionary() -> dict[str, Any]:
    """Return the data dictionary of group/trust as plain data for JSON."""
    return {"columns": TRUST_COLUMN_TEXT}
