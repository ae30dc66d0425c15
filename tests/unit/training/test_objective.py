"""Known answers of the losses of a recipe: each term by itself, and their weights."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from popatlas.errors import InputError
from popatlas.networks.registration import Prediction
from popatlas.training.objective import OVERLAPS, Batch, Objective, shrunk
from popatlas.training.recipe import Recipe, load_recipe, parse_changes
from popatlas.transforms.fields import coordinates, warp

SIZE = 32
SIGMAS = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
NO_SIMILARITY = "loss.similarity.weight=0"
LABELS = (NO_SIMILARITY, "loss.labels.weight=1", "loss.regulariser.weight=0")
BOXES = (NO_SIMILARITY, "loss.boxes.weight=1", "loss.regulariser.weight=0")


def recipe(*changes: str, shape: tuple[int, ...] = (SIZE, SIZE)) -> Recipe:
    """The defaults of all recipes with some changes."""
    return load_recipe("base", parse_changes([f"grid.shape={list(shape)}", "grid.spacing_mm=1.0", *changes]))


def value(batch: Batch, found: Prediction, *changes: str, seed: int = 0) -> tuple[Tensor, dict[str, float]]:
    objective = Objective(recipe(*changes, shape=tuple(batch.fixed.shape[2:])))
    return objective(batch, found, torch.Generator().manual_seed(seed))


def still(shape: tuple[int, ...] = (SIZE, SIZE), batch: int = 1) -> Tensor:
    return torch.zeros(batch, len(shape), *shape, requires_grad=True)


def shifted(voxels: float, shape: tuple[int, ...] = (SIZE, SIZE)) -> Tensor:
    """A displacement along the first axis."""
    field = torch.zeros(1, len(shape), *shape)
    field[:, 0] = voxels
    return field


def block(start: int, stop: int, label: int = 1, shape: tuple[int, ...] = (SIZE, SIZE)) -> Tensor:
    """A label from `start` to `stop` along the first axis, 8 to 16 along the others."""
    labels = torch.zeros(1, 1, *shape, dtype=torch.int32)
    labels[(0, 0, slice(start, stop), *[slice(8, 16)] * (len(shape) - 1))] = label
    return labels


def of_labels(fixed: Tensor, moving: Tensor) -> Batch:
    return Batch(fixed.float(), moving.float(), fixed, moving)


def disc(centre: float) -> Tensor:
    """A soft disc of radius 4 in 128 x 128."""
    at = coordinates((128, 128), dtype=torch.float64)[0]
    return torch.sigmoid(4 * (4 - ((at[0] - centre) ** 2 + (at[1] - 64) ** 2 + 1e-12).sqrt()))[None, None]


@pytest.mark.parametrize(("apart", "expected"), [(0, 0.331), (3, 0.233), (6, 0.097), (10, 0.021), (20, 0.004), (40, 0.001)])
def test_multiscale_dice_falls_steadily_as_two_discs_part(apart: int, expected: float) -> None:
    """It is not an overlap score: small labels in their place have 0.331."""
    assert float(OVERLAPS["multiscale_dice"](disc(44), disc(44 + apart), SIGMAS)) == pytest.approx(-expected, abs=6e-4)


@pytest.mark.parametrize("apart", [20, 40])
def test_only_the_multiscale_dice_pulls_at_labels_that_do_not_touch(apart: int) -> None:
    shape = (128, 128)
    fixed, moving = ((disc(44 + d) > 0.5).int() for d in (0, apart))
    batch = of_labels(fixed, moving)
    nearer = {}
    for kind in ("dice", "multiscale_dice", "cross_entropy"):
        to, fro = (value(batch, Prediction(shifted(d, shape)), *LABELS, f"loss.labels.kind={kind}")[0] for d in (1, -1))
        nearer[kind] = float(fro - to)
    assert nearer["dice"] == 0 and nearer["multiscale_dice"] > 1e-5 and nearer["cross_entropy"] > 1e-5
    field = still(shape)
    value(batch, Prediction(field), *LABELS, "loss.labels.kind=multiscale_dice")[0].backward()
    along, across = field.grad.sum((0, 2, 3)).tolist()
    assert along < -1e-5 and abs(across) < 0.05 * abs(along), "the field is pulled from the fixed to the moving label"
    plain = still(shape)
    value(batch, Prediction(plain), *LABELS)[0].backward()
    assert not plain.grad.any()


@pytest.mark.parametrize("kind", ["dice", "multiscale_dice", "cross_entropy"])
@pytest.mark.parametrize("shape", [(SIZE, SIZE), (24, 24, 24)])
def test_the_true_field_is_the_best_for_labels(kind: str, shape: tuple[int, ...]) -> None:
    shape = tuple(16 * math.ceil(n / 16) for n in shape)
    batch = of_labels(block(8, 16, shape=shape), block(12, 20, shape=shape))
    changes = (*LABELS, f"loss.labels.kind={kind}")
    losses = [value(batch, Prediction(shifted(voxels, shape)), *changes)[0].item() for voxels in (4, 3, 2, 0, -2)]
    assert losses == sorted(losses) and len(set(losses)) == 5
    if kind == "dice":
        assert losses[0] == -1


@pytest.mark.parametrize("shrink", [1, 2, 4])
def test_a_shift_by_whole_blocks_has_the_same_loss_on_any_block_grid(shrink: int) -> None:
    """Also the field is brought to the coarser grid: 4 voxels are 4, 2 or 1 of its own."""
    batch, changes = of_labels(block(8, 16), block(12, 20)), (*LABELS, f"loss.labels.shrink={shrink}")
    assert value(batch, Prediction(shifted(4)), *changes)[0].item() == -1
    assert value(batch, Prediction(shifted(0)), *changes)[0].item() == pytest.approx(-0.5, abs=1e-6)
    blocks = shrunk(block(8, 16).float(), shrink)
    assert blocks.sum() == 64 / shrink**2 and blocks.max() == 1


def test_gaussians_are_in_millimetres() -> None:
    batch, found = of_labels(block(8, 16), block(12, 20)), Prediction(still())
    changes = (*LABELS, "loss.labels.kind=multiscale_dice")
    one, _ = value(batch, found, *changes, "loss.labels.sigmas=[1, 3]", "grid.spacing_mm=1.0")
    two, _ = value(batch, found, *changes, "loss.labels.sigmas=[2, 6]", "grid.spacing_mm=2.0")
    assert one.item() == pytest.approx(two.item(), rel=1e-6)
    a, b = (
        [gaussian_filter(x[0, 0].float(), s, mode="constant", truncate=3.0) for s in (1, 3)] for x in batch_labels(batch)
    )
    dice = [2 * (x * y).sum() / (x + y).sum() for x, y in zip(a, b, strict=True)]
    assert one.item() == pytest.approx(-sum(dice) / 2, rel=1e-4)


def test_labels_can_be_smoothed_before_they_are_warped() -> None:
    batch = of_labels(block(8, 16), block(12, 20))
    changes = (*LABELS, "loss.labels.prefilter=true", "loss.labels.sigmas=[1, 3]")
    loss, _ = value(batch, Prediction(shifted(3)), *changes)
    dice = []
    for sigma in (1, 3):
        a, b = (gaussian_filter(x[0, 0].float(), sigma, mode="constant", truncate=3.0) for x in batch_labels(batch))
        b = warp(torch.from_numpy(b)[None, None], shifted(3))[0, 0].numpy()
        dice.append(2 * (a * b).sum() / (a + b).sum())
    assert loss.item() == pytest.approx(-sum(dice) / 2, rel=1e-4)
    plain = ("loss.labels.prefilter=false", "loss.labels.kind=multiscale_dice")
    after, _ = value(batch, Prediction(shifted(3)), *changes, *plain)
    assert after.item() == pytest.approx(loss.item(), rel=0.02)  # alike for a shift, but for the border


def batch_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.fixed_labels is not None and batch.moving_labels is not None
    return batch.fixed_labels, batch.moving_labels


def test_cross_entropy_in_closed_form() -> None:
    cross_entropy, ones = OVERLAPS["cross_entropy"], torch.ones(1, 2, 8, 8)
    assert float(cross_entropy(ones, 0.5 * ones, [0.0])) == pytest.approx(math.log(2))
    assert float(cross_entropy(0 * ones, 0.25 * ones, [0.0])) == pytest.approx(-math.log(0.75))
    assert float(cross_entropy(ones, 0 * ones, [0.0])) == pytest.approx(-math.log(1e-5)), "clipped, not infinite"


def test_one_label_at_a_time_is_right_on_average() -> None:
    """Whatever label is drawn: the mean over the draws is the loss of all labels."""
    fixed = block(2, 8) + block(12, 18, 2) + block(22, 28, 3)
    moving = block(4, 10) + block(13, 19, 2) + block(25, 31, 3)
    batch, found = of_labels(fixed, moving), Prediction(still())
    drawn = {round(value(batch, found, *LABELS, "loss.labels.count=1", seed=s)[1]["labels"], 6) for s in range(30)}
    assert sorted(drawn) == pytest.approx([-5 / 6, -4 / 6, -3 / 6], abs=1e-6)
    every, _ = value(batch, found, *LABELS, "loss.labels.count=3")
    assert every.item() == pytest.approx(sum(drawn) / 3, abs=1e-6)


@pytest.mark.parametrize("section", [LABELS, BOXES])
def test_a_pair_without_a_common_label_costs_nothing_and_does_not_break_the_graph(section: tuple[str, ...]) -> None:
    field = still(batch=2)
    fixed, moving = (torch.cat([a, b]) for a, b in ((block(8, 16), block(8, 16)), (block(8, 16, 2), block(12, 20))))
    loss, parts = value(of_labels(fixed, moving), Prediction(field), *section)
    alone, _ = value(of_labels(fixed[1:], moving[1:]), Prediction(still()), *section)
    assert loss.item() == pytest.approx(alone.item() / 2)
    loss.backward()
    assert not field.grad[0].any() and field.grad[1].any()
    nothing = still()
    loss, parts = value(of_labels(fixed[:1], moving[:1]), Prediction(nothing), *section)
    loss.backward()
    assert set(parts.values()) == {0.0} and nothing.grad is not None and not nothing.grad.any()


def test_learning_from_labels_without_labels_is_an_error() -> None:
    image = torch.rand(1, 1, SIZE, SIZE)
    with pytest.raises(InputError, match=r"the scans have none.*Remedy: add a column `labels`"):
        value(Batch(image, image), Prediction(still()), *LABELS)
    with pytest.raises(InputError, match="needs a network with a mask branch"):
        value(Batch(image, image), Prediction(still()), "loss.mask.weight=1")


def test_boxes_of_identical_inputs_cost_nothing() -> None:
    labels = block(8, 16) + block(20, 30, 2)
    loss, _ = value(of_labels(labels, labels), Prediction(still()), *BOXES)
    assert loss.item() == 0


def test_boxes_in_closed_form() -> None:
    """Two boxes of 8 x 8 voxels, 3 voxels apart, differ in 2 x 3 x 8 of 32 x 32; the true field mends it."""
    batch = of_labels(block(8, 16), block(11, 19))
    field = still()
    loss, _ = value(batch, Prediction(field), *BOXES)
    assert loss.item() == pytest.approx(2 * 3 * 8 / SIZE**2)
    loss.backward()
    assert float(field.grad[:, 0].sum()) < 0
    assert value(batch, Prediction(shifted(3)), *BOXES)[0].item() == pytest.approx(0, abs=1e-12)


def test_hasty_boxes_follow_the_seed() -> None:
    batch, changes = of_labels(block(8, 16), block(8, 16)), (*BOXES, "loss.boxes.jitter=0.25")
    losses = [value(batch, Prediction(still()), *changes, seed=seed)[0].item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] > 0 and losses[2] != losses[0]
    most = 4 * 2 * (2 * 0.25 * 8) * (1.5 * 8) / SIZE**2  # four sides, each at most twice a quarter of the side apart
    assert losses[0] < most


def test_errors_outside_of_the_mask_do_not_count() -> None:
    """As a chest CT is registered by its lungs; without the mask branch they do."""
    random = torch.Generator().manual_seed(3)
    fixed, moving, junk = torch.rand(3, 1, 1, SIZE, SIZE, generator=random)
    inside = block(8, 24).bool()
    logits = torch.where(inside, 200.0, -200.0)
    other = torch.where(inside, moving, junk)
    changes = ("loss.regulariser.weight=0",)
    one, two = (value(Batch(fixed, m), Prediction(still(), mask=logits), *changes)[0] for m in (moving, other))
    assert one.item() == pytest.approx(two.item(), rel=1e-5)
    open_one, open_two = (value(Batch(fixed, m), Prediction(still()), *changes)[0] for m in (moving, other))
    assert open_one.item() != pytest.approx(open_two.item(), rel=1e-3)


@pytest.mark.parametrize("similarity", ["lncc", "ncc", "ssd"])
def test_the_mask_learns_from_its_own_loss_alone(similarity: str) -> None:
    """By the similarity it would shrink to where the images agree anyway."""
    random = torch.Generator().manual_seed(3)
    fixed, moving = torch.rand(2, 1, 1, SIZE, SIZE, generator=random)
    logits, field = torch.zeros(1, 1, SIZE, SIZE, requires_grad=True), still()
    changes = (f"loss.similarity.name={similarity}", "loss.regulariser.weight=0", "loss.mask.weight=0.5")
    batch = Batch(fixed, moving, fixed_mask=block(8, 24).float())
    loss, parts = value(batch, Prediction(field, mask=logits), *changes)
    assert parts["mask"] == pytest.approx(math.log(2))
    loss.backward()
    expected = 0.5 * (0.5 - block(8, 24).float()) / SIZE**2
    torch.testing.assert_close(logits.grad, expected, atol=1e-9, rtol=1e-5)
    assert field.grad.any(), "the field learns from the similarity"


def test_terms_in_closed_form_and_their_weights() -> None:
    """Slopes 0.1 and 0.2, an affine map that doubles one axis, images that are each other's negatives."""
    at = coordinates((SIZE, SIZE))
    image = torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    matrix = torch.tensor([[[2.0, 0.0, 5.0], [0.0, 1.0, 0.0]]])
    found = Prediction(still(), smooth=(0.1 * at, 0.2 * at), matrices=(matrix, matrix))
    changes = ["loss.similarity={name: ncc, weight: 3}", "loss.regulariser.weight=0.5"]
    loss, parts = value(Batch(image, 1 - image), found, *changes, "loss.affine={determinant: 2, orthogonality: 7}")
    expected = {
        "similarity": 1.0,  # the correlation is -1
        "smoothness": 2 * 0.1**2 + 2 * 0.2**2,
        "determinant": 2 * 0.5 * (2 - 1) ** 2,
        "orthogonality": 2 * (2**2 + 1 / 2**2 - 2),
    }
    assert parts == pytest.approx(expected, rel=1e-3)
    total = 3 * expected["similarity"] + 0.5 * expected["smoothness"]
    assert loss.item() == pytest.approx(total + 2 * expected["determinant"] + 7 * expected["orthogonality"], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "field", "expected"),
    [
        ("diffusion", lambda at: 0.1 * at, 2 * 0.1**2),
        ("bending", lambda at: 0.1 * at, 0.0),
        ("bending", lambda at: 0.01 * at.square(), 2 * 0.02**2),
        ("magnitude", lambda at: torch.full_like(at, 3.0), 2 * 3.0**2),
    ],
)
def test_regularisers_in_closed_form(name: str, field, expected: float) -> None:
    image = torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    found = Prediction(still(), smooth=(field(coordinates((SIZE, SIZE))),))
    _, parts = value(Batch(image, image), found, f"loss.regulariser.name={name}")
    assert parts["smoothness"] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def rough(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(1, len(shape), *shape, generator=torch.Generator().manual_seed(4))


def of_recipe(name: str, field: Tensor) -> float:
    """The smoothness of a field in the loss of a recipe, with its weight."""
    objective = Objective(load_recipe(name))
    image = torch.zeros(1, 1, *field.shape[2:])
    return objective.terms["smoothness"][0] * float(
        objective.terms["smoothness"][1](Batch(image, image), Prediction(field), torch.Generator())
    )


@pytest.mark.parametrize("name", ["voxelmorph", "voxelmorph-diffeo", "dual-prnet"])
def test_the_smoothness_of_voxelmorph_is_the_mean_of_its_authors(name: str) -> None:
    """Over the entries of each difference, then over the three axes, with the weight 1."""
    field = rough((16, 16, 16))
    published = sum(float((field.diff(dim=axis) ** 2).mean()) for axis in (2, 3, 4)) / 3
    assert of_recipe(name, field) == pytest.approx(published, rel=1e-5)


def central(field: Tensor, axis: int) -> Tensor:
    """Central differences of the inner voxels, as DeepReg and LabelReg take them."""
    inner: list[slice] = [slice(None)] * 2 + [slice(1, -1)] * 3
    ahead, behind = inner.copy(), inner.copy()
    ahead[axis], behind[axis] = slice(2, None), slice(None, -2)
    return (field[tuple(ahead)] - field[tuple(behind)]) / 2


def test_the_smoothness_of_deepreg_and_rcn_averages_over_components() -> None:
    """On a field of constant slopes, whose differences are the same however they are taken."""
    slopes = torch.randn(3, 3, generator=torch.Generator().manual_seed(4))
    field = torch.einsum("ij,j...->i...", slopes, coordinates((16,) * 3)[0])[None]
    squares = sum((central(field, axis) ** 2).mean() for axis in (2, 3, 4))
    assert of_recipe("pediatric", field) == pytest.approx(float(squares), rel=1e-4)
    assert of_recipe("rcn", field) == pytest.approx(float(squares) / 2, rel=1e-4)


def test_the_bending_of_labelreg_averages_over_components() -> None:
    at = coordinates((16,) * 3)[0]
    field = torch.stack([0.1 * at[0] * at[1], 0.2 * at[2] ** 2, 0.3 * at[1] * at[2] + at[0]])[None]
    second = [[central(central(field, i), j) for j in (2, 3, 4)] for i in (2, 3, 4)]
    published = 0.5 * sum(float((part**2).mean()) for row in second for part in row)
    assert of_recipe("labelreg", field) == pytest.approx(published, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "weight"), [("brain-t1w", 0.1), ("brain-contrast", 0.1), ("masked-fcn", 1.0), ("bounding-boxes", 0.1)]
)
def test_our_own_recipes_sum_as_before(name: str, weight: float) -> None:
    field = rough((16, 16, 16))
    summed = sum(float((field.diff(dim=axis) ** 2).sum(1).mean()) for axis in (2, 3, 4))
    assert of_recipe(name, field) == pytest.approx(weight * summed, rel=1e-5)


def test_the_displacement_is_smoothed_where_the_network_names_no_field() -> None:
    image = torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    _, parts = value(Batch(image, image), Prediction(0.3 * coordinates((SIZE, SIZE))))
    assert parts["smoothness"] == pytest.approx(2 * 0.3**2, rel=1e-4)


def test_networks_without_an_affine_stage_have_no_affine_penalty() -> None:
    image = torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    _, parts = value(Batch(image, image), Prediction(still()), "loss.affine={determinant: 1, orthogonality: 1}")
    assert parts["determinant"] == parts["orthogonality"] == 0


def test_terms_without_a_weight_are_left_out() -> None:
    labels = block(8, 16)
    _, parts = value(of_labels(labels, labels), Prediction(still()), *LABELS)
    assert set(parts) == {"labels"}


PAINTED = ["loss.similarity.weight=0", "loss.regulariser.weight=0", "loss.painted.weight=1"]
PAINTED += ["loss.similarity.name=ncc", "loss.labels.weight=0", "loss.boxes.weight=0"]


def test_painted_labels_agree_where_the_field_is_true() -> None:
    """Whatever grey values are drawn: -1 is the correlation of equal images."""
    fixed, moving = (block(8 + d, 12 + d, 1) + block(12 + d, 16 + d, 5) for d in (0, 3))
    for seed in range(3):
        found, before = (value(of_labels(fixed, moving), Prediction(shifted(d)), *PAINTED, seed=seed)[0] for d in (3, 0))
        assert float(found) == pytest.approx(-1, abs=1e-5) and float(before) > -0.9


def test_painted_labels_do_not_look_at_the_images() -> None:
    labels = block(8, 16)
    noise = torch.rand(2, 1, 1, SIZE, SIZE)
    batch = Batch(noise[0], noise[1], labels, labels)
    assert value(batch, Prediction(still()), *PAINTED)[0].item() == pytest.approx(-1, abs=1e-5)


def test_the_similarity_compares_the_scans_behind_synthetic_images() -> None:
    fixed, moving = (block(8 + d, 16 + d).float() for d in (0, 3))
    noise = torch.rand(2, 1, 1, SIZE, SIZE)
    scans = Batch(noise[0], noise[1], fixed_scan=fixed, moving_scan=moving)
    plain = Batch(fixed, moving)
    for found in (Prediction(shifted(3)), Prediction(still())):
        assert value(scans, found)[1]["similarity"] == value(plain, found)[1]["similarity"]
