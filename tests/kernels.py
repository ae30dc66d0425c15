"""Compile the kernels before the tests, once for all of their processes: `python -m tests.kernels`.

In a fresh clone each of the processes that run side by side at first would compile them for itself, 20 seconds and more.
"""

from __future__ import annotations

from concurrent.futures import Future, ProcessPoolExecutor

import numpy as np

SHAPE = (12, 12, 12)


def of_registration() -> None:
    """Use the operations on images and fields, and the force of the local correlation."""
    import torch

    from popatlas.similarity.lncc import LNCC
    from popatlas.transforms.fieldops import CompiledOps

    ops, loss = CompiledOps(), LNCC(radius=1, squared=True)
    image, mask = torch.rand(1, 1, *SHAPE), torch.ones(1, 1, *SHAPE)
    field, still = torch.zeros(1, 3, *SHAPE), torch.eye(4)[None, :3]
    ops.force(loss, image, ops.warp(image, field, 1, still, SHAPE), mask, 1, True)
    ops.compose(field, ops.invert(ops.smooth(field, 1.0)))
    ops.jacobian(field)


def of_fusion() -> None:
    """Fuse labels jointly."""
    from popatlas.fusion.candidates import Candidates
    from popatlas.fusion.joint import joint_label_fusion

    rng = np.random.default_rng(0)
    images = rng.random((3, *SHAPE)).astype(np.float32)
    joint_label_fusion(Candidates((images > 0.5).astype(np.int32), images[0], images))


def main() -> None:
    with ProcessPoolExecutor(2) as pool:
        done: list[Future[None]] = [pool.submit(work) for work in (of_registration, of_fusion)]
        for one in done:
            one.result()


if __name__ == "__main__":
    main()
