"""What each rule makes, and where its log lies: the one list that rules, receipts, ledger, tests and docs read.

Patterns hold the wildcards of the rule (``{scan}``, ...) and names that a study fills in: ``{label}`` (of the template),
``{version}``, ``{brains}`` and ``{predictions}`` (folders below work/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from popatlas.config.sections import Config
from popatlas.fusion.methods import MAPS, SEGMENTER

BUILD = "work/tpl-{label}/{version}"
ITERATION = f"{BUILD}/iter-{{iteration}}"
TRANSFORM = "{scan}_from-T1w_to-{label}_mode-image"
INVERSE = "{scan}_from-{label}_to-T1w_mode-image"
SPACE = "{scan}_space-{label}"
TEMPLATE = "tpl-{label}/tpl-{label}"
PAIR = "work/pairs/{scan}/from/{atlas}"
BUILT = "atlas/{label}-{version}"


@dataclass(frozen=True)
class Made:
    """What a rule makes.

    Attributes
    ----------
    stage : str
        Stage of the ledger that it belongs to; "group" for what is of no single scan.
    log : str
        Pattern of its log.
    files : dict
        Output name to pattern.
    kept : bool
        A result of its own, made again when it is lost; what is not is only made when something else needs it.
    proof : tuple of str
        Outputs that tell a reader that it is done, all when left out.
    name : str
        Pattern of the name of its jobs and of their receipts, where it is not that of the log: what is made for several
        templates or networks side by side has a receipt for each.
    """

    stage: str
    log: str
    files: Mapping[str, str]
    kept: bool = False
    proof: tuple[str, ...] = ()
    name: str = ""

    @property
    def job(self) -> str:
        """Pattern of the name of its jobs."""
        return self.name or self.log.removeprefix("logs/").removesuffix(".log")


def _iteration(**files: str) -> dict[str, str]:
    return {name: f"{ITERATION}/{file}" for name, file in files.items()}


def _network(name: str, **files: str) -> dict[str, str]:
    return {key: f"networks/{name}-{{version}}/{file}" for key, file in files.items()}


BRAIN = {
    "mask": "{scan}_desc-brain_mask.nii.gz",
    "brain": "{scan}_desc-brain_T1w.nii.gz",
    "quality": "{scan}_desc-qc_mask.json",
}
CHANNEL = {
    "image": "{scan}_space-T1w_desc-preproc_{channel}.nii.gz",
    "transform": "{scan}_from-{channel}_to-T1w_mode-image_xfm.mat",
}
REFERENCE = {"image": f"{BUILD}/reference_T1w.nii.gz", "mask": f"{BUILD}/reference_mask.nii.gz"}
FIRST = {"affine": f"{BUILD}/iter-0/{{scan}}_xfm.mat", "warped": f"{BUILD}/iter-0/{{scan}}_T1w.nii.gz"}
START = {"template": f"{BUILD}/iter-0/template_T1w.nii.gz", "mask": f"{BUILD}/iter-0/template_mask.nii.gz"}
MEMBER = _iteration(
    affine="{scan}_xfm.mat",
    warp="{scan}_xfm.nii.gz",
    warped="{scan}_T1w.nii.gz",
    mask="{scan}_mask.nii.gz",
    gate="{scan}_gate.json",
)
AVERAGE = _iteration(template="template_T1w.nii.gz", mask="template_mask.nii.gz", row="convergence.json")
PREDICTED = f"{BUILD}/iter-1/predictions"  # what a co-registration of the members leaves for each of them
GROUP_START = {
    **START,
    "classes": f"{BUILD}/iter-0/template_probseg.nii.gz",
    "batch_record": f"{PREDICTED}/group.json",
}
CLASSES = {"classes": f"{TEMPLATE}_desc-classes_probseg.nii.gz"}
PUBLISHED = {
    "template": f"{TEMPLATE}_T1w.nii.gz",
    "mask": f"{TEMPLATE}_desc-brain_mask.nii.gz",
    "convergence": f"{TEMPLATE}_desc-convergence_table.tsv",
    "description": "tpl-{label}/template_description.json",
}
REGISTERED = {
    "affine": f"{TRANSFORM}_desc-affine_xfm.mat",
    "warp": f"{TRANSFORM}_desc-warp_xfm.nii.gz",
    "inverse_warp": f"{INVERSE}_desc-warp_xfm.nii.gz",
    "composed": f"{TRANSFORM}_xfm.nii.gz",
    "inverse_composed": f"{INVERSE}_xfm.nii.gz",
    "warped": f"{SPACE}_desc-brain_T1w.nii.gz",
    "warped_mask": f"{SPACE}_desc-brain_mask.nii.gz",
    "logjacobian": f"{SPACE}_desc-logjacobian_T1w.nii.gz",
    "gate": f"{SPACE}_desc-gate_registration.json",
}
TISSUES = {
    "maps": "{scan}_desc-tissues_probseg.nii.gz",
    "dseg": "{scan}_desc-tissues_dseg.nii.gz",
    "volumes": "{scan}_desc-tissues_volumes.tsv",
}
TISSUE_MAPS = {"maps": f"{TEMPLATE}_probseg.nii.gz", "description": f"{TEMPLATE}_probseg.json"}
PAIRED = {
    "affine": f"{PAIR}_desc-affine_xfm.mat",
    "warp": f"{PAIR}_desc-warp_xfm.nii.gz",
    "warped": f"{PAIR}_T1w.nii.gz",
    "gate": f"{PAIR}_gate.json",
}
CANDIDATES = {"labels": "work/fuse/{scan}_candidates_dseg.nii.gz", "images": "work/fuse/{scan}_candidates_T1w.nii.gz"}
DATA_PARAMETERS = _network("trust", network="network.safetensors", parameters="parameters.parquet", curve="curve.tsv")
SEGMENTER_NET = _network("segmenter", network="network.safetensors", curve="curve.tsv")
NETWORK = _network("{name}", weights="weights.safetensors", training="training.json", curve="curve.csv", picture="curve.png")
NATIVE_LABELS = {
    "dseg": "{scan}_space-orig_desc-{method}_dseg.nii.gz",
    "description": "{scan}_space-orig_desc-{method}_dseg.json",
}
FUSED = {"dseg": "{scan}_desc-{method}_dseg.nii.gz", "trust": "{scan}_desc-{method}_trust.tsv"}
METRICS = {
    "parquet": "group/metrics.parquet",
    "tsv": "group/metrics.tsv",
    "dictionary": "group/metrics.json",
    "volumes": "group/volumes.tsv",
    "volumes_dictionary": "group/volumes.json",
    "summary": "group/summary.tsv",
    "summary_dictionary": "group/summary.json",
    "members": "group/members.json",
}
ALONG = {
    name: f"work/tpl-{{label}}/{{version}}/along/{{place}}_{file}"
    for name, file in (("template", "T1w.nii.gz"), *((table, f"{table}.tsv") for table in ("row", "volumes", "members")))
}
SERIES = {
    "templates": f"{TEMPLATE}_desc-along_T1w.nii.gz",
    "description": f"{TEMPLATE}_desc-along_T1w.json",
    **{
        name + suffix: f"{TEMPLATE}_desc-along{called}.{ending}"
        for name, called in {"table": "_templates", "volumes": "_volumes", "members": "_members"}.items()
        for suffix, ending in {"": "tsv", "_dictionary": "json"}.items()
    },
}
ATLAS_WEIGHTS = {
    "parquet": "group/trust.parquet",
    "tsv": "group/trust.tsv",
    "dictionary": "group/trust.json",
    "figure": "report/figures/trust.png",
}
BENCH = {
    "table": "group/fusion-bench.parquet",
    "tsv": "group/fusion-bench.tsv",
    "summary": "group/fusion-bench.json",
    "page": "report/fusion.html",
}

RULES: dict[str, Made] = {
    "conform_image": Made(
        "preprocess", "logs/preprocess/{scan}_conform.log", {"image": "{scan}_desc-preproc_T1w.nii.gz"}, kept=True
    ),
    "extract_brain": Made("preprocess", "logs/preprocess/{scan}_brain.log", {"mask": "{brains}/{scan}_mask.nii.gz"}),
    "extract_brains": Made("preprocess", "logs/batches/brain-{batch}.log", {"batch_record": "{brains}/batch-{batch}.json"}),
    "normalise_brain": Made("preprocess", "logs/preprocess/{scan}_normalise.log", BRAIN, kept=True),
    "align_channel": Made("channel", "logs/preprocess/{scan}_channel-{channel}.log", CHANNEL, kept=True, proof=("image",)),
    "make_reference": Made("group", "logs/atlas/make_reference.log", REFERENCE, name=f"{BUILT}/make_reference"),
    "align_to_reference": Made("register", "logs/atlas/{scan}_iter-0.log", FIRST, name=f"{BUILT}/{{scan}}_iter-0"),
    "initialise_template": Made("group", "logs/atlas/template_iter-0.log", START, name=f"{BUILT}/template_iter-0"),
    "coregister_members": Made(
        "group", "logs/atlas/coregister_members.log", GROUP_START, name=f"{BUILT}/coregister_members"
    ),
    "predict_members": Made(
        "register",
        "logs/atlas/predict_iter-{iteration}_batch-{batch}.log",
        _iteration(batch_record="predictions/batch-{batch}.json"),
        name=f"{BUILT}/predict_iter-{{iteration}}_batch-{{batch}}",
    ),
    "register_member": Made(
        "register", "logs/atlas/{scan}_iter-{iteration}.log", MEMBER, name=f"{BUILT}/{{scan}}_iter-{{iteration}}"
    ),
    "average_template": Made(
        "group", "logs/atlas/template_iter-{iteration}.log", AVERAGE, name=f"{BUILT}/template_iter-{{iteration}}"
    ),
    "publish_template": Made(
        "group", "logs/atlas/publish_template.log", PUBLISHED, kept=True, name="atlas/{label}/publish_template"
    ),
    "classify_template": Made(
        "group", "logs/atlas/classify_template.log", TISSUE_MAPS, kept=True, name="atlas/{label}/classify_template"
    ),
    "predict_deformations": Made(
        "register",
        "logs/batches/predict-{batch}.log",
        {"batch_record": "{predictions}/batch-{batch}.json"},
        name="batches/predict-{label}-{version}-{batch}",
    ),
    "register_to_template": Made(
        "register",
        "logs/register/{scan}_register.log",
        REGISTERED,
        kept=True,
        proof=("composed", "inverse_composed", "warped", "logjacobian"),
        name="register/{scan}_space-{label}",
    ),
    "segment_tissues": Made("tissues", "logs/tissues/{scan}_tissues.log", TISSUES, kept=True),
    "register_atlas_to_target": Made("fuse", "logs/fuse/{scan}_from/{atlas}.log", PAIRED),
    "propagate_labels": Made("fuse", "logs/fuse/{scan}_propagate.log", CANDIDATES),
    "fuse_labels": Made("fuse", "logs/fuse/{scan}_{method}.log", FUSED, kept=True),
    "train_trust": Made("group", "logs/train/train_trust.log", DATA_PARAMETERS, kept=True, name="train/trust-{version}"),
    "train_segmenter": Made(
        "group", "logs/train/train_segmenter.log", SEGMENTER_NET, kept=True, name="train/segmenter-{version}"
    ),
    "segment_scan": Made(
        "fuse", f"logs/fuse/{{scan}}_{SEGMENTER}.log", {"dseg": f"{{scan}}_desc-{SEGMENTER}_dseg.nii.gz"}, kept=True
    ),
    "labels_to_native": Made("fuse", "logs/fuse/{scan}_{method}_native.log", NATIVE_LABELS, kept=True),
    "write_training_table": Made(
        "group",
        "logs/train/write_training_table.log",
        {"table": "work/train/{name}-{version}/scans.tsv"},
        name="train/{name}-{version}-table",
    ),
    "train_registration": Made(
        "group", "logs/train/train_registration.log", NETWORK, kept=True, name="train/{name}-{version}"
    ),
    "measure_scan": Made(
        "measure", "logs/measure/{scan}_measure.log", {"table": "{scan}_desc-metrics_table.tsv"}, kept=True
    ),
    "draw_subject": Made("page", "logs/report/{scan}_draw.log", {"thumbnail": "report/thumbnails/{scan}.png"}, kept=True),
    "settle_ledger": Made("group", "logs/group/settle_ledger.log", {"ledger": "cohort/ledger.tsv"}),
    "score_truth": Made(
        "group", "logs/group/score_truth.log", {"table": "group/truth.tsv", "dictionary": "group/truth.json"}, kept=True
    ),
    "tabulate_cohort": Made("group", "logs/group/tabulate_cohort.log", METRICS, kept=True),
    "tabulate_trust": Made("group", "logs/group/tabulate_trust.log", ATLAS_WEIGHTS, kept=True),
    "bench_fusion": Made("group", "logs/group/bench_fusion.log", BENCH, kept=True),
    "make_along": Made("group", "logs/group/along_{place}.log", ALONG),
    "publish_along": Made("group", "logs/group/publish_along.log", SERIES, kept=True),
    "write_report": Made("group", "logs/group/write_report.log", {"page": "report/index.html"}, kept=True),
}
# Outputs of a rule that follow from its others, to the byte (`popatlas.transforms.composed`): `retention: minimal` has none
# of them, and what needs one makes it for itself or asks for it again
DERIVED: dict[str, tuple[str, ...]] = {"register_to_template": ("composed", "inverse_composed")}
# Outputs that nothing reads any more once they are used, and the levels of `retention` at which they go then
PASSING: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "propagate_labels": (("labels", "images"), ("minimal", "standard")),
    "register_member": (("warp", "warped", "mask"), ("minimal",)),
}
MINIMAL = "minimal"
PER_SCAN = (
    "preprocess",
    "register",
    "fuse",
    "measure",
    "channel",
    "tissues",
    "page",
)  # stages of scans, in the ledger's order


def fill(pattern: str, names: Mapping[str, str]) -> str:
    """Return a pattern with the names of a study filled in; wildcards stay."""
    for key, value in names.items():
        pattern = pattern.replace(f"{{{key}}}", value)
    return pattern


def made_files(config: Config, rule: str) -> dict[str, str]:
    """Return output name to pattern of a rule: with the maps of labels, and the fields, that the configuration wants."""
    left_out = DERIVED.get(rule, ()) if config.retention == MINIMAL else ()
    files = {name: pattern for name, pattern in RULES[rule].files.items() if name not in left_out}
    if rule == "publish_template" and config.atlas.is_grouped:
        files |= CLASSES
    maps = {"fuse_labels": MAPS, "segment_scan": ("probability",)}.get(rule, ()) if config.fuse.maps else ()
    method = SEGMENTER if rule == "segment_scan" else "{method}"
    return {**files, **{name: f"{{scan}}_desc-{method}_{name}.nii.gz" for name in maps}}


def labelling_methods(config: Config) -> tuple[str, ...]:
    """Return what labels the scans: the segmenter where one is asked for, and the fusion methods."""
    return (*((SEGMENTER,) if config.fuse.segmenter.enabled else ()), *config.fuse.methods)


def stage_outputs(config: Config, *, labelled: bool) -> dict[str, list[str]]:
    """Return the files that prove that a stage is done for a scan.

    Parameters
    ----------
    config : dict
        Complete configuration.
    labelled : bool
        True when there are labelled atlases; without them nothing is fused.

    Returns
    -------
    dict
        Stage to file patterns with `{scan}`, relative to the output folder, in pipeline order; then the stages that no
        group result needs. `{channel}` stands for each extra channel that the scan has; `bench` is of labelled atlases.
    """
    found: dict[str, list[str]] = {stage: [] for stage in PER_SCAN}
    fuse, names = config.fuse, {"label": config.atlas.label}
    methods = {"fuse_labels": fuse.methods, "labels_to_native": labelling_methods(config)}
    wanted = {
        "fuse_labels": labelled,
        "segment_tissues": config.tissues.enabled,
        "segment_scan": labelled and fuse.segmenter.enabled,
        "labels_to_native": labelled and fuse.space == "native",
    }
    for rule, made in RULES.items():
        if made.stage in PER_SCAN and made.kept and wanted.get(rule, True):
            files = made_files(config, rule) if rule in ("fuse_labels", *DERIVED) else made.files
            patterns = [fill(files[name], names) for name in made.proof or files if name in files]
            names_of = methods.get(rule, ("",))
            found[made.stage] += [pattern.replace("{method}", method) for method in names_of for pattern in patterns]
    fused = [pattern for pattern in found["fuse"] if f"_desc-{SEGMENTER}_" not in pattern and "_space-orig_" not in pattern]
    return {**found, "bench": fused if fuse.bench else []}
