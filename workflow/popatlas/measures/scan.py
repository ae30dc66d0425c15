"""Everything that can be measured about one scan, as tidy rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from popatlas.images.io import load_image, read_table
from popatlas.images.labels import LabelImage, read_labels, read_mask
from popatlas.images.place import check_place, read_mask_on
from popatlas.measures.attempts import attempt_rows
from popatlas.measures.dictionary import AFFINE, BRAIN, COLUMNS, MASK, REFERENCE, REGISTRATION, TISSUES
from popatlas.measures.landmarks import AXES, read_landmarks, to_template
from popatlas.measures.metrics import OF_FIELDS, OF_IMAGES, OF_LABELS, measure, unit_of
from popatlas.measures.names import find_names, read_names
from popatlas.measures.overlap import LabelPair
from popatlas.measures.scores import label_scores
from popatlas.measures.sessions import affine_rows
from popatlas.measures.volumes import volumes
from popatlas.transforms.resample import Step, resample

Row = tuple[str, str, str, float]  # method, label, metric, value


@dataclass(frozen=True)
class ScanFiles:
    """Files of one scan; whatever is left out is not measured.

    Attributes
    ----------
    scan : str
        Key, for example ``sub-01/ses-1/anat/sub-01_ses-1``.
    template : str
        ``label@version``.
    mask, brain : Path
        Brain mask and brain on the preprocessed grid.
    labels : mapping of str to Path
        Fused labels by method.
    tissues : Path
        Table of the volumes of the tissues (name, volume_ml).
    reference, names, landmarks : Path
        Reference labels on any grid of the same world space, table of label names (index, name; the one beside the
        reference when left out), landmark table.
    template_brain, template_mask, warped : Path
        Template, its brain mask, and the brain of the scan resampled to it.
    log_jacobian : Path
        Log Jacobian of the composed displacement field (template to subject points).
    affine, inverse_warp : Path
        Parts of the registration.
    gate : Path
        What the gate of the registration wrote.
    """

    scan: str
    template: str = ""
    mask: Path | None = None
    brain: Path | None = None
    labels: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    tissues: Path | None = None
    reference: Path | None = None
    names: Path | None = None
    landmarks: Path | None = None
    template_brain: Path | None = None
    template_mask: Path | None = None
    warped: Path | None = None
    log_jacobian: Path | None = None
    affine: Path | None = None
    inverse_warp: Path | None = None
    gate: Path | None = None


def split_scan(scan: str) -> tuple[str, str]:
    """Return (subject, session) of a scan key; the session is empty where there is none."""
    parts = Path(scan).name.split("_")
    return parts[0], next((part for part in parts[1:] if part.startswith("ses-")), "")


def measure_scan(files: ScanFiles, surface: bool = True, min_voxels: int = 1) -> pd.DataFrame:
    """Measure one scan.

    Parameters
    ----------
    files : ScanFiles
        What there is.
    surface : bool
        Measure surface distances too.
    min_voxels : int
        Reference labels with fewer voxels (on the grid of the fused labels) are not scored.

    Returns
    -------
    DataFrame
        Columns of :data:`popatlas.measures.dictionary.COLUMNS`, one row per value; zero rows when nothing is given.

    Raises
    ------
    InputError
        When a file that is given cannot be read or used, or the reference does not lie on the brain.
    """
    rows = [
        *_mask_rows(files),
        *_label_rows(files, surface, max(min_voxels, 1)),
        *_tissue_rows(files),
        *_registration_rows(files),
        *_landmark_rows(files),
        *_session_rows(files),
        *(attempt_rows(files.gate) if files.gate is not None else ()),
    ]
    participant, session = split_scan(files.scan)
    table = pd.DataFrame(rows, columns=["method", "label", "metric", "value"])
    table = table.assign(participant_id=participant, session_id=session, template=files.template)
    table["unit"] = table["metric"].map(unit_of)
    table["value"] = table["value"].astype(float)
    return table[COLUMNS]


def resample_labels(labels: Path | LabelImage, grid: nib.Nifti1Image) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Return labels as (x, y, z) int32 on the grid of an image of the same world space, by nearest neighbour."""
    from nibabel.processing import resample_from_to

    given = labels if isinstance(labels, LabelImage) else read_labels(labels)
    if given.data.shape == grid.shape and np.allclose(given.affine, grid.affine, atol=1e-4):
        return given.data
    moved = resample_from_to(given.image, (grid.shape, grid.affine), order=0, mode="constant", cval=0)
    return np.asarray(moved.dataobj, dtype=np.int32)


def _mask_rows(files: ScanFiles) -> Iterator[Row]:
    if files.mask is not None:
        mask = _mask(files.mask, files.brain, files.scan)
        table = volumes(mask.data, mask.affine)
        yield MASK, BRAIN, "volume", float(table["volume"].sum())


def _label_rows(files: ScanFiles, surface: bool, min_voxels: int) -> Iterator[Row]:
    names = read_names(files.names or find_names(files.reference))

    def name(label: int) -> str:
        return names.get(label, str(label))

    given = _reference(files)
    if given is not None:
        for label, value in volumes(given.data, given.affine).itertuples(index=False):
            yield REFERENCE, name(int(label)), "volume", value
    for method, path in files.labels.items():
        found = read_labels(path, files.scan, empty=True)
        fused, image = found.data, found.image
        for label, value in volumes(fused, image.affine).itertuples(index=False):
            yield method, name(int(label)), "volume", value
        if given is None:
            continue
        metrics = {key: metric for key, metric in OF_LABELS.items() if metric.scan and (surface or not metric.slow)}
        pair = LabelPair(resample_labels(given, image), fused, image.affine, min_voxels=min_voxels)
        for label, metric, value, _ in label_scores(pair, metrics).itertuples(index=False):
            yield method, name(int(label)), str(metric), float(value)


def _tissue_rows(files: ScanFiles) -> Iterator[Row]:
    if files.tissues is not None:
        table = read_table(files.tissues)
        for name, volume in zip(table["name"], table["volume_ml"], strict=True):
            yield TISSUES, str(name), "volume", float(volume)


def _reference(files: ScanFiles) -> LabelImage | None:
    """Return the reference labels, which must lie on the brain of the scan."""
    if files.reference is None:
        return None
    given = read_labels(files.reference, files.scan)
    check_place(given, files.scan, mask=None if files.mask is None else _mask(files.mask, files.brain, files.scan))
    return given


def _mask(mask: Path, brain: Path | None, scan: str) -> LabelImage:
    """Return a brain mask, which must lie on the grid of its brain."""
    return read_mask(mask, scan) if brain is None else read_mask_on(mask, brain, scan, names=("brain", "its mask"))


def _registration_rows(files: ScanFiles) -> Iterator[Row]:
    if files.template_brain is None or files.template_mask is None:
        return
    template = np.asarray(load_image(files.template_brain).dataobj)
    mask = _mask(files.template_mask, files.template_brain, files.scan).data
    if files.brain is not None and files.affine is not None:
        moved = resample(files.template_brain, files.brain, [Step(files.affine)], "linear", files.scan)
        yield from ((AFFINE, BRAIN, *found) for found in measure(OF_IMAGES, template, moved, mask).items())
    if files.warped is not None:
        warped = np.asarray(load_image(files.warped).dataobj)
        yield from ((REGISTRATION, BRAIN, *found) for found in measure(OF_IMAGES, template, warped, mask).items())
    if files.log_jacobian is not None:
        field = np.asarray(load_image(files.log_jacobian).dataobj)
        yield from ((REGISTRATION, BRAIN, *found) for found in measure(OF_FIELDS, field, mask).items())


def _session_rows(files: ScanFiles) -> Iterator[Row]:
    if split_scan(files.scan)[1] and files.affine is not None and files.template_brain is not None:
        yield from affine_rows(files.affine, files.template_brain)


def _landmark_rows(files: ScanFiles) -> Iterator[Row]:
    if files.landmarks is None or files.affine is None or files.inverse_warp is None:
        return
    table = read_landmarks(files.landmarks, files.scan)
    points = to_template(table[AXES].to_numpy(dtype=float), files.affine, files.inverse_warp)
    for name, point in zip(table["name"], points, strict=True):
        for axis, value in zip(AXES, point, strict=True):
            yield REGISTRATION, str(name), f"landmark_{axis}", float(value)
