"""The network engine: known networks on known grids, refinement, memory, and pairs that do not fit a contract."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from popatlas.config.attempts import resolve_attempt
from popatlas.config.load import load_config
from popatlas.errors import ConfigError, InputError
from popatlas.images.grid import Grid
from popatlas.images.io import load_image, save_image
from popatlas.networks.memory import is_out_of_memory
from popatlas.networks.registration import Prediction, build_registration_network
from popatlas.registration.attempt import register, try_once
from popatlas.registration.engines.network.core import back, conform, load_planned, predict, set_passes
from popatlas.registration.engines.registry import find_engine, planned_attempt
from popatlas.registration.pair import load_pair
from popatlas.transforms.affine import read_affine
from popatlas.transforms.fields import compose
from popatlas.transforms.itk import read_displacement, write_affine
from popatlas.zoo.contract import Conformed, ConformedPair
from tests.unit.registration.test_engines import FILES, GATE
from tests.unit.registration.test_engines import pair as pair  # a 4 mm brain and a warped one
from tests.zoo import lock_network, tiny_network


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("POPATLAS_WEIGHTS", str(tmp_path / "own"))


def attempt(preset="quick", **register_changes):
    config = load_config({"register": {"engine": "network", "weights": "tiny"} | register_changes})
    return resolve_attempt(config, preset)


def load(pair, subject="sub-07"):
    return load_pair(*(str(pair / f"{name}.nii.gz") for name in FILES), subject)


def fields(files):
    return [torch.as_tensor(read_displacement(path)[0])[None].float() for path in (files.warp, files.inverse_warp)]


def test_a_network_that_moves_nothing_gives_the_affine(pair, tmp_path):
    lock_network(tmp_path, tiny_network())
    files = register(load(pair), planned_attempt(attempt()), tmp_path)
    for field in fields(files):
        assert not field.any()
    matrix = read_affine(files.affine)
    assert np.abs(matrix - np.eye(4)).max() > 1e-3
    assert np.allclose(matrix, np.eye(4), atol=5)


@pytest.mark.parametrize("transform", ["displacement", "velocity"])
def test_a_constant_shift_keeps_its_millimetres_on_a_turned_grid(transform, tmp_path):
    """The network sees LIA voxels of 2 mm; the fixed image has RAS-like axes in another order and other voxels."""
    net = tiny_network(transform=transform)
    shift = torch.tensor([0.5, -1.0, 0.75])  # of blocks of 2 voxels: 2, -4 and 3 mm along L, I and A
    with torch.no_grad():
        net.head.flow.bias.copy_(shift)
    lock_network(tmp_path, net, spacing_mm=(2.0, 2.0, 2.0), orientation="LIA")
    to_ras = np.array([[0, 0, -2.5, 40], [3.0, 0, 0, -30], [0, 2.0, 0, -20], [0, 0, 0, 1]])
    shape = (24, 30, 28)
    values = np.random.default_rng(0).uniform(0.2, 1, shape).astype(np.float32)
    for name in ("fixed", "moving"):
        save_image(values, to_ras, tmp_path / f"{name}.nii.gz")
        save_image(np.ones(shape, np.uint8), to_ras, tmp_path / f"{name}_mask.nii.gz")
    write_affine(tmp_path / "affine.mat", np.eye(4))
    found = find_engine("network").load()(load(tmp_path), planned_attempt(attempt()), tmp_path / "affine.mat", tmp_path, 1)
    forward, grid = read_displacement(found.warp)
    inverse, _ = read_displacement(found.inverse_warp)
    lps = np.array([2.0, -3.0, 4.0])  # L is +x, I is -z, A is -y
    inner = (slice(4, -4),) * 3
    for field, expected in ((forward, lps), (inverse, -lps)):
        millimetres = np.einsum("ij,j...->i...", grid.affine[:3, :3], field)
        assert np.allclose(millimetres[:, *inner], expected.reshape(3, 1, 1, 1), atol=1e-3)


@pytest.mark.parametrize("transform", ["displacement", "velocity"])
def test_forward_and_inverse_undo_each_other(pair, tmp_path, transform):
    lock_network(tmp_path, tiny_network(spread=0.02, transform=transform))
    fixed = load(pair)
    tried = try_once(fixed, planned_attempt(attempt()), GATE, tmp_path)
    moved = fields(tried.files)[0].norm(dim=1)[0].numpy()[fixed.fixed_mask.numpy() > 0].mean()
    assert moved > 0.2
    assert tried.metrics["inverse_error"] < 0.2 * moved
    assert tried.metrics["nonpositive_jacobian"] == 0


def test_refinement_brings_the_brains_closer(pair, tmp_path):
    lock_network(tmp_path, tiny_network(spread=0.01))
    tried = {}
    for preset in ("quick", "default", "accurate"):
        (tmp_path / preset).mkdir()
        tried[preset] = try_once(load(pair), planned_attempt(attempt(preset)), GATE, tmp_path / preset)
    ncc = {preset: one.metrics["ncc"] for preset, one in tried.items()}
    assert ncc["quick"] < ncc["default"] < ncc["accurate"]
    assert ncc["accurate"] > tried["quick"].metrics["ncc_affine"] + 0.05
    assert tried["accurate"].reasons == []
    assert tried["accurate"].metrics["inverse_error"] < 0.1


def test_refinement_starts_where_the_network_ended(pair, tmp_path):
    """A step so short that it changes nothing leaves what was predicted."""
    lock_network(tmp_path, tiny_network(spread=0.01))
    still = attempt("fast")
    still["preset"] |= {"step": 1e-6, "elastic": 0.0, "shrink": [1], "iterations": [1], "field_shrink": [1]}
    quick, refined = (register(load(pair), planned_attempt(one), tmp_path / name) for name, one in folders(tmp_path, still))
    assert (fields(quick)[0] - fields(refined)[0]).abs().max() < 0.02
    assert compose(*fields(refined)).norm(dim=1).mean() < 0.05


def folders(tmp_path, still):
    for name, one in (("quick", attempt()), ("refined", still)):
        (tmp_path / name).mkdir()
        yield name, one


def test_a_brain_outside_the_contract_names_file_subject_and_remedy(pair, tmp_path):
    lock_network(tmp_path, tiny_network(), spacing_mm=(0.5, 0.5, 0.5))
    with pytest.raises(InputError, match=r"4 x 4 x 4 mm.*trained with 0\.5.*fixed\.nii\.gz.*sub-07.*Remedy: use images"):
        register(load(pair), planned_attempt(attempt()), tmp_path)


def test_weights_for_whole_heads_are_refused_by_the_engine(pair, tmp_path):
    lock_network(tmp_path, tiny_network())
    planned = attempt()
    planned["preset"]["weights"] = "heads"
    planned["preset"]["sha256"] = lock_network(tmp_path, tiny_network(), "heads", stripped=False).sha256
    with pytest.raises(InputError, match=r"weights heads are for whole heads.*Remedy: use weights for brains"):
        register(load(pair), planned_attempt(planned), tmp_path)


COARSE = {"encoder": [4, 4], "decoder": [4, 4], "final": [4], "transform": "velocity", "shrink": True}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("unet", COARSE | {"alignment": one, "steps": 2}) for one in ("blocks", "corners", "origin")),
        ("fast", {"widths": [4, 8], "blocks": [0, 0], "squarings": 2}),
        ("deepreg", {"widths": [2, 2], "transform": "velocity"}),
    ],
)
def test_the_way_back_is_made_as_the_way_there(name, options):
    """A network that predicts the opposite velocity predicts the inverse, on whatever grid and by however many squarings."""
    torch.manual_seed(0)
    net = build_registration_network(name, 3, **options).eval()
    with torch.no_grad():
        net.head.flow.weight.normal_(0, 0.5)
        fixed, moving = torch.rand(2, 1, 1, 24, 24, 24)
        found = net(fixed, moving)
        net.head.flow.weight.neg_()
        net.head.flow.bias.neg_()
        expected = net(fixed, moving).displacement
    assert expected.abs().max() > 0.1
    grid = Grid((24, 24, 24), np.eye(4))
    pair = ConformedPair(Conformed(fixed, grid, grid), moving)
    assert torch.allclose(back(net, pair, found), expected, atol=1e-4)


def test_a_displacement_is_inverted():
    net = tiny_network(transform="displacement")
    with torch.no_grad():
        net.head.flow.bias.fill_(0.5)
        found = net(*torch.rand(2, 1, 1, 8, 8, 8))
    assert net.inverse(found) is None
    grid = Grid((8, 8, 8), np.eye(4))
    same = ConformedPair(Conformed(torch.zeros(1, 1, 8, 8, 8), grid, grid), torch.zeros(1, 1, 8, 8, 8))
    assert torch.allclose(back(net, same, found), -found.displacement, atol=1e-3)


def test_weights_that_were_replaced_after_the_start_are_refused(tmp_path):
    lock_network(tmp_path, tiny_network())
    planned = planned_attempt(attempt())
    assert load_planned(planned)[1].sha256 == planned.weights.sha256 == attempt()["preset"]["sha256"]
    lock_network(tmp_path, tiny_network(seed=1))
    with pytest.raises(InputError, match=r"weights tiny were replaced.*Remedy: run again"):
        load_planned(planned)


# Memory


class Greedy(torch.nn.Module):
    """A network that has memory for so many pairs only; it keeps account of what it was given."""

    def __init__(self, room, error):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.room, self.error, self.sizes, self.given = room, error, [], []

    def forward(self, fixed, moving):
        alive = [one() is not None for one in self.given]
        assert not any(alive), "an earlier try holds its tensors"
        self.sizes.append(len(moving))
        self.given.append(weakref.ref(moving))
        if len(moving) > self.room:
            raise self.error
        return Prediction(torch.cat([moving] * 3, dim=1) - fixed)


def pairs_of(count):
    grid = Grid((4, 4, 4), np.eye(4))
    fixed = Conformed(torch.zeros(1, 1, *grid.shape), grid, grid)
    return [ConformedPair(fixed, torch.full((1, 1, *grid.shape), float(number))) for number in range(count)]


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize(("count", "room", "sizes"), [(5, 5, [5]), (5, 3, [5, 3, 2]), (1, 1, [1])])
def test_a_batch_that_does_not_fit_is_halved_once(error, count, room, sizes):
    net = Greedy(room, error)
    found = predict(net, pairs_of(count))
    assert net.sizes == sizes
    assert [float(one.displacement.mean()) for one in found] == list(range(count))


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize(("count", "sizes", "said"), [(4, [4, 2], "2 pair"), (1, [1], "1 pair")])
def test_a_second_failure_is_explained(error, count, sizes, said):
    net = Greedy(0, error)
    with pytest.raises(InputError, match=rf"{said}.* 4 x 4 x 4 voxels do not fit.*register\.network\.batch lower.*gpu: 0"):
        predict(net, pairs_of(count))
    assert net.sizes == sizes


def test_other_errors_are_not_taken_for_the_end_of_memory():
    net = Greedy(0, RuntimeError("size mismatch"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        predict(net, pairs_of(4))
    assert net.sizes == [4]


def test_torch_on_the_cpu_says_it_in_its_own_words():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**14)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))


# Configuration


def test_the_way_tells_the_weights_and_their_digest_but_no_gpu(tmp_path):
    entry = lock_network(tmp_path, tiny_network())
    one = attempt(gpu=1, network={"batch": 3})
    assert one == attempt()
    assert (one["engine"], one["preset"]["weights"], one["preset"]["sha256"]) == ("network", "tiny", entry.sha256)
    assert attempt(weights=str(entry.path))["preset"]["sha256"] == entry.sha256
    assert planned_attempt(one, gpu=2).gpu == 2 and planned_attempt(attempt(engine="ffd"), gpu=2).gpu == 0
    lock_network(tmp_path, tiny_network(seed=1))
    assert attempt()["preset"]["sha256"] != entry.sha256


@pytest.mark.parametrize(
    ("register_changes", "message"),
    [
        ({"engine": "network", "weights": "tinny"}, r"register\.weights: .*'tinny'.*did you mean tiny"),
        ({"engine": "network", "weights": "absent.safetensors"}, r"register\.weights: .*no such weights file"),
        ({"weights": "tinny", "fallback": [{"start": "mass", "engine": "network"}]}, r"register\.weights: .*'tinny'"),
        ({"engine": "network", "weights": "heads"}, r"register\.weights: the weights heads are for whole heads"),
        ({"engine": "network", "weights": "flat"}, r"register\.weights: flat is for images of 2 axes"),
        (
            {"engine": "network", "weights": "tiny", "presets": {"network": {"fast": {"iterations": [5, 5]}}}},
            r"presets\.network\.fast: .* one entry for each level",
        ),
    ],
)
def test_weights_that_cannot_be_used_are_named_before_anything_runs(tmp_path, register_changes, message):
    lock_network(tmp_path, tiny_network())
    lock_network(tmp_path, tiny_network(ndim=2), "flat")
    lock_network(tmp_path, tiny_network(), "heads", stripped=False)
    with pytest.raises(ConfigError, match=message):
        load_config({"register": register_changes})


def test_weights_do_not_matter_to_other_engines():
    assert load_config({"register": {"weights": "absent"}}).register.engine == "instance"


def test_conforming_uses_the_affine(pair, tmp_path):
    entry = lock_network(tmp_path, tiny_network())
    matrix = np.eye(4)
    matrix[0, 3] = 8.0
    for name, one in (("here", np.eye(4)), ("there", matrix)):
        write_affine(tmp_path / f"{name}.mat", one)
    here, there = (conform(load(pair), tmp_path / f"{name}.mat", entry).moving[0, 0] for name in ("here", "there"))
    x_axis = load_image(pair / "fixed.nii.gz").affine[0, 0]
    steps = round(-8.0 / x_axis)  # LPS points 8 mm to the left are 2 voxels away
    assert torch.allclose(there.roll(steps, 0)[4:-4], here[4:-4], atol=0.1)


def test_a_preset_lets_a_network_look_less_often_than_it_learnt() -> None:
    net = build_registration_network("fast", 2, widths=[4, 8], blocks=[0, 0], passes=3)
    for passes, wanted in ((0, 3), (5, 3), (2, 2), (0, 2)):
        set_passes(net, passes)
        assert net.passes == wanted
    single = build_registration_network("unet", 2, encoder=[4], decoder=[4], final=[])
    set_passes(single, 2)
    assert single.passes is None
