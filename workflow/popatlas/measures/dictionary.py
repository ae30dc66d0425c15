"""The data dictionary: every column and every metric of the published tables, with unit and meaning."""

from __future__ import annotations

from popatlas.measures.metrics import BENCH_METRICS, METRICS

KEYS = ["subject", "session", "template", "method", "label"]
COLUMNS = [*KEYS, "metric", "value", "unit"]
# method of rows that describe no label fusion
REFERENCE, MASK, AFFINE, REGISTRATION, TRUTH = "reference", "mask", "affine", "registration", "truth"
ATTEMPT = "attempt"  # with a number: attempt-1
BRAIN = "brain"  # label of rows that describe the whole brain
GROUP = "group"  # subject of rows that describe the cohort


# numbers of the gate that stand beside the atlas weight, of the registration of the target and of the atlas
ATLAS_WEIGHTS_GATE = ("mask_dice", "ncc_affine", "ncc", "nonpositive_jacobian", "inverse_error")
ATLAS_WEIGHTS_SIDES = ("target", "atlas")

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
ATLAS_WEIGHTS_COLUMN_TEXT = {
    "scan": "target of the fusion, as a scan key",
    "subject": "participant, with the prefix sub-",
    "session": "session, with the prefix ses-; empty where the dataset has no sessions",
    "method": "label fusion method",
    "atlas": "atlas whose labels were propagated, as a scan key",
    "trust": "share of the atlas in the decision, sums to 1 over the atlases of a target",
    "rank": "place of the atlas among those of the target, 1 for the largest share",
    "parameter": "data parameter, before the sigmoid; missing for methods without",
    "overlap": "Dice coefficient of the propagated and the fused labels, mean over labels",
    **{
        f"{side}_{name}": f"registration of the {side}: {METRICS[f'gate_{name}'].description.replace('an attempt', 'it')}"
        for side in ATLAS_WEIGHTS_SIDES
        for name in ATLAS_WEIGHTS_GATE
    },
}


def dictionary() -> dict[str, object]:
    """Return the data dictionary as plain data for JSON."""
    return {
        "columns": COLUMN_TEXT,
        "metrics": {name: metric.published() for name, metric in METRICS.items()},
        "other_tables": {
            "volumes.tsv": "one row per scan: subject, session, columns of participants.tsv, then one column per "
            "method and label (method_label), in ml",
            "summary.tsv": "per template, method and metric: values are averaged over labels within a scan first; "
            "then number of scans, mean, standard deviation (n - 1), minimum and maximum over scans",
            "members.json": "scans in the tables, with the SHA-256 of the table of each (made_from), and scans left out "
            "with stage, state and reason",
        },
    }


def bench_dictionary() -> dict[str, object]:
    """Return the data dictionary of group/fusion-bench as plain data for JSON."""
    return {
        "columns": BENCH_COLUMN_TEXT,
        "metrics": {name: metric.published() for name, metric in BENCH_METRICS.items()},
    }


def atlas_weights_dictionary() -> dict[str, object]:
    """Return the data dictionary of group/trust as plain data for JSON."""
    return {"columns": ATLAS_WEIGHTS_COLUMN_TEXT}
