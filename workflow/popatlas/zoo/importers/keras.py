"""VoxelMorph's networks of 2018, from files of Keras.

A kernel of Keras is (x, y, z, in, out) and is applied as torch applies its own, so that only its axes change places. With
"same" and stride 2, TensorFlow puts its zeros behind even sizes, which the network does by ``padding="end"``.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.networks.registration import build_registration_network
from popatlas.networks.settings import UNetSettings
from popatlas.settings import as_content
from popatlas.zoo.importers.base import Imported, fill, refuse
from popatlas.zoo.metadata import TrainingFacts

ENCODER = (16, 32, 32, 32)
DATA = "T1w brains of ADNI, OASIS, ABIDE, ADHD200, MCIC, PPMI, HABS and Harvard GSP, skull-stripped by FreeSurfer"


def read_cvpr2018(file: Path) -> Imported:
    """Read "vm2", which predicts a displacement at full resolution."""
    source = "Balakrishnan et al., CVPR 2018, doi:10.1109/CVPR.2018.00964; github.com/voxelmorph/voxelmorph, branch legacy"
    options = UNetSettings(ENCODER, decoder=(32,) * 5, final=(16, 16), padding="end")
    return _read(file, "voxelmorph-cvpr2018", options, source)


def read_miccai2018(file: Path) -> Imported:
    """Read the probabilistic network: the mean of its velocity on voxels of double size."""
    source = "Dalca et al., MICCAI 2018, doi:10.1007/978-3-030-00928-1_82; github.com/voxelmorph/voxelmorph, branch legacy"
    decoder = (32, 32, 32, 32, 16)
    options = UNetSettings(
        ENCODER, decoder=decoder, final=(), transform="velocity", half=True, alignment="origin", padding="end"
    )
    return _read(file, "voxelmorph-miccai2018", options, source)


def _read(file: Path, kind: str, options: UNetSettings, source: str) -> Imported:
    net = build_registration_network("unet", 3, **as_content(options))
    layers = _layers(file, kind)
    numbered = sorted((name for name in layers if re.fullmatch(r"conv3d_\d+", name)), key=lambda name: int(name[7:]))
    units = [f"encoder.{i}.conv" for i in range(len(ENCODER))]
    units += [f"decoder.{i}.conv" for i in range(len(options.decoder) + len(options.final))]
    if len(numbered) != len(units) or "flow" not in layers:
        refuse(f"it has {len(numbered)} numbered convolutions, expected {len(units)} and flow", kind, file)
    tensors = {}
    for unit, layer in [*zip(units, numbered, strict=True), ("head.flow", "flow")]:
        tensors[f"{unit}.weight"], tensors[f"{unit}.bias"] = layers[layer]
    fill(net, tensors, kind, file)
    training = TrainingFacts(data=DATA)
    return Imported(net, "Apache-2.0", source, training, options.transform)


def _layers(file: Path, kind: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Return kernel (out, in, *kernel) and bias of each layer that has them."""
    try:
        import h5py
    except ImportError as error:
        raise InputError("HDF5 files need h5py", file=file, remedy="pip install 'popatlas[import]'") from error
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def visit(path: str, item: object) -> None:
        if isinstance(item, h5py.Group) and {"kernel:0", "bias:0"} <= set(item.keys()):
            kernel, bias = (torch.from_numpy(item[key][()]) for key in ("kernel:0", "bias:0"))
            layer = path.removeprefix("model_weights/").split("/")[0]
            found[layer] = kernel.movedim((-1, -2), (0, 1)), bias

    try:
        with h5py.File(file, "r") as content:
            content.visititems(visit)
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"cannot read HDF5: {error}", file=file, remedy=f"give the checkpoint of {kind}") from error
    return found
