"""Scans that are moved in training are interpolated once, from the voxels of their files."""

from dataclasses import replace

import numpy as np
import torch

from popatlas.training.conform import load_scan, middle_of
from popatlas.training.grid import TrainingGrid
from popatlas.training.table import TrainingScan
from popatlas.transforms.itk import write_affine
from tests.unit.training.test_table import save


def test_a_scan_that_is_moved_is_interpolated_once_from_its_file(tmp_path):
    """By half a voxel there and back: through the file's voxels nothing is lost, through those of the grid it is."""
    generator = np.random.default_rng(4)
    image = generator.random((20, 22, 24)).astype(np.float32)
    labels = generator.integers(0, 5, image.shape).astype(np.int16)
    half = np.eye(4)
    half[:3, 3] = -0.5  # millimetres, LPS
    write_affine(tmp_path / "half.mat", half)
    files = save(tmp_path / "image.nii.gz", image), save(tmp_path / "labels.nii.gz", labels)
    scan = TrainingScan("a", files[0], labels=files[1], affine=tmp_path / "half.mat")
    grid = TrainingGrid((16, 16, 16), (1.0,) * 3, centre=tuple(value + 0.5 for value in middle_of(scan)))
    volume = load_scan(scan, grid, "none")
    offset = volume.origins["image"][1][0, :3, 3]
    back = (offset.round() - offset).to(torch.float32).reshape(1, 3, 1, 1, 1).expand(1, 3, 16, 16, 16)
    assert 0.4 < float(back.abs().max()) < 0.6
    found = volume.moved(back.contiguous())
    start = [round(float(value)) for value in offset]
    inside = tuple(slice(low, low + 16) for low in start)
    np.testing.assert_allclose(found.image[0, 0].numpy(), image[inside], atol=1e-4)
    np.testing.assert_array_equal(found.labels[0, 0].numpy(), labels[inside])
    twice = replace(volume, origins={}).moved(back.contiguous())
    assert float((twice.image - found.image).abs().mean()) > 0.05
    assert not found.origins


def test_arrays_that_are_much_finer_than_the_grid_are_not_kept(tmp_path):
    scan = TrainingScan("a", save(tmp_path / "fine.nii.gz", np.random.default_rng(5).random((24, 24, 24))))
    for size, kept in ((16, True), (12, False)):
        assert bool(load_scan(scan, TrainingGrid((size,) * 3, (1.0,) * 3), "none").origins) is kept
