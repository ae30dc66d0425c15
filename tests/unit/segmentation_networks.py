"""Small segmentation networks and images for tests."""

import torch

from popatlas.networks.segmentation import build_network

NAMES = ("light", "lraspp")
ODD = {2: (37, 22), 3: (13, 18, 9)}
SMALL = {"light": {"widths": [4, 8, 8], "blocks": [1, 1], "features": 5}, "lraspp": {"features": 6, "inner": 16}}


def small(name, ndim=2, labels=4, seed=0, **options):
    torch.manual_seed(seed)
    return build_network(name, ndim, labels, **(SMALL[name] | options))


def noise(*shape, seed=1, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
