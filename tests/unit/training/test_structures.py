"""Labels whose structures may overlap: their maps and losses, those of label maps beside them, and their files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.images.io import read_table, write_table
from popatlas.networks.registration import Prediction, build_registration_network
from popatlas.training.augment import augment
from popatlas.training.boxes import boxes_of
from popatlas.training.conform import load_labels, load_scan
from popatlas.training.grid import TrainingGrid
from popatlas.training.labelfiles import check_structures
from popatlas.training.objective import Batch, Objective
from popatlas.training.recipe import load_recipe, parse_changes
from popatlas.training.settings import AugmentSettings
from popatlas.training.sources import ScanSource, make_source
from popatlas.training.structures import (
    exchanged,
    foreground,
    painted,
    sample_structures,
    structure_dice,
    structure_maps,
    structures_of,
)
from popatlas.training.table import TrainingScan, read_training_table
from popatlas.training.validation import mean_dice, validate
from tests.unit.phantom_scans import write_scans
from tests.unit.training.test_table import ramp, save

SHAPE = (12, 14, 10)
SHIFT = 3


def channels(labels: Tensor, count: int) -> Tensor:
    """The same structures as a label map, with a channel for each."""
    return torch.cat([(labels == number).int() for number in range(1, count + 1)], 1)


def nested(offset: int = 0) -> Tensor:
    """A gland and a zone inside of it; the third structure is missing."""
    labels = torch.zeros(1, 3, 16, 16, dtype=torch.int32)
    labels[0, 0, 2 + offset : 10 + offset, 3:11] = 1
    labels[0, 1, 4 + offset : 7 + offset, 5:8] = 1
    return labels


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_map(seed: int) -> Tensor:
    return torch.randint(0, 4, (1, 1, 16, 16), generator=generator(seed), dtype=torch.int32)


@pytest.mark.parametrize(
    "changes",
    [
        ("loss.labels={weight: 1, count: 2, kind: dice}",),
        ("loss.labels={weight: 1, count: 3, kind: multiscale_dice, sigmas: [0, 1, 2]}",),
        ("loss.boxes={weight: 1, count: 2}",),
    ],
)
def test_structures_that_do_not_overlap_cost_what_their_label_map_costs(changes: tuple[str, ...]) -> None:
    no = ("loss.similarity.weight=0", "loss.regulariser.weight=0", "grid.shape=[16, 16]")
    objective = Objective(load_recipe("base", parse_changes([*no, *changes])))
    fixed, moving, image = random_map(1), random_map(2), torch.rand(1, 1, 16, 16)
    field = 2 * torch.randn(1, 2, 16, 16, generator=generator(3))
    kinds = [(fixed, moving), (channels(fixed, 3), channels(moving, 3))]
    losses = [float(objective(Batch(image, image, *pair), Prediction(field), generator())[0]) for pair in kinds]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0] != 0


def test_maps_of_structures_overlap_and_empty_channels_are_none() -> None:
    labels = nested()
    assert structures_of(labels).tolist() == [1, 2]
    maps = structure_maps(labels, [2, 1, 3, 4, 0])
    assert maps[0, :2].sum((1, 2)).tolist() == [9, 64] and float((maps[0, 0] * maps[0, 1]).sum()) == 9
    assert not maps[:, 2:].any() and maps.dtype == torch.float32
    assert torch.equal(foreground(labels), maps[:, 1:2])
    assert boxes_of(labels, [2])[0, 0].tolist() == [[4, 7], [5, 8]]


def test_only_structures_that_both_have_are_drawn() -> None:
    moving = nested()
    moving[0, 2, 0, 0] = 1
    drawn = {tuple(sample_structures(nested(), moving, 1, generator(seed)).tolist()) for seed in range(20)}
    assert drawn == {(1,), (2,)}
    moving[0, 1] = 0
    assert sample_structures(nested(), moving, 5, generator()).tolist() == [1]


def test_dice_of_each_structure() -> None:
    """A shift by 3 of 8 voxels, and of 3: what a label map with the zone cut out of the gland could not tell."""
    found = structure_dice(nested(), nested(SHIFT), nested(SHIFT))
    assert found == {1: pytest.approx(5 / 8), 2: 0.0}
    assert mean_dice(nested(), nested(SHIFT), nested(SHIFT)) == pytest.approx(5 / 16)
    assert structure_dice(nested(), nested(), nested(SHIFT)) == {1: 1.0, 2: 1.0}


def test_painted_structures_add_up_where_they_overlap() -> None:
    fixed, moving = painted(nested(), nested(SHIFT), generator(5))
    assert torch.equal(fixed.roll(SHIFT, 2), moving)
    gland, zone = torch.rand(3, generator=generator(5))[:2].tolist()
    assert sorted(fixed.unique().tolist()) == pytest.approx([0, gland, gland + zone])


def test_a_mirrored_scan_exchanges_the_sides_of_its_structures() -> None:
    labels = nested()
    assert torch.equal(exchanged(labels, ((1, 2),)), labels[:, [1, 0, 2]])
    assert not exchanged(labels, ((1, 4),))[:, 0].any()
    assert torch.equal(exchanged(labels, ()), labels)


# Files


def stack(*volumes: np.ndarray) -> np.ndarray:
    return np.stack(volumes, -1)


GLAND, ZONE = np.zeros(SHAPE), np.zeros(SHAPE)
GLAND[2:9, 3:10, 2:8] = 1
ZONE[4:7, 5:8, 3:6] = 1


def scan(folder: Path, labels: np.ndarray, name: str = "a", **more: str) -> TrainingScan:
    image = save(folder / f"{name}.nii.gz", ramp(SHAPE))
    return TrainingScan(name, image, labels=save(folder / f"{name}_dseg.nii.gz", labels), **more)


@pytest.mark.parametrize(
    "written",
    [
        stack(GLAND, ZONE),
        255 * stack(GLAND, ZONE),
        stack(GLAND * 0.9, ZONE * 0.6 + 0.1),
        stack(GLAND, 7 * ZONE),
    ],
    ids=["0 and 1", "0 and 255", "shares", "own numbers"],
)
def test_a_file_of_four_axes_holds_a_structure_in_each_volume(tmp_path: Path, written: np.ndarray) -> None:
    volume = load_scan(scan(tmp_path, written), TrainingGrid(SHAPE, (1.0,) * 3), "none")
    assert volume.labels is not None and volume.labels.dtype == torch.int32
    np.testing.assert_array_equal(volume.labels[0].numpy(), np.stack([GLAND, ZONE]))
    shift = torch.zeros(1, 3, *SHAPE)
    shift[:, 0] = 1
    assert torch.equal(volume.moved(shift).labels[:, :, :-1], volume.labels[:, :, 1:])
    assert augment(volume, AugmentSettings(), generator()).labels.shape == (1, 2, *SHAPE)


def test_missing_structures_are_filled_up_and_a_label_map_is_divided(tmp_path: Path) -> None:
    grid = TrainingGrid(SHAPE, (1.0,) * 3)
    found = load_scan(scan(tmp_path, stack(GLAND, ZONE)), grid, structures=3).labels
    assert found.shape[1] == 3 and not found[:, 2].any()
    label_map = GLAND + ZONE
    found = load_scan(scan(tmp_path, label_map), grid, structures=3).labels
    np.testing.assert_array_equal(found[0].numpy(), np.stack([GLAND - ZONE, ZONE, 0 * ZONE]))
    assert load_scan(scan(tmp_path, label_map), grid).labels.shape[1] == 1
    with pytest.raises(InputError, match="label 7 of a label map, where the other files have at most 3 structures"):
        load_scan(scan(tmp_path, 7 * ZONE), grid, structures=3)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (stack(GLAND, 0 * ZONE), "volume 2 of 2 is empty.*leave its volume out of both files"),
        (stack(GLAND + ZONE, ZONE), "volume 1 of 2 has several values from 0 to 2"),
        (stack(GLAND, ZONE - 1), "volume 2 of 2 has values that are negative"),
        (stack(GLAND, np.where(ZONE > 0, np.nan, 0)), "volume 2 of 2 has values that are .*not finite"),
    ],
)
def test_volumes_that_hold_no_structure_are_refused(tmp_path: Path, written: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_scan(scan(tmp_path, written), TrainingGrid(SHAPE, (1.0,) * 3))
    assert caught.value.file == tmp_path / "a_dseg.nii.gz" and caught.value.subject == "a" and caught.value.remedy


def test_structures_off_their_image_are_refused(tmp_path: Path) -> None:
    one = scan(tmp_path, stack(GLAND, ZONE))
    save(one.labels, stack(GLAND, ZONE), np.diag([1.0, 1, 1, 1]) + 5 * np.eye(4, k=3))
    with pytest.raises(InputError, match="do not lie on it"):
        load_scan(one, TrainingGrid(SHAPE, (1.0,) * 3))


def test_both_scans_of_a_pair_have_the_same_structures(tmp_path: Path) -> None:
    three, two = stack(GLAND, ZONE, ZONE), stack(GLAND, ZONE)
    pair = [scan(tmp_path, labels, name, group="p") for labels, name in ((three, "us"), (two, "mr"))]
    with pytest.raises(InputError, match=r"2 structures, and us, .*has 3 structures in .*us_dseg") as caught:
        check_structures(pair)
    assert caught.value.subject == "mr" and "same structures in the same order" in caught.value.remedy
    other = scan(tmp_path, GLAND, "flat", group="p")
    with pytest.raises(InputError, match="a label map, and us"):
        check_structures([pair[0], other])
    good = [scan(tmp_path, labels, name, group=group) for labels, name, group in ((three, "x", "g"), (two, "y", "h"))]
    assert check_structures(good) == 3 and check_structures([other]) == 0
    assert check_structures([pair[0], scan(tmp_path, two, "z", group="p", split="test")]) == 3


def test_images_are_not_drawn_from_structures_that_overlap(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2 structures, which may overlap.*merge them"):
        load_labels(scan(tmp_path, stack(GLAND, ZONE)), TrainingGrid(SHAPE, (1.0,) * 3))


# Training


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms whose body holds their organs; some have two structures only."""
    path = write_scans(tmp_path_factory.mktemp("overlap"), subjects=6)
    rows = read_table(path, dtype=str)
    for number, file in enumerate(rows["labels"]):
        labels = np.asarray(nib.load(path.parent / file).dataobj)
        volumes = [labels > 0, labels == 2, labels == 3][: 2 + (number % 4 < 2)]
        save(path.parent / file, stack(*volumes)[:, :, None], np.diag([2.0, 2, 2, 1]))
    write_table(rows.assign(group=["a", "a", "b", "b", "v", "v"]), path)
    return path


def test_a_batch_of_pairs_with_different_structures_is_learnt_from(table: Path) -> None:
    plan = ("grid.shape=[32,32]", "network.options={channels: 4, halvings: 2}", "data.order=any", "loss.labels.count=2")
    recipe = load_recipe("labelreg", parse_changes(list(plan)))
    source = make_source(recipe, read_training_table(table))
    assert isinstance(source, ScanSource) and source.structures == 3
    batch = source.draw(6, generator())
    assert batch.fixed_labels.shape == (6, 3, 32, 32)
    assert torch.equal(batch.fixed_mask, foreground(batch.fixed_labels))
    assert set(batch.fixed_labels.flatten(2).any(2).sum(1).tolist()) == {2, 3}
    net = build_registration_network(recipe.network.name, 2, **recipe.network.options)
    loss, _ = Objective(recipe)(batch, net(batch.fixed, batch.moving), generator())
    loss.backward()
    assert any(value.grad is not None and value.grad.any() for value in net.parameters())
    scores = validate(net, source.validation())
    each = [scores[f"dice_{number}"] for number in (1, 2, 3)]
    assert all(0 < dice < 1 for dice in each) and scores["dice"] == pytest.approx(sum(each) / 3)
