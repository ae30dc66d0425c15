"""Finding the head in any field of view and in any pose; deepbet runs on a head that is drawn round the MNI152 brain."""

from __future__ import annotations

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import affine_transform, binary_closing, binary_dilation, gaussian_filter
from scipy.spatial.transform import Rotation

from popatlas.groupwise.template import reference_brain
from popatlas.preprocess.brain import DeepBetExtractor, tidy_mask
from popatlas.preprocess.head import USUAL_FIELD_MM, coarse_head, head_window
from popatlas.preprocess.network import DeepBet, Finding, turned_back, turned_by
from popatlas.preprocess.pose import Pose, find_poses
from popatlas.preprocess.quality import mask_quality
from popatlas.preprocess.shape import measure_shape

SPACING = np.full(3, 2.0)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


@pytest.fixture(scope="module")
def head() -> tuple[np.ndarray, np.ndarray]:
    """Return a head (dark skull, bright scalp, a neck) and its brain mask, 2 mm."""
    brain = np.pad(reference_brain(2.0)[0], 12)
    mask = tidy_mask(binary_closing(brain > 0.05, iterations=2)) > 0
    skull = binary_dilation(mask, iterations=4)
    scalp = binary_dilation(skull, iterations=3)
    x, y, z = np.indices(mask.shape) - np.array([mask.shape[0] / 2, mask.shape[1] / 2, 0]).reshape(3, 1, 1, 1)
    neck = (np.hypot(x, y) < 28) & (z < 30)
    data = np.where(mask, brain, np.where(skull, 0.08, np.where(scalp, 1.3, np.where(neck, 0.5, 0.0))))
    noisy = gaussian_filter(data, 0.4) * 400 + np.abs(np.random.default_rng(1).normal(0, 6, data.shape))
    return noisy.astype(np.float32), mask


def surrounded(data: np.ndarray, shape: tuple[int, ...], at: tuple[int, ...], fill: np.ndarray | float = 0.0) -> np.ndarray:
    """Put an image into a larger field of view."""
    field = np.zeros(shape, data.dtype) + np.asarray(fill, data.dtype)
    field[tuple(slice(start, start + count) for start, count in zip(at, data.shape, strict=True))] = data
    return field


def dice(one: np.ndarray, two: np.ndarray) -> float:
    return 2 * float((one & two).sum()) / float(one.sum() + two.sum())


# Window


def test_a_usual_field_of_view_is_left_whole(head) -> None:
    assert head_window(head[0], SPACING) == (slice(None),) * 3


@pytest.mark.parametrize("at", [(40, 30, 50), (0, 0, 10), (80, 60, 80)])
@pytest.mark.parametrize("surroundings", ["nothing", "noise", "offset and noise", "headrest", "shoulders"])
def test_the_window_holds_the_head_and_moves_with_it(head, at, surroundings) -> None:
    data, mask = head
    shape = (210, 200, 210)
    noise = np.abs(np.random.default_rng(2).normal(0, 8, shape)).astype(np.float32)
    fill = noise if surroundings != "nothing" else np.float32(0)
    field = surrounded(data, shape, at, fill)
    if surroundings == "offset and noise":
        field = field + noise + 300
    if surroundings == "headrest":
        field[:, max(0, at[1] - 6) : max(0, at[1] - 3)] = 300
    if surroundings == "shoulders":
        x, y, z = np.indices(shape, sparse=True)
        wide = (((x - at[0] - 56) / 100) ** 2 + ((y - at[1] - 65) / 45) ** 2 < 1) & (z < at[2] + 2)
        field = np.maximum(field, 180 * (wide | ((np.hypot(x - at[0] - 56, y - at[1] - 65) < 26) & (z < at[2] + 9))))
    window = head_window(field, SPACING)
    inside = surrounded(mask, shape, at)[window]
    assert inside.sum() == mask.sum(), "the whole brain is in it"
    assert all(2 * count <= USUAL_FIELD_MM for count in inside.shape)
    top = np.flatnonzero(inside.any(axis=(0, 1)))[-1]
    assert 20 <= 2 * (inside.shape[2] - top) <= 60 or window[2].stop == shape[2], "the top of the head is near its top"


def test_only_axes_that_are_long_are_cut(head) -> None:
    data, _ = head
    field = surrounded(data, (*data.shape[:2], 250), (0, 0, 100))
    window = head_window(field, SPACING)
    assert window[:2] == (slice(None), slice(None))
    assert 2 * (window[2].stop - window[2].start) == pytest.approx(250, abs=2)


def test_a_window_of_nothing() -> None:
    assert head_window(np.zeros((200, 200, 200), np.float32), SPACING) == (slice(None),) * 3


# Shape


def turns() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the 24 proper rotations as orders and signs of the axes."""
    matrices = []
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        matrix = np.eye(3)[list(order)].T * np.array(signs)
        if np.linalg.det(matrix) > 0:
            matrices.append((order, signs))
    return matrices


@pytest.fixture(scope="module")
def nodded(head) -> tuple[np.ndarray, np.ndarray]:
    """Return head and mask with the chin up by 15 degrees, as most people lie."""
    return turned_freely(head, Rotation.from_euler("x", -15, degrees=True).as_matrix())


def turned_freely(head: tuple[np.ndarray, np.ndarray], rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    middle = (np.array(head[0].shape) - 1) / 2
    data, mask = (affine_transform(part, rotation, middle - rotation @ middle, order=1) for part in (head[0], 1.0 * head[1]))
    return data, mask > 0.5


@pytest.mark.parametrize(("order", "signs"), turns())
def test_a_brain_is_upright_in_one_of_24_ways(nodded, order, signs) -> None:
    data, mask = nodded
    turned, brain = (turned_by(part, np.array(order), np.array(signs)) for part in (data, mask))
    np.testing.assert_array_equal(turned_back(brain, np.array(order), np.array(signs)), mask)
    shape = measure_shape(turned, brain, SPACING)
    assert shape.ml == pytest.approx(mask.sum() * 0.008)
    assert shape.is_upright == (order == (0, 1, 2) and signs == (1, 1, 1))


@pytest.mark.parametrize("angles", [(0, 0, 0), (-25, 0, 0), (-10, 15, 10), (0, 0, 20)])
def test_a_nod_is_upright(head, angles) -> None:
    turned = turned_freely(head, Rotation.from_euler("xyz", angles, degrees=True).as_matrix())
    assert measure_shape(*turned, SPACING).is_upright


def test_a_mask_with_skull_is_no_brain(head) -> None:
    data, mask = head
    assert measure_shape(data, mask, SPACING).dark_share < 0.01
    with_skull = measure_shape(data, binary_dilation(mask, iterations=3), SPACING)
    assert with_skull.dark_share > 0.1
    assert not with_skull.is_brain
    assert not measure_shape(data, np.zeros_like(mask), SPACING).is_brain


@pytest.mark.parametrize("size", [1, 2])
def test_a_cut_brain_is_refused_at_any_voxel_size(head, size) -> None:
    """The limit was a share of the voxels, which hardly any cut reached at 1 mm."""
    top = int(np.argwhere(head[1])[:, 2].max()) - 8
    times = (3 - size, 3 - size, 3 - size)
    data, mask = (np.kron(part[:, :, :top], np.ones(times, part.dtype)) for part in head)
    quality = mask_quality(data, mask, np.diag([size, size, size, 1.0]), [700, 2300])
    assert quality["verdict"] == "fail"
    assert any("cut at the top of the image" in reason for reason in quality["reasons"])


def test_a_stripped_brain_has_sulci_as_empty_as_its_surroundings(head) -> None:
    data, mask = head
    grown = binary_dilation(mask)
    bare = np.where(mask, data, 0)
    assert 0.03 < measure_shape(bare, grown, SPACING).dark_share < 0.1
    assert mask_quality(bare, grown, AFFINE, [700, 2300])["verdict"] == "pass"


def test_a_mask_that_leaks_to_one_side_is_refused(head) -> None:
    """As where the field of view is large: the volume alone is plausible."""
    data, mask = head
    leak = binary_dilation(mask, iterations=4) & (np.arange(mask.shape[1]) > 60)[:, None]
    quality = mask_quality(data, mask | leak, AFFINE, [700, 2500])
    assert quality["verdict"] == "fail"
    assert "as dark as bone or air" in quality["reasons"][0]
    assert mask_quality(data, mask, AFFINE, [700, 2500])["verdict"] == "pass"


# Pose


@pytest.mark.parametrize(("axis", "angle"), [("x", 180), ("y", 70), ("z", -130)])
def test_the_pose_of_a_turned_head_is_found(head, axis, angle) -> None:
    data, mask = head
    rotation = Rotation.from_euler(axis, angle, degrees=True).as_matrix()
    middle, side = (np.array(data.shape) - 1) / 2, 150
    offset = middle - rotation @ np.full(3, (side - 1) / 2)
    turned = affine_transform(data, rotation, offset, (side,) * 3, order=1)
    brain = affine_transform(mask.astype(np.float32), rotation, offset, (side,) * 3, order=1) > 0.5
    coarse = coarse_head(turned, SPACING)
    assert coarse is not None
    pose = next(iter(find_poses(coarse)))
    # the person's axes lie in the turned image as the columns of the inverse rotation
    apart = np.degrees(np.arccos(np.clip((np.trace(rotation @ pose.rotation) - 1) / 2, -1, 1)))
    assert apart < 8
    corners = np.argwhere(brain)
    inside = rotation.T @ ((np.argwhere(mask).min(0) + np.argwhere(mask).max(0)) / 2 - middle) + (side - 1) / 2
    assert np.linalg.norm(pose.centre_mm - 2 * (inside + 0.5)) < 8, corners.mean(0)


def test_the_nearest_quarter_turn() -> None:
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    nodded = quarter @ Rotation.from_euler("x", 20, degrees=True).as_matrix()
    found, rest = Pose(nodded, np.zeros(3)).quarter_turns()
    np.testing.assert_array_equal(found, quarter)
    assert rest == pytest.approx(20)


# Network


@pytest.fixture(scope="module")
def network() -> DeepBet:
    return DeepBet(0.5, gpu=False)


@pytest.fixture(scope="module")
def plain(network: DeepBet, head) -> np.ndarray:
    """Return the brain that deepbet finds in the head as it is."""
    found = network.find(head[0], SPACING)
    assert found is not None
    assert found.note == ""
    assert dice(found.mask, head[1]) > 0.97
    return found.mask


def test_the_brain_does_not_grow_with_the_field_of_view(network: DeepBet, head, plain: np.ndarray) -> None:
    """In a field of 450 mm deepbet alone takes the whole head."""
    data, _ = head
    shape, at = (175, 200, 225), (30, 40, 70)
    found = network.find(surrounded(data, shape, at), SPACING)
    assert found is not None
    assert found.mask.sum() == pytest.approx(plain.sum(), rel=0.01)
    assert dice(found.mask, surrounded(plain, shape, at)) > 0.99


def test_the_brain_of_a_head_upside_down_is_found_as_if_it_were_upright(head, network: DeepBet, plain: np.ndarray) -> None:
    data, _ = head
    extract = DeepBetExtractor(network, 0)
    # turned by 180 degrees about x, in an image stored in another orientation
    down = nib.Nifti1Image(np.ascontiguousarray(data[:, ::-1, ::-1][::-1]), np.diag([-2.0, 2.0, 2.0, 1.0]))
    mask = extract(down) > 0
    assert dice(mask[::-1][:, ::-1, ::-1], plain) > 0.99
    assert extract.note == "the head is turned by 180 degrees against its header"


def test_what_deepbet_finds_in_a_usual_head_is_kept_without_a_search(head, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network answers with the truth: nothing else is asked."""
    data, mask = head

    class Truth(DeepBet):
        def __init__(self) -> None:
            pass

        def _look(self, values: np.ndarray) -> np.ndarray:
            return mask

    monkeypatch.setattr("popatlas.preprocess.network.find_poses", lambda coarse: pytest.fail("searched"))
    found = Truth().find(data, SPACING)
    np.testing.assert_array_equal(found.mask, mask)


@pytest.mark.parametrize("answer", [None, "head"])
def test_without_a_plausible_brain_the_first_answer_is_left_to_the_quality_check(head, monkeypatch, answer) -> None:
    data, _ = head

    class Wrong(DeepBet):
        def __init__(self) -> None:
            pass

        def _look(self, values: np.ndarray) -> np.ndarray | None:
            return None if answer is None else values > 20  # the head

    monkeypatch.setattr("popatlas.preprocess.network.find_poses", lambda coarse: [Pose(np.eye(3), np.full(3, 110.0))])
    found: Finding | None = Wrong().find(data, SPACING)
    if answer is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found.mask, data > 20)
        assert mask_quality(data, found.mask, AFFINE, [700, 2300])["verdict"] == "fail"


def test_nothing_is_found_in_an_empty_image(network: DeepBet) -> None:
    flat = nib.Nifti1Image(np.zeros((40, 40, 40), np.float32), AFFINE)
    assert not DeepBetExtractor(network, 0)(flat).any()
