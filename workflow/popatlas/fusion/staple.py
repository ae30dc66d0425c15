"""Multi-label STAPLE: expectation maximisation of the atlases' confusion matrices and the hidden labels.

The engine is SimpleITK's MultiLabelSTAPLE. Around it: labels are made contiguous before and restored after (any
label values, more than 255 of them), the problem is cropped to the region that some atlas labels, and voxels that
the engine leaves undecided take the majority vote with its tie rule. ITK 5.4 seeds the confusion matrices wrongly
at ties; the tests show that the converged labels equal those of a reference implementation all the same.

Rohlfing T, Russakoff DB, Maurer CR. Performance-based classifier combination in atlas-based image segmentation using
expectation-maximization parameter estimation. IEEE TMI 2004;23(8):983-994. doi:10.1109/TMI.2004.830803
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from popatlas.fusion.labels import IntArray, bounding_box, check_stack, to_contiguous, union_mask
from popatlas.fusion.majority import Ties, majority_vote


def multilabel_staple(
    labels: IntArray,
    ties: Ties = "nearest",
    spacing: Sequence[float] | None = None,
    max_iterations: int = 25,
    tolerance: float = 1e-3,
) -> npt.NDArray[np.int32]:
    """Fuse a stack of label images by multi-label STAPLE.

    Parameters
    ----------
    labels : (n_atlases, x, y, z) int ndarray
        Candidate labels on the target grid.
    ties, spacing
        Rule for voxels that STAPLE leaves undecided, see :func:`popatlas.fusion.majority.majority_vote`.
    max_iterations : int
        Bound on the EM iterations.
    tolerance : float
        Largest change of a confusion matrix entry at convergence.

    Returns
    -------
    (x, y, z) int32 ndarray
        Fused labels; only values that some atlas has.

    Raises
    ------
    InputError
        When there is no atlas.
    """
    check_stack(labels)
    fused = np.zeros(labels.shape[1:], dtype=np.int32)
    box = bounding_box(union_mask(labels))
    stack = labels[(slice(None), *box)]
    if stack.size == 0:
        return fused
    if len(labels) == 1:
        fused[box] = stack[0]
        return fused
    values, indices = to_contiguous(stack)
    undecided = len(values)
    estimate = _run(indices, undecided, max_iterations, tolerance)
    open_voxels = estimate >= undecided
    result = values[np.where(open_voxels, 0, estimate)].astype(np.int32)
    if open_voxels.any():
        result[open_voxels] = majority_vote(stack, ties, spacing)[0][open_voxels]
    fused[box] = result
    return fused


def _run(indices: npt.NDArray[np.uint16], undecided: int, max_iterations: int, tolerance: float) -> IntArray:
    import SimpleITK

    engine = SimpleITK.MultiLabelSTAPLEImageFilter()
    engine.SetLabelForUndecidedPixels(undecided)
    engine.SetMaximumNumberOfIterations(max_iterations)
    engine.SetTerminationUpdateThreshold(tolerance)
    images = [SimpleITK.GetImageFromArray(np.ascontiguousarray(one)) for one in indices]
    return np.asarray(SimpleITK.GetArrayFromImage(engine.Execute(images)))
