"""Facts about data parameters: terms by formula, untouched momenta, and the paper's known answers on noisy discs."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr

from popatlas.errors import InputError
from popatlas.fusion.candidates import Candidates
from popatlas.fusion.dataparams.consensus import data_parameters_vote
from popatlas.fusion.dataparams.data import class_weights, draw, label_values, standardised, training_target
from popatlas.fusion.dataparams.loss import (
    DataParameters,
    batch_weights,
    candidate_losses,
    fixed_weight,
    label_losses,
    parameters_loss,
)
from popatlas.fusion.dataparams.train import (
    DataParametersTrainer,
    estimate_data_parameters,
    network_opinion,
    train_data_parameters,
)
from popatlas.fusion.majority import majority_vote
from popatlas.fusion.settings import DataParametersSettings

Update = Literal["out-of-line", "inline"]
BINARY = np.array([0, 1])


def disc(side: int, centre: np.ndarray, radius: float) -> np.ndarray:
    place = np.stack(np.meshgrid(*[np.arange(side)] * 2, indexing="ij"), axis=-1)
    return (np.linalg.norm(place - centre, axis=-1) < radius).astype(np.int32)


def shifted(rng: np.random.Generator, pixels: float) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return pixels * np.array([np.cos(angle), np.sin(angle)])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * ((a == 1) & (b == 1)).sum() / max((a == 1).sum() + (b == 1).sum(), 1))


def noisy_discs(count: int = 160) -> tuple[list[Candidates], np.ndarray, np.ndarray]:
    """One candidate for each image; 30 % are wrong: three of four shifted by 6 pixels, the fourth empty."""
    rng = np.random.default_rng(0)
    found, clean, quality = [], [], []
    for number in range(count):
        centre, radius = rng.uniform(11, 21, 2), rng.uniform(5, 8)
        truth = disc(32, centre, radius)
        wrong = number % 10 < 3
        label = truth
        if wrong:
            label = np.zeros_like(truth) if rng.random() < 0.25 else disc(32, centre + shifted(rng, 6), radius)
        image = truth + rng.normal(0, 0.3, truth.shape)
        found.append(Candidates(label[None], image, subject=f"disc {number}"))
        clean.append(not wrong)
        quality.append(dice(label, truth))
    return found, np.array(clean), np.array(quality)


def corrupted_atlases(bad: int, count: int = 36) -> tuple[list[Candidates], list[np.ndarray]]:
    """Five candidates for each image, `bad` of them shifted by 5 pixels, each in a direction of its own."""
    rng = np.random.default_rng(1)
    found, truths = [], []
    for number in range(count):
        centre, radius = rng.uniform(9, 15, 2), rng.uniform(3, 4.5)
        truth = disc(24, centre, radius)
        labels = [disc(24, centre + shifted(rng, 5 if k < bad else 0), radius) for k in range(5)]
        image = truth + rng.normal(0, 0.3, truth.shape)
        found.append(Candidates(np.stack(labels), image, subject=f"disc {number}"))
        truths.append(truth)
    return found, truths


def fast(update: Update, **changes: object) -> DataParametersSettings:
    options = {"epochs": 15, "batch": 8, "update": update, "positions": False, "augment": False, "per_label": False}
    return DataParametersSettings(**(options | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("update", ["out-of-line", "inline"])
def test_corrupted_labels_are_found_and_atlas_weights_follows_their_true_dice(update: Update) -> None:
    candidates, clean, quality = noisy_discs()
    result = train_data_parameters([training_target(one, BINARY) for one in candidates], BINARY, fast(update))
    parameters = np.array([result.parameters[one.subject or ""][0] for one in candidates])
    ranks = rankdata(parameters)
    n_clean, n_wrong = clean.sum(), (~clean).sum()
    auc = (ranks[clean].sum() - n_clean * (n_clean + 1) / 2) / (n_clean * n_wrong)
    assert auc >= 0.95
    assert spearmanr(parameters, quality).statistic >= 0.7
    empty = np.array([not one.labels.any() for one in candidates])
    assert parameters[empty].max() < parameters[clean].min()  # the easy label is not one of weight


@pytest.mark.parametrize("update", ["out-of-line", "inline"])
def test_consensus_survives_three_corrupted_atlases_of_five(update: Update) -> None:
    candidates, truths = corrupted_atlases(bad=3)
    result = train_data_parameters([training_target(one, BINARY) for one in candidates], BINARY, fast(update, batch=4))
    fused = [
        data_parameters_vote(one, parameters=result.parameters[one.subject or ""], votes="softmax").dseg
        for one in candidates
    ]
    voted = [majority_vote(one).dseg for one in candidates]
    assert np.mean([dice(a, b) for a, b in zip(fused, truths, strict=True)]) >= 0.98
    assert np.mean([dice(a, b) for a, b in zip(voted, truths, strict=True)]) < 0.8


def test_new_targets_are_judged_without_new_training() -> None:
    candidates, truths = corrupted_atlases(bad=3, count=48)
    targets = [training_target(one, BINARY) for one in candidates]
    settings = fast("out-of-line", batch=4, per_label=True)
    trained = train_data_parameters(targets[:32], BINARY, settings)
    before = {name: value.clone() for name, value in trained.network.state_dict().items()}
    found = estimate_data_parameters(targets[32:], BINARY, trained.network, settings)
    assert all(torch.equal(before[name], value) for name, value in trained.network.state_dict().items())
    fused = [
        data_parameters_vote(one, parameters=found.parameters[one.subject or ""], votes="softmax").dseg
        for one in candidates[32:]
    ]
    assert np.mean([dice(a, b) for a, b in zip(fused, truths[32:], strict=True)]) >= 0.98


def test_training_repeats_itself() -> None:
    candidates, _ = corrupted_atlases(bad=2, count=6)
    targets = [training_target(one, BINARY) for one in candidates]
    settings = DataParametersSettings(epochs=2, batch=2)
    first, second = train_data_parameters(targets, BINARY, settings), train_data_parameters(targets, BINARY, settings)
    assert first.losses == second.losses
    for target in targets:
        np.testing.assert_array_equal(first.parameters[target.name], second.parameters[target.name])
        np.testing.assert_array_equal(first.label_parameters[target.name], second.label_parameters[target.name])


def test_warm_up_leaves_parameters_at_zero() -> None:
    candidates, _ = corrupted_atlases(bad=2, count=4)
    targets = [training_target(one, BINARY) for one in candidates]
    result = train_data_parameters(targets, BINARY, DataParametersSettings(epochs=2, warm_up=2))
    assert all((parameters == 0).all() for parameters in result.parameters.values())
    assert len(result.losses) == 2


def test_fixed_weighting_by_formula() -> None:
    foreground = torch.tensor([0.0, 100.0])
    expected = [1 + math.e, math.log(100 + math.e) + math.e]
    np.testing.assert_allclose(fixed_weight(foreground).numpy(), expected, rtol=1e-6)
    raw = torch.tensor([0.0, math.log(3)])  # sigmoid 0.5 and 0.75, mean 0.625
    plain = batch_weights(raw, foreground, fixed_weighting=False)
    np.testing.assert_allclose(plain.numpy(), [0.8, 1.2], rtol=1e-6)
    np.testing.assert_allclose(batch_weights(raw, foreground).numpy(), np.array([0.8, 1.2]) / expected, rtol=1e-6)


@pytest.mark.parametrize("risk", [True, False])
@pytest.mark.parametrize("fixed_weighting", [True, False])
def test_loss_by_formula(risk: bool, fixed_weighting: bool) -> None:
    losses, foreground, share = torch.tensor([0.2, 0.7]), torch.tensor([0.0, 100.0]), torch.tensor([0.1, 0.3])
    raw = torch.tensor([0.0, math.log(3)], requires_grad=True)
    divisor = np.array([1 + math.e, math.log(100 + math.e) + math.e]) if fixed_weighting else np.ones(2)
    reward = np.array([0.1, 0.3]) * (1 / divisor).mean() if risk else 0
    expected = (np.array([0.8, 1.2]) * (np.array([0.2, 0.7]) / divisor - reward)).sum()
    loss = parameters_loss(losses, raw, foreground, share, risk, fixed_weighting)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_risk_takes_atlas_weights_from_the_empty_label_of_an_image_with_foreground() -> None:
    """Two images that are fitted equally well, one of them empty: only the risk term tells them apart."""
    losses, foreground, share = torch.tensor([0.05, 0.05]), torch.tensor([50.0, 50.0]), torch.tensor([0.2, 0.0])
    for risk, sign in ((True, -1), (False, 0)):
        raw = torch.zeros(2, requires_grad=True)
        parameters_loss(losses, raw, foreground, share, risk, fixed_weighting=False).backward()
        assert raw.grad is not None
        assert np.sign(round(raw.grad[0].item(), 9)) == sign  # downhill is more weight of the first


def test_risk_does_not_tell_candidates_of_one_image_apart() -> None:
    """An empty candidate and three others: the image's foreground is no reason to give any of them more weight."""
    foreground, same = torch.tensor([0.0, 5000, 5000, 5000]), torch.full((4,), 0.3)
    slopes = []
    for risk in (True, False):
        raw = torch.zeros(4, requires_grad=True)
        parameters_loss(torch.tensor([0.9, 0.2, 0.2, 0.2]), raw, foreground, same, risk).backward()
        assert raw.grad is not None
        slopes.append(raw.grad.numpy())
    np.testing.assert_allclose(slopes[0], slopes[1], atol=1e-7)
    assert slopes[0][0] > 0 > slopes[0][1:].max()  # downhill is less weight of the empty one


def test_losses_of_candidates_and_labels_by_hand() -> None:
    probability = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.125, 0.125, 0.75]])
    labels = torch.tensor([[0, 1, 2], [0, 0, 0]])
    importance = torch.tensor([1.0, 2.0, 1.0])
    log = probability.log()
    found = candidate_losses(log, labels, importance)
    expected = -np.array(
        [
            (math.log(0.5) + 2 * math.log(0.5) + math.log(0.75)) / 4,
            (math.log(0.5) + 2 * math.log(0.25) + math.log(0.125)) / 4,
        ]
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    weighted = candidate_losses(log, labels, importance, torch.tensor([2.0, 1.0, 1.0]))
    assert weighted[1].item() == pytest.approx(2 * expected[1], rel=1e-6)
    by_label, present = label_losses(log, labels, importance)
    assert present.tolist() == [[True, True, True], [True, False, False]]
    assert by_label[0, 2].item() == pytest.approx(-math.log(0.75), rel=1e-6)
    assert by_label[1, 0].item() == pytest.approx(expected[1], rel=1e-6)


def test_parameters_outside_of_a_batch_keep_value_and_momenta() -> None:
    candidates, _ = corrupted_atlases(bad=2, count=3)
    targets = [training_target(one, BINARY) for one in candidates]
    parameters = DataParameters(targets, 2, 0.1, per_label=True, device="cpu")
    rng = np.random.default_rng(0)
    batch = [draw(targets[0], 1000, rng)]
    log = torch.log_softmax(torch.randn(576, 2, generator=torch.Generator().manual_seed(0)), 1)
    parameters.step(parameters.rows(np.array([0])), batch, [log])
    state = parameters.optimiser.state[parameters.table.weight]
    first = {name: state[name].clone() for name in ("exp_avg", "exp_avg_sq")}
    assert (parameters.table.weight[:5] != 0).all()
    assert (parameters.table.weight[5:] == 0).all()
    for name in first:
        assert (first[name][:5] != 0).all()
        assert (first[name][5:] == 0).all()
    value = parameters.table.weight[:5].clone()
    parameters.step(parameters.rows(np.array([1])), [draw(targets[1], 1000, rng)], [log])
    state = parameters.optimiser.state[parameters.table.weight]
    assert torch.equal(parameters.table.weight[:5], value)  # dense Adam would move them by their momenta
    for name in first:
        assert torch.equal(state[name][:5], first[name][:5])


def test_sampled_voxels_stand_for_all() -> None:
    rng = np.random.default_rng(2)
    labels = np.zeros((2, 40, 40), dtype=np.int32)
    labels[0, 10:30, 10:30], labels[1, 12:32, 10:30] = 1, 1
    target = training_target(Candidates(labels, rng.normal(5, 1, (40, 40))), BINARY)
    log = torch.log_softmax(torch.as_tensor(rng.normal(0, 1, (1600, 2))), 1).float()
    everything = draw(target, 10_000, rng)
    assert everything.importance.unique().tolist() == [1.0]
    exact = candidate_losses(log[everything.voxels], everything.labels, everything.importance)
    estimates = []
    for _ in range(400):
        sample = draw(target, 200, rng)
        assert sample.importance.sum() == pytest.approx(1600)
        estimates.append(candidate_losses(log[sample.voxels], sample.labels, sample.importance).numpy())
    error = np.std(estimates, axis=0) / np.sqrt(400)
    assert (np.abs(np.mean(estimates, axis=0) - exact.numpy()) < 4 * error).all()


def test_augmentation_moves_image_and_labels_together() -> None:
    """An image that shows its label: after any motion the sampled labels are those that the moved image shows."""
    truth = disc(64, np.array([30.0, 34.0]), 15)
    candidates = Candidates(np.stack([truth, 1 - truth]), truth * 100.0 + 50)
    target = training_target(candidates, BINARY)
    rng = np.random.default_rng(4)
    for bend in (0.0, 0.0, 2.0, 2.0):
        sample = draw(target, 4096, rng, augment=True, bend=bend)
        shown = sample.image.flatten()[sample.voxels] > 0
        assert (shown == (sample.labels[0] == 1)).float().mean() > 0.98  # the border is interpolated


def test_rate_follows_its_schedule() -> None:
    candidates, _ = corrupted_atlases(bad=2, count=4)
    targets = [training_target(one, BINARY) for one in candidates]

    def rates(**changes: object) -> list[float]:
        trainer = DataParametersTrainer(targets, 2, fast("out-of-line", batch=2, rate=0.01, **changes))
        return [(trainer.epoch(number), trainer.optimiser.param_groups[0]["lr"])[1] for number in range(3)]

    assert rates(decay=0.5) == pytest.approx([0.005, 0.0025, 0.00125])
    # two steps in an epoch: periods of two and four steps, half a cosine each
    assert rates(schedule="restarts", restart=2) == pytest.approx([0.01, 0.005, 0.01])


def test_class_weights_have_mean_one_and_the_papers_power() -> None:
    labels = np.zeros((1, 10, 10), dtype=np.int32)
    labels[0, :1] = 1
    target = training_target(Candidates(labels, np.arange(100.0).reshape(10, 10) + 1), np.array([0, 1, 7]))
    weights = class_weights([target], 3).numpy()
    assert weights[2] == 0  # never seen
    assert weights[:2].mean() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx((10 / 90) ** -0.35)


def test_class_weights_are_in_the_loss_of_the_network_unless_switched_off() -> None:
    """The first loss on one disc is the cross-entropy of a network that knows the shares of the labels only."""
    target = training_target(noisy_discs(4)[0][3], BINARY)
    share = np.bincount(target.labels.ravel()) / target.labels.size
    for on in (True, False):
        trainer = DataParametersTrainer([target], 2, fast("inline", class_weights=on))
        torch.nn.init.zeros_(trainer.network.classifier.weight)
        weights = class_weights([target], 2).numpy() if on else np.ones(2)
        assert trainer.epoch(0) == pytest.approx(-(weights * share * np.log(share)).sum(), rel=0.01)


def test_image_is_cropped_to_its_head_and_standardised() -> None:
    image = np.zeros((20, 20))
    image[5:10, 6:12] = np.random.default_rng(0).normal(100, 10, (5, 6))
    found, box = standardised(image)
    assert box == (slice(3, 12), slice(4, 14))
    inside = found[2:-2, 2:-2]
    assert inside.mean() == pytest.approx(0, abs=1e-6)
    assert inside.std() == pytest.approx(1, rel=1e-5)


def test_opinion_of_the_network_is_that_of_a_whole_pass() -> None:
    candidates, _ = corrupted_atlases(bad=3, count=3)
    wide = np.pad(candidates[0].labels, ((0, 0), (3, 3), (3, 3)))
    image = np.pad(np.asarray(candidates[0].target) + 5, 3)
    one = Candidates(wide, image, subject="padded")
    target = training_target(one, BINARY)
    trained = train_data_parameters([target], BINARY, fast("out-of-line", epochs=1))
    opinion = network_opinion(trained.network, target, one.disputed, block=17)
    with torch.no_grad():
        whole = trained.network(torch.from_numpy(target.image)[None, None])[0].log_softmax(0).numpy()
    full = np.zeros((2, *image.shape))
    full[(slice(None), *target.box)] = whole
    np.testing.assert_allclose(opinion, full[:, one.disputed], atol=1e-5)


def test_label_that_the_network_does_not_know_is_an_error() -> None:
    labels = np.zeros((2, 8, 8), dtype=np.int32)
    labels[0, 2:4, 2:4] = 9
    with pytest.raises(InputError, match=r"not trained on, such as 9.*subject: sub-3"):
        training_target(Candidates(labels, np.ones((8, 8)), subject="sub-3"), BINARY)
    with pytest.raises(InputError, match="need the image of the target"):
        training_target(Candidates(labels), np.array([0, 9]))
    assert label_values([Candidates(labels)]).tolist() == [0, 9]
