"""X-CoReg on a phantom of four classes in three contrasts that no monotone curve joins, moved by known deformations."""

from functools import lru_cache

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from popatlas.errors import InputError
from popatlas.groupwise.centre import centred_maps
from popatlas.groupwise.xcoreg.core import coregister
from popatlas.groupwise.xcoreg.settings import XCoRegSettings
from popatlas.images.io import save_image
from popatlas.interfaces import load_interface
from popatlas.measures.warpingindex import warping_index
from popatlas.transforms.ffd import control_shape, dense_from_control
from popatlas.transforms.fieldops import TensorOps
from popatlas.transforms.fields import warp
from popatlas.transforms.jacobian import jacobian_determinant

SIDE = 96
CONTRASTS = ((0, 0.3, 0.6, 1.0), (0.1, 1.0, 0.5, 0.2), (0.05, 0.7, 0.95, 0.4))


def anatomy():
    """Return four classes with many corners, so that the truth can be seen nearly everywhere."""
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    radius, angle = np.hypot(x / 0.85, y), np.arctan2(y, x)
    classes = np.zeros((SIDE, SIDE), int)
    classes[radius < 40 + 2 * np.cos(3 * angle)] = 1
    classes[(radius < 36) & (np.sin(x / 4) * np.sin(y / 5) > 0)] = 2
    classes[(radius < 34) & (np.hypot((x + 4) % 14 - 7, (y + 3) % 16 - 8) < 4)] = 3
    return torch.from_numpy(classes)


@lru_cache
def group(seed=0, largest=4.0, spacing=24):
    """Return the images, and where their voxels go in the anatomy."""
    chance = torch.Generator().manual_seed(seed)
    images, truth = [], []
    for levels in CONTRASTS:
        control = torch.rand(1, 2, *control_shape((SIDE, SIDE), spacing), generator=chance) * 2 - 1
        field = dense_from_control(control, (SIDE, SIDE), spacing)
        truth.append(field * largest / float(field.norm(dim=1).max()))
        image = warp(torch.tensor(levels)[anatomy()][None, None], truth[-1])
        images.append(image + 0.02 * torch.randn(image.shape, generator=chance))
    return images, truth


INSIDE = anatomy() > 0
STILL = [torch.zeros(1, 2, SIDE, SIDE)] * 3


@lru_cache
def registered(motion):
    images, truth = group()
    plan = XCoRegSettings(motion=motion, step=0.3, starts=2)
    return coregister(images, plan), truth


@pytest.mark.parametrize("motion", ["diffeomorphic", "ffd"])
def test_images_of_three_contrasts_come_together(motion):
    result, truth = registered(motion)
    before, after = warping_index(STILL, truth, INSIDE), warping_index(result.displacements, truth, INSIDE)
    assert before > 1.2
    assert after < 0.4 * before
    assert after < 0.5  # voxels
    assert torch.stack(result.displacements).mean(0).abs().max() < 0.02  # voxels: the common space is the middle
    assert max(result.history[-1]) > result.history[0][0]


@pytest.mark.parametrize("motion", ["diffeomorphic", "ffd"])
def test_classes_come_for_free(motion):
    """Each class of the anatomy is one class of the posterior, up to its number."""
    result, truth = registered(motion)
    assert result.posterior is not None
    torch.testing.assert_close(result.posterior.sum(0), torch.ones(SIDE, SIDE))
    back = TensorOps().compose(result.displacements[0], truth[0])
    there = warp((torch.nn.functional.one_hot(anatomy()).movedim(-1, 0)[None]).float(), back)[0].argmax(0)
    found = result.posterior.argmax(0)
    overlap = [[2 * int(((found == k) & (there == c)).sum()) for k in range(4)] for c in range(4)]
    sizes = [[int((found == k).sum() + (there == c).sum()) for k in range(4)] for c in range(4)]
    dice = np.array(overlap) / np.array(sizes)
    assert (dice.max(1) > 0.85).all(), dice.round(2)
    assert sorted(dice.argmax(1)) == [0, 1, 2, 3]


def test_diffeomorphic_maps_do_not_fold_and_can_be_undone():
    result, _ = registered("diffeomorphic")
    for number, field in enumerate(result.displacements):
        assert float(jacobian_determinant(field).min()) > 0
        rest = TensorOps().compose(result.inverse(number), field)
        assert float(rest[..., 4:-4, 4:-4].norm(dim=1).max()) < 0.1


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_mean_of_centred_maps_is_the_identity(seed):
    chance = torch.Generator().manual_seed(seed)
    fields = [dense_from_control(3 * torch.randn(1, 2, 6, 6, generator=chance), (33, 33), 14) for _ in range(3)]
    fields = [field / max(1.0, float(field.abs().max()) / 3) for field in fields]
    rest = torch.stack(centred_maps(fields, TensorOps())).mean(0)
    assert float(rest[..., 5:-5, 5:-5].abs().max()) < 0.05


def test_rigid_moves_are_found_and_shared():
    """Two contrasts turned against each other by 0.2 radians and shifted: each moves by half of it."""
    from popatlas.transforms.linear import matrix

    middle = torch.full((2,), (SIDE - 1) / 2, dtype=torch.float64)
    turn = matrix(torch.tensor([[3.0, -2.0, 0.2]], dtype=torch.float64), "rigid", middle)[:, :2].float()
    still = torch.eye(2, 3)[None]
    one, other = (torch.tensor(levels)[anatomy()][None, None] for levels in CONTRASTS[:2])
    moved = TensorOps().warp(other, STILL[0], 1, turn, (SIDE, SIDE))
    plan = XCoRegSettings(motion="rigid", classes=4, starts=2)
    result = coregister([one, moved], plan, matrices=[still, still])
    first, second = (torch.cat([m[0].double(), torch.tensor([[0, 0, 1.0]]).double()]) for m in result.matrices)
    found = torch.linalg.inv(first) @ second  # from the first image's voxels to the second's
    truth = torch.linalg.inv(torch.cat([turn[0].double(), torch.tensor([[0, 0, 1.0]]).double()]))
    corners = torch.tensor([[20.0, 20, 1], [75, 20, 1], [48, 70, 1]]).double().T
    assert float(((second @ torch.linalg.inv(first) - truth) @ corners)[:2].norm(dim=0).max()) < 0.5, found


def test_one_image_at_a_time_gives_the_same():
    images, _ = group()
    plan = XCoRegSettings(shrink=(4,), iterations=(10,), starts=1)
    kept, single = (coregister(images, plan, kept=kept) for kept in (True, False))
    for one, other in zip(kept.displacements, single.displacements, strict=True):
        assert torch.equal(one, other)


def test_classes_of_a_prior_keep_their_numbers():
    images, _ = group(largest=1.0)
    prior = 0.9 * torch.nn.functional.one_hot(anatomy()).movedim(-1, 0).float() + 0.025
    order = [2, 0, 3, 1]
    result = coregister(images, XCoRegSettings(shrink=(2, 1), iterations=(20, 10)), prior=prior[order])
    assert result.posterior is not None
    for number, known in enumerate(order):
        found, there = result.posterior.argmax(0) == number, anatomy() == known
        assert 2 * int((found & there).sum()) / int(found.sum() + there.sum()) > 0.85


def _column(values):
    return torch.tensor(values).reshape(-1, 1, 1)


def _nothing_in_common():
    """Return two images of noise."""
    chance = torch.Generator().manual_seed(0)
    return [torch.randn(1, 1, 16, 16, generator=chance) for _ in range(2)]


def bad_groups():
    images, _ = group()
    empty = torch.zeros_like(images[0])
    away = torch.tensor([[[1.0, 0, 500], [0, 1, 0]]])
    still = torch.eye(2, 3)[None]
    nan = images[1].clone()
    nan[..., 5, 5] = float("nan")
    plan = XCoRegSettings()
    return {
        "one image": (images[:1], {}, "a group of 1 image"),
        "no image": ([], {}, "a group of 0 images"),
        "constant": ([images[0], torch.ones_like(images[0])], {}, "image 2: the image is constant"),
        "NaN": ([images[0], nan], {"names": ["T1w", "T2w"]}, "T2w: the image has 1 voxels that are NaN"),
        "no overlap": (images[:2], {"matrices": [still, away]}, "image 2 does not overlap the common space"),
        "empty mask": (images[:2], {"masks": [None, empty]}, "image 2: the mask is empty"),
        "two shapes": ([images[0], images[1][..., :50]], {}, "no matrix joins them"),
        "prior": (images, {"prior": torch.ones(plan.classes, 5, 5)}, "the prior has shape"),
        "3D in 2D": ([images[0], images[1][..., None]], {}, "image 2 has shape"),
    }


@pytest.mark.parametrize("case", list(bad_groups()))
def test_bad_groups_are_refused(case):
    images, options, message = bad_groups()[case]
    with pytest.raises(InputError, match=message):
        coregister(images, XCoRegSettings(), **options)


def test_classes_that_no_voxel_takes_are_named():
    """Two levels and four classes: two are left, and keep their numbers."""
    inside = (anatomy() > 0).float()[None, None]
    result = coregister([inside, 1 - inside], XCoRegSettings(shrink=(1,), iterations=(2,)))
    assert len(result.vanished()) == 2
    assert sorted(result.vanished() + result.labels().unique().tolist()) == [1, 2, 3, 4]
    assert result.posterior is not None
    assert bool(torch.isfinite(result.posterior).all())


def test_3d_runs_on_grids_of_their_own():
    """Two contrasts of a ball, the second on a shifted and coarser grid: they meet."""
    axis = np.arange(32) - 15.5
    distance = torch.from_numpy(np.sqrt(sum(np.meshgrid(*[axis**2] * 3, indexing="ij")))).float()
    bright = (torch.sigmoid(2 * (10 - distance)) + torch.sigmoid(2 * (5 - distance)))[None, None]
    dark = torch.nn.functional.avg_pool3d(2 * torch.sigmoid(2 * (10 - distance)) - bright + 0.1, 2)[None, None].reshape(
        1, 1, 16, 16, 16
    )
    still = torch.eye(3, 4)[None]
    coarse = torch.tensor([[[0.5, 0, 0, -0.25 + 1], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25]]])  # two fine voxels off
    plan = XCoRegSettings(shrink=(2, 1), iterations=(40, 20), classes=3, starts=2, fluid=2.0)
    result = coregister([bright, dark], plan, matrices=[still, coarse])
    apart = (result.displacements[1] - result.displacements[0])[0, 0][distance < 10].mean()
    assert float(apart) == pytest.approx(-2, abs=0.5)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the folder of a group of two images on a world grid, registered by the step."""
    folder = tmp_path_factory.mktemp("group")
    affine = np.array([[0, -1.5, 0, 40], [1.5, 0, 0, -20], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    for name, image in zip("ab", group()[0], strict=False):
        save_image(image[0, 0].numpy(), affine, folder / f"{name}.nii.gz", np.float32)
    save_image((anatomy() > 0).numpy(), affine, folder / "mask.nii.gz", np.uint8)
    step = load_interface("CoRegisterGroup")
    names = {"warped": "w_{}.nii.gz", "warps": "f_{}.nii.gz", "inverse_warps": "i_{}.nii.gz", "affines": "t_{}.mat"}
    lists = {f"out_{what}": [str(folder / name.format(letter)) for letter in "ab"] for what, name in names.items()}
    step(
        in_images=[str(folder / "a.nii.gz"), str(folder / "b.nii.gz")],
        in_masks=[str(folder / "mask.nii.gz")] * 2,
        out_posterior=str(folder / "posterior.nii.gz"),
        out_labels=str(folder / "labels.nii.gz"),
        options={"shrink": [4, 2], "iterations": [40, 20], "starts": 2},
        **lists,
    ).run()
    return folder


def test_fields_mean_the_same_to_itk(written):
    """SimpleITK with the written field makes the written image, on a grid that is turned and not of 1 mm."""
    import SimpleITK as sitk

    for letter in "ab":
        field = sitk.ReadImage(str(written / f"f_{letter}.nii.gz"), sitk.sitkVectorFloat64)
        image = sitk.ReadImage(str(written / f"{letter}.nii.gz"), sitk.sitkFloat32)
        steps = sitk.CompositeTransform([sitk.ReadTransform(str(written / f"t_{letter}.mat"))])
        steps.AddTransform(sitk.DisplacementFieldTransform(field))
        there = sitk.GetArrayFromImage(sitk.Resample(image, image, steps, sitk.sitkLinear))
        ours = sitk.GetArrayFromImage(sitk.ReadImage(str(written / f"w_{letter}.nii.gz")))
        np.testing.assert_allclose(there[5:-5, 5:-5], ours[5:-5, 5:-5], atol=2e-3)


def test_classes_are_written_where_an_image_sees_them(written):
    posterior = np.asarray(nib.load(written / "posterior.nii.gz").dataobj)
    labels = np.asarray(nib.load(written / "labels.nii.gz").dataobj)
    known = labels > 0
    np.testing.assert_allclose(posterior.sum(-1)[known], 1, atol=1e-5)
    assert (posterior[~known] == 0).all()
    assert known[40:56, 40:56].all()
    assert not known[:4].any()
    np.testing.assert_array_equal(posterior.argmax(-1)[known] + 1, labels[known])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_masks": ["mask.nii.gz"]}, "2 images and 1 masks"),
        ({"out_warps": ["x.nii.gz"]}, "2 images and 1 files for out_warps"),
        ({"in_prior": "a.nii.gz"}, "do not lie on the common grid"),
        ({"options": {"motion": "elastic"}}, "options.motion"),
        ({"options": {"shrink": [4, 1], "iterations": [1, 1]}}, "may halve"),
        ({"options": {"motion": "ffd", "spacing": [8.0]}}, "need one entry for each level"),
    ],
)
def test_bad_inputs_of_the_step(written, change, message):
    def placed(value):
        if isinstance(value, list) and isinstance(value[0], str):
            return [str(written / name) for name in value]
        return str(written / value) if isinstance(value, str) else value

    inputs = {"in_images": ["a.nii.gz", "b.nii.gz"], "out_posterior": "p.nii.gz"} | change
    step = load_interface("CoRegisterGroup")(**{name: placed(value) for name, value in inputs.items()})
    with pytest.raises(InputError, match=message):
        step.run()
    assert not (written / "p.nii.gz").exists()


@pytest.mark.slow
def test_linear_moves_of_members_are_in_their_affines(tmp_path):
    """A brain and one that is longer by a fifth: the affines lead from the middle to both."""
    from popatlas.transforms.affine import read_affine
    from popatlas.transforms.itk import write_affine

    grid = np.indices((24, 24, 24)) - 11.5
    write_affine(tmp_path / "still.mat", torch.eye(4, dtype=torch.float64))
    for name, length in (("a", 1.0), ("b", 1.2)):
        radius = np.sqrt((grid[0] / length) ** 2 + grid[1] ** 2 + grid[2] ** 2)
        save_image(
            np.select([radius < 3, radius < 5, radius < 8], [1, 0.6, 0.3], 0.0), np.eye(4), tmp_path / f"{name}.nii.gz"
        )
        save_image((radius < 8).astype(np.uint8), np.eye(4), tmp_path / f"{name}_mask.nii.gz", np.uint8)
    load_interface("CoRegisterMembers")(
        in_reference=str(tmp_path / "a.nii.gz"),
        in_brains=[str(tmp_path / f"{name}.nii.gz") for name in "ab"],
        in_masks=[str(tmp_path / f"{name}_mask.nii.gz") for name in "ab"],
        in_affines=[str(tmp_path / "still.mat")] * 2,
        scans=["a", "b"],
        options={"motion": "affine", "shrink": [2], "iterations": [30], "starts": 1},
        out_template=str(tmp_path / "template.nii.gz"),
        out_mask=str(tmp_path / "mask.nii.gz"),
        out_classes=str(tmp_path / "classes.nii.gz"),
        out_folder=str(tmp_path / "found"),
        out_batch_record=str(tmp_path / "group.json"),
    ).run()
    first, second = (read_affine(tmp_path / "found" / name / "affine.mat")[0, 0] for name in "ab")
    assert second / first == pytest.approx(1.2, abs=0.04)
