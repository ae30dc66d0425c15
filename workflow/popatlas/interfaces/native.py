"""The step that brings labels back to the grid of the raw image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import File

from popatlas.images.grid import Grid
from popatlas.images.io import save_as_raw, write_json
from popatlas.images.labels import read_labels
from popatlas.interfaces.base import PopatlasInputSpec, PopatlasInterface


class LabelsToNativeInputSpec(PopatlasInputSpec):
    """Inputs of LabelsToNative."""

    in_labels = File(exists=True, mandatory=True, desc="labels on the preprocessed grid")
    in_raw = File(exists=True, mandatory=True, desc="raw image, which gives the grid")
    out_file = File(mandatory=True, desc="labels on the grid of the raw image, int32")
    out_description = File(mandatory=True, desc="what they are and the volume of each, JSON")


class LabelsToNative(PopatlasInterface):
    """Bring labels to the grid of the raw image: the label with the largest linear weight at each voxel.

    World coordinates are kept by preprocessing, so that nothing is registered. The file has the forms of the raw header.
    """

    input_spec = LabelsToNativeInputSpec

    def _execute(self) -> None:
        from popatlas.fusion.native import labels_on_grid
        from popatlas.measures.volumes import volumes

        inputs = self.inputs
        given = read_labels(inputs.in_labels, inputs.subject, empty=True)
        grid = Grid.from_file(inputs.in_raw)
        to_ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
        found = labels_on_grid(given.data, given.affine, grid.shape, to_ras)
        save_as_raw(found, inputs.in_raw, inputs.out_file)
        measured = volumes(found, to_ras)
        write_json(
            inputs.out_description,
            {
                "Description": "Labels on the grid of the raw image: at each voxel the one with the largest linear weight",
                "Manual": False,
                "SpatialReference": "orig",
                "Sources": [Path(inputs.in_labels).name, Path(inputs.in_raw).name],
                "Resolution": "Matched with the raw image, " + " x ".join(f"{mm:.4g}" for mm in grid.spacing) + " mm",
                "Volumes": {str(label): round(ml, 6) for label, ml in measured.itertuples(index=False)},
                "VolumesUnits": "ml",
            },
        )
