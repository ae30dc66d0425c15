"""Pairs of scans and labels that training draws."""

from collections import Counter

import pytest
import torch

from popatlas.errors import InputError
from popatlas.training.pairs import PairSampler
from popatlas.training.structures import sample_structures, structure_maps
from popatlas.training.table import TrainingScan


def scan(subject, split="train", group="", session=""):
    return TrainingScan(subject, image=None, session=session, group=group, split=split)


COHORT = [scan(f"t{n}") for n in range(4)] + [scan(f"v{n}", "validation") for n in range(3)] + [scan("x", "test")]


def names(pairs):
    return [(pair.fixed.name, pair.moving.name) for pair in pairs]


def stream(scans, seed, count, **options):
    sampler = PairSampler(scans, seed, **options)
    return [sampler.pair(number) for number in range(count)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_all_ordered_pairs_of_training_scans_are_equally_likely():
    counts = Counter(names(stream(COHORT, 1, 12_000)))
    assert set(counts) == {(f"t{i}", f"t{j}") for i in range(4) for j in range(4) if i != j}
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 31.3  # 0.1 % of chi squared, 11 degrees


def test_pairs_stay_in_their_group_and_groups_count_by_their_pairs():
    scans = [scan("a", group="g", session=str(n)) for n in range(3)] + [
        scan("b", group="h", session=str(n)) for n in range(2)
    ]
    counts = Counter(names(stream(scans, 2, 8000)))
    assert len(counts) == 6 + 2
    assert all(fixed[0] == moving[0] and fixed != moving for fixed, moving in counts)
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 24.3  # 0.1 % of chi squared, 7 degrees


def test_listed_order_has_each_pair_once_with_the_earlier_scan_fixed():
    scans = [scan(f"{n}") for n in range(7)]
    counts = Counter(names(stream(scans, 2, 3000, order="listed")))
    assert set(counts) == {(str(i), str(j)) for i in range(7) for j in range(i + 1, 7)}


def test_a_pair_follows_from_seed_and_number():
    whole = stream(COHORT, 5, 50)
    assert [PairSampler(COHORT, 5).pair(n) for n in (17, 3)] == [whole[17], whole[3]]
    assert len({pair.seed for pair in whole}) == 50
    assert whole != stream(COHORT, 6, 50)


def test_validation_pairs_are_fixed_different_and_apart_from_training():
    sampler = PairSampler(COHORT, seed=1)
    pairs = sampler.validation_pairs(4)
    assert pairs == sampler.validation_pairs(4) == PairSampler(COHORT, 9).validation_pairs(4)
    assert len(set(names(pairs))) == 4
    assert {pair.fixed.split for pair in pairs} | {pair.moving.split for pair in pairs} == {"validation"}
    trained = {name for pair in stream(COHORT, 1, 500) for name in (pair.fixed.subject, pair.moving.subject)}
    assert trained == {"t0", "t1", "t2", "t3"}
    assert len(sampler.validation_pairs(100)) == 6


def test_one_validation_scan_is_paired_with_training_scans():
    scans = [scan("a"), scan("b"), scan("v", "validation"), scan("x", "test")]
    pairs = names(PairSampler(scans, seed=1).validation_pairs(10))
    assert sorted(pairs) == [("a", "v"), ("b", "v"), ("v", "a"), ("v", "b")]


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(InputError, match="no pair"):
        PairSampler([scan("a"), scan("b", group="g"), scan("v", "validation")], seed=1)
    for wrong in ({"seed": -1}, {"order": "first"}):
        with pytest.raises(ValueError, match=r"seed .*, order"):
            PairSampler(COHORT, **{"seed": 1, **wrong})


def test_common_labels_are_drawn_without_repetition_each_equally_likely():
    fixed = torch.tensor([0, 0, 3, 5, 70_000, 9, 9])
    moving = torch.tensor([5, 70_000, 0, 3, 3, 8, 8])
    random = generator(1)
    drawn = [tuple(sorted(sample_structures(fixed, moving, 2, random).tolist())) for _ in range(3000)]
    counts = Counter(drawn)
    assert set(counts) == {(3, 5), (3, 70_000), (5, 70_000)}
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 13.8  # 0.1 % of chi squared, 2 degrees
    assert sorted(sample_structures(fixed, moving, 10, random).tolist()) == [3, 5, 70_000]
    assert sorted(sample_structures(fixed, moving, 10, random, exclude=()).tolist()) == [0, 3, 5, 70_000]
    assert sorted(sample_structures(fixed, moving, 10, random, exclude=(0, 5)).tolist()) == [3, 70_000]


def test_maps_without_a_common_label_give_none():
    empty = sample_structures(torch.tensor([0, 1]), torch.tensor([0, 2]), 3, generator())
    assert empty.tolist() == []
    with pytest.raises(ValueError, match="0 labels"):
        sample_structures(torch.tensor([1]), torch.tensor([1]), 0, generator())


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5)])
def test_one_hot_maps_add_up_to_one(shape):
    labels = torch.randint(0, 4, (2, 1, *shape), generator=generator())
    maps = structure_maps(labels, torch.arange(4))
    assert maps.shape == (2, 4, *shape) and maps.dtype == torch.float32
    assert torch.equal(maps.sum(1), torch.ones(2, *shape))
    assert torch.equal(maps.argmax(1, keepdim=True), labels)


def overlap_gradient(fixed, moving, values):
    """Gradient of the mean soft Dice of labels by the logit weights of three labels, which stand for a network."""
    weights = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    soft = structure_maps(moving, values).double() * torch.sigmoid(weights[values - 1]).reshape(1, -1, 1, 1)
    hard = structure_maps(fixed, values).double()
    dice = 2 * (soft * hard).sum((2, 3)) / (soft + hard).sum((2, 3))
    return torch.autograd.grad(dice.mean(), weights)[0]


def toy():
    """Two pairs of maps, one with three common labels, one with two: (fixed, moving, common)."""
    maps = [torch.randint(0, 4, (1, 1, 8, 8), generator=generator(seed)) for seed in range(4)]
    maps[3] = maps[3].where(maps[3] != 2, 0)
    return [(maps[0], maps[1], [1, 2, 3]), (maps[2], maps[3], [1, 3])]


def test_two_stage_sampling_has_the_full_gradient_as_its_mean():
    """Enumerated: each pair with probability 1/2, then each of its labels with probability 1/M (Hu et al. 2018)."""
    full = sum(overlap_gradient(f, m, torch.tensor(common)) for f, m, common in toy()) / 2
    enumerated = torch.zeros(3, dtype=torch.float64)
    for f, m, common in toy():
        for label in common:
            enumerated += overlap_gradient(f, m, torch.tensor([label])) / len(common) / 2
    assert (enumerated - full).abs().max() < 1e-12
    pooled = [overlap_gradient(f, m, torch.tensor([label])) for f, m, common in toy() for label in common]
    assert (sum(pooled) / 5 - full).abs().max() > 1e-3  # drawing from all labels of all pairs would be another objective


def test_the_gradient_of_what_is_drawn_tends_to_the_full_gradient():
    pairs = toy()
    full = sum(overlap_gradient(f, m, torch.tensor(common)) for f, m, common in pairs) / 2
    single = {(n, v): overlap_gradient(f, m, torch.tensor([v])) for n, (f, m, common) in enumerate(pairs) for v in common}
    random, draws = generator(7), []
    for pair in stream([scan("a"), scan("b")], 4, 4000):  # two ordered pairs stand for the two pairs of maps
        n = 0 if pair.fixed.subject == "a" else 1
        draws.append(single[n, int(sample_structures(pairs[n][0], pairs[n][1], 1, random))])
    found = torch.stack(draws)
    error = found.std(0) / len(draws) ** 0.5
    assert ((found.mean(0) - full).abs() < 4 * error).all()
