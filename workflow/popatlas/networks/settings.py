"""Options of the architectures: frozen, with their ranges; no torch is needed to check them.

What a description of a network may ask for at most is bounded for all of them in `popatlas.networks.limits`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from popatlas.networks.limits import ENTRIES, LARGEST, REPEATS, check_stride
from popatlas.settings import option, settings

Norm = Literal["instance", "group", "batch"]
Transform = Literal["displacement", "velocity"]
Upsampling = Literal["nearest", "linear"]
Padding = Literal["both", "end"]
Alignment = Literal["blocks", "corners", "origin"]
Sees = Literal["images", "descriptors", "both"]
Variant = Literal["local", "global", "composite"]

Width = Annotated[int, Field(ge=1, le=LARGEST)]
Widths = tuple[Width, ...]
Counts = tuple[Annotated[int, Field(ge=0, le=LARGEST)], ...]
Level = Annotated[int, Field(ge=0, le=REPEATS["halvings"])]

NORM = "Normalisation over one channel of an image, some channels of it, or one channel of all images of a step"
FIELD = "What the network predicts"
SLOPE = "Slope of the activations below zero"
SQUARINGS = "Squarings of the flow of a velocity"


@settings
class NetworkSettings:
    """Options of an architecture.

    Raises
    ------
    ValueError
        When a value is out of its range, or the coarsest grid has voxels larger than any image.
    """

    def __post_init__(self) -> None:
        check_stride(self.stride)

    @property
    def stride(self) -> int:
        """The network takes images whose sizes are multiples of this number of voxels."""
        raise NotImplementedError


@settings
class FastSettings(NetworkSettings):
    """Options of `popatlas.networks.fast.FastNet`."""

    BLOCK: ClassVar[int] = 2  # voxels along each axis

    widths: Widths = option(
        (24, 48, 96, 96),
        "Channels of each level: the grid of the blocks, that of double block size, and so on",
        min_length=2,
        max_length=ENTRIES,
    )
    blocks: Counts = option((0, 1, 1, 1), "Residual blocks of the encoder at each level", max_length=ENTRIES)
    transform: Transform = option("velocity", FIELD)
    norm: Norm = option("instance", NORM)
    fine: bool = option(False, "Vectors for each voxel, not for each block")
    squarings: int = option(7, SQUARINGS, ge=0, le=REPEATS["squarings"])
    passes: int = option(
        1, "How many times the network is applied; may be changed after training", ge=1, le=REPEATS["passes"]
    )
    sees: Sees = option(
        "images", "What it looks at: blocks of voxels, means over the blocks of the self-similarity of the images, or both"
    )
    guided: bool = option(
        False, "Each pass sees the forces of the similarity and adds a learnt share of them to its vectors"
    )

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.widths):
            raise ValueError(f"blocks {list(self.blocks)} need an entry for each of the widths {list(self.widths)}")
        super().__post_init__()

    @property
    def stride(self) -> int:
        """See `NetworkSettings.stride`."""
        return self.BLOCK << (len(self.widths) - 1)


@settings
class UNetSettings(NetworkSettings):
    """Options of `popatlas.networks.unet.VoxelMorphUNet`."""

    encoder: Widths = option((16, 32, 32, 32), "Channels of the convolutions of stride 2", min_length=1, max_length=ENTRIES)
    decoder: Widths = option(
        (32, 32, 32, 32),
        "Channels of the convolutions from the coarsest grid to voxels of double size: one for each grid of the encoder,"
        " further ones work on the last of these grids",
        max_length=ENTRIES,
    )
    final: Widths = option((32, 16, 16), "Channels of the convolutions on the grid of the head", max_length=ENTRIES)
    transform: Transform = option("displacement", FIELD)
    half: bool = option(
        False, "The last enlargement and the joint with the images are left out: the head works on voxels of double size"
    )
    shrink: bool = option(
        False, "The field of the head is brought to voxels of double size before it flows (int_downsize=2 of VoxelMorph)"
    )
    alignment: Alignment = option(
        "blocks",
        "Where voxels of double size lie, where half or shrink make such a field: two voxels of the images each, between the"
        " same outermost voxels (VoxelMorph since 2019), or at every second voxel (2018)",
    )
    steps: int = option(7, SQUARINGS, ge=0, le=REPEATS["steps"])
    slope: float = option(0.2, SLOPE, ge=0, le=1)
    upsampling: Upsampling = option("nearest", "How features are enlarged")
    padding: Padding = option(
        "both",
        "Where the images of convolutions of stride 2 have a border of zeros: around them, or only behind their last voxels,"
        " as 'same' means in TensorFlow for even sizes; weights of one do not fit the other",
    )

    def __post_init__(self) -> None:
        if len(self.decoder) < len(self.encoder):
            raise ValueError(f"decoder {list(self.decoder)} needs {len(self.encoder)} or more widths, one for each grid")
        if self.half and self.shrink:
            raise ValueError("half and shrink exclude each other")
        super().__post_init__()

    @property
    def stride(self) -> int:
        """See `NetworkSettings.stride`."""
        return 1 << len(self.encoder)


@settings
class MaskedSettings(UNetSettings):
    """Options of `popatlas.networks.masked.MaskedFCN`: those of the U-Net, and of the branch of the mask."""

    mask_decoder: Widths = option(
        (16, 16, 16, 16), "As decoder, of the branch of the mask, which always ends on the full grid", max_length=ENTRIES
    )
    mask_final: Widths = option((8,), "As final, of the branch of the mask", max_length=ENTRIES)

    def __post_init__(self) -> None:
        if len(self.mask_decoder) < len(self.encoder):
            raise ValueError(f"mask_decoder {list(self.mask_decoder)} needs {len(self.encoder)} or more widths")
        super().__post_init__()


@settings
class DeepRegSettings(NetworkSettings):
    """Options of `popatlas.networks.deepreg.DeepRegUNet`."""

    widths: Widths = option((8, 16, 32), "Channels of each grid, the full one first", min_length=2, max_length=ENTRIES)
    transform: Transform = option("displacement", FIELD)
    norm: Norm = option("batch", f"{NORM}; DeepReg's is the last")

    @property
    def stride(self) -> int:
        """See `NetworkSettings.stride`."""
        return 1 << (len(self.widths) - 1)


@settings
class PyramidSettings(NetworkSettings):
    """Options of `popatlas.networks.pyramid.DualPRNet`."""

    widths: Widths = option(
        (8, 16, 32, 32),
        "Channels of each grid, the full one first: these in the first paper, 8, 16, 16, 32, 32 in the second",
        min_length=2,
        max_length=ENTRIES,
    )
    transform: Transform = option("displacement", "What the increments are")
    correlation: int = option(
        0,
        "Joins the products of the fixed and the warped moving features at offsets of this many voxels and none along each"
        " axis (2 in Dual-PRNet++); 0 for none",
        ge=0,
        le=LARGEST,
    )
    fusion: int = option(
        0,
        "Convolutions of the joint features before that of the increment; none in the first paper, 2 in Dual-PRNet++",
        ge=0,
        le=LARGEST,
    )
    residual: int = option(
        0,
        "Residual blocks of two convolutions after those of `fusion`; none in the first paper, 1 in Dual-PRNet++",
        ge=0,
        le=LARGEST,
    )
    stop: bool = option(
        True, "The warp of the features passes no gradient to the field so far, which learns by the composition alone"
    )
    slope: float = option(0.2, SLOPE, ge=0, le=1)
    steps: int = option(7, SQUARINGS, ge=0, le=REPEATS["steps"])

    @property
    def stride(self) -> int:
        """See `NetworkSettings.stride`."""
        return 1 << (len(self.widths) - 1)


@settings
class SymNetSettings(NetworkSettings):
    """Options of `popatlas.networks.symnet.SymNet`."""

    HALVINGS: ClassVar[int] = 4

    channels: Width = option(7, "Features of the full resolution; the deeper ones are multiples of them")
    reach: float = option(100.0, "Largest component of a velocity, voxels", gt=0, le=LARGEST)
    steps: int = option(7, SQUARINGS, ge=1, le=REPEATS["steps"])

    @property
    def stride(self) -> int:
        """See `NetworkSettings.stride`."""
        return 1 << self.HALVINGS


@settings
class LapIRNSettings(NetworkSettings):
    """Options of `popatlas.networks.lapirn.LapIRN`."""

    LEVELS: ClassVar[int] = 3

    channels: Width = option(4, "Half of the features that each resolution starts with")
    smoothness: float = option(0.1, "From 0 (free) to 1 (smooth); may be changed after training", ge=0, le=1)
    reach: float = option(
        0.4, "Largest component of the displacement that a resolution adds, in halves of the image", gt=0, le=LARGEST
    )

    @property
    def stride(self) -> int:
        """See `NetworkSettings.stride`."""
        return 1 << (self.LEVELS + 1)


@settings
class RigidSettings(NetworkSettings):
    """Options of `popatlas.networks.rigid.RigidNet`."""

    widths: Widths = option(
        (16, 32, 64, 64), "Channels of the grids of 2, 4, 8 ... times the voxel size", min_length=1, max_length=ENTRIES
    )
    cells: int = option(
        3, "Features are averaged in so many cells along each axis before the dense layer", ge=1, le=REPEATS["cells"]
    )
    scale: float = option(10.0, "Voxels of a shift for an output of one; angles are in radians", gt=0, le=LARGEST)

    @property
    def stride(self) -> int:
        """See `NetworkSettings.stride`."""
        return 1 << len(self.widths)


@settings
class CascadeSettings(NetworkSettings):
    """Options of `popatlas.networks.cascade.RecursiveCascade`."""

    cascades: int = option(
        3,
        "Deformable networks; 1 to 10 in the paper, and better with more. Each one's field is divided by their number",
        ge=1,
        le=REPEATS["cascades"],
    )
    widths: Widths = option(
        (16, 32, 64, 128, 256, 512),
        "Channels of the grids of 2, 4, 8 ... times the voxel size, in the deformable networks and in the affine stage",
        min_length=1,
        max_length=ENTRIES,
    )
    affine: bool = option(True, "The affine stage comes first; not needed for images that are already affinely aligned")
    scale: float = option(
        20.0, "Voxels of a cascade for an output of one, before the division by their number", gt=0, le=LARGEST
    )
    cells: int = option(
        2,
        "The features of the affine stage are averaged in so many cells along each axis before its dense layer",
        ge=1,
        le=REPEATS["cells"],
    )
    repeats: int = option(
        1,
        "How often each deformable network is applied, with the same weights, before the next one takes over; may be changed"
        " after training, for large displacements",
        ge=1,
        le=REPEATS["repeats"],
    )

    @property
    def stride(self) -> int:
        """See `NetworkSettings.stride`."""
        return 1 << len(self.widths)


@settings
class LabelRegSettings(NetworkSettings):
    """Options of `popatlas.networks.additive.LabelRegNet`."""

    variant: Variant = option(
        "local",
        "A dense displacement; an affine map; or the sum of both, where the dense one is found from the moving image as the"
        " affine map warps it",
    )
    levels: tuple[Level, ...] | None = option(
        None,
        "Which levels of the dense network give a displacement, level k that of 2**k voxels; by default all, and only 0 in"
        " the composite network, as published. Levels finer than all of these are not built",
        max_length=ENTRIES,
    )
    additive: bool = option(True, "The decoder adds the enlarged coarser features to those of its transposed convolutions")
    channels: Width = option(32, "Channels of the first level of the dense network, doubled at each halving")
    global_channels: Width = option(8, "The same of the affine network")
    halvings: int = option(4, "Halvings of the grid", ge=1, le=REPEATS["halvings"])
    cells: int = option(
        2, "The features of the affine map are averaged in so many cells along each axis", ge=1, le=REPEATS["cells"]
    )
    norm: Norm = option("batch", f"{NORM}; the last in the paper")

    def __post_init__(self) -> None:
        chosen = self.chosen
        if bool(chosen) != (self.variant != "global") or not set(chosen) <= set(range(self.halvings + 1)):
            raise ValueError(f"levels {chosen} do not fit the {self.variant} network with {self.halvings} halvings")
        super().__post_init__()

    @property
    def chosen(self) -> list[int]:
        """The levels that give a displacement, none for the affine map."""
        known = {"local": range(self.halvings + 1), "global": range(0), "composite": range(1)}[self.variant]
        return sorted(set(known if self.levels is None else self.levels))

    @property
    def stride(self) -> int:
        """See `NetworkSettings.stride`."""
        return 1 << self.halvings


@settings
class TwoStreamSettings(NetworkSettings):
    """Options of `popatlas.networks.twostream.TwoStreamNet`."""

    maps: Width = option(16, "Features of each image; the U-Net takes and gives twice as many")
    widths: Widths = option(
        (32, 64, 128), "Channels of each encoder block, which halves the grid", min_length=1, max_length=ENTRIES
    )
    norm: Norm = option("instance", NORM)
    passes: int = option(
        2,
        "How many times the network is applied, from the second time on to the moving image as it is warped so far; may be"
        " changed after training",
        ge=1,
        le=REPEATS["passes"],
    )

    @property
    def stride(self) -> int:
        """See `NetworkSettings.stride`."""
        return 1 << len(self.widths)


@settings
class UniGradICONSettings(NetworkSettings):
    """`popatlas.networks.unigradicon.UniGradICON` has no options."""

    @property
    def stride(self) -> int:
        """Divides the 175 voxels of the published weights, and 65."""
        return 5
