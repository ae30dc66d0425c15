"""What a weights file tells about itself: input contract, training and scores, as JSON texts in its safetensors metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Literal, Self

from popatlas.settings import Content, as_content, find_faults, settings, settings_from

# keys of the metadata; the recipe is the name of the recipe itself
CONTRACT, RECIPE, TRAINING, SCORES = "popatlas_contract", "popatlas_recipe", "popatlas_training", "popatlas_scores"

Kind = Literal["robust", "zscore", "clipped", "minmax", "none"]
ORDER = ("fixed", "moving")
LETTERS = "LRPASI"  # two of each LPS axis
LARGEST_MM, LARGEST_SHAPE = 100.0, 4096  # no image has larger voxels, or more along an axis


class Facts:
    """A dataclass that goes to JSON and back."""

    def to_plain(self) -> Content:
        """Return the fields as dicts, lists and plain values."""
        values: Content = as_content(self)
        return values

    def to_json(self) -> str:
        """Return the fields as JSON."""
        return json.dumps(self.to_plain(), sort_keys=True)

    @classmethod
    def from_plain(cls, values: Mapping[str, object]) -> Self:
        """Make an object of what `to_plain` returns.

        Raises
        ------
        ValueError
            When a key is unknown or missing, or a value impossible.
        """
        try:
            faults = find_faults(cls, values, cls.__name__)
        except TypeError as error:  # what no file of JSON can hold
            raise ValueError(str(error)) from error
        if faults:
            raise ValueError("; ".join(faults))
        return settings_from(cls, values, cls.__name__)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make an object of what `to_json` returns; raises ValueError for anything else."""
        return cls.from_plain(json.loads(text))


@settings
class Intensity(Facts):
    """How intensities are scaled for a network.

    Attributes
    ----------
    kind : {"robust", "zscore", "clipped", "minmax", "none"}
        ``robust``: the 1st and the 99th percentile of the brain become `low` and `high`, clipped at `low` and half the range
        above `high`; ``zscore``: the brain's mean becomes 0.5, its standard deviation 0.25, clipped to 0..1.5; ``clipped``:
        the least value and the 99th percentile of the image, background included, become `low` and `high`, clipped to these;
        ``minmax``: least and largest value of the image become `low` and `high`; ``none``: as they are.
    low, high : float
        Range.
    """

    kind: Kind = "robust"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"intensity from {self.low} to {self.high}: low must be below high")


@settings
class InputContract(Facts):
    """Images that a network was trained for.

    Attributes
    ----------
    spacing_mm : tuple of float
        Voxels, millimetres; as many as the network has axes.
    multiple : int
        Each size is a multiple of this number of voxels.
    orientation : str or None
        Where each axis points as its index grows, one letter each ("RAS", "LIA"; in 2D "RA", or "RS" for
        coronal planes); None: any.
    shape : tuple of int or None
        The one shape that the network takes; None: any.
    usual_shape : tuple of int or None
        For networks of any shape: the one of their training, which they see along each axis that the brain fits into.
    intensity : Intensity
        Range of the values.
    stripped : bool
        The images are brains, 0 outside.
    order : (str, str)
        ``("fixed", "moving")``, as for all networks of the package.
    affine_first : bool
        The moving image has to be brought to the fixed one by an affine before.
    """

    spacing_mm: tuple[float, ...]
    multiple: int
    orientation: str | None = None
    shape: tuple[int, ...] | None = None
    intensity: Intensity = Intensity()
    stripped: bool = True
    order: tuple[str, str] = ORDER
    affine_first: bool = True
    usual_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        possible = all(0 < size < LARGEST_MM for size in self.spacing_mm) and 1 <= self.multiple <= LARGEST_SHAPE
        if self.ndim not in (2, 3) or not possible or self.order != ORDER:
            raise ValueError(
                f"need 2 or 3 positive spacings, a positive multiple and the order {ORDER},"
                f" got {self.spacing_mm}, {self.multiple}, {self.order}"
            )
        if self.orientation is not None:
            self.world_axes()
        if self.shape is not None and self.usual_shape is not None:
            raise ValueError(f"a network of the one shape {self.shape} has no usual shape ({self.usual_shape})")
        for shape in (self.shape, self.usual_shape):
            if shape is not None and (
                len(shape) != self.ndim or any(not 1 <= n <= LARGEST_SHAPE or n % self.multiple for n in shape)
            ):
                most = f"up to {LARGEST_SHAPE}"
                raise ValueError(f"shape {shape} does not have {self.ndim} multiples of {self.multiple} {most}")

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.spacing_mm)

    def world_axes(self) -> tuple[tuple[int, int], ...]:
        """Return the LPS axis along which each axis of the network lies, and whether it points the same way (1 or -1).

        Raises
        ------
        ValueError
            When the orientation is None or names no axes of the network.
        """
        letters = self.orientation or ""
        worlds = [LETTERS.find(letter) // 2 for letter in letters]
        if len(letters) != self.ndim or len(set(worlds)) != self.ndim or min(worlds) < 0:
            raise ValueError(
                f"orientation {self.orientation!r} does not name {self.ndim} axes by letters such as RAS or LIA"
            )
        # a plane has the axes of its own file, in which up is what forward is elsewhere
        positive = "LPS" if self.ndim == 3 else "LPI"
        return tuple((sorted(worlds).index(w), 1 if x in positive else -1) for w, x in zip(worlds, letters, strict=True))

    def describe(self) -> str:
        """Return the contract in a few words."""
        spacing = "x".join(f"{size:g}" for size in dict.fromkeys(self.spacing_mm))
        shape = "any shape" if self.shape is None else "x".join(map(str, self.shape))
        if self.usual_shape is not None:
            shape += f" (usually {'x'.join(map(str, self.usual_shape))})"
        parts = [self.orientation or "any axes", f"{spacing} mm", shape, f"{self.intensity.kind} intensity"]
        return ", ".join([*parts, *["brain"] * self.stripped, *["after affine"] * self.affine_first])


@settings
class TrainingFacts(Facts):
    """How a network was trained.

    Attributes
    ----------
    data : str
        Images that it saw, in words.
    n : int or None
        Number of images.
    device : str or None
        Machine.
    steps : int or None
        Updates of the weights.
    hours : float or None
        Duration.
    """

    data: str
    n: int | None = None
    device: str | None = None
    steps: int | None = None
    hours: float | None = None


@settings
class Score(Facts):
    """A measured number: on what data, which metric, its mean over n cases, and the command that measured it."""

    data: str
    metric: str
    value: float
    n: int
    command: str


@settings
class Memory(Facts):
    """Peak memory of a prediction: ``base_bytes + bytes_per_voxel`` times the voxels of the batch."""

    base_bytes: int
    bytes_per_voxel: float

    def of(self, voxels: int) -> int:
        """Return the bytes for a number of voxels, all images of a batch together."""
        return round(self.base_bytes + self.bytes_per_voxel * voxels)


def scores_to_json(scores: Iterable[Score]) -> str:
    """Return the text for the key `SCORES`."""
    return json.dumps([score.to_plain() for score in scores], sort_keys=True)


def scores_from_json(text: str) -> tuple[Score, ...]:
    """Read the text of the key `SCORES`; raises ValueError for anything else."""
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError(f"{found!r:.80} is no list of scores")
    return tuple(Score.from_plain(values) for values in found)
