"""uniGradICON, from the state dict that its authors publish; see `popatlas.networks.unigradicon`.

Its brains were those of the Human Connectome Project, whole images of 182 x 217.7 x 182 mm resized to one shape, with the
values from the least one to the 99th percentile of an image scaled to 0..1. In training, axes changed places and directions
at random.
"""

from __future__ import annotations

from pathlib import Path

from popatlas.networks.registration import build_registration_network
from popatlas.networks.settings import UniGradICONSettings
from popatlas.zoo.importers.base import Imported, fill, refuse
from popatlas.zoo.importers.pytorch import read_state
from popatlas.zoo.metadata import InputContract, Intensity, TrainingFacts

SIZE = 175  # voxels of each axis
BRAINS = InputContract(
    spacing_mm=(182 / SIZE, 217.7 / SIZE, 182 / SIZE),
    multiple=UniGradICONSettings().stride,
    orientation="SAL",  # axes of an array as ITK reads it
    shape=(SIZE,) * 3,
    intensity=Intensity("clipped", 0.0, 1.0),
)
SOURCE = "Tian et al., MICCAI 2024, doi:10.1007/978-3-031-72069-7_70; github.com/uncbiag/uniGradICON"
TRAINING = TrainingFacts("lung CT of COPDGene, knee MRI of OAI, brain MRI of HCP, abdominal CT of Learn2Reg", n=5436)
PREFIX = "net."  # of our names


def read_unigradicon(file: Path) -> Imported:
    """Read the network."""
    kind = "unigradicon"
    tensors = {PREFIX + name: value for name, value in read_state(file).items()}
    net = build_registration_network(kind, 3)
    if unknown := tensors.keys() - net.state_dict().keys():
        refuse(f"it has a tensor {min(unknown).removeprefix(PREFIX)} that the network does not", kind, file)
    fill(net, tensors, kind, file)
    return Imported(net, "Apache-2.0", SOURCE, TRAINING, "displacement", BRAINS)
