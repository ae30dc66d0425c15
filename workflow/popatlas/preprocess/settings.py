"""Settings of the preprocessing: the section `preprocess` of a configuration."""

from __future__ import annotations

from typing import Literal

from popatlas.settings import Count, NotNegative, option, settings


@settings
class N4Settings:
    """N4 bias field correction."""

    enabled: bool = option(True, "Run N4")
    mask: Literal["otsu", "none"] = option("otsu", "Voxels used for the fit")
    shrink_factor: int = option(4, "Subsampling of the fit", ge=1, le=8)
    iterations: tuple[Count, ...] = option((50, 50, 50, 50), "Iterations of each level", min_length=1, max_length=6)
    tolerance: float = option(1e-6, "Convergence threshold", gt=0)
    spline_mm: float = option(200.0, "Knot distance of the bias field, mm", gt=0)


@settings
class BrainSettings:
    """Skull stripping."""

    method: Literal["deepbet", "template", "none"] = option(
        "deepbet", "Pretrained network, classical template-based, or none for stripped input"
    )
    threshold: float = option(0.5, "Probability above which a voxel is brain (deepbet)", gt=0, lt=1)
    dilate: int = option(0, "Voxels added to the mask, negative to remove", ge=-5, le=5)
    batch: int = option(1, "Scans per network job", ge=1, le=1000)
    gpu: int = option(
        0,
        "GPUs asked for by a network job; 0 for the CPU, which is also used when no GPU is visible",
        ge=0,
        le=8,
    )
    volume_ml: tuple[NotNegative, NotNegative] = option(
        (700.0, 2300.0), "Plausible brain volume, ml; outside it the scan is failed"
    )


@settings
class PreprocessSettings:
    """Bias correction, resampling, skull stripping, intensities."""

    resolution_mm: float = option(2.0, "Voxel size of the isotropic grid, mm", ge=0.2, le=8)
    n4: N4Settings = option(N4Settings(), "N4 bias field correction")
    denoise: bool = option(False, "Non-local means before N4")
    brain: BrainSettings = option(BrainSettings(), "Skull stripping")
    channels: Literal["alone", "group"] = option(
        "alone",
        "How extra channels are aligned to the T1w: each alone by mutual information, or all of a session as one group "
        "(X-CoReg)",
    )
    intensity: Literal["robust", "zscore", "none"] = option("robust", "Intensity normalisation within the brain")
