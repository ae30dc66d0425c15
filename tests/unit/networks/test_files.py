"""Files of segmentation networks: what they keep, and that damaged or foreign ones are refused."""

import hashlib
import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from popatlas.errors import InputError
from popatlas.networks.segmentation import load_network, save_network
from tests.unit.segmentation_networks import NAMES, ODD, noise, small


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_the_same_network_back(name, ndim, dtype, tmp_path):
    net = small(name, ndim, norm="batch", positions=True)
    net(noise(2, 1, *[8] * ndim))  # so that the running statistics are not those of a new network
    net.to(dtype)
    path, metadata = tmp_path / "folder" / "net.safetensors", {"subjects": "3", "popatlas_version": "1.2"}
    save_network(net, path, metadata)
    assert [file.name for file in path.parent.iterdir()] == ["net.safetensors"]
    state = torch.get_rng_state()
    again, found = load_network(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == metadata
    assert again.describe() == net.describe()
    assert not again.training
    assert {k: v.dtype for k, v in again.state_dict().items()} == {k: v.dtype for k, v in net.state_dict().items()}
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in net.state_dict().items())
    assert [(k, v.requires_grad, v.stride()) for k, v in again.named_parameters()] == [
        (k, v.requires_grad, v.stride()) for k, v in net.named_parameters()
    ]
    save_network(again, tmp_path / "again.safetensors", found)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    if dtype != torch.bfloat16:
        image = noise(1, 1, *ODD[ndim], dtype=dtype)
        assert torch.equal(again(image), net.eval()(image))
        path.write_bytes(bytes(path.stat().st_size))  # a network in use does not depend on its file
        assert torch.equal(again(image), net(image))


def test_our_own_keys_of_the_metadata_are_taken(tmp_path):
    with pytest.raises(ValueError, match="popatlas_digest"):
        save_network(small("light"), tmp_path / "net.safetensors", {"popatlas_digest": ""})
    assert list(tmp_path.iterdir()) == []


def header_of(content):
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(content, change):
    """The file with another header; the rest stays."""
    header, rest = header_of(content)
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def flip(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGE = {
    "empty": lambda c: b"",
    "text": lambda c: b"not a network, but long enough to have a header",
    "header cut": lambda c: c[:100],
    "tensors cut": lambda c: c[:-1],
    "longer": lambda c: c + b"\0",
    "one bit of the last weight": lambda c: flip(c, len(c) - 1),
    "one bit of the first weight": lambda c: flip(c, 8 + struct.unpack("<Q", c[:8])[0]),
    "other metadata": lambda c: with_header(c, lambda h: h["__metadata__"].update(subjects="4")),
    "another type": lambda c: with_header(c, lambda h: h["classifier.weight"].update(dtype="I32")),
    "no digest": lambda c: with_header(c, lambda h: h["__metadata__"].pop("popatlas_digest")),
    "no architecture": lambda c: with_header(c, lambda h: h["__metadata__"].pop("popatlas_network")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(damage, tmp_path):
    path = tmp_path / "net.safetensors"
    save_network(small("light"), path, {"subjects": "3"})
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(InputError, match=r"net\.safetensors.*Remedy"):
        load_network(path)


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read network.*missing\.safetensors"):
        load_network(tmp_path / "missing.safetensors")
    with pytest.raises(InputError, match="cannot read network"):
        load_network(tmp_path)
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors", metadata=metadata)
        with pytest.raises(InputError, match=r"no network of popatlas.*foreign\.safetensors"):
            load_network(tmp_path / "foreign.safetensors")


def sealed(path, architecture, tensors):
    """A file with a valid digest, as another version of the package could have written it."""
    texts = {"popatlas_network": architecture}
    total = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        kind = str(value.dtype).removeprefix("torch.")
        total.update(f"{name} {kind} {tuple(value.shape)}".encode())
        total.update(value.numpy().tobytes())
    save_file(tensors, path, metadata={**texts, "popatlas_digest": total.hexdigest()})


def test_tensors_must_fit_the_architecture(tmp_path):
    net, path = small("light", 2, norm="batch"), tmp_path / "net.safetensors"
    good = {key: value.contiguous() for key, value in net.state_dict().items()}
    description = net.describe()
    sealed(path, json.dumps(description), good)
    assert load_network(path)[0].describe() == description

    bias, counter = "classifier.bias", "backbone.stem.1.num_batches_tracked"
    huge = json.dumps({**description, "widths": [10**9, 10**9, 10**9]})  # 10**18 weights, none of which is made
    cases = [
        (json.dumps(description), {k: v for k, v in good.items() if k != bias}, "bias is absent"),
        (json.dumps(description), {**good, "extra": torch.zeros(1)}, "extra is float32"),
        (json.dumps(description), {**good, bias: torch.zeros(5)}, r"bias is float32 \(5,\), expected float32 \(4,\)"),
        (json.dumps(description), {**good, bias: torch.zeros(4).double()}, "bias is float64"),
        (json.dumps(description), {**good, counter: torch.zeros(())}, "num_batches_tracked is float32"),
        (json.dumps({**description, "n_labels": 5}), good, "expected float32"),
        (json.dumps({**description, "name": "resnet"}), good, "unknown network"),
        (json.dumps({**description, "colour": "red"}), good, "colour"),
        (json.dumps([1, 2]), good, "mapping"),
        ("{", good, "cannot be built"),
        (huge, good, "cannot be built"),
    ]
    for architecture, tensors, message in cases:
        sealed(path, architecture, tensors)
        with pytest.raises(InputError, match=message) as caught:
            load_network(path)
        assert "net.safetensors" in str(caught.value)
