"""What a weights file tells about itself: input contract, training and scores, as JSON texts in its safetensors metadata."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

# keys of the metadata; the recipe is the name of the recipe itself
CONTRACT, RECIPE, TRAINING, SCORES = "popatlas_contract", "popatlas_recipe", "popatlas_training", "popatlas_scores"

Kind = Literal["robust", "zscore", "clipped", "minmax", "none"]
ORDER = ("fixed", "moving")
LETTERS = "LRPASI"  # two of each LPS axis
LARGEST_MM, LARGEST_SHAPE = 100.0, 4096  # no image has larger voxels, or more along an axis


class Facts:
    """A dataclass that goes to JSON and back."""

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as dicts, lists and plain values."""
        values: dict[str, Any] = _plain(asdict(self))  # type: ignore[call-overload]
        return values

    def to_json(self) -> str:
        """Return the fields as JSON."""
        return json.dumps(self.to_plain(), sort_keys=True)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Make an object of what `to_plain` returns.

        Raises
        ------
        ValueError
            When a key is unknown or missing, or a value impossible.
        """
        known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
        if not isinstance(values, Mapping) or set(values) - known:
            extra = sorted(set(values) - known) if isinstance(values, Mapping) else values
            raise ValueError(f"unknown keys of {cls.__name__}: {extra}; known: {sorted(known)}")
        hints = get_type_hints(cls)
        try:
            return cls(**{key: _typed(hints[key], value) for key, value in values.items()})
        except TypeError as error:
            raise ValueError(f"{cls.__name__}: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make an object of what `to_json` returns; raises ValueError for anything else."""
        return cls.from_plain(json.loads(text))


@dataclass(frozen=True)
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
        if self.kind not in get_args(Kind) or not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"intensity {self.kind!r} from {self.low} to {self.high}: need {get_args(Kind)} and low < high")


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Score(Facts):
    """A measured number: on what data, which metric, its mean over n cases, and the command that measured it."""

    data: str
    metric: str
    value: float
    n: int
    command: str


@dataclass(frozen=True)
class Memory(Facts):
    """Peak memory of a prediction: ``base_bytes + bytes_per_voxel`` times the voxels of the batch."""

    base_bytes: int
    bytes_per_voxel: float

    def of(self, voxels: int) -> int:
        """Return the bytes for a number of voxels, all images of a batch together."""
        return round(self.base_bytes + self.bytes_per_voxel * voxels)


def scores_to_json(scores: typing.Iterable[Score]) -> str:
    """Return the text for the key `SCORES`."""
    return json.dumps([score.to_plain() for score in scores], sort_keys=True)


def scores_from_json(text: str) -> tuple[Score, ...]:
    """Read the text of the key `SCORES`; raises ValueError for anything else."""
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError(f"{found!r:.80} is no list of scores")
    return tuple(Score.from_plain(values) for values in found)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _typed(hint: Any, value: Any) -> Any:
    """Bring a value of JSON to the type of a field."""
    if isinstance(hint, types.UnionType):
        options = [kind for kind in get_args(hint) if kind is not types.NoneType]
        return None if value is None else _typed(options[0], value)
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        return tuple(_typed(inner[0], item) for item in value)
    if isinstance(hint, type) and issubclass(hint, Facts):
        return value if isinstance(value, hint) else hint.from_plain(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ValueError(f"{value!r} is no {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value
