"""uniGradICON as engine: its coordinates, its images, weights that are missing or others, and what its package computes."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from popatlas.config.attempts import resolve_attempt
from popatlas.config.load import default_content, load_config, make_absolute, parse_config
from popatlas.errors import ConfigError, InputError, PackageError
from popatlas.images.grid import Grid
from popatlas.images.scan import Scan
from popatlas.networks.architectures import ARCHITECTURES
from popatlas.networks.files import write_network
from popatlas.networks.registration import (
    build_registration_network,
    load_registration_network,
    save_registration_network,
)
from popatlas.networks.unigradicon import SMALLEST, displacement_of
from popatlas.registration.attempt import register
from popatlas.registration.engines.registry import planned_attempt
from popatlas.registration.engines.unigradicon.weights import check_unigradicon
from popatlas.report.methods import Counts, write_methods
from popatlas.settings import merge
from popatlas.study.register import REGISTRATION, registration_memory
from popatlas.transforms.affine import read_affine
from popatlas.transforms.fields import warp
from popatlas.transforms.itk import read_displacement
from popatlas.zoo.contract import conform_pair, to_contract
from popatlas.zoo.importers.base import import_weights
from popatlas.zoo.importers.unigradicon import BRAINS
from popatlas.zoo.lock import read_lock, write_lock
from popatlas.zoo.metadata import TrainingFacts
from popatlas.zoo.store import Description, add_weights, load_weights
from tests.unit.registration.test_engines import pair as pair  # a 4 mm brain and a warped one
from tests.unit.registration.test_network_engine import load
from tests.zoo import lock_network, tiny_network

INSTALL = ARCHITECTURES["unigradicon"].install
INSTALLED = all(importlib.util.find_spec(name) for name in ARCHITECTURES["unigradicon"].packages)
needs_package = pytest.mark.skipif(not INSTALLED, reason=f"uniGradICON is not installed: {INSTALL}")
UNKNOWN = "a_package_that_nobody_has"


def needs(monkeypatch, *packages):
    """Let the network need these packages."""
    monkeypatch.setitem(ARCHITECTURES, "unigradicon", replace(ARCHITECTURES["unigradicon"], packages=packages))


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("POPATLAS_WEIGHTS", str(tmp_path / "own"))


@pytest.fixture
def absent(monkeypatch):
    needs(monkeypatch, UNKNOWN)


@pytest.fixture
def unasked(monkeypatch):
    """Let weights be looked up where the package is not installed."""
    needs(monkeypatch)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def asked(engine):
    """Return a configuration with an engine whose packages and weights nobody has looked for."""
    return parse_config(merge(default_content(), {"register": {"engine": engine}}))


def using(preset="quick", **changes):
    return resolve_attempt(load_config({"register": {"engine": "unigradicon"} | changes}), preset)


def locked(folder):
    """Lock a file as weights of uniGradICON, of which only the lock says so."""
    entry = replace(lock_network(folder, tiny_network(), "unigradicon"), architecture="unigradicon", input=BRAINS)
    write_lock([entry], shipped=False)
    return entry


# Its coordinates


@pytest.mark.parametrize("shape", [(6, 9), (5, 7, 8)])
def test_coordinates_become_voxels_of_the_same_map(shape):
    """An image at 0..1 coordinates, sampled by torch as the package does, is the image that our displacement warps."""
    ndim = len(shape)
    axes = torch.meshgrid(*(torch.linspace(0, 1, n, dtype=torch.float64) for n in shape), indexing="ij")
    places = torch.stack(axes)[None].repeat(2, 1, *[1] * ndim)
    assert displacement_of(places).abs().max() < 1e-12
    places = (places + 0.1 * torch.randn(places.shape, generator=rng(), dtype=torch.float64)).clamp(0, 1)
    image = torch.randn(2, 1, *shape, generator=rng(1), dtype=torch.float64)
    at = (2 * places - 1).flip(1).movedim(1, -1)  # torch has the last axis first
    expected = functional.grid_sample(image, at, align_corners=True)
    assert torch.allclose(warp(image, displacement_of(places)), expected, atol=1e-9)
    moved = displacement_of(places)
    assert all(float(moved[:, axis].abs().max()) > 0.1 for axis in range(ndim))


# Its images


def ball(shape=(90, 110, 95), spacing=2.0, radius=60.0):
    """Return a brain-like scan, RAS voxels of 2 mm, its middle at the origin; values rise to the left."""
    to_lps = np.diag([-spacing, -spacing, spacing, 1.0])
    to_lps[:3, 3] = -to_lps[:3, :3] @ ((np.array(shape) - 1) / 2)
    grid = Grid(shape, to_lps)
    points = np.einsum("ij,j...->i...", to_lps[:3, :3], np.indices(shape).astype(float)) + to_lps[:3, 3].reshape(3, 1, 1, 1)
    values = np.where(np.linalg.norm(points, axis=0) < radius, 2 + points[0] / radius, 0)
    return Scan(torch.tensor(values)[None, None].float(), grid)


def test_brains_are_seen_as_in_its_training():
    scan = ball()
    found = to_contract(scan.image, scan.grid, BRAINS)
    assert found.image.shape == (1, 1, 175, 175, 175)
    extent = np.array(found.grid.shape) * found.grid.spacing
    assert extent == pytest.approx([182, 217.7, 182])
    # superior, anterior and left, in LPS
    assert found.grid.direction == pytest.approx(np.array([[0, 0, 1], [0, -1, 0], [1, 0, 0]], float), abs=1e-9)
    assert found.grid.centre == pytest.approx([0, 0, 0], abs=1.01)
    image = found.image[0, 0]
    assert (float(image.min()), float(image.max())) == (0, 1)
    assert float((image == 1).float().mean()) == pytest.approx(0.01, abs=1e-3)  # of all voxels, background included
    assert float(image[87, 87, 120]) > 1.2 * float(image[87, 87, 54])
    same = to_contract(7 * scan.image, scan.grid, BRAINS).image
    assert torch.allclose(same, found.image, atol=1e-5)


def test_its_voxels_keep_their_millimetres_on_the_way_back():
    scan = ball()
    conformed = conform_pair(scan, scan, np.eye(4), BRAINS)
    predicted = torch.tensor([1.0, 2.0, -3.0]).view(1, 3, 1, 1, 1).expand(1, 3, 175, 175, 175)
    back = conformed.back(predicted)[0]
    assert back.shape == (3, *scan.grid.shape)
    # 1.04 mm up, 2.488 mm to the front and 3.12 mm to the right are as many halves of RAS voxels of 2 mm
    expected = torch.tensor([1.56, 1.244, 0.52]).view(3, 1, 1, 1).expand_as(back)
    assert torch.allclose(back, expected, atol=1e-5)


# What is missing


def test_a_missing_package_is_named_with_its_remedy(absent, tmp_path):
    message = rf"needs {UNKNOWN}, which is not installed.*{INSTALL}"
    with pytest.raises(PackageError, match=message):
        build_registration_network("unigradicon", 3)
    with pytest.raises(ConfigError, match=rf"register.unigradicon.weights: .*{message}"):
        using()
    write_network(torch.nn.Linear(1, 1), {"name": "unigradicon", "ndim": 3}, tmp_path / "w.safetensors", {})
    with pytest.raises(PackageError, match=message):
        load_registration_network(tmp_path / "w.safetensors")
    torch.save({"x": torch.ones(1)}, tmp_path / "w.trch")
    with pytest.raises(PackageError, match=message):
        import_weights("unigradicon", tmp_path / "w.trch")


def test_missing_weights_are_named_with_their_remedy(unasked, tmp_path):
    remedy = r"fetch Step_2_final.trch .*popatlas weights import unigradicon"
    with pytest.raises(ConfigError, match=rf"register.unigradicon.weights: there are no weights 'unigradicon'.*{remedy}"):
        using()
    with pytest.raises(InputError, match=rf"no such weights file \[file: .*gone.safetensors\].*{remedy}"):
        check_unigradicon(str(tmp_path / "gone.safetensors"))
    entry = locked(tmp_path)
    entry.path.unlink()
    with pytest.raises(InputError, match=rf"file of the weights unigradicon is missing \[file: {entry.path}\].*{remedy}"):
        check_unigradicon("unigradicon")


def test_weights_of_another_network_are_refused(unasked, tmp_path):
    lock_network(tmp_path, tiny_network())
    with pytest.raises(ConfigError, match="the weights tiny are of the network fast, not of uniGradICON"):
        using(unigradicon={"weights": "tiny"})


def test_jobs_know_the_digest_and_the_memory_of_the_weights(unasked, tmp_path):
    entry = locked(tmp_path)
    attempt = using()
    assert (attempt["engine"], attempt["preset"]["weights"]) == ("unigradicon", "unigradicon")
    assert attempt["preset"]["sha256"] == entry.sha256
    assert planned_attempt(attempt, gpu=1).gpu == 1
    own, plain = (registration_memory(asked(e)) for e in ("unigradicon", "ants"))
    assert plain == REGISTRATION and own > REGISTRATION + entry.memory.of(175**3) / 1e6
    fallback = load_config({"register": {"fallback": [{"start": "mass", "engine": "unigradicon"}]}}).register.fallback
    assert fallback[0].engine == "unigradicon"


def test_weights_may_be_a_path():
    config = make_absolute(load_config({"register": {"unigradicon": {"weights": "own.safetensors"}}}))
    assert config.register.unigradicon.weights == str(Path("own.safetensors").resolve())


def test_the_methods_text_cites_it():
    config = asked("unigradicon")
    text = write_methods(config, Counts(1, 1, {}, 1), [], {})
    assert "tian2024" in [reference.key for reference in text.references]


# Its own package


def package_network(shape, spread=0.02):
    """Return a network as the package makes it, with weights at random that move points by a few voxels."""
    import unigradicon

    torch.manual_seed(0)
    net = unigradicon.make_network((1, 1, *shape), include_last_step=True).eval()
    for part in net.modules():
        if hasattr(part, "lastConv"):
            torch.nn.init.normal_(part.lastConv.weight, std=spread)
    return net


def images(shape):
    return [torch.rand(1, 1, *shape, generator=rng(seed)) for seed in (1, 2)]


@needs_package
@torch.no_grad()
def test_a_checkpoint_predicts_what_its_package_predicts(tmp_path):
    """Fixed first here, second there; through the importer, the lock and a file of the zoo."""
    shape = (65, 75, 70)
    theirs = package_network(shape)
    torch.save(theirs.regis_net.state_dict(), tmp_path / "published.trch")
    entry = import_weights("unigradicon", tmp_path / "published.trch")
    assert (entry.architecture, entry.input, entry.licence) == ("unigradicon", BRAINS, "Apache-2.0")
    net, _ = load_weights("unigradicon")
    fixed, moving = images(shape)
    theirs(moving, fixed)
    ours = net(fixed, moving).displacement
    assert torch.allclose(ours, displacement_of(theirs.phi_AB_vectorfield), atol=1e-3)
    assert 0.3 < float(ours.norm(dim=1).mean()) < 10
    inside = tuple(slice(8, -8) for _ in shape)
    assert torch.allclose(warp(moving, ours)[0, 0][inside], theirs.warped_image_A[0, 0][inside], atol=1e-3)
    assert check_unigradicon("unigradicon") == entry == read_lock(shipped=False)[0]


@needs_package
@torch.no_grad()
def test_pairs_of_a_batch_do_not_touch_each_other_and_shapes_may_change():
    net = build_registration_network("unigradicon", 2).eval()
    net.load_state_dict({f"net.{name}": value for name, value in package_network((65, 65)).regis_net.state_dict().items()})
    for shape in ((70, 90), (65, 65), (70, 90)):
        fixed, moving = images(shape)
        alone = net(fixed, moving).displacement
        both = net(torch.cat([moving, fixed]), torch.cat([fixed, moving])).displacement
        assert alone.shape == (1, 2, *shape) and float(alone.abs().max()) > 0.3
        assert torch.allclose(both[1:], alone, atol=1e-3) and not torch.allclose(both[:1], alone, atol=0.1)
    with pytest.raises(ValueError, match=f"at least {SMALLEST} voxels"):
        net(*images((60, 90)))


@needs_package
def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    state = package_network((65, 65, 65)).regis_net.state_dict()
    name = "netPsi.net.lastConv.weight"
    for changed, message in (
        ({key: value for key, value in state.items() if key != name}, f"its tensor for net.{name} is missing"),
        (state | {"more": torch.ones(1)}, "it has a tensor more that the network does not"),
        (state | {name: torch.full_like(state[name], torch.nan)}, "1 tensors are not finite"),
    ):
        torch.save(changed, tmp_path / "other.trch")
        with pytest.raises(InputError, match=message):
            import_weights("unigradicon", tmp_path / "other.trch")
    assert read_lock(shipped=False) == []


@needs_package
def test_a_known_shift_reaches_the_files_in_millimetres(pair, tmp_path):
    """Each of the four U-Nets moves all points by a tenth of its last bias, in shares of the image."""
    net = build_registration_network("unigradicon", 3)
    shift = torch.tensor([0.02, -0.05, 0.03])
    with torch.no_grad():
        for part in net.modules():
            if hasattr(part, "lastConv"):
                part.lastConv.bias.copy_(shift)
    save_registration_network(net, tmp_path / "shift.safetensors", {})
    contract = replace(BRAINS, shape=(65,) * 3, spacing_mm=(2.8, 3.4, 2.8))
    told = Description("shift", "Apache-2.0", contract=contract, training=TrainingFacts("nothing"))
    add_weights(tmp_path / "shift.safetensors", told)
    attempt = using(unigradicon={"weights": "shift"})
    files = register(load(pair), planned_attempt(attempt), tmp_path)
    assert not files.diverged and np.allclose(read_affine(files.affine), np.eye(4), atol=5)
    # along S, A and L of the network to L, P and S
    up, front, left = (4 * 0.1 * shift * 64 * torch.tensor(contract.spacing_mm)).tolist()
    for path, sign in ((files.warp, 1), (files.inverse_warp, -1)):
        displacement, grid = read_displacement(path)
        millimetres = np.einsum("ij,j...->i...", grid.affine[:3, :3], displacement)
        expected = sign * np.array([left, -front, up]).reshape(3, 1, 1, 1)
        assert np.abs(millimetres - expected).max() < 0.01
