"""Pictures of the template: the image in three planes, and its tissue probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from popatlas.groupwise.settings import TISSUES
from popatlas.report.figures import Cell, Gray, draw_sheet, planes, window
from popatlas.report.panels import PLANE_TITLES, Figure, ScanImages


def draw_template(images: ScanImages, folder: Path) -> Figure | None:
    """Draw the template in three planes as `template.webp`; None when there is none."""
    if images.target is None:
        return None
    data = images.target.data
    rows = planes(images.target.view, [Gray(data, *window(data))])
    path = folder / "template.webp"
    width, height = draw_sheet(rows, path, titles=PLANE_TITLES)
    alt = f"Template tpl-{images.label}: seven axial, coronal and sagittal slices."
    return Figure("template", "Template", "", alt, path, width, height)


def draw_tissue_maps(images: ScanImages, folder: Path) -> Figure | None:
    """Draw the tissue probabilities of the template as `template-tissues.webp`; None when there are none."""
    if images.target is None or images.tissue_maps is None:
        return None
    mean = images.tissue_maps @ np.arange(1, images.tissue_maps.shape[-1] + 1)
    rows = [[Cell(images.target.view, cut, [Gray(mean, 0.0, float(len(TISSUES)))]) for cut in images.target.view.mixed()]]
    path = folder / "template-tissues.webp"
    width, height = draw_sheet(rows, path, titles=("tissues",))
    alt = f"Tissue probabilities of tpl-{images.label}: dark fluid, grey grey matter, bright white matter."
    return Figure("tissues", "Tissue probabilities", "", alt, path, width, height)
