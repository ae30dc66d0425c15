"""What the tests of the steps of fusion share: settings, the traits of a training, what a step left, a consensus by hand."""

import nibabel as nib
import numpy as np
import pandas as pd

from popatlas.fusion.dataparams.data import training_target
from popatlas.fusion.dataparams.train import network_opinion
from popatlas.fusion.fuse import fuse
from popatlas.images.io import read_json

TRAINING = {"epochs": 8, "voxels": 800, "trust_rate": 0.3, "augment": False, "seed": 3}
JOINT = {"beta": 4.0, "radius": 1, "search": 1, "rho": 0.1}


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def atlas_weights_of(path):
    return pd.read_csv(path, sep="\t", na_values="n/a")


def notes_of(inputs):
    return read_json(inputs["record"])["notes"]


def training_inputs(cases, folder, **more):
    files = {"out_network": "net.safetensors", "out_parameters": "dp.parquet", "out_curve": "curve.tsv"}
    return {
        "in_labels": [one.file("labels") for one in cases],
        "in_targets": [one.file("brain") for one in cases],
        "scans": [one.scan for one in cases],
        "atlases": {one.scan: list(one.names) for one in cases},
        "settings": TRAINING | {"targets": 64, "votes": "joint", "gpu": 0},
        "record": str(folder / "train.json"),
        **{trait: str(folder / name) for trait, name in files.items()},
    } | more


def by_hand(candidates, labels, network, parameters, by_label, numbers=slice(None), **options):
    """Data-parameter consensus of some candidates, call by call."""
    numbers = list(range(len(candidates.labels)))[numbers] if isinstance(numbers, slice) else numbers
    picked = candidates.pick(numbers)
    opinion = network_opinion(network, training_target(picked, labels), picked.disputed)
    own = {"parameters": parameters[numbers], "label_parameters": by_label[numbers], "labels": labels, "network": opinion}
    return fuse(picked, method="dataparams", **own, **JOINT, **options)
