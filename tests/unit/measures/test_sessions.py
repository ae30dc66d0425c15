"""Sessions are compared by their affines."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation

from popatlas.images.grid import Grid
from popatlas.images.io import save_image
from popatlas.measures.metrics import METRICS
from popatlas.measures.scan import ScanFiles, measure_scan
from popatlas.measures.sessions import COORDINATES, DISTANCE, SHAPE, session_distances
from popatlas.transforms.griddistance import grid_distance_mm
from popatlas.transforms.itk import write_affine


def affine(scale=1.0, degrees=0.0, shift=(0.0, 0.0, 0.0)):
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = scale * Rotation.from_rotvec([0, degrees, 0], degrees=True).as_matrix(), shift
    return matrix


def test_the_distance_of_two_sessions_is_that_of_their_affines_and_a_rigid_motion_has_no_part_in_that_of_the_shape(
    tmp_path: Path,
):
    template = tmp_path / "template.nii.gz"
    turned = np.array([[0.0, 2.0, 0.0, 5.0], [1.5, 0.0, 0.0, -40.0], [0.0, 0.0, 1.0, 7.0], [0.0, 0.0, 0.0, 1.0]])
    save_image(np.random.default_rng(0).random((20, 30, 25), np.float32), turned, template)
    grid, matrices = (
        Grid.from_file(template),
        {"1": affine(), "2": affine(1.0, 20, (3, -4, 12)), "3": affine(1.02, 20, (3, -4, 12))},
    )
    tables = []
    for session, matrix in matrices.items():
        write_affine(tmp_path / f"{session}.mat", matrix)
        files = {"affine": tmp_path / f"{session}.mat", "template_brain": template}
        tables.append(measure_scan(ScanFiles(f"sub-1/ses-{session}/anat/sub-1_ses-{session}", "t@0", **files)))
        assert measure_scan(ScanFiles("sub-1/anat/sub-1", "t@0", **files)).empty  # nothing to compare without sessions
    found = session_distances(pd.concat(tables)).set_index(["session_id", "label", "metric"])["value"]
    expected = [grid_distance_mm(matrices[a], matrices[b], grid) for a, b in (("1", "2"), ("2", "3"))]
    assert found["ses-2", "ses-1", DISTANCE] == pytest.approx(expected[0])
    assert found["ses-3", "ses-2", DISTANCE] == pytest.approx(expected[1])
    assert found["ses-2", "ses-1", SHAPE] == pytest.approx(0, abs=1e-4)
    spread = np.sqrt((((np.array(grid.shape) ** 2 - 1) / 12) * np.array(grid.spacing) ** 2).sum())
    assert found["ses-3", "ses-2", SHAPE] == pytest.approx(0.02 * spread, rel=1e-4)
    assert len(found) == 4 and {DISTANCE, SHAPE, *COORDINATES} <= set(METRICS)
