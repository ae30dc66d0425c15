"""Files that describe networks which nobody would train: refused at once, whatever they ask for."""

import json
import os
import re
import resource
import time

import pytest
import torch

from popatlas.errors import InputError
from popatlas.fusion.dataparams.files import load_trained, save_labelled
from popatlas.networks.architectures import ARCHITECTURES
from popatlas.networks.files import write_network
from popatlas.networks.limits import REPEATS, check_description, no_more_than
from popatlas.networks.registration import (
    build_registration_network,
    load_registration_network,
    save_registration_network,
)
from popatlas.networks.segmentation import load_network
from popatlas.training.recipe import load_recipe, recipe_names
from tests.unit.segmentation_networks import small

OWN = [name for name, entry in ARCHITECTURES.items() if not entry.packages]
FAST = {"name": "fast", "ndim": 2, "widths": [4, 8], "blocks": [0, 0]}
FORGED = {
    "a million blocks": FAST | {"blocks": [0, 10**6]},
    "a thousand blocks": FAST | {"blocks": [0, 60_000]},
    "wide": FAST | {"widths": [4, 10**9]},
    "infinite": FAST | {"widths": [4, float("inf")]},
    "negative": FAST | {"widths": [-4, 8]},
    "a text for a number": FAST | {"widths": "9" * 100},
    "long text": FAST | {"transform": "x" * 10**6},
    "a mapping": FAST | {"widths": {"a": 1}},
    "many levels": FAST | {"widths": [1] * 1000, "blocks": [0] * 1000},
    "coarse": FAST | {"widths": [1] * 60, "blocks": [0] * 60},
    "nested": FAST | {"widths": [[[[[1]]]]]},
    "endless squarings": FAST | {"squarings": 10**9},
    "endless passes": FAST | {"passes": 10**9},
    "endless cascade": {"name": "cascade", "ndim": 2, "cascades": 10**7},
    "long cascade": {"name": "cascade", "ndim": 2, "cascades": 250},
    "endless halvings": {"name": "labelreg", "ndim": 2, "halvings": 10**8},
    "many cells": {"name": "cascade", "ndim": 3, "cells": 10**6},
    "unet of one voxel": {"name": "unet", "ndim": 3, "encoder": [1] * 200, "decoder": [1] * 200},
    "wrong axes": FAST | {"ndim": 10**9},
    "no name": {"ndim": 2},
    "a list as name": FAST | {"name": ["fast"]},
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_architecture_costs_neither_memory_nor_time(case, tmp_path):
    net = build_registration_network(**FAST)
    write_network(net, FORGED[case], tmp_path / "net.safetensors", {})
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(InputError, match=r"cannot be built.*net\.safetensors.*Remedy"):
        load_registration_network(tmp_path / "net.safetensors")
    assert time.monotonic() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize(
    "change", [{"n_labels": 10**12}, {"widths": [4, 10**12, 8]}, {"blocks": [10**6, 1]}, {"in_channels": -1}], ids=str
)
def test_the_same_holds_for_networks_of_labels(change, tmp_path):
    net = small("light")
    write_network(net, net.describe() | change, tmp_path / "net.safetensors", {})
    with pytest.raises(InputError, match="cannot be built"):
        load_network(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    "settings",
    [
        '{"epochs": 1000000000000}',
        '{"epochs": "3"}',
        '{"rate": NaN}',
        '{"rate": Infinity}',
        '{"risk": 1}',
        "[1]",
        "[" * 10**5,
    ],
)
def test_settings_of_a_trained_atlas_weights_are_checked(settings, tmp_path):
    net = small("light")
    labels = torch.arange(net.n_labels).numpy()
    save_labelled(net, labels, {"trust_settings": "{}"}, tmp_path / "net.safetensors")
    assert load_trained(tmp_path / "net.safetensors").network.n_labels == net.n_labels
    save_labelled(net, labels, {"trust_settings": settings}, tmp_path / "net.safetensors")
    with pytest.raises(InputError, match="settings of the network"):
        load_trained(tmp_path / "net.safetensors")


@pytest.mark.parametrize("labels", ["[0, 1e400, 2, 3]", "[0, 99999999999999999999, 100000000000000000000, 3]", "[" * 10**5])
def test_labels_of_a_network_are_checked(labels, tmp_path):
    net = small("light")
    write_network(net, net.describe(), tmp_path / "net.safetensors", {"labels": labels, "trust_settings": "{}"})
    with pytest.raises(InputError, match="does not tell their labels"):
        load_trained(tmp_path / "net.safetensors")


@pytest.mark.parametrize("length", [1 << 62, 1 << 25, 90])
def test_a_header_that_lies_about_its_length_is_refused(length, tmp_path):
    (tmp_path / "net.safetensors").write_bytes(length.to_bytes(8, "little") + b'{"a": 1}')
    with pytest.raises(InputError, match=f"its header would have {length} bytes"):
        load_registration_network(tmp_path / "net.safetensors")


@pytest.mark.parametrize("offsets", [[0, 10**12], [-8, 8], [4, 0], [0, 2**64]])
def test_offsets_outside_of_the_file_are_refused(offsets, tmp_path):
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": offsets}, "__metadata__": {}}
    text = json.dumps(header).encode()
    (tmp_path / "net.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(InputError, match="cannot read network"):
        load_registration_network(tmp_path / "net.safetensors")


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(InputError, match="it is no file"):
        load_registration_network(tmp_path / "pipe.safetensors")


def test_an_architecture_nested_without_end_is_refused(tmp_path):
    net = build_registration_network(**FAST)
    save_registration_network(net, tmp_path / "net.safetensors", {})
    with pytest.raises(InputError, match="cannot be built"):
        write_deep(net, tmp_path / "net.safetensors")
        load_registration_network(tmp_path / "net.safetensors")


def write_deep(net, path):
    """A description of a hundred thousand brackets, with a right digest."""
    from popatlas.networks import files

    text = "[" * 100_000
    original = files.json.dumps
    try:
        files.json.dumps = lambda value, **options: text if value == net.describe() else original(value, **options)
        write_network(net, net.describe(), path, {})
    finally:
        files.json.dumps = original


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.complex64])
def test_numbers_that_no_network_has_are_refused(kind, tmp_path):
    net = build_registration_network(**FAST)
    for value in net.parameters():
        value.data = value.data.to(kind)
    save_registration_network(net, tmp_path / "net.safetensors", {})
    with pytest.raises(InputError, match="cannot be built"):
        load_registration_network(tmp_path / "net.safetensors")


def test_every_network_of_the_package_is_within_the_bounds():
    nets = [build_registration_network(name, ndim) for name in OWN for ndim in (2, 3) if name != "cascade"]
    for recipe in map(load_recipe, recipe_names()):
        if recipe.network.name != "cascade":
            nets.append(build_registration_network(recipe.network.name, recipe.ndim, **recipe.network.options))
    for net in nets:
        check_description(net.describe())
        options = {key: value for key, value in net.describe().items() if key not in ("name", "ndim")}
        with torch.device("meta"), no_more_than(len(net.state_dict())):
            build_registration_network(net.name, net.ndim, **options)


@pytest.mark.parametrize("name", [*REPEATS, "widths"])
def test_a_recipe_of_the_user_meets_the_same_bounds(name):
    most = REPEATS.get(name, 1 << 16)
    with pytest.raises(InputError, match=re.escape(f"{name} is {most + 1:.3g}, the most is {most}") + ".*Remedy"):
        build_registration_network("fast", 2, **{name: most + 1})


def test_networks_are_counted_only_inside_of_the_block():
    with no_more_than(1), pytest.raises(InputError, match="far more tensors than the 1 of the file"):
        build_registration_network(**FAST)
    build_registration_network(**FAST)
