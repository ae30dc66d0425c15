"""Settings of deep combined computing."""

from __future__ import annotations

from popatlas.settings import Count, option, settings


@settings
class CombinedSettings:
    """How a network learns to register and segment groups."""

    classes: int = option(4, "Classes, background included", ge=2, le=64)
    features: tuple[Count, ...] = option((16, 32, 64, 128), "Channels of each level, from fine to coarse", min_length=2)
    softness: float = option(
        2.0, "Slope of softened labels by the signed distance from the border, 1/voxel (0.1 in the public code)", gt=0
    )
    bins: int = option(32, "Bins of an image's histogram", ge=8, le=256)
    floor: float = option(0.001, "Least probability of a class at a voxel", gt=0, le=0.02)
    use_labels: bool = option(
        True, "Multiply the warped labels of supervised contrasts into the posterior, as the public code does"
    )
    bending: float = option(1.0, "Weight of the bending energy", ge=0)
    steps: int = option(1000, "Steps of training", ge=1)
    turn: int = option(5, "Steps of one branch before the other has its turn", ge=1)
    batch: int = option(2, "Groups of a step", ge=1)
    segmentation_rate: float = option(1e-3, "Learning rate of the encoder and the segmentation branch", gt=0)
    registration_rate: float = option(1e-3, "Learning rate of the registration branch", gt=0)
    reach: float = option(0.1, "Longest random displacement of an image, as a share of its extent; 0 for none", ge=0, le=0.5)
    knots: float = option(
        0.25, "Distance of the control points of these displacements, as a share of the extent", gt=0, le=1
    )
    seed: int = option(0, "Of weights and draws", ge=0)
    checkpoint_every: int = option(200, "Steps between checkpoints", ge=1)

    @property
    def stride(self) -> int:
        """Voxels that a voxel of the coarsest level covers along each axis."""
        return int(2 ** (len(self.features) - 1))
