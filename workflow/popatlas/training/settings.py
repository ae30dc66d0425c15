"""How far augmentation and synthesis go: the settings of scans in motion, of their looks and of synthetic images.

A recipe may give all of them, so this module needs no torch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field

from popatlas.settings import Count, option, settings

Range = tuple[float, float]
Share = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[float, Field(ge=2)]  # distance of control points, voxels
Thickness = Annotated[float, Field(ge=1)]

MOST_LABELS = 2**16  # the look-up table of grey values has an entry for each value up to the largest


def check_order(name: str, values: Range) -> None:
    """Raise ValueError, naming the setting, when the ends of a range are not in order."""
    low, high = values
    if low > high:
        raise ValueError(f"{name}: {low} to {high} is not in order; give the lower end first")


@settings
class MotionSettings:
    """How far random motions go; each number is uniform up to its limit, in both directions. Nothing moves by default."""

    rotation: float = option(0.0, "Degrees about each axis", ge=0, le=180)
    scale: float = option(0.0, "Natural logarithm of the stretch along each axis", ge=0, le=1)
    shear: float = option(0.0, "Logarithmic shear of each pair of axes", ge=0, le=1)
    shift: float = option(0.0, "Millimetres along each axis", ge=0)
    bend: float = option(0.0, "Largest standard deviation of the stationary velocity, voxels; 0 for affine motions", ge=0)
    bend_spacing: tuple[Size, Size] = option((8.0, 32.0), "Distance of the control points of the velocity, voxels")

    def __post_init__(self) -> None:
        check_order("bend_spacing", self.bend_spacing)

    @property
    def still(self) -> bool:
        """Whether nothing moves."""
        return not any((self.rotation, self.scale, self.shear, self.shift, self.bend))


@settings
class LookSettings:
    """How far the intensities of an image are changed; not at all by default."""

    gamma: float = option(0.0, "The logarithm of the exponent is uniform up to this, in both directions", ge=0, le=2)
    noise: float = option(
        0.0, "Largest standard deviation of normal noise, as a share of the range of the image", ge=0, le=1
    )
    bias: float = option(0.0, "Largest standard deviation of the logarithm of the bias field", ge=0)
    bias_spacing: tuple[Size, Size] = option((24.0, 64.0), "Distance of the control points of the bias field, voxels")
    invert: float = option(0.0, "Probability that bright becomes dark; the background stays", ge=0, le=1)
    blur: float = option(0.0, "Largest standard deviation of a Gaussian, drawn for each axis, voxels", ge=0)
    thick: float = option(0.0, "Probability of thick slices: one axis is blurred much more", ge=0, le=1)
    slices: tuple[Thickness, Thickness] = option((2.0, 4.0), "Thickness of thick slices, voxels")

    def __post_init__(self) -> None:
        check_order("bias_spacing", self.bias_spacing)
        check_order("slices", self.slices)


@settings
class AugmentSettings:
    """What is changed in a scan; nothing by default."""

    motion: MotionSettings = option(MotionSettings(), "Affine and bend")
    look: LookSettings = option(LookSettings(), "Intensities")
    flip: float = option(
        0.0, "Probability that both scans of a pair are mirrored; 0 by default, since people are not symmetric", ge=0, le=1
    )
    flip_axis: int = option(0, "Array axis that is mirrored", ge=0, le=2)
    sides: tuple[tuple[Count, Count], ...] = option((), "Labels that change places in a mirrored scan, left and right")

    def __post_init__(self) -> None:
        named = [label for pair in self.sides for label in pair]
        if len(set(named)) < len(named):
            raise ValueError(f"sides: each label has one partner, not {self.sides}")


@settings
class ContrastSettings:
    """How synthetic images look; grey values are shares of the full range."""

    mean: tuple[Share, Share] = option((0.1, 0.9), "Range of the mean of each label")
    sd: tuple[Share, Share] = option((0.02, 0.1), "Range of the standard deviation of the noise of each label")
    noise: float = option(
        0.02, "Largest standard deviation of noise that is added after the blur, to all labels alike", ge=0, le=1
    )
    blur: float = option(1.0, "Largest standard deviation of a Gaussian, drawn for each axis, voxels", ge=0)
    bias: float = option(0.3, "Largest standard deviation of the logarithm of the bias field", ge=0)
    bias_spacing: tuple[Size, Size] = option((24.0, 64.0), "Distance of the control points of the bias field, voxels")
    gamma: float = option(0.25, "Standard deviation of the logarithm of the exponent", ge=0, le=2)
    strip: float = option(
        0.5, "Probability that the background, label 0, is 0 as without skull; else it is a label as any other", ge=0, le=1
    )
    classes: tuple[tuple[tuple[Count, Count], ...], ...] = option(
        (),
        "Tissues of many labels, whose borders no image shows: ranges of labels, both ends included, with one grey value;"
        " all other labels have one of their own",
    )
    spread: float = option(0.02, "Standard deviation of the means of the labels of a class about its grey value", ge=0, le=1)

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("sd", self.sd), ("bias_spacing", self.bias_spacing)):
            check_order(name, values)
        parts = sorted(part for ranges in self.classes for part in ranges)
        if any(low > high for low, high in parts) or any(next_[0] <= part[1] for part, next_ in pairwise(parts)):
            raise ValueError(
                f"classes: ranges of labels, the lower end first, each label in one of them, not {self.classes}"
            )


@settings
class ShapeSettings:
    """Random shapes, for training without any data."""

    count: int = option(26, "Labels", ge=2, le=MOST_LABELS)
    spacing: tuple[Size, Size] = option(
        (12.0, 32.0), "Distance of the control points of the noise that makes the shapes, voxels"
    )

    def __post_init__(self) -> None:
        check_order("spacing", self.spacing)


STRONG = MotionSettings(rotation=10.0, scale=0.1, shear=0.05, shift=8.0, bend=2.0)  # more than people differ


@settings
class SynthesisSettings:
    """How synthetic pairs are made."""

    same: float = option(
        0.0,
        "Probability that both images are made of one label map, not of two; random shapes always are, since two of them do"
        " not correspond",
        ge=0,
        le=1,
    )
    recoloured: float = option(
        0.0,
        "Probability that an image is the scan behind its labels in random grey values, not painted; not for one contrast",
        ge=0,
        le=1,
    )
    one_contrast: bool = option(
        False,
        "Both images get the same grey values and background, so that losses that compare intensities make sense; noise,"
        " blur, bias and gamma differ",
    )
    motion: MotionSettings = option(STRONG, "Motion of each image; one that is given starts from none, not from this")
    contrast: ContrastSettings = option(ContrastSettings(), "Look of each image")
    shapes: ShapeSettings = option(ShapeSettings(), "Shapes of data.source shapes")

    def __post_init__(self) -> None:
        if self.recoloured and self.one_contrast:
            raise ValueError("recoloured scans and painted images have no contrast in common")
