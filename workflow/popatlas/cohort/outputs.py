"""What each stage leaves for a scan: the one list that the ledger, the tests and the docs read."""

from __future__ import annotations

from popatlas.config import Config


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
        group result needs. `{channel}` stands for each extra channel that the scan has.
    """
    label = config["atlas"]["label"]
    methods = config["fuse"]["methods"] if labelled else []
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
        "fuse": [f"{{scan}}_desc-{method}_dseg.nii.gz" for method in methods],
        "measure": ["{scan}_desc-metrics_table.tsv"],
        "channel": ["{scan}_space-T1w_desc-preproc_{channel}.nii.gz"],
        "page": ["report/thumbnails/{scan}.png"],
    }
