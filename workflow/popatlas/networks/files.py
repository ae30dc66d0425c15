"""Files of networks: safetensors, which hold no code, with the architecture and a digest in their metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from popatlas.errors import InputError, PackageError
from popatlas.images.io import PathLike, atomic_path
from popatlas.networks.base import arrange
from popatlas.networks.limits import no_more_than

ARCHITECTURE, DIGEST = "popatlas_network", "popatlas_digest"  # our entries in the metadata of a file
AGAIN = "fetch or train it again"
LONGEST_HEADER = 1 << 24  # bytes of names, shapes and metadata
KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # that a network can be of

Net = TypeVar("Net", bound=nn.Module)


def write_network(net: nn.Module, architecture: Mapping[str, object], path: PathLike, metadata: Mapping[str, str]) -> None:
    """Write architecture and weights to a safetensors file; at once, never half.

    Parameters
    ----------
    net : Module
        The network, on any device.
    architecture : mapping
        Arguments of the function that builds it, as JSON can hold them.
    path : path-like
        Output file, `.safetensors`.
    metadata : mapping of str to str
        What else the file should tell; comes back from `read_network`.

    Raises
    ------
    ValueError
        When `metadata` has one of our own keys.
    """
    if taken := {ARCHITECTURE, DIGEST} & set(metadata):
        raise ValueError(f"metadata must not have the key {min(taken)}")
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    texts = {**metadata, ARCHITECTURE: json.dumps(architecture)}
    with atomic_path(path) as temporary:
        temporary.write_bytes(_ordered(save(tensors, {**texts, DIGEST: _digest(texts, tensors)})))


def read_network(path: PathLike, build: Callable[..., Net]) -> tuple[Net, dict[str, str]]:
    """Read a network that `write_network` wrote.

    Parameters
    ----------
    path : path-like
        The file.
    build : callable
        Makes the network from the architecture that was saved with it.

    Returns
    -------
    net : Module
        The network on the CPU, in evaluation mode.
    metadata : dict of str to str
        The metadata that it was saved with.

    Raises
    ------
    InputError
        When the file is missing, damaged, of another kind, or its tensors do not fit its architecture.
    PackageError
        When its architecture is that of a package that is not installed.
    """
    try:
        _check_header(Path(path))
        with safe_open(path, framework="pt") as file:
            texts: dict[str, str] = file.metadata() or {}
            names: list[str] = list(file.keys())
            # copies, since the file is mapped into memory and may be replaced
            tensors: dict[str, Tensor] = {name: file.get_tensor(name).clone() for name in names}
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read network: {error}", file=path, remedy=AGAIN) from error
    if not {ARCHITECTURE, DIGEST} <= texts.keys():
        raise InputError("the file holds no network of popatlas", file=path, remedy="give one that popatlas saved")
    if texts.pop(DIGEST) != _digest(texts, tensors):
        raise InputError("the network is not as it was saved", file=path, remedy=AGAIN)
    try:
        net = _assemble(build, json.loads(texts.pop(ARCHITECTURE)), tensors)
    except PackageError:
        raise
    except (InputError, TypeError, ValueError, RuntimeError) as error:  # RecursionError is one of the last
        remedy = "read it with the version of popatlas that saved it"
        raise InputError(f"the network cannot be built: {error}", file=path, remedy=remedy) from error
    return net.eval(), texts


def _assemble(build: Callable[..., Net], architecture: Mapping[str, object], tensors: dict[str, Tensor]) -> Net:
    """Build a network around its weights, of their type.

    It is built without memory first, so that a wrong description costs none, and no random numbers are drawn.
    """
    with torch.device("meta"), no_more_than(len(tensors)):
        net = build(**architecture)
    kinds = {value.dtype for value in tensors.values() if value.is_floating_point()}
    if not kinds <= set(KINDS):
        raise ValueError(f"its numbers are {', '.join(sorted(map(str, kinds)))}")
    if len(kinds) == 1:
        net.to(kinds.pop())
    expected = net.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        found, wanted = (_kind(values.get(name)) for values in (tensors, expected))
        if found != wanted:
            raise ValueError(f"tensor {name} is {found}, expected {wanted}")
    net.load_state_dict(tensors, assign=True)
    arrange(net)
    return net


def _check_header(path: Path) -> None:
    """Raise OSError when a path is no file, or a file says that its header is longer than itself or than any network's."""
    if not path.is_file():
        raise OSError("it is no file" if path.exists() else "there is no such file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(LONGEST_HEADER, path.stat().st_size - 8):
        raise OSError(f"its header would have {length} bytes, the file has {path.stat().st_size}")


def _ordered(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file, which come in random order, so that a network has one file."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def _kind(tensor: Tensor | None) -> str:
    """Tell type and shape of a tensor."""
    return "absent" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _digest(texts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of texts and contiguous tensors, their names and types included."""
    total = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        total.update(f"{name} {_kind(value)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
