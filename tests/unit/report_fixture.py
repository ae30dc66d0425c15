"""An output folder as the workflow leaves it, made of smooth variants of the MNI152 brain, for tests of the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy.ndimage import binary_dilation, gaussian_filter, map_coordinates

from popatlas.images.io import load_image, save_image, write_json, write_table

LABELS = {1: "grey-matter-left", 2: "grey-matter-right", 3: "white-matter-left", 4: "white-matter-right", 5: "ventricles"}
METHODS = ["majority", "staple", "jlf"]
TEMPLATE = "study"
VERSION = "0a1b2c3d"
BENCH = {name: f"group/fusion-bench.{name}" for name in ("parquet", "tsv", "json")}
EVIL = "<script>alert('x')</script> & \"quotes\"; remedy: open the image & <b>look</b>"


def brain(spacing: float):
    """Return template, labels and affine from the nilearn wheel."""
    from nibabel.processing import resample_to_output
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    images = [load(resolution=2) for load in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)]
    images = [resample_to_output(image, (spacing,) * 3, order=1) for image in images]
    t1w, grey, white = (np.asarray(image.dataobj, dtype=np.float32) for image in images)
    mask = t1w > 0.2
    left = np.arange(t1w.shape[0])[:, None, None] < -images[0].affine[0, 3] / spacing
    labels = np.zeros(t1w.shape, dtype=np.int32)
    labels[(grey > white) & (grey > 0.3) & mask] = 2
    labels[(white >= grey) & (white > 0.3) & mask] = 4
    labels[(labels > 0) & left] -= 1
    inner = ~binary_dilation(~mask, iterations=round(24 / spacing))
    labels[inner & (labels == 0)] = 5
    return t1w * mask, labels, images[0].affine


class Variants:
    """Smooth deformations of one brain, a different one for each seed."""

    def __init__(self, spacing: float = 4.0) -> None:
        self.t1w, self.labels, self.affine = brain(spacing)
        self.spacing = spacing
        self.grid = np.indices(self.t1w.shape).astype(np.float32)

    def field(self, seed: int, size_mm: float) -> np.ndarray:
        """Return displacements in voxels."""
        random = np.random.default_rng(seed)
        field = np.stack([gaussian_filter(random.normal(size=self.t1w.shape), 14 / self.spacing) for _ in range(3)])
        return field * (size_mm / self.spacing / field.std())

    def warp(self, data: np.ndarray, field: np.ndarray, order: int = 1) -> np.ndarray:
        """Resample an image through displacements."""
        return map_coordinates(data, self.grid + field, order=order, mode="constant")

    def head(self, brain: np.ndarray) -> np.ndarray:
        """Return a brain with a shell of skull and scalp."""
        mask = brain > 0.05
        steps = max(round(8 / self.spacing), 1)
        inner, outer = binary_dilation(mask, iterations=steps), binary_dilation(mask, iterations=steps * 2)
        noise = np.random.default_rng(0).normal(0, 0.015, brain.shape)
        return np.clip(brain + 0.7 * (outer & ~inner) + 0.08 * (inner & ~mask) + noise * outer, 0, None) * 800


def _scan(subject: str, session: str = "") -> str:
    return f"{subject}/{session}/anat/{subject}_{session}" if session else f"{subject}/anat/{subject}"


def write_scan(out: Path, bids: Path, scan: str, variants: Variants, seed: int) -> None:
    """Write every derivative of a scan."""
    field = variants.field(seed, 4.0)
    moved, truth = variants.warp(variants.t1w, field), variants.warp(variants.labels, field, order=0)
    head, mask, affine = variants.head(moved), (moved > 0.2).astype(np.uint8), variants.affine
    ramp = 1 + 0.4 * np.linspace(-1, 1, head.shape[1])[None, :, None]
    stem, label = out / scan, TEMPLATE
    save_image((head * ramp).astype(np.float32), affine, f"{bids / scan}_T1w.nii.gz")
    save_image(truth, affine, f"{bids / 'derivatives/labels' / scan}_dseg.nii.gz")
    save_image(head.astype(np.float32), affine, f"{stem}_desc-preproc_T1w.nii.gz")
    save_image(mask, affine, f"{stem}_desc-brain_mask.nii.gz")
    save_image((moved * mask).astype(np.float32), affine, f"{stem}_desc-brain_T1w.nii.gz")
    save_image((1 - moved) * mask, affine, f"{stem}_space-T1w_desc-preproc_T2w.nii.gz", dtype=np.float32)
    left = variants.field(seed + 1000, 0.7)
    warped = variants.warp(variants.t1w, left).astype(np.float32)
    save_image(warped, affine, f"{stem}_space-{label}_desc-brain_T1w.nii.gz")
    divergence = sum(np.gradient(field[axis], axis=axis) for axis in range(3))
    logjacobian = np.log(np.clip(1 + divergence, 0.05, None)).astype(np.float32)
    save_image(logjacobian, affine, f"{stem}_space-{label}_desc-logjacobian_T1w.nii.gz")
    for number, method in enumerate(METHODS):
        fused = variants.warp(truth, variants.field(seed + 50 + number, 1.6 - 0.5 * number), order=0)
        save_image(fused.astype(np.int32), affine, f"{stem}_desc-{method}_dseg.nii.gz")


def write_numbers(out: Path, scan: str, seed: int, age: float) -> pd.DataFrame:
    """Write the QC numbers, metrics and records of a scan; seed 3 is an outlier, so far off that five scans tell."""
    random, odd = np.random.default_rng(seed), seed == 3
    subject, session = (*Path(scan).name.split("_"), "")[:2]
    volume = 1350 + 90 * random.normal() - 420 * odd
    write_json(
        out / f"{scan}_desc-qc_mask.json",
        {"brain_ml": volume, "components": 1 + odd, "border_voxels": 0, "compactness": 0.42 + 0.01 * random.normal(),
         "contrast": 2.1, "verdict": "pass", "reasons": []},
    )  # fmt: skip
    metrics = {
        "scale_max": 1.05, "scale_min": 0.97, "shear": 0.03 + 0.01 * random.random(), "nonpositive_jacobian": 0.0,
        "mask_dice": 0.97 - 0.06 * odd + 0.004 * random.normal(), "ncc_affine": 0.9, "ncc": 0.96,
    }  # fmt: skip
    attempts = [{"engine": "instance", "linear": "affine", "start": "mass", "metrics": metrics, "reasons": []}]
    if odd:
        attempts.insert(0, {**attempts[0], "reasons": ["mask Dice 0.712 below 0.85"]})
        attempts[1] |= {"engine": "ants", "linear": "ants", "start": "search"}
    write_json(
        out / f"{scan}_space-{TEMPLATE}_desc-gate_registration.json", {"verdict": "pass", **metrics, "attempts": attempts}
    )
    rows = [("mask", "brain", "volume", volume, "ml")]
    for metric, value in {"correlation": 0.96, "log_jacobian_sd": 0.21, "nonpositive_jacobian": 0.0}.items():
        rows.append(("registration", "brain", metric, value * (1 + 0.01 * random.normal()), "1"))
    for name in LABELS.values():
        size = 20 + 0.4 * age + random.normal() if name == "ventricles" else 300 + 20 * random.normal()
        rows.append(("reference", name, "volume", size, "ml"))
        for number, method in enumerate(METHODS):
            rows.append((method, name, "dice", 0.84 + 0.02 * number - 0.6 * odd + 0.012 * random.normal(), "1"))
            rows.append((method, name, "hd95", 3.1 - 0.3 * number + 0.2 * random.normal(), "mm"))
            rows.append((method, name, "volume", size * (1 + 0.02 * random.normal()), "ml"))
    table = pd.DataFrame(rows, columns=["method", "label", "metric", "value", "unit"])
    table = table.assign(participant_id=subject, session_id=session, template=f"{TEMPLATE}@{VERSION}")
    table = table[["participant_id", "session_id", "template", "method", "label", "metric", "value", "unit"]]
    write_table(table, out / f"{scan}_desc-metrics_table.tsv")
    steps = {"preprocess": ["conform", "normalise"], "register": ["register"], "fuse": ["jlf"], "measure": ["measure"]}
    names = {"conform": "CorrectAndConform", "normalise": "NormaliseBrain", "register": "RegisterImages",
             "jlf": "FuseLabels", "measure": "MeasureScan"}  # fmt: skip
    for stage, logs in steps.items():
        for log in logs:
            write_json(
                out / "logs" / stage / f"{scan}_{log}.log.json",
                {"step": names[log], "subject": scan, "popatlas": "0.1.0", "state": "ok", "started": "2024-01-01T00:00:00Z",
                 "seconds": round(20 * random.random() + 1, 2), "cpu_seconds": 12.0, "peak_mb": 800, "host": "node1",
                 "inputs": {"in_file": {"file": "x.nii.gz", "bytes": 10, "sha256": "ab"}, "resolution_mm": 2.0},
                 "versions": {"python": "3.11.9", "antspyx": "0.6.3", "numpy": "2.3.5"}, "notes": {}},
            )  # fmt: skip
            (out / "logs" / stage / f"{scan}_{log}.log").write_text(f"{log}\n")
    return table


def ledger_rows(scan: str, state: str = "ok", stage: str = "", reason: str = "", log: str = "") -> list[dict[str, str]]:
    """Return the ledger's rows of a scan that stopped at a stage."""
    subject, session = (*Path(scan).name.split("_"), "")[:2]
    rows, stopped = [], False
    for name in ("index", "preprocess", "register", "fuse", "measure"):
        row = {"scan": scan, "subject": subject, "session": session, "stage": name, "state": "ok", "reason": "", "log": ""}
        if name == stage:
            row |= {"state": state, "reason": reason, "log": log}
            stopped = True
        elif stopped:
            waits = {"state": "pending", "reason": f"waits for {stage}"}
            row |= {"state": state, "reason": reason} if stage == "index" else waits
        rows.append(row)
    return rows


def build(root: Path, spacing: float = 4.0, subjects: int = 5, images: bool = True) -> Path:
    """Build BIDS and output folders; return the output folder.

    The cohort: `subjects` good ones (the third is an outlier, the second has a session), one that failed its gate with
    images up to the brain, one excluded, one unavailable with markup in its reason.
    """
    out, bids = root / "out", root / "bids"
    variants = Variants(spacing)
    scans = [_scan(f"sub-{number:02d}", "ses-1" if number == 2 else "") for number in range(1, subjects + 1)]
    failed, excluded, lost = _scan("sub-991"), _scan("sub-992"), _scan("sub-993")
    ages = {scan: 30.0 + 7 * number for number, scan in enumerate(scans)}
    tables = []
    for number, scan in enumerate(scans, start=1):
        if images:
            write_scan(out, bids, scan, variants, number)
        tables.append(write_numbers(out, scan, number, ages[scan]))
    rows = [row for scan in scans for row in ledger_rows(scan)]
    log = f"logs/register/{failed}_register.log"
    reason = "registration gate failed: mask Dice 0.641 below 0.85; remedy: look at the brain mask and orientation"
    rows += ledger_rows(failed, "failed", "register", reason, log)
    rows += ledger_rows(excluded, "excluded", "index", "listed in cohort.exclude")
    rows += ledger_rows(lost, "unavailable", "index", EVIL)
    write_table(pd.DataFrame(rows), out / "cohort" / "ledger.tsv")
    if images:
        write_scan(out, bids, failed, variants, 91)
        for path in [*(out / "sub-991/anat").glob("*space-study*"), *(out / "sub-991/anat").glob("*dseg*")]:
            path.unlink()
    (out / log).parent.mkdir(parents=True, exist_ok=True)
    (out / log).write_text("gate failed\n")
    tried = {"engine": "instance", "linear": "affine", "metrics": {}, "reasons": ["mask Dice 0.641 below 0.85"]}
    tries = [tried | {"start": start} for start in ("mass", "global")]
    write_json(out / f"{log}.json", {"step": "RegisterImages", "state": "failed", "notes": {"attempts": tries}})
    _write_cohort(out, bids, [*scans, failed], ages, tables)
    _write_template(out, variants, scans)
    return out


def _write_cohort(out: Path, bids: Path, scans: list[str], ages: dict[str, float], tables: list[pd.DataFrame]) -> None:
    from popatlas.config.load import load_config

    own = {"atlas": {"label": TEMPLATE}, "measure": {"reference": "derivatives/labels/{scan}_dseg.nii.gz"}}
    text = yaml.safe_dump(load_config(own, bids_dir=str(bids), out_dir=str(out)).content)
    (out / "cohort" / "config.yaml").write_text(text)
    index = pd.DataFrame({"scan": scans, "t1w": [f"{bids / scan}_T1w.nii.gz" for scan in scans]})
    index["role"] = "cohort"
    write_table(index, out / "cohort" / "index.parquet")
    atlases = pd.DataFrame({"atlas": scans[:2], "dseg": "x", "external": False})
    write_table(atlases, out / "cohort" / "label-atlases.tsv")
    bids.mkdir(parents=True, exist_ok=True)
    (bids / "dataset_description.json").write_text(json.dumps({"Name": "Ageing & <growth> study", "BIDSVersion": "1.10.0"}))
    names = pd.DataFrame({"index": list(LABELS), "name": list(LABELS.values())})
    write_table(names, bids / "derivatives" / "labels" / "dseg.tsv")
    metrics = pd.concat(tables, ignore_index=True)
    write_table(metrics, out / "group" / "metrics.parquet")
    wide = metrics[metrics["metric"] == "volume"].assign(column=lambda t: t["method"] + "_" + t["label"])
    volumes = wide.pivot_table(index=["participant_id", "session_id"], columns="column", values="value").reset_index()
    lookup = {Path(scan).name.split("_")[0]: age for scan, age in ages.items()}
    write_table(volumes.assign(age=volumes["participant_id"].map(lookup)), out / "group" / "volumes.tsv")


def _write_template(out: Path, variants: Variants, scans: list[str]) -> None:
    folder = out / f"tpl-{TEMPLATE}"
    save_image(variants.t1w.astype(np.float32), variants.affine, folder / f"tpl-{TEMPLATE}_T1w.nii.gz")
    mask = (variants.t1w > 0).astype(np.uint8)
    save_image(mask, variants.affine, folder / f"tpl-{TEMPLATE}_desc-brain_mask.nii.gz")
    convergence = pd.DataFrame(
        {"iteration": [1, 2, 3], "members": len(scans), "mean_update_mm": [2.9, 0.8, 0.31], "max_update_mm": [7.1, 2.6, 1.2],
         "mean_similarity": [0.905, 0.952, 0.961], "sharpness": [0.111, 0.162, 0.171]}
    )  # fmt: skip
    write_table(convergence, folder / f"tpl-{TEMPLATE}_desc-convergence_table.tsv")
    write_json(
        folder / "template_description.json",
        {"Name": TEMPLATE, "Version": VERSION, "Iterations": 3, "Members": [{"scan": scan} for scan in scans],
         "SpacingMm": [variants.spacing] * 3, "Shape": list(variants.t1w.shape)},
    )  # fmt: skip


def write_fusion(out: Path) -> list[Path]:
    """Write agreement, records and atlas weights of the good scans; the second atlas has little. Return their tables."""
    scans = sorted(
        str(path.relative_to(out))[: -len("_desc-jlf_dseg.nii.gz")] for path in out.glob("**/*_desc-jlf_dseg.nii.gz")
    )
    scans = [scan for scan in scans if (out / f"{scan}_desc-metrics_table.tsv").is_file()]
    tables = []
    for number, scan in enumerate(scans, start=1):
        for place, method in enumerate(METHODS):
            fused = load_image(out / f"{scan}_desc-{method}_dseg.nii.gz", np.int32)
            smooth = gaussian_filter((np.asarray(fused.dataobj) > 0).astype(np.float32), 1.0)
            save_image(0.5 + np.abs(smooth - 0.5), fused.affine, out / f"{scan}_desc-{method}_agreement.nii.gz")
            record = {"state": "ok", "cpu_seconds": 1.0 + 9 * place, "seconds": 2.0 + 9 * place, "peak_mb": 200 + number}
            write_json(out / "logs" / "fuse" / f"{scan}_{method}.log.json", record)
            atlases = [atlas for atlas in scans if atlas != scan]
            atlas_weights = np.array(
                [1.0 if place == 0 else 0.3 + 0.01 * number if atlas == scans[1] else 1.0 for atlas in atlases]
            )
            table = pd.DataFrame(
                {"scan": scan, "method": method, "atlas": atlases, "trust": atlas_weights / atlas_weights.sum()}
            )
            table["rank"] = table["trust"].rank(ascending=False, method="min").astype(int)
            write_table(table.assign(parameter=np.nan, overlap=0.8), out / f"{scan}_desc-{method}_trust.tsv")
            tables.append(out / f"{scan}_desc-{method}_trust.tsv")
    return tables


def run_fusion(out: Path) -> None:
    """Run the steps about all targets of the fusion: atlas weights and bench."""
    from popatlas.interfaces.bench import BenchFusion, TabulateAtlasWeights

    files = {"parquet": "group/trust.parquet", "tsv": "group/trust.tsv", "dictionary": "group/trust.json"}
    outputs = {f"out_{name}": str(out / path) for name, path in (files | {"figure": "report/figures/trust.png"}).items()}
    gates = sorted(map(str, out.glob("**/*_desc-gate_registration.json")))
    TabulateAtlasWeights(in_tables=list(map(str, write_fusion(out))), in_gates=gates, derivatives=str(out), **outputs).run()
    scans = [*(f"sub-0{number}/anat/sub-0{number}" for number in (1, 3, 4, 5)), "sub-02/ses-1/anat/sub-02_ses-1"]
    write_table(pd.DataFrame({"atlas": scans, "dseg": "x", "external": False}), out / "cohort" / "label-atlases.tsv")
    config = yaml.safe_load((out / "cohort" / "config.yaml").read_text())
    (out / "cohort" / "config.yaml").write_text(yaml.safe_dump(config | {"fuse": config["fuse"] | {"bench": True}}))
    truth = out.parent / "bids" / "derivatives" / "labels"
    BenchFusion(
        in_references=[str(truth / f"{scan}_dseg.nii.gz") for scan in scans], scans=scans, methods=METHODS,
        derivatives=str(out), in_names=str(truth / "dseg.tsv"), out_table=str(out / BENCH["parquet"]),
        out_tsv=str(out / BENCH["tsv"]), out_summary=str(out / BENCH["json"]), out_page=str(out / "report" / "fusion.html"),
    ).run()  # fmt: skip
