"""Architectures of registration networks by name, with their options; torch is loaded when one is made."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from popatlas.errors import PackageError
from popatlas.networks.settings import (
    CascadeSettings,
    DeepRegSettings,
    FastSettings,
    LabelRegSettings,
    LapIRNSettings,
    MaskedSettings,
    NetworkSettings,
    PyramidSettings,
    RigidSettings,
    SymNetSettings,
    TwoStreamSettings,
    UNetSettings,
    UniGradICONSettings,
)
from popatlas.registry import Entry


@dataclass(frozen=True, kw_only=True)
class Architecture(Entry):
    """A network; its class takes the number of axes and the settings.

    Attributes
    ----------
    settings : type
        Class of its options.
    ndims : tuple of int
        How many spatial axes it can have.
    packages : tuple of str
        Modules of other packages that it needs, which users install themselves.
    install : str
        How to install these.
    """

    settings: type[NetworkSettings]
    ndims: tuple[int, ...] = (2, 3)
    packages: tuple[str, ...] = ()
    install: str = ""

    @property
    def missing(self) -> list[str]:
        """Modules that it needs and that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    def check_packages(self) -> None:
        """Raise a PackageError when a package that it needs is not installed."""
        if missing := self.missing:
            are = "is" if len(missing) == 1 else "are"
            message = f"{self.title.split(',')[0]} needs {', '.join(missing)}, which {are} not installed"
            raise PackageError(message, remedy=self.install)


ARCHITECTURES: dict[str, Architecture] = {
    "fast": Architecture(
        code="popatlas.networks.fast:FastNet",
        title="a residual U-Net on blocks of voxels, which may look again and be guided by forces",
        references=("shi2016", "zhao2019"),
        settings=FastSettings,
    ),
    "unet": Architecture(
        code="popatlas.networks.unet:VoxelMorphUNet",
        title="VoxelMorph",
        references=("balakrishnan2019", "dalca2019"),
        settings=UNetSettings,
    ),
    "deepreg": Architecture(
        code="popatlas.networks.deepreg:DeepRegUNet",
        title="the U-Net of DeepReg",
        references=("fu2020",),
        settings=DeepRegSettings,
    ),
    "masked": Architecture(
        code="popatlas.networks.masked:MaskedFCN",
        title="VoxelMorph with a branch for a mask",
        references=("balakrishnan2019",),
        settings=MaskedSettings,
    ),
    "pyramid": Architecture(
        code="popatlas.networks.pyramid:DualPRNet",
        title="Dual-PRNet, two feature pyramids",
        references=("hu2019",),
        settings=PyramidSettings,
    ),
    "symnet": Architecture(
        code="popatlas.networks.symnet:SymNet",
        title="SYMNet, a velocity of each image",
        references=("mok2020",),
        settings=SymNetSettings,
    ),
    "lapirn": Architecture(
        code="popatlas.networks.lapirn:LapIRN",
        title="conditional LapIRN, three resolutions and a dial for smoothness",
        references=("mok2021",),
        settings=LapIRNSettings,
    ),
    "cascade": Architecture(
        code="popatlas.networks.cascade:RecursiveCascade",
        title="recursive cascades of the Volume Tweening Network",
        references=("zhao2019", "zhao2020"),
        settings=CascadeSettings,
    ),
    "rigid": Architecture(
        code="popatlas.networks.rigid:RigidNet",
        title="an encoder with a dense layer to rotation and shift",
        settings=RigidSettings,
    ),
    "labelreg": Architecture(
        code="popatlas.networks.additive:LabelRegNet",
        title="LabelReg, a sum of displacements of several resolutions",
        references=("hu2018",),
        settings=LabelRegSettings,
    ),
    "twostream": Architecture(
        code="popatlas.networks.twostream:TwoStreamNet",
        title="a stream for each image, applied twice for large displacements",
        references=("schumacher2022",),
        settings=TwoStreamSettings,
    ),
    "unigradicon": Architecture(
        code="popatlas.networks.unigradicon:UniGradICON",
        title="uniGradICON, a foundation model of registration",
        references=("tian2024",),
        settings=UniGradICONSettings,
        packages=("itk", "icon_registration", "unigradicon"),
        # with all that they ask for, they would replace torch by another one
        install="pip install --no-deps itk-core icon-registration unigradicon",
    ),
}
