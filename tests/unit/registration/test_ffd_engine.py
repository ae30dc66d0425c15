from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from popatlas.errors import InputError
from popatlas.registration.engines.ffd.core import Stop, register
from popatlas.registration.engines.ffd.settings import FFDSettings
from popatlas.regularisers.registry import NAMES, find_regulariser
from popatlas.similarity.base import Similarity
from popatlas.similarity.ssd import SSD
from popatlas.transforms.fields import warp
from popatlas.transforms.jacobian import jacobian_determinant
from tests.unit.pairs import texture


def contrasted(shape, seed, sigma=2.0):
    """A texture whose values fill 0 to 1."""
    image = texture(shape, sigma, seed)
    return torch.sigmoid(2 * (image - image.mean()) / image.std())


def smooth_field(shape, longest, seed, sigma=6.0):
    rng = np.random.default_rng(seed)
    field = np.stack([gaussian_filter(rng.normal(size=shape), sigma) for _ in shape])
    return torch.tensor(field * longest / np.linalg.norm(field, axis=0).max(), dtype=torch.float32)[None]


ENDLESS = Stop(tolerance=-1.0)


def mean_error(result, truth, margin=0):
    inner = (slice(None), *[slice(margin, n - margin) for n in truth.shape[2:]])
    return float((result.displacement - truth).norm(dim=1)[inner].mean())


@pytest.mark.parametrize(
    ("similarity", "options"),
    [("nmi_mind", {}), ("nmi_mind", {"strategy": "change"}), ("nmi", {"bins": 32}), ("mind", {})],
    ids=["gradients", "change", "nmi", "mind"],
)
def test_a_smooth_warp_of_a_contrast_inverted_phantom_is_recovered(similarity, options):
    """The card's test: below one voxel of mean error, from 1.4."""
    shape = (32, 30, 28)
    moving, truth = contrasted(shape, 0), smooth_field(shape, 5.0, 10)
    fixed = warp(moving, truth, "cubic")
    assert float(truth.norm(dim=1).mean()) > 1.3
    result = register(fixed, (1 - moving) ** 1.5, FFDSettings(similarity=similarity, options=options))
    assert mean_error(result, truth) < 0.3
    assert float(jacobian_determinant(result.displacement).min()) > 0
    assert not result.diverged


def test_the_penalty_on_folds_keeps_the_map_unfolded():
    """Noise pulls freely placed points through each other."""
    fixed, moving = contrasted((32, 28), 5, sigma=1.0), contrasted((32, 28), 6, sigma=1.0)
    loose = FFDSettings(similarity="ssd", options={}, weight=0.0, spacing=3.0, shrink=(1,), iterations=(60,))
    found = [register(fixed, moving, replace(loose, folding=folding)).displacement for folding in (0.0, 10.0)]
    folds = [float((jacobian_determinant(field) <= 0).float().mean()) for field in found]
    assert folds[0] > 0.05 and folds[1] < folds[0] / 20
    losses = [float(SSD()(fixed, warp(moving, field))) for field in (*found, torch.zeros_like(found[0]))]
    assert losses[0] < losses[1] < 0.8 * losses[2]


@pytest.mark.parametrize("kind", ["bspline", "linear"])
@pytest.mark.parametrize("regulariser", sorted(NAMES))
def test_kinds_and_regularisers_in_2d(kind, regulariser):
    shape = (48, 40)
    moving, truth = contrasted(shape, 1), smooth_field(shape, 4.0, 11)
    weight = {"tv": 0.02, "magnitude": 0.001}.get(regulariser, 0.05)
    plan = FFDSettings(similarity="lncc", kind=kind, regulariser=regulariser, weight=weight)
    result = register(warp(moving, truth, "cubic"), moving, plan)
    assert mean_error(result, truth, margin=3) < 0.25 * float(truth.norm(dim=1).mean())


def test_total_variation_keeps_a_sliding_border_that_squares_blur():
    """Two blocks slide along each other by 3 voxels each; each regulariser has the best of three weights."""
    n = 48
    moving = contrasted((n, n), 0, sigma=1.5)
    truth = torch.zeros(1, 2, n, n)
    truth[:, 1, : n // 2], truth[:, 1, n // 2 :] = 3, -3
    fixed = warp(moving, truth, "cubic")
    plan = FFDSettings(similarity="ssd", spacing=2, kind="linear", rate=0.1)
    near = slice(n // 2 - 3, n // 2 + 3)
    errors, jumps = {}, {}
    for name in ("diffusion", "tv"):
        results = [register(fixed, moving, replace(plan, regulariser=name, weight=weight)) for weight in (0.01, 0.03, 0.1)]
        best = min(results, key=lambda result: mean_error(result, truth, 6))
        errors[name] = float((best.displacement - truth).norm(dim=1)[0, near, 8:-8].mean())
        profile = best.displacement[0, 1, :, 8:-8].mean(1)
        jumps[name] = float(profile[n // 2 - 2] - profile[n // 2 + 1])
    assert errors["tv"] < 0.75 * errors["diffusion"]
    assert jumps["tv"] > 4 > jumps["diffusion"]  # of 6, over three voxels


def test_a_stronger_weight_gives_a_smoother_field():
    moving, truth = contrasted((40, 40), 2), smooth_field((40, 40), 3.0, 12)
    fixed = warp(moving, truth, "cubic")
    roughness = [
        float(find_regulariser("diffusion")(register(fixed, moving, FFDSettings(similarity="lncc", weight=w)).displacement))
        for w in (0.01, 3.0, 1000.0)
    ]
    assert roughness[0] > 2 * roughness[1] > 4 * roughness[2]


def test_a_voxel_matrix_puts_the_moving_image_on_another_grid():
    shape = (40, 36)
    image, truth = contrasted((52, 46), 3), smooth_field(shape, 2.5, 13)
    turn = torch.tensor([[1.1, -0.2, 6.0], [0.15, 0.9, 5.0]])
    at = torch.stack(torch.meshgrid(torch.arange(40.0), torch.arange(36.0), indexing="ij"))[None] + truth
    where = (turn[:, :2] @ at.flatten(2) + turn[:, 2:]).reshape(at.shape)
    size = torch.tensor([51.0, 45.0]).reshape(2, 1, 1)
    fixed = torch.nn.functional.grid_sample(image, (2 * where / size - 1).movedim(1, -1).flip(-1), align_corners=True)
    result = register(fixed, image, FFDSettings(similarity="lncc"), matrix=turn[None])
    assert mean_error(result, truth, margin=3) < 0.3 * float(truth.norm(dim=1).mean())


@pytest.mark.parametrize("side", ["fixed_mask", "moving_mask"])
def test_a_mask_hides_what_it_leaves_out(side):
    shape = (48, 48)
    moving, truth = contrasted(shape, 4), smooth_field(shape, 2.0, 14)
    images = {"fixed_mask": warp(moving, truth, "cubic"), "moving_mask": moving}
    lesion = torch.zeros_like(moving)
    lesion[..., 14:26, 18:30] = 1
    images[side] = torch.where(lesion > 0, 3.0, images[side])
    plan = FFDSettings(similarity="ssd", weight=0.2)
    pair = images["fixed_mask"], images["moving_mask"]
    errors = [mean_error(register(*pair, plan, **masks), truth) for masks in ({side: 1 - lesion}, {})]
    assert errors[0] < 0.6 < errors[1]


def test_pairs_of_a_batch_do_not_touch_each_other():
    shape = (36, 32)
    moving = torch.cat([contrasted(shape, seed) for seed in (5, 6)])
    truth = torch.cat([smooth_field(shape, 2.5, seed) for seed in (15, 16)])
    fixed = warp(moving, truth, "cubic")
    plan = FFDSettings(similarity="lncc")  # the same number of iterations alone and together
    together = register(fixed, moving, plan, stop=ENDLESS)
    alone = register(fixed[1:], moving[1:], plan, stop=ENDLESS)
    assert torch.allclose(together.displacement[1:], alone.displacement, atol=1e-3)


def test_no_difference_stops_early_and_moves_nothing():
    image = contrasted((40, 40), 7)
    result = register(image, image.clone(), FFDSettings(similarity="ssd"))
    assert result.converged and all(len(losses) < 20 for losses in result.history)
    assert float(result.displacement.abs().max()) < 0.02


class Breaking(Similarity):
    """Becomes infinite after some calls."""

    def __init__(self):
        self.calls = 0

    def _compare(self, fixed, moving, weight):
        self.calls += 1
        return SSD()(fixed, moving, weight) * (1.0 if self.calls < 25 else float("inf"))


def test_a_loss_that_becomes_infinite_leaves_the_best_field():
    moving, truth = contrasted((40, 40), 8), smooth_field((40, 40), 2.0, 18)
    fixed = warp(moving, truth, "cubic")
    result = register(fixed, moving, similarity=Breaking(), stop=ENDLESS)
    assert result.diverged and not result.converged
    assert torch.isfinite(result.displacement).all()
    assert float(SSD()(fixed, warp(moving, result.displacement))) < float(SSD()(fixed, moving))


@pytest.mark.parametrize(
    ("moving", "masks", "message"),
    [
        (torch.ones(1, 1, 20, 20), {}, "moving image is constant"),
        (contrasted((20, 20), 0) / 0, {}, "NaN or infinite"),
        (contrasted((12, 12, 12), 0), {}, "fixed image has 2 axes and the moving one 3"),
        (contrasted((20, 20), 1), {"fixed_mask": torch.zeros(1, 1, 20, 20)}, "fixed mask is empty"),
        (contrasted((20, 24), 1), {}, r"images of shapes \(20, 20\) and \(20, 24\) and no matrix"),
    ],
)
def test_bad_input_is_refused(moving, masks, message):
    with pytest.raises(InputError, match=rf"{message}.*sub-2"):
        register(contrasted((20, 20), 0), moving, **masks, subject="sub-2")


@pytest.mark.parametrize("wrong", [{"regulariser": "l3"}, {"iterations": (1,)}, {"shrink": (4, 2, 0)}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=r"should be|one entry for each level"):
        FFDSettings(**wrong)
