"""Memory that a prediction will take, known before it starts.

The tensors that live at the same time are counted on torch's meta device, which runs a network without data; a factor and
a constant for what torch adds were measured.
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from popatlas.networks.registration import RegistrationNetwork
from popatlas.zoo.metadata import Memory

# peak resident memory of four networks at 96 x 96 x 96 and 160 x 160 x 128 voxels, torch 2 on one thread: 340 to 390 MB and
# 0.85 to 1.26 times the living tensors
BASE = 400_000_000
FACTOR = 1.3
SMALL = 128, 64  # voxels along each axis, 2D and 3D, at which the coefficients are taken, and twice that


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._users: Counter[int] = Counter()

    def add(self, tensor: Tensor) -> None:
        """Count a tensor until it is gone; views count once."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not self._users[key]:
            self.now += size
            self.most = max(self.most, self.now)
        self._users[key] += 1
        weakref.finalize(tensor, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            self.now -= size

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run an operation and count what it makes."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.add(value)
        return result


def living_bytes(network: RegistrationNetwork, shape: Sequence[int], batch: int = 1) -> int:
    """Return the most bytes that tensors take at one time during a prediction without gradients, images included."""
    bare = copy.deepcopy(network).to("meta").eval()
    with torch.no_grad():
        images = [torch.empty(batch, 1, *shape, device="meta") for _ in range(2)]
        with _Living() as living:
            for image in images:
                living.add(image)
            bare(*images)
    weights = sum(value.nbytes for value in network.state_dict().values())
    return int(living.most + weights)


def estimate_memory(network: RegistrationNetwork, shape: Sequence[int], batch: int = 1) -> int:
    """Return the bytes that a process needs for a prediction on the CPU.

    Parameters
    ----------
    network : RegistrationNetwork
        On any device.
    shape : sequence of int
        Multiples of the network's stride.
    batch : int
        Pairs at a time.

    Returns
    -------
    int
        Peak of the resident memory.
    """
    return round(BASE + FACTOR * living_bytes(network, shape, batch))


def memory_of(network: RegistrationNetwork) -> Memory:
    """Return the coefficients of a network for its lock entry: the line through two sizes."""
    side = -(-SMALL[network.ndim - 2] // network.stride) * network.stride
    shapes = [(n,) * network.ndim for n in (side, 2 * side)]
    one, two = (estimate_memory(network, shape) for shape in shapes)
    slope = (two - one) / (shapes[1][0] ** network.ndim - side**network.ndim)
    return Memory(max(0, round(one - slope * side**network.ndim)), round(slope, 3))
