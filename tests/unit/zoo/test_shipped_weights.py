"""The shipped networks: what the lock file says is true, each has a card, and each finds a known deformation of a brain.

The brain is the MNI152 template, which no network was trained on; its flow is drawn at random.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.deep.contrast import other_contrast
from torch import Tensor

from popatlas.images.grid import Grid
from popatlas.images.phantom import head_model
from popatlas.images.scan import Scan
from popatlas.registration.engines.network.core import predict
from popatlas.training.motion import flow, random_velocity
from popatlas.training.recipe import load_recipe
from popatlas.transforms.fields import warp
from popatlas.transforms.jacobian import jacobian_determinant
from popatlas.zoo.contract import conform_pair
from popatlas.zoo.lock import Entry, read_lock
from popatlas.zoo.metadata import Intensity
from popatlas.zoo.store import load_weights

SHIPPED = read_lock(shipped=True)
DOCS = Path(__file__).parents[3] / "docs"
EACH = pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
LARGEST = 10e6  # bytes of all files, which every user installs
LEFT = {"brain-t1w": 0.75, "brain-contrast": 0.95, "brain-t1w-2d": 0.6}  # share of the error that may stay


@lru_cache(maxsize=1)
def template() -> np.ndarray:
    """The template's brain at 2 mm, values as those of a preprocessed scan."""
    fine = head_model().t1w
    even = fine[tuple(slice(0, n // 2 * 2) for n in fine.shape)]
    blocks = even.reshape([side for n in even.shape for side in (n // 2, 2)]).mean((1, 3, 5))
    blocks[blocks < 0.1] = 0
    return (blocks / np.percentile(blocks[blocks > 0], 99)).clip(0, 1).astype(np.float32)


def deformed(ndim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fixed image, moving image, and the displacement between them; 2D: a slice through the ventricles."""
    image = torch.from_numpy(template())[None, None]
    image = image if ndim == 3 else image[..., 40]
    generator = torch.Generator().manual_seed(3)
    velocity = random_velocity(image.shape[2:], 2.5, (14.0, 16.0), generator)
    truth = flow(velocity, image.shape[2:])
    return warp(image, truth), image, truth


def found(entry: Entry, fixed: Tensor, moving: Tensor) -> Tensor:
    """The displacement that a network finds."""
    net, _ = load_weights(entry.name)
    grid = Grid(tuple(fixed.shape[2:]), np.diag([*[-2.0] * 2, *[2.0] * (entry.ndim - 2), 1.0]))
    pair = conform_pair(Scan(fixed, grid), Scan(moving, grid), np.eye(entry.ndim + 1), entry.input)
    return pair.back(predict(net, [pair])[0].displacement)


def error(displacement: Tensor, truth: Tensor, brain: Tensor) -> float:
    return float((displacement - truth).norm(dim=1)[brain[:, 0]].mean())


def test_there_are_three_and_they_are_small() -> None:
    assert {entry.name for entry in SHIPPED} == {"brain-t1w", "brain-contrast", "brain-t1w-2d"}
    assert sum(entry.path.stat().st_size for entry in SHIPPED) < LARGEST
    assert {path.name for path in SHIPPED[0].folder.glob("*.safetensors")} == {entry.file for entry in SHIPPED}


@EACH
def test_the_lock_file_tells_what_the_recipe_says_and_what_was_measured(entry: Entry) -> None:
    net, _ = load_weights(entry.name)  # digest, size, architecture and recipe are checked
    recipe = load_recipe(str(entry.recipe))
    assert entry.recipe == entry.name and net.describe() == {"name": net.name, "ndim": net.ndim, **net.options}
    assert recipe.network.options.items() <= net.options.items()
    assert entry.input.spacing_mm == (2.0,) * entry.ndim and entry.input.stripped and entry.input.affine_first
    assert entry.input.intensity == Intensity("robust") and entry.licence == "CC-BY-SA-3.0"
    assert (DOCS.parent / str(entry.model_card)).is_file() and entry.sha256 in (
        DOCS.parent / str(entry.model_card)
    ).read_text()
    commands = {score.command for score in entry.scores}
    assert commands == {f"popatlas train {entry.recipe}", "python -m benchmarks.deep"}


@EACH
def test_a_known_deformation_of_the_template_is_found(entry: Entry) -> None:
    fixed, moving, truth = deformed(entry.ndim)
    displacement, brain = found(entry, fixed, moving), fixed > 0
    before, after = error(torch.zeros_like(truth), truth, brain), error(displacement, truth, brain)
    assert before > 1.0 and after < LEFT[entry.name] * before
    assert bool((jacobian_determinant(displacement)[0][brain[0, 0]] > 0).all())


def test_the_contrast_network_finds_it_in_other_contrasts_and_the_t1w_network_does_not() -> None:
    fixed, moving, truth = deformed(3)
    brain = fixed > 0
    for name in ("inverted", "t2"):
        other = torch.from_numpy(other_contrast(fixed[0, 0].numpy(), name))[None, None]
        errors = {entry.name: error(found(entry, other, moving), truth, brain) for entry in SHIPPED if entry.ndim == 3}
        before = error(torch.zeros_like(truth), truth, brain)
        assert errors["brain-contrast"] < LEFT["brain-contrast"] * before < before < errors["brain-t1w"]
