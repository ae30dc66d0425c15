"""Time and memory of X-CoReg as a group grows, each size in a fresh process."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

import pandas as pd
import torch

from benchmarks.groupwise.cases import make_case
from benchmarks.registration.worker import memory_mb
from popatlas.groupwise.xcoreg.core import coregister
from popatlas.groupwise.xcoreg.settings import XCoRegSettings
from popatlas.transforms.kernels import Volume

SIZES = (2, 4, 8, 16, 32, 64)


def _grow(images: list[Volume], pipe: Connection) -> None:
    torch.set_num_threads(1)
    group = [torch.from_numpy(image) for image in images]
    plan = XCoRegSettings(shrink=(1,), iterations=(10,), starts=1, warmup=5, tolerance=0.0)
    before = memory_mb(peak=True)
    started = time.process_time()
    coregister(group, plan)
    pipe.send((time.process_time() - started, memory_mb(peak=True) - before))


def growth(sizes: Sequence[int]) -> pd.DataFrame:
    """Return time and memory of ten iterations for groups of several sizes, each in a fresh process."""
    rows = []
    context = multiprocessing.get_context("spawn")
    for images in sizes:
        receiver, sender = context.Pipe(duplex=False)
        case = make_case(0, 2, 10.0, images=images)
        process = context.Process(target=_grow, args=([image.numpy() for image in case.images], sender))
        process.start()
        seconds, memory = receiver.recv()
        process.join()
        rows.append({"images": images, "cpu_s": seconds, "peak_mb_more": memory, "cpu_s_per_image": seconds / images})
    return pd.DataFrame(rows)
