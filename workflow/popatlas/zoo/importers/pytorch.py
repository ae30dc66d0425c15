"""SYMNet and conditional LapIRN of Mok and Chung, from their state dicts.

Their fields have the component along the last axis of the image first, as torch's `grid_sample` wants; ours have that of
the first axis first. So the outputs of the last layers change places, and the inputs of layers that see a field.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from popatlas.errors import InputError
from popatlas.networks.lapirn import BLOCKS, LEVELS
from popatlas.networks.registration import build_registration_network
from popatlas.zoo.importers.base import Imported, fill, refuse
from popatlas.zoo.metadata import TrainingFacts

OASIS = "T1w brains of OASIS-1 as prepared by Neurite, skull-stripped by FreeSurfer, affinely aligned"
PREFIXES = ("model_lvl2.model_lvl1.", "model_lvl2.", "")  # of the resolutions, coarsest first


def read_symnet(file: Path) -> Imported:
    """Read SYMNet."""
    kind, found = "symnet", read_state(file)
    ours: dict[str, Tensor] = {}
    encoder = [("eninput", "ec1"), *((f"ec{n}", f"ec{n + 1}") for n in (2, 4, 6, 8))]
    decoder = [(f"dc{n}", f"dc{n + 1}") for n in (1, 3, 5, 7)]
    names = {f"encoder.{i}.{j}": name for i, pair in enumerate(encoder) for j, name in enumerate(pair)}
    names |= {f"decoder.{i}.{j}": name for i, pair in enumerate(decoder) for j, name in enumerate(pair)}
    names |= {f"rises.{i}": f"up{i + 1}" for i in range(4)}
    for our, their in names.items():
        for part in ("weight", "bias"):
            ours[f"{our}.{part}"] = _take(found, f"{their}.0.{part}", kind, file)
    # fixed and moving are x and y there; the second head belongs to y -> x, the field on the grid of x
    for i, their in enumerate(("dc10", "dc9")):
        ours[f"heads.{i}.weight"] = _take(found, f"{their}.0.weight", kind, file).flip(0)
    _check_all_taken(found, kind, file)
    net = build_registration_network("symnet", 3, channels=ours["encoder.0.0.weight"].shape[0])
    fill(net, ours, kind, file)
    source = "Mok and Chung, CVPR 2020, doi:10.1109/CVPR42600.2020.00470; github.com/cwmok"
    return Imported(net, "MIT", source, TrainingFacts(data=OASIS, n=255), "velocity")


def read_lapirn_lite(file: Path) -> Imported:
    """Read the small version of conditional LapIRN."""
    kind, found = "lapirn-lite", read_state(file)
    ours: dict[str, Tensor] = {}
    for level, prefix in enumerate(PREFIXES[:LEVELS]):
        names = {"stem.0": "input_encoder_lvl1.0", "stem.2": "input_encoder_lvl1.2", "down": "down_conv", "up": "up"}
        names |= {"head.0": "output_lvl1.0", "head.2": "output_lvl1.2"}
        parts = {f"{our}.weight": f"{their}.weight" for our, their in names.items()}
        for i in range(BLOCKS):
            block = f"resblock_group_lvl1.{2 * i}"
            parts |= {
                f"blocks.{i}.first.weight": f"{block}.conv1.weight",
                f"blocks.{i}.second.weight": f"{block}.conv2.weight",
            }
            for kind_of in ("weight", "bias"):
                parts |= {f"blocks.{i}.latent.{n}.{kind_of}": f"{block}.mapping.{2 * n}.{kind_of}" for n in range(4)}
                parts |= {f"blocks.{i}.styles.{n}.{kind_of}": f"{block}.ai{n + 1}.style.{kind_of}" for n in range(2)}
        for our, their in parts.items():
            ours[f"levels.{level}.{our}"] = _take(found, prefix + their, kind, file)
        head, stem = f"levels.{level}.head.2.weight", f"levels.{level}.stem.0.weight"
        ours[head] = ours[head].flip(0)
        images, field = ours[stem][:, :2], ours[stem][:, 2:]
        ours[stem] = torch.cat([images, field.flip(1)], dim=1)
    _check_all_taken(found, kind, file)
    net = build_registration_network("lapirn", 3, channels=ours["levels.0.stem.0.weight"].shape[0] // 2)
    fill(net, ours, kind, file)
    source = "Mok and Chung, MICCAI 2021, arXiv:2106.12673; github.com/cwmok/Conditional_LapIRN"
    return Imported(net, "MIT", source, TrainingFacts(data=OASIS, n=255), "displacement")


def read_state(file: Path) -> dict[str, Tensor]:
    """Read a state dict; code in the file is refused with an InputError, not run."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on damaged files
        remedy = "give a file of tensors only, as torch.save writes a state_dict"
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"cannot read the torch file: {reason}", file=file, remedy=remedy) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError("the torch file holds no state dict", file=file, remedy="give the one that the authors published")
    return dict(content)


def _take(found: dict[str, Tensor], name: str, kind: str, file: Path) -> Tensor:
    """Return a tensor and take it out of the state dict."""
    if name not in found:
        refuse(f"it has no tensor {name}", kind, file)
    return found.pop(name)


def _check_all_taken(found: dict[str, Tensor], kind: str, file: Path) -> None:
    if found:
        refuse(f"it has a tensor {min(found)} that the network does not", kind, file)
