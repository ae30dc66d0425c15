"""The model zoo: adding weights, and loading them with checks."""

import shutil
import sys
import time
from dataclasses import replace
from subprocess import PIPE, Popen

import pytest
import torch

from popatlas.errors import InputError
from popatlas.images.io import sha256
from popatlas.networks.registration import build_registration_network, load_registration_network, save_registration_network
from popatlas.training.recipe import load_recipe
from popatlas.training.train import contract_of
from popatlas.zoo import lock
from popatlas.zoo.find import find_weights
from popatlas.zoo.lock import read_lock, read_locks, write_lock
from popatlas.zoo.store import add_half, add_weights, load_weights
from tests.unit.zoo.locked import TOLD, folder, relock, trained
from tests.zoo import CONTRACT_2D, FACTS, SCORE

__all__ = ["folder"]  # a fixture


def test_what_training_wrote_is_in_the_lock_and_comes_back(folder):
    net = trained(folder / "new.safetensors")
    entry = add_weights(folder / "new.safetensors", TOLD)
    (folder / "new.safetensors").unlink()
    found, known = load_weights("tiny")
    assert known == entry == find_weights("tiny")
    assert (known.recipe, known.input, known.training, known.scores) == ("light", CONTRACT_2D, FACTS, (SCORE,))
    assert (known.architecture, known.ndim, known.transform, known.best) == ("fast", 2, "velocity", SCORE)
    assert known.path == folder / "own" / "tiny.safetensors"
    assert (known.bytes, known.sha256) == (known.path.stat().st_size, sha256(known.path))
    assert not found.training
    for name, value in net.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)


def test_files_of_a_lock_are_found_by_path_and_as_copies(folder):
    trained(folder / "a.safetensors")
    add_weights(folder / "a.safetensors", TOLD)
    assert find_weights(folder / "own" / "tiny.safetensors").folder == folder / "own"
    shutil.copy(folder / "a.safetensors", folder / "copy.safetensors")
    assert load_weights(folder / "copy.safetensors")[1].path == folder / "copy.safetensors"
    trained(folder / "b.safetensors", seed=1)
    with pytest.raises(InputError, match=r"in no lock file.*b\.safetensors.*popatlas weights add"):
        load_weights(folder / "b.safetensors")
    with pytest.raises(InputError, match="no such weights file"):
        load_weights(folder / "c.safetensors")


def test_unknown_names_bring_suggestions(folder):
    trained(folder / "a.safetensors")
    with pytest.raises(InputError, match=r"no weights 'tinny'.*known are none"):
        find_weights("tinny")
    add_weights(folder / "a.safetensors", TOLD)
    with pytest.raises(InputError, match=r"no weights 'tinny'.*did you mean tiny\?"):
        find_weights("tinny")
    with pytest.raises(InputError, match="known are tiny; see popatlas weights list"):
        find_weights("completely-else")


def test_one_changed_byte_is_noticed_wherever_it_is(folder):
    trained(folder / "a.safetensors")
    path = add_weights(folder / "a.safetensors", TOLD).path
    content = path.read_bytes()
    for position in (9, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(InputError, match=r"not those of the lock file: SHA-256.*tiny\.safetensors.*Remedy: fetch"):
            load_weights("tiny")
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"have {len(content) - 1} bytes, not {len(content)}"):
        load_weights("tiny")
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        load_weights("tiny")
    path.write_bytes(content)
    load_weights("tiny")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "not those of the lock file"),
        ({"architecture": "unet"}, "has architecture fast, the lock file says unet"),
        ({"ndim": 3}, "has ndim 2, the lock file says 3"),
        ({"transform": "displacement"}, "has transform velocity, the lock file says displacement"),
        ({"recipe": "other"}, "has recipe light, the lock file says other"),
    ],
)
def test_weights_of_another_network_or_recipe_are_refused(folder, changes, message):
    trained(folder / "a.safetensors")
    add_weights(folder / "a.safetensors", TOLD)
    relock(**changes)
    with pytest.raises(InputError, match=message) as error:
        load_weights("tiny")
    assert error.value.remedy and error.value.file


def test_a_name_of_the_package_cannot_be_shadowed(folder):
    trained(folder / "a.safetensors")
    shipped = add_weights(folder / "a.safetensors", TOLD, shipped=True)
    assert shipped.path == folder / "package" / "weights" / "tiny.safetensors"
    assert load_weights("tiny")[1] == shipped
    with pytest.raises(InputError, match="weights 'tiny' already"):
        add_weights(folder / "a.safetensors", TOLD)
    own = add_weights(folder / "a.safetensors", replace(TOLD, name="own"))
    write_lock([replace(own, name="tiny")], shipped=False)  # by hand
    with pytest.raises(InputError, match=r"names tiny belong to weights of the package.*own/weights\.lock\.yaml"):
        load_weights("tiny")


def test_the_same_name_is_not_added_twice(folder):
    trained(folder / "a.safetensors")
    before = add_weights(folder / "a.safetensors", TOLD)
    trained(folder / "b.safetensors", seed=1)
    with pytest.raises(InputError, match="already"):
        add_weights(folder / "b.safetensors", TOLD)
    assert load_weights("tiny")[1] == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"licence": "M;T"}, "licence"), ({"name": "../elsewhere"}, "name"), ({"version": ""}, "version")],
)
def test_what_cannot_be_added_destroys_nothing(folder, changes, message):
    place = folder / "own" / "tiny.safetensors"
    place.parent.mkdir()
    trained(place)
    trained(folder / "elsewhere.safetensors", seed=1)
    before = {path: path.read_bytes() for path in (place, folder / "elsewhere.safetensors")}
    with pytest.raises(InputError, match=f"cannot be described: .*{message}"):
        add_weights(place, replace(TOLD, **changes))
    assert {path: path.read_bytes() for path in before} == before and read_locks() == []


def test_a_file_in_its_place_is_locked_there_and_another_one_is_never_replaced(folder):
    place = folder / "own" / "tiny.safetensors"
    place.parent.mkdir()
    trained(place)
    trained(folder / "b.safetensors", seed=1)
    content = place.read_bytes()
    with pytest.raises(InputError, match=r"file of the name 'tiny' that is in no lock.*own/tiny\.safetensors.*Remedy: move"):
        add_weights(folder / "b.safetensors", TOLD)
    assert place.read_bytes() == content and read_locks() == []
    add_weights(place, TOLD)
    assert place.read_bytes() == content and load_weights("tiny")[1].path == place


ADDED = """
import sys
from popatlas.zoo.store import Description, add_weights
print("ready", flush=True)
sys.stdin.readline()
add_weights(sys.argv[1], Description(sys.argv[2], "MIT"))
"""


def test_processes_that_add_at_once_lose_nothing(folder):
    trained(folder / "a.safetensors")
    names = ["one", "two", "three"]
    others = [
        Popen([sys.executable, "-c", ADDED, str(folder / "a.safetensors"), name], stdin=PIPE, stdout=PIPE, text=True)
        for name in names
    ]
    for other in others:
        assert other.stdout.readline() == "ready\n"
    with lock.one_at_a_time(shipped=False):  # all of them wait, having seen an empty lock file
        for other in others:
            other.stdin.write("go\n")
            other.stdin.flush()
        time.sleep(3)
        assert read_lock(shipped=False) == []
    assert [other.wait(60) for other in others] == [0, 0, 0]
    assert sorted(entry.name for entry in read_lock(shipped=False)) == sorted(names)


@pytest.mark.parametrize("ndim", [2, 3])
def test_networks_that_see_forces_and_descriptors_are_added(folder, ndim):
    torch.manual_seed(0)
    options = {"widths": [4, 8], "blocks": [0, 0], "guided": True, "sees": "both", "fine": True}
    net = build_registration_network("fast", ndim, **options)
    save_registration_network(net, folder / "a.safetensors", {})
    contract = replace(CONTRACT_2D, spacing_mm=(2.0,) * ndim, orientation=None, multiple=net.stride)
    entry = add_weights(folder / "a.safetensors", replace(TOLD, contract=contract, training=FACTS))
    assert entry.memory.bytes_per_voxel > 50


def test_a_network_that_cannot_run_is_not_added(folder, monkeypatch):
    net = build_registration_network("unet", 2)
    save_registration_network(net, folder / "a.safetensors", {})
    told = replace(TOLD, contract=replace(CONTRACT_2D, multiple=16), training=FACTS)
    with monkeypatch.context() as patch:
        patch.setattr(type(net), "predict", lambda net, fixed, moving: len(3))
        with pytest.raises(InputError, match=r"the network does not run: TypeError.*a\.safetensors.*Remedy"):
            add_weights(folder / "a.safetensors", told)
    net.options["slope"] = "steep"
    save_registration_network(net, folder / "b.safetensors", {})
    with pytest.raises(InputError, match=r"cannot be built: network unet\.slope: 'steep'.*b\.safetensors.*Remedy"):
        add_weights(folder / "b.safetensors", told)


def test_networks_that_scale_with_the_image_need_its_shape(folder):
    net = build_registration_network("twostream", 2, maps=2, widths=[2, 2])
    save_registration_network(net, folder / "a.safetensors", {})
    told = replace(TOLD, contract=CONTRACT_2D, training=FACTS)
    with pytest.raises(InputError, match=r"network twostream is good for images of the one shape.*Remedy: give that shape"):
        add_weights(folder / "a.safetensors", told)
    shaped = replace(CONTRACT_2D, shape=(16, 24))
    assert add_weights(folder / "a.safetensors", replace(told, contract=shaped)).input == shaped


@pytest.mark.parametrize(("name", "option", "value"), [("fast", "passes", 3), ("lapirn", "smoothness", 0.6)])
def test_an_option_that_was_changed_after_building_is_in_the_file(folder, name, option, value):
    net = build_registration_network(name, 2).eval()
    setattr(net, option, value)
    save_registration_network(net, folder / "a.safetensors", {})
    found, _ = load_registration_network(folder / "a.safetensors")
    assert getattr(found, option) == value


@pytest.mark.parametrize(("name", "one_shape"), [("fast", False), ("unet", False), ("twostream", True), ("lapirn", True)])
def test_the_contract_of_a_training_tells_its_shape(name, one_shape):
    recipe = load_recipe("brain-t1w", {"network": {"name": name, "options": {}}}, light=True)
    contract = contract_of(recipe, build_registration_network(name, 3))
    shape = tuple(recipe.grid.shape)
    assert (contract.shape, contract.usual_shape) == ((shape, None) if one_shape else (None, shape))


def test_what_a_file_does_not_say_has_to_be_told(folder):
    net = trained(folder / "bare.safetensors", texts={})
    with pytest.raises(InputError, match=r"which images it expects.*--contract"):
        add_weights(folder / "bare.safetensors", TOLD)
    with pytest.raises(InputError, match=r"what it was trained on.*--trained-on"):
        add_weights(folder / "bare.safetensors", replace(TOLD, contract=CONTRACT_2D))
    wrong = replace(CONTRACT_2D, multiple=4)
    with pytest.raises(InputError, match=f"multiples of 4, the network needs 2 axes and multiples of {net.stride}"):
        add_weights(folder / "bare.safetensors", replace(TOLD, contract=wrong, training=FACTS))
    with pytest.raises(InputError, match=r"cannot be described: .*licence"):
        add_weights(folder / "bare.safetensors", replace(TOLD, licence="", contract=CONTRACT_2D, training=FACTS))
    assert read_locks() == [] and not list((folder / "own").glob("*.safetensors"))
    told = replace(TOLD, contract=CONTRACT_2D, training=FACTS, recipe="mine")
    assert add_weights(folder / "bare.safetensors", told).recipe == "mine"
    trained(folder / "full.safetensors")
    with pytest.raises(InputError, match="trained by the recipe light, not mine"):
        add_weights(folder / "full.safetensors", replace(told, name="full"))


def test_weights_that_are_not_finite_are_refused(folder):
    net = build_registration_network("fast", 2, widths=[4, 8], blocks=[0, 0])
    with torch.no_grad():
        net.head.flow.bias[0] = torch.nan
    save_registration_network(net, folder / "nan.safetensors", {})
    with pytest.raises(InputError, match=r"1 tensors are not finite, the first one is head\.flow\.bias"):
        add_weights(folder / "nan.safetensors", TOLD)


def test_half_of_the_digits_are_stored_and_none_is_computed_with(folder):
    trained(folder / "a.safetensors")
    whole = add_weights(folder / "a.safetensors", TOLD)
    half = add_half(folder / "a.safetensors", replace(TOLD, name="half"))
    assert half.bytes < 0.75 * whole.bytes and half.training == whole.training
    loaded, entry = load_weights("half")
    assert entry == half and {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    for name, value in load_weights(whole.name)[0].state_dict().items():
        assert torch.allclose(loaded.state_dict()[name], value, rtol=1e-3, atol=1e-6)
