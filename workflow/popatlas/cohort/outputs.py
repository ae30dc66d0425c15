"""What each stage leaves for a scan: the one list that the ledger, the tests and the docs read."""

from __future__ import annotations

from collections.abc import Sequence

from popatlas.config import Config
from popatlas.fusion.names import MAPS, SEGMENTER


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
    label = config["atlas"]["label"]
    fused = fusion_outputs(config) if labelled else []
    segmented = [f"{{scan}}_desc-{SEGMENTER}_dseg.nii.gz"] if labelled and config["fuse"]["segmenter"]["enabled"] else []
    return {
        "preprocess": [
            "{scan}_desc-preproc_T1w.nii.gz",
            "{scan}_desc-brain_mask.nii.gz",
            "{scan}_desc-brain_T1w.nii.gz",
            "{scan}_desc-qc_mask.json",
        ],
        "register": [
            f"{{scan}}_from-T1w_to-{label}_mode-image_xfm.nii.gz",
            f"{{scan}}_from-{label}_to-T1w_mode-image_xfm.nii.gz",
            f"{{scan}}_space-{label}_desc-brain_T1w.nii.gz",
            f"{{scan}}_space-{label}_desc-logjacobian_T1w.nii.gz",
        ],
        "fuse": [*fused, *segmented],
        "measure": ["{scan}_desc-metrics_table.tsv"],
        "channel": ["{scan}_space-T1w_desc-preproc_{channel}.nii.gz"],
        "page": ["report/thumbnails/{scan}.png"],
        "bench": fused if config["fuse"]["bench"] else [],
    }


def fusion_outputs(config: Config) -> list[str]:
    """Return what the fusion methods leave for a scan: labels, trust of the atlases, and maps where they are wanted."""
    kinds = ["dseg.nii.gz", "trust.tsv", *(f"{name}.nii.gz" for name in MAPS if config["fuse"]["maps"])]
    return [f"{{scan}}_desc-{method}_{kind}" for method in config["fuse"]["methods"] for kind in kinds]


def without_atlases(patterns: Sequence[str]) -> list[str]:
    """Return what a stage leaves for a scan that no atlas serves: of labels, those of the network."""
    return [pattern for pattern in patterns if f"_desc-{SEGMENTER}_" in pattern]
