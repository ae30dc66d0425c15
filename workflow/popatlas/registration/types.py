"""What a registration is asked to do and what it gives: planned attempts, and files of transforms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from popatlas.errors import ConfigError
from popatlas.images.antspy import AntsImage
from popatlas.registration.schedule import EngineSettings

if TYPE_CHECKING:
    from popatlas.transforms.chain import Chain, Field

STARTS = ("mass", "moments", "global", "search")  # of the linear stage
LINEAR = ("affine", "ants")  # its engines
Kind = TypeVar("Kind", bound=EngineSettings)
RECEIPT = "receipt.json"  # in the folder of a scan, beside the files that a batch predicted


@dataclass(frozen=True)
class Deformation:
    """Files of a deformable stage, and whether its optimisation diverged (the fields are then the last good ones)."""

    warp: Path
    inverse_warp: Path
    diverged: bool = False


@dataclass(frozen=True)
class Registration:
    """Files of one registration."""

    affine: Path
    warp: Path
    inverse_warp: Path
    diverged: bool = False


@dataclass(frozen=True)
class Made:
    """Files (in the attempt's temporary folder) and images of a registration.

    Attributes
    ----------
    files : Registration
        The transforms.
    forward, inverse : Chain
        From fixed to moving points, and back.
    warps : pair of Field
        Their deformations alone.
    composed, logjacobian : Path
        The whole way as one field, and the logarithm of its Jacobian determinant.
    warped, warped_mask : ANTsImage
        Moving brain and mask on the fixed grid.
    """

    files: Registration
    forward: Chain
    inverse: Chain
    warps: tuple[Field, Field]
    composed: Path
    logjacobian: Path
    warped: AntsImage
    warped_mask: AntsImage


@dataclass(frozen=True)
class PlannedWeights:
    """Weights of a network as a registration was planned with them: name or file, and the SHA-256 of the file."""

    source: str
    sha256: str


@dataclass(frozen=True)
class Attempt:
    """One way to try: where to start, and which engine with which settings.

    Attributes
    ----------
    start : str
        "mass" (centres of mass), "moments" (and principal axes), "global" (search over rotations and shifts) or "search"
        (ANTs' multi-start search).
    linear : str
        Engine of the rigid and affine stage: "affine" (ours) or "ants".
    engine : str
        Name in `popatlas.registration.engines.registry.ENGINES`.
    settings : EngineSettings
        Of that engine.
    weights : PlannedWeights or None
        Of its network.
    gpu : int
        GPUs that the job has; 0: the CPU, also where a GPU is visible.

    Raises
    ------
    ConfigError
        When there is no such start or linear engine.
    """

    start: str
    linear: str
    engine: str
    settings: EngineSettings
    weights: PlannedWeights | None = None
    gpu: int = 0

    def __post_init__(self) -> None:
        for key, name, known in (("start", self.start, STARTS), ("linear", self.linear, LINEAR)):
            if name not in known:
                raise ConfigError(f"no {key} is called '{name}'. Remedy: use one of {', '.join(known)}")

    def __str__(self) -> str:
        return f"{self.engine} from {self.start}"


def settings_of(attempt: Attempt, kind: type[Kind]) -> Kind:
    """Return the settings of an attempt as those of an engine; TypeError when they are another one's."""
    if not isinstance(attempt.settings, kind):
        raise TypeError(f"{kind.__name__} are needed, not {type(attempt.settings).__name__}")
    return attempt.settings
