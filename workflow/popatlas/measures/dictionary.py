"""The data dictionary: every column and every metric of the published tables, with unit and meaning.

The JSON file beside a table is what BIDS asks for: column to Description, Units and Levels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from popatlas.measures.metrics import BENCH_METRICS, METRICS, Metric

KEYS = ["participant_id", "session_id", "template", "method", "label"]
COLUMNS = [*KEYS, "metric", "value", "unit"]
# method of rows that describe no label fusion
REFERENCE, MASK, AFFINE, REGISTRATION, TRUTH = "reference", "mask", "affine", "registration", "truth"
TISSUES = "tissues"
ATTEMPT = "attempt"  # with a number: attempt-1
BRAIN = "brain"  # label of rows that describe the whole brain
GROUP = "group"  # participant of rows that describe the cohort
ATLASES = "atlases"  # column of the group tables
REVISION = 3  # of the columns of the group tables: after a change they are made anew


# numbers of the gate that stand beside the atlas weight, of the registration of the target and of the atlas
ATLAS_WEIGHTS_GATE = ("mask_dice", "ncc_affine", "ncc", "nonpositive_jacobian", "inverse_error")
ATLAS_WEIGHTS_SIDES = ("target", "atlas")

_SESSION = "session, with the prefix ses-; missing where the dataset has no sessions"
_STRUCTURE = "name of the structure, its number where no name is known"
_FUSION = "label fusion method"
_METRIC, _VALUE, _UNIT = "name of the metric", "value of the metric; missing where undefined", "unit of the value"

COLUMN_TEXT = {
    "participant_id": "participant, with the prefix sub-; 'group' for values of the whole cohort",
    "session_id": _SESSION,
    "template": "template label and the first 8 digits of its version hash, label@version",
    "method": "label fusion method (of fuse.methods), or what was measured: reference (reference labels), mask "
    "(brain mask), affine (after the affine stage only), registration (after the full transform), tissues (sums of the "
    "probabilities of CSF, GM and WM), attempt-1, attempt-2 ... "
    "(each attempt at the registration; the last is the one that stands), truth (simulation)",
    "label": f"{_STRUCTURE}, the name of the landmark or point, brain, the session before (session_distance), or what an "
    "attempt at the registration was: engine-linear-start",
    "metric": _METRIC,
    "value": _VALUE,
    "unit": _UNIT,
}
# columns that the tables of the group have besides, before those of participants.tsv
GROUP_COLUMN_TEXT = {
    ATLASES: "labelled atlases that the fused labels of the scan come from: those of other subjects. A scan that is an "
    "atlas itself has fewer than the others, for it never labels itself",
}
OF_PARTICIPANTS = "from participants.tsv, or the sessions table, of the dataset"

BENCH_COLUMN_TEXT = {
    "participant_id": "participant, with the prefix sub-",
    "session_id": _SESSION,
    "scan": "held-out atlas that was labelled from all others, as a scan key",
    "method": _FUSION,
    "label": _STRUCTURE,
    "metric": _METRIC,
    "value": _VALUE,
    "unit": _UNIT,
}
SCAN_WEIGHTS_COLUMN_TEXT = {
    "scan": "target of the fusion, as a scan key",
    "method": _FUSION,
    "atlas": "atlas whose labels were propagated, as a scan key",
    "trust": "share of the atlas in the decision, sums to 1 over the atlases of a target",
    "rank": "place of the atlas among those of the target, 1 for the largest share",
    "parameter": "data parameter, before the sigmoid; missing for methods without",
    "overlap": "Dice coefficient of the propagated and the fused labels, mean over labels",
}
ATLAS_WEIGHTS_COLUMN_TEXT = {
    "participant_id": "participant, with the prefix sub-",
    "session_id": _SESSION,
    **SCAN_WEIGHTS_COLUMN_TEXT,
    **{
        f"{side}_{name}": f"registration of the {side}: {METRICS[f'gate_{name}'].description.replace('an attempt', 'it')}"
        for side in ATLAS_WEIGHTS_SIDES
        for name in ATLAS_WEIGHTS_GATE
    },
}
SUMMARY_COLUMN_TEXT = {
    "template": COLUMN_TEXT["template"],
    "method": COLUMN_TEXT["method"],
    "metric": _METRIC,
    "unit": "unit of mean, sd, minimum and maximum",
    "scans": "number of scans; the values of a scan are averaged over its labels first",
    "mean": "mean over scans",
    "sd": "standard deviation over scans (n - 1)",
    "minimum": "smallest value of a scan",
    "maximum": "largest value of a scan",
}
CONVERGENCE_COLUMN_TEXT = {
    "iteration": "iteration of the template",
    "members": "scans that were averaged",
    "mean_update_mm": "mean distance by which points of the brain were moved to the mean shape of the members",
    "max_update_mm": "largest of these distances",
    "mean_similarity": "correlation of a registered member with the template before, mean over members",
    "min_similarity": "the smallest of these correlations",
    "template_change": "1 minus the correlation with the template before, in the brain",
    "sharpness": "mean length of the gradient over the mean intensity, in the brain",
}
# tables of the templates along a covariate
_AT = "value of the covariate where the template is made"
ALONG_COLUMN_TEXT = {
    "templates": {
        "value": _AT,
        "mean_value": "weighted mean of the scans' own values: near the ends of the range they lie on one side of the value",
        "subjects": "scans near the value, which the template is made of",
        "effective_subjects": "number of scans that their weights are worth",
        "iterations": "iterations of the template",
        "last_change": "root mean square change of the last one, as a share of the template's range",
    },
    "volumes": {
        "value": _AT,
        "method": f"{_FUSION}, mask for the whole brain",
        "label": f"{_STRUCTURE}; brain: within the brain mask",
        "volume_ml": "volume in the template",
        "low_ml": "lower end of the band from drawing the scans anew",
        "high_ml": "upper end of that band",
    },
    "members": {
        "at": _AT,
        "scan": "scan that the template is made of, as a scan key",
        "value": "its own value of the covariate",
        "weight": "its weight in the template; those of a template sum to 1",
    },
}
UNITS = {
    **{"mean_update_mm": "mm", "max_update_mm": "mm", "sharpness": "1/mm"},
    **dict.fromkeys(("volume_ml", "low_ml", "high_ml"), "ml"),
}
# what a reader has to know of volumes by a method
VOLUME_NOTES = {
    "staple": "STAPLE makes structures too large as it was published (fuse.staple: region all, prior frequency): 25 % on "
    "held-out manual labels. By default its volumes are those of the atlases on average; joint label fusion (jlf) looks at "
    "the image and follows a person's volumes better",
}
# files of the group that have no table of columns here
OTHER_FILES = {
    "volumes.tsv": "one row per scan: participant_id, session_id, atlases, columns of participants.tsv, then one column per "
    "method and label (`jlf_left_lateral_ventricle`), in ml",
    "summary.tsv": "per template, method and metric: values are averaged over labels within a scan first; "
    "then number of scans, mean, standard deviation (n - 1), minimum and maximum over scans",
    "members.json": "scans in the tables, with the SHA-256 of the table of each (made_from), and scans left out "
    "with stage, state and reason",
}

Described = dict[str, dict[str, object]]


def described(text: Mapping[str, str], metrics: Mapping[str, Metric] | None = None) -> Described:
    """Return the columns of a table as BIDS has them in the JSON file beside it.

    Parameters
    ----------
    text : mapping of str to str
        Column to meaning.
    metrics : mapping of str to Metric, optional
        What the column ``metric`` may hold. ``Levels`` has their meaning, and ``Properties``, which is our own, their unit,
        range and good side.

    Returns
    -------
    dict
        Column to Description and, of ``metric``, Levels and Properties.
    """
    found: Described = {name: {"Description": _sentence(meaning)} for name, meaning in text.items()}
    for name in UNITS.keys() & found.keys():
        found[name]["Units"] = UNITS[name]
    if metrics is not None:
        found["metric"] |= {
            "Levels": {name: _sentence(metric_text(name, metric)) for name, metric in metrics.items()},
            "Properties": {name: metric.published() for name, metric in metrics.items()},
        }
    return found


def metric_text(name: str, metric: Metric) -> str:
    """Return what a metric is, with what a reader of its values has to know."""
    notes = VOLUME_NOTES.values() if name == "volume" else ()
    return ". ".join([metric.description, *notes])


def metrics_columns(columns: Iterable[str] = COLUMNS) -> Described:
    """Return what the columns of a metric table are; those that are not ours come from the participants."""
    text = COLUMN_TEXT | GROUP_COLUMN_TEXT
    return described({name: text.get(name, OF_PARTICIPANTS) for name in columns}, METRICS)


def volume_columns(columns: Iterable[str], volumes: Mapping[str, tuple[str, str]]) -> Described:
    """Return what the columns of the table of volumes are; those that are not ours come from the participants.

    Parameters
    ----------
    columns : iterable of str
        All columns.
    volumes : mapping of str to (str, str)
        Those that hold volumes, to method and label.
    """
    text = {**{name: COLUMN_TEXT[name] for name in KEYS[:2]}, **GROUP_COLUMN_TEXT}
    found = described({name: text.get(name, OF_PARTICIPANTS) for name in columns})
    for name, (method, label) in volumes.items():
        note = f". {VOLUME_NOTES[method]}" if method in VOLUME_NOTES else ""
        meaning = _sentence(f"volume of {label}, method {method}{note}")
        found[name] = {"Description": meaning, "Units": "ml", "Method": method, "Label": label}
    return found


def bench_dictionary() -> Described:
    """Return the columns of group/fusion-bench."""
    return described(BENCH_COLUMN_TEXT, BENCH_METRICS)


def atlas_weights_dictionary() -> Described:
    """Return the columns of group/trust."""
    return described(ATLAS_WEIGHTS_COLUMN_TEXT)


def top_files() -> dict[str, Described]:
    """Return the JSON files at the top of the output folder: what the tables beside the images have for columns.

    By BIDS's inheritance principle one file there speaks for all tables below whose name ends like its own.
    """
    return {
        "desc-metrics_table.json": metrics_columns(),
        "trust.json": described(SCAN_WEIGHTS_COLUMN_TEXT),
        "desc-convergence_table.json": described(CONVERGENCE_COLUMN_TEXT),
    }


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
