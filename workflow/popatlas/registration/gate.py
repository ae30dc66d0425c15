"""The quality gate of a registration: numbers first, then a verdict with reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from popatlas.images.arrays import RealArray
from popatlas.measures.overlap import dice

if TYPE_CHECKING:
    from popatlas.transforms.affine import Matrix

# written beside each verdict: what an earlier gate let pass was looked at less closely. 1: masks, correlation and folds;
# 2: pose, sides, contrast, coverage and size of the deformation too
Limits = Mapping[str, Any]  # `register.gate` of a configuration: numbers, and a pair of them
GATE_REVISION = 2
TURNED = 45.0  # degrees from which a header is likely to be wrong
WHOLE = 0.9  # share of the fixed brain that the image holds, below which it is told
STILL = 1e-3  # voxels by which a deformation moves points when it moves nothing
DOUBTFUL = 0.15  # laterality of a brain whose left and right may be exchanged
# what this revision finds out about every pair that passes; sides and pose cannot always be known
LOOKED_AT = ("covered", "contrast", "edges_affine", "edges", "log_jacobian_sd", "displacement_p95")
# what is judged, the configuration's limit for it, and what is said when it is on the wrong side
LOWEST = {
    "mask_dice": "mask Dice {value:.3f} below {limit}",
    "pose": "the pose is not clear: its edges agree {value:.1f} standard deviations better than those of turned ones, "
    "less than {limit}",
    "covered": "the image holds {value:.0%} of the fixed brain, less than {limit:.0%}",
    "edges": "edges agree by {value:.3f}, below {limit}",
    "sides": "left and right are exchanged: the brain's asymmetry is {value:.2f} of what people's are like (about 1; of "
    "their mirror images -1), below {limit}",
}
HIGHEST = {
    "shear": "shear {value:.2f} above {limit}",
    "nonpositive_jacobian": "share of Jacobian <= 0 {value:.5f} above {limit}",
    "folds": "share of voxels that fold towards some neighbours {value:.5f} above {limit}",
    "inverse_error": "inverse consistency error {value:.3f} voxels above {limit}",
    "log_jacobian_sd": "the log-Jacobian varies by {value:.2f}, more than {limit}",
    "displacement_p95": "the deformation moves points by {value:.1f} mm (95th percentile), more than {limit}",
}


def affine_metrics(affine: Matrix) -> dict[str, float]:
    """Return size and shape of an affine (LPS millimetres): scale_max, scale_min, shear, reflected (1 when it mirrors)."""
    from popatlas.transforms.affine import decompose  # SciPy, which those who only judge need not wait for

    parts = decompose(affine)
    return {
        "scale_max": parts.scales[0],
        "scale_min": parts.scales[-1],
        "shear": parts.shear,
        "reflected": float(parts.reflected),
    }


def gate_metrics(
    affine: Matrix,
    jacobian: npt.NDArray[np.float32] | None,
    fixed_mask: RealArray,
    warped_mask: RealArray,
    view: RealArray | None = None,
) -> dict[str, float]:
    """Return numbers that the gate judges.

    Parameters
    ----------
    affine : (D + 1, D + 1) ndarray
        Affine part, LPS millimetres.
    jacobian : ndarray or None
        Jacobian determinant of the composed transform on the fixed grid.
    fixed_mask, warped_mask : ndarray
        Brain masks on the fixed grid.
    view : ndarray, optional
        Voxels of the fixed grid that the moving image's field of view holds: masks are compared there.

    Returns
    -------
    dict
        Those of `affine_metrics`, mask_dice and, with a Jacobian, nonpositive_jacobian (share of fixed-mask voxels) and
        log_jacobian_sd (standard deviation of its logarithm, without folded voxels).
    """
    seen = np.ones(fixed_mask.shape, dtype=bool) if view is None else view > 0
    metrics = affine_metrics(affine) | {"mask_dice": dice((fixed_mask > 0) & seen, (warped_mask > 0) & seen, empty=1.0)}
    if jacobian is not None:
        inside = jacobian[fixed_mask > 0]
        positive = inside[inside > 0]
        metrics["nonpositive_jacobian"] = float(np.mean(inside <= 0)) if inside.size else 0.0
        metrics["log_jacobian_sd"] = float(np.log(positive).std()) if positive.size else 0.0
    return metrics


def judge(metrics: Mapping[str, float], limits: Limits) -> list[str]:
    """Return the reasons why a registration is implausible; empty when it passes.

    Parameters
    ----------
    metrics : mapping
        From `gate_metrics` and `popatlas.registration.evidence`, what is known of ncc and ncc_before (correlation in the
        fixed mask after and before the registration), one_contrast (1 when the engine needs images of one contrast),
        contrast, pose, covered, edges and edges_affine, sides, folds (share of voxels), inverse_error (mean distance in
        voxels between a point and itself after the way there and back), displacement_p95 (mm), diverged (1 when the
        optimisation did).
    limits : mapping
        The configuration's `register.gate`; what it does not name is not judged.
    """
    return [*_not_finite(metrics), *_affine_reasons(metrics, limits), *_reasons(metrics, limits)]


def judge_again(gate: Mapping[str, Any], limits: Limits) -> list[str]:
    """Return why a registration that has passed does not pass as things are now; nothing is registered for it.

    Parameters
    ----------
    gate : mapping
        What its gate file holds. Numbers that were judged by the same revision and limits are not looked at again.
    limits : mapping
        The configuration's `register.gate`.
    """
    if gate.get("revision") == GATE_REVISION and gate.get("limits") == dict(limits):
        return []
    if unknown := [name for name in LOOKED_AT if gate.get(name) is None]:
        return [f"an earlier gate did not look at {', '.join(unknown)}"]
    return judge({name: value for name, value in gate.items() if _is_number(value)}, limits)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _not_finite(metrics: Mapping[str, float]) -> Iterator[str]:
    """Comparisons with NaN are false: none of the limits would stop it."""
    yield from (f"{name} is not finite ({value})" for name, value in metrics.items() if not np.isfinite(value))


def _affine_reasons(metrics: Mapping[str, float], limits: Limits) -> Iterator[str]:
    low, high = limits["scale"]
    if metrics["scale_min"] < low:
        yield f"scale {metrics['scale_min']:.2f} below {low}"
    if metrics["scale_max"] > high:
        yield f"scale {metrics['scale_max']:.2f} above {high}"
    if metrics.get("reflected", 0.0) > 0:
        yield "the affine mirrors the image"


def _reasons(metrics: Mapping[str, float], limits: Limits) -> Iterator[str]:
    for side, words in ((1, LOWEST), (-1, HIGHEST)):
        for name, text in words.items():
            if name in metrics and name in limits and side * metrics[name] < side * limits[name]:
                yield text.format(value=metrics[name], limit=limits[name])
    alike = metrics.get("contrast", 1.0) >= limits.get("contrast", -np.inf)
    if not alike and metrics.get("one_contrast", 1.0) > 0:
        yield (
            f"the contrasts differ: the intensities correlate by {metrics['contrast']:.2f} of what they share, less than "
            f"{limits['contrast']}, and the engine's similarity needs one contrast"
        )
    gains = [("similarity_gain", "ncc_before", "ncc", "correlation")] if alike else []
    for limit, before, after, name in (*gains, ("edges_gain", "edges_affine", "edges", "the agreement of edges")):
        if before in metrics and after in metrics and limit in limits:
            gain = metrics[after] - metrics[before]
            if gain < limits[limit]:
                yield f"{name} rose by {gain:.3f}, less than {limits[limit]}"
    if metrics.get("diverged", 0.0) > 0:
        yield "the optimisation diverged"


def beyond_repair(metrics: Mapping[str, float], limits: Limits) -> bool:
    """Tell whether no other start and no other engine could mend a registration: the image itself is at fault."""
    certain = metrics.get("pose", -np.inf) >= limits.get("pose", np.inf)
    return certain and any(metrics.get(name, np.inf) < limits.get(name, -np.inf) for name in ("sides", "covered"))


def doubts(metrics: Mapping[str, float], limits: Limits, axis: str = "", still: float = 0.0) -> list[str]:
    """Return what has to be said of a registration, also of one that passes, besides the reasons of `judge`.

    Parameters
    ----------
    metrics, limits : mapping
        As for `judge`.
    axis : str
        About which the affine turns, in words.
    still : float
        95th percentile of the displacement (mm) below which a deformable stage that should move points has moved none.
    """
    said = []
    if metrics.get("turned", 0.0) > TURNED:
        said.append(
            f"the image lies turned by {metrics['turned']:.0f} degrees about {axis or 'an'} axis of the fixed one: the "
            "orientation in its header may be wrong"
        )
    if limits.get("covered", 0.0) <= metrics.get("covered", 1.0) < WHOLE:
        said.append(f"the image holds only {metrics['covered']:.0%} of the fixed brain: nothing is known of the rest")
    # where it is not judged, the images may be no brains: what is said of them is that they look like mirror images of one
    least, most = (limits["sides"], DOUBTFUL) if "sides" in limits else (-np.inf, -DOUBTFUL)
    if least <= metrics.get("sides", 1.0) < most:
        said.append(f"left and right may be exchanged: asymmetry {metrics['sides']:.2f}, about 1 in people")
    if metrics.get("displacement_p95", np.inf) < still:
        said.append("the deformable stage moved nothing: the result is the affine alone")
    return said
