"""Deep combined computing: soft labels, posterior, losses with known answers, two optimisers, exact resume, new groups."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from popatlas.errors import InputError
from popatlas.groupwise.chi import joint_distribution
from popatlas.groupwise.deepcc.files import read_combined
from popatlas.groupwise.deepcc.group import padded, predict_group, scaled, views_of
from popatlas.groupwise.deepcc.labels import softened
from popatlas.groupwise.deepcc.losses import anatomy_loss, chi_loss, posterior, segmentation_loss, soft_joint
from popatlas.groupwise.deepcc.network import CombinedNet
from popatlas.groupwise.deepcc.settings import CombinedSettings
from popatlas.images.io import save_image
from popatlas.interfaces import load_interface
from popatlas.training.combined import BRANCHES, CombinedTrainer, branch_of
from popatlas.training.groups import Groups, TrainingGroup, read_groups

PLAN = CombinedSettings(classes=3, features=(4, 8), steps=6, turn=2, batch=1, checkpoint_every=2)
LEVELS = ((0.0, 0.5, 1.0), (0.1, 1.0, 0.4), (1.0, 0.2, 0.6))


def anatomy(shift=0):
    labels = torch.zeros(24, 20, dtype=torch.long)
    labels[4 + shift : 18 + shift, 4:16], labels[8 + shift : 14 + shift, 7:12] = 1, 2
    return labels


def group(labels=None, seed=0, contrasts=2):
    chance = torch.Generator().manual_seed(seed)
    known = labels or [anatomy()] * contrasts
    images = []
    for one, levels in zip(known, LEVELS, strict=False):
        noise = 0.02 * torch.randn(one.shape, generator=chance)
        images.append((torch.tensor(levels)[one] + noise)[None, None])
    return [scaled(image) for image in images], known


def trainer(folder, plan=PLAN, supervised=(True, False)):
    images, labels = group()
    torch.manual_seed(3)
    net = CombinedNet(2, 2, plan.classes, plan.features)
    one = TrainingGroup(images, labels).with_labels(supervised)
    folder.mkdir(exist_ok=True)
    return CombinedTrainer(net, Groups([one], plan), plan, folder, "the same", lambda line: None)


def test_soft_labels_of_a_half_plane_are_logistic():
    """Two classes at signed distances d and -d: softmax gives the logistic function of 2 slope d."""
    labels = torch.zeros(12, 9, dtype=torch.long)
    labels[5:] = 1
    distance = torch.arange(12.0)[:, None].expand(12, 9) - 4.5
    for slope in (0.1, 2.0):
        found = softened(labels, 2, slope)
        torch.testing.assert_close(found[1], torch.sigmoid(2 * slope * distance))
        torch.testing.assert_close(found.sum(0), torch.ones(12, 9))
    assert softened(labels, 3, 2.0)[2].max() < 1e-8, "a class that is nowhere"


def test_the_joint_distribution_is_that_of_the_compiled_kernel_and_has_the_right_slope():
    chance = torch.Generator().manual_seed(1)
    position = 1 + 28 * torch.rand(200, generator=chance, dtype=torch.float64)
    classes = torch.softmax(torch.randn(3, 200, generator=chance, dtype=torch.float64), 0)
    expected = joint_distribution(position.float(), torch.ones(200), classes.float(), 32)
    torch.testing.assert_close(soft_joint(position, classes, 32), expected, atol=1e-7, rtol=1e-4)
    position.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_joint(x, classes, 32), position, atol=1e-5)


def test_with_all_labels_and_no_displacement_the_classes_are_the_labels():
    images, labels = group(contrasts=3)
    fields = [torch.zeros(1, 2, 24, 20)] * 3
    guesses = [torch.full((3, 24, 20), 1 / 3)] * 3
    for use_labels in (True, False):
        plan = CombinedSettings(classes=3, features=(4, 8), use_labels=use_labels)
        views = views_of(images, guesses, fields, labels, plan)
        classes = posterior(views, plan)
        assert torch.equal(classes.argmax(0), labels[0].flatten())
        torch.testing.assert_close(classes.sum(0), torch.ones(480))


def test_the_anatomy_loss_is_the_entropy_of_the_classes_at_least():
    images, labels = group()
    views = views_of(images, [torch.full((3, 24, 20), 1 / 3)] * 2, [torch.zeros(1, 2, 24, 20)] * 2, labels, PLAN)
    classes = torch.softmax(torch.randn(3, 480, generator=torch.Generator().manual_seed(2)), 0)
    entropy = float(-(classes * classes.log()).sum(0).mean())
    assert float(anatomy_loss(views, classes)) > entropy
    same = type(views)(views.native, views.warped, views.maps, [classes, classes], views.predicted, views.labelled)
    assert float(anatomy_loss(same, classes)) == pytest.approx(entropy, rel=1e-5)


def test_losses_are_lower_where_they_should_be():
    """Chi of images in place beats that of images apart; the right segmentation beats a wrong one."""
    images, labels = group([anatomy(0), anatomy(3)])
    away = torch.zeros(1, 2, 24, 20)
    back = away.clone()
    back[:, 0] = 3.0
    right = [softened(one, 3, 2.0) for one in labels]
    losses = {}
    for name, fields, maps in (
        ("apart", [away, away], right),
        ("together", [away, back], right),
        ("wrong", [away, back], right[::-1]),
    ):
        views = views_of(images, maps, fields, [None, None], PLAN)
        losses[name] = (float(chi_loss(views, posterior(views, PLAN), PLAN)), float(segmentation_loss(views, PLAN)))
    assert losses["together"][0] < losses["apart"][0]
    assert losses["together"][1] < losses["wrong"][1]


def test_a_step_of_one_branch_leaves_the_weights_of_the_other_alone(tmp_path):
    made = trainer(tmp_path / "a")
    made.net.train()
    assert [branch_of(step, PLAN) for step in range(5)] == [BRANCHES[0]] * 2 + [BRANCHES[1]] * 2 + [BRANCHES[0]]
    for step in (0, 2):
        made.state.step = step
        before = {name: value.clone() for name, value in made.net.named_parameters()}
        made.step()
        moved = {name.split(".")[0] for name, value in made.net.named_parameters() if not torch.equal(value, before[name])}
        assert moved == ({"encoder", "segmentation"} if step == 0 else {"registration"})


def test_a_training_that_is_resumed_is_the_same_training(tmp_path):
    whole = trainer(tmp_path / "whole")
    assert whole.run()
    half = trainer(tmp_path / "half")
    assert not half.run(seconds=0) and half.state.step == 1
    again = trainer(tmp_path / "half")
    assert again.resume() and again.state.step == 1
    assert again.run()
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[name]), name
    for name in BRANCHES:
        first, second = (one.optimisers[name].state_dict()["state"] for one in (whole, again))
        assert all(torch.equal(first[key]["exp_avg"], second[key]["exp_avg"]) for key in first)
    other = trainer(tmp_path / "half")
    other.state.identity = "another"
    with pytest.raises(InputError, match="of another training"):
        other.resume()


@pytest.mark.slow
def test_a_small_network_learns_to_segment_and_to_register(tmp_path):
    """Labels of one contrast of two: the other is segmented too, and the images come closer than they began."""
    plan = CombinedSettings(classes=3, features=(8, 16), steps=300, turn=3, batch=1, bending=0.02, reach=0.2)
    made = trainer(tmp_path, plan)
    made.run()
    images, labels = group([anatomy(-2), anatomy(2)], seed=9)
    found, maps = predict_group(made.net, images, (0, 1), plan)

    def dice(one, other):
        return np.mean(
            [2 * int(((one == k) & (other == k)).sum()) / int((one == k).sum() + (other == k).sum()) for k in (1, 2)]
        )

    assert dice(maps[0].argmax(0), labels[0]) > 0.85
    assert dice(maps[1].argmax(0), labels[1]) > 0.85, "no label of this contrast was seen"
    from popatlas.transforms.fields import coordinates, sample

    moved = [
        sample(one[None, None].float(), coordinates(one.shape) + field, "nearest")[0, 0]
        for one, field in zip(labels, found.displacements, strict=True)
    ]
    assert dice(*moved) > dice(*labels) + 0.1
    assert float(sum(found.displacements).abs().max()) < 1e-4, "the mean displacement is taken away"


@pytest.fixture
def table(tmp_path):
    rows = []
    for number in range(2):
        images, labels = group(seed=number)
        for name, image, have in zip(("t1w", "t2w"), images, labels, strict=True):
            stem = f"g{number}_{name}"
            save_image(image[0, 0].numpy(), np.eye(4), tmp_path / f"{stem}.nii.gz", np.float32)
            save_image(have.numpy(), np.eye(4), tmp_path / f"{stem}_dseg.nii.gz", np.uint8)
            rows.append((f"g{number}", name, f"{stem}.nii.gz", f"{stem}_dseg.nii.gz" if name == "t1w" else ""))
    pd.DataFrame(rows, columns=["group", "contrast", "image", "labels"]).to_csv(
        tmp_path / "table.tsv", sep="\t", index=False
    )
    return tmp_path


def train(folder, **more):
    load_interface("TrainCombined")(
        in_table=str(folder / "table.tsv"),
        options={"classes": 3, "features": [4, 8], "steps": 2, "batch": 1},
        out_folder=str(folder / "training"),
        out_network=str(folder / "net.safetensors"),
        **more,
    ).run()


def test_files_in_a_network_and_a_new_group_out(table):
    train(table)
    net, plan, contrasts = read_combined(table / "net.safetensors")
    assert (contrasts, plan.steps, net.ndim) == (["t1w", "t2w"], 2, 2)
    out = {
        name: [str(table / f"{name}{j}.nii.gz") for j in range(2)]
        for name in ("out_warped", "out_warps", "out_segmentations")
    }
    load_interface("PredictGroup")(
        in_network=str(table / "net.safetensors"),
        in_images=[str(table / f"g1_{name}.nii.gz") for name in ("t2w", "t1w")],
        contrasts=["t2w", "t1w"],
        out_posterior=str(table / "posterior.nii.gz"),
        out_labels=str(table / "labels.nii.gz"),
        **out,
    ).run()
    assert nib.load(table / "posterior.nii.gz").shape == (24, 20, 3)
    assert nib.load(table / "out_segmentations0.nii.gz").shape == (24, 20)
    named = np.asarray(nib.load(table / "labels.nii.gz").dataobj)
    assert np.array_equal(named, np.asarray(nib.load(table / "posterior.nii.gz").dataobj).argmax(-1)), (
        "numbered as labels are"
    )
    fields = sum(np.asarray(nib.load(path).dataobj) for path in out["out_warps"])
    assert np.abs(fields).max() < 1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.drop(columns="contrast"), "no column contrast"),
        (lambda rows: rows[:-1], "have not one image of each of t1w, t2w: g1"),
        (lambda rows: rows[rows["contrast"] == "t1w"], "1 contrast"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(table, change, words):
    rows = pd.read_csv(table / "table.tsv", sep="\t", dtype=str)
    change(rows).to_csv(table / "table.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match=words):
        read_groups(table / "table.tsv", 3)


def test_labels_beyond_the_classes_are_refused(table):
    with pytest.raises(InputError, match="up to 2"):
        read_groups(table / "table.tsv", 2)


def test_what_a_network_cannot_take_is_refused(table):
    with pytest.raises(InputError, match="no contrast is called flair"):
        train(table, supervised=["flair"])
    net = CombinedNet(2, 2, 3, (4, 8))
    images, _ = group()
    for given, domains, words in (
        (images[:1], (0,), "a group of 1 images"),
        (images, (0, 2), "the network knows 0 to 1"),
        ([images[0], torch.ones(1, 1, 24, 20)], (0, 1), "is constant"),
        ([images[0], images[1] * torch.nan], (0, 1), "not finite"),
        ([images[0], images[1][..., 1:]], (0, 1), "is needed"),
    ):
        with pytest.raises(InputError, match=words):
            predict_group(net, given, domains, PLAN)


def test_images_of_any_size_come_back_as_they_were():
    assert padded(torch.zeros(1, 1, 5, 8), 4).shape == (1, 1, 8, 8)
    images, _ = group()
    net = CombinedNet(2, 2, 3, (4, 8, 8, 8))
    found, maps = predict_group(net, [image[..., :23, :19] for image in images], (0, 1), PLAN)
    assert maps[0].shape == (3, 23, 19) and found.posterior.shape == (3, 23, 19)


def test_a_training_is_not_resumed_with_other_images(table):
    train(table)
    save_image(np.random.default_rng(1).random((24, 20), np.float32), np.eye(4), table / "g0_t1w.nii.gz", np.float32)
    with pytest.raises(InputError, match="of another training"):
        train(table)
