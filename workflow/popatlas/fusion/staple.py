"""Multi-label STAPLE: expectation maximisation of the candidates' confusion matrices and the hidden labels.

The engine is SimpleITK's MultiLabelSTAPLE. Around it: labels are made contiguous before and restored after (any
label values, more than 255 of them), and the problem is cropped to the region that some candidate labels. The
probabilities of the labels follow from the confusion matrices and are computed at the disputed voxels only, among the
labels that some candidate has there: no label appears that nobody voted for. ITK 5.4 seeds the confusion matrices wrongly
at ties; the tests show that the converged labels equal those of a reference implementation all the same.

Its structures are too large: by 25 % on held-out manual labels, where those of joint label fusion were 1.3 % too small. For
volumes take joint label fusion.

Rohlfing T, Russakoff DB, Maurer CR. Performance-based classifier combination in atlas-based image segmentation using
expectation-maximization parameter estimation. IEEE TMI 2004;23(8):983-994. doi:10.1109/TMI.2004.830803
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from popatlas.fusion.candidates import Candidates
from popatlas.fusion.labels import bounding_box, to_contiguous, union_mask
from popatlas.fusion.result import Fusion
from popatlas.fusion.settings import Ties
from popatlas.fusion.vote import BLOCK, NO_LABEL, count_votes, decide, normalised, vote
from popatlas.images.arrays import FloatArray

Matrices = npt.NDArray[np.float64]
# a label that a candidate never gave for another one is rare, not impossible
SMALLEST = 1e-12


def multilabel_staple(
    candidates: Candidates, ties: Ties = "nearest", max_iterations: int = 25, tolerance: float = 1e-3
) -> Fusion:
    """Fuse candidates by multi-label STAPLE.

    Parameters
    ----------
    candidates : Candidates
        Labels on the grid of the target; images are not used.
    ties : {"nearest", "lowest"}
        Rule at voxels where two labels are equally probable, see :mod:`popatlas.fusion.vote`.
    max_iterations : int
        Bound on the EM iterations.
    tolerance : float
        Largest change of a confusion matrix entry at convergence.

    Returns
    -------
    Fusion
        Its atlas weight is the mean over labels of the probability that the candidate has the label where it is the hidden
        one, normalised to sum to 1.
    """
    labels, disputed = candidates.labels, candidates.disputed
    if not disputed.any():
        return vote(labels, disputed, ties=ties, spacing=candidates.spacing)
    stack = labels[(slice(None), *bounding_box(union_mask(labels)))]
    values, indices = to_contiguous(stack)
    matrices, prior = _estimate(indices, len(values), max_iterations, tolerance)
    table = np.ascontiguousarray(labels[:, disputed], dtype=np.int32)
    options, shares = _posterior(table, values, matrices, prior)
    present = prior > 0
    atlas_weights = normalised(np.array([np.diag(matrix)[present].mean() for matrix in matrices]))
    return decide(labels[0], disputed, options, shares, atlas_weights, table, ties, candidates.spacing)


def _estimate(
    indices: npt.NDArray[np.uint16], n_labels: int, max_iterations: int, tolerance: float
) -> tuple[Matrices, npt.NDArray[np.float64]]:
    """Return P(candidate's label | hidden label), (n_candidates, n_labels, n_labels), and the priors, (n_labels,)."""
    import SimpleITK

    engine = SimpleITK.MultiLabelSTAPLEImageFilter()
    engine.SetLabelForUndecidedPixels(n_labels)
    engine.SetMaximumNumberOfIterations(max_iterations)
    engine.SetTerminationUpdateThreshold(tolerance)
    engine.Execute([SimpleITK.GetImageFromArray(np.ascontiguousarray(one)) for one in indices])
    # one more row than labels: votes for none of them
    size = (n_labels + 1, n_labels)
    matrices = [np.asarray(engine.GetConfusionMatrix(number)).reshape(size)[:-1] for number in range(len(indices))]
    prior = np.bincount(indices.ravel(), minlength=n_labels) / indices.size  # the engine's default too
    return np.stack(matrices), prior


def _posterior(
    table: npt.NDArray[np.int32], values: npt.NDArray[np.int64], matrices: Matrices, prior: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return the labels that were voted for at each voxel, most probable first, and their probabilities."""
    options, _ = count_votes(table, normalised(np.ones(len(table))))
    shares = np.zeros(options.shape, dtype=np.float32)
    log_matrices, log_prior = np.log(np.maximum(matrices, SMALLEST)), np.log(np.maximum(prior, SMALLEST))
    for start in range(0, table.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        hidden, given = np.searchsorted(values, options[:, part]), np.searchsorted(values, table[:, part])
        hidden = np.where(options[:, part] == NO_LABEL, 0, hidden)
        score = log_prior[hidden]
        for log_matrix, row in zip(log_matrices, given, strict=True):
            score = score + log_matrix[row[None], hidden]
        shares[:, part] = _softmax(np.where(options[:, part] == NO_LABEL, -np.inf, score))
    order = np.argsort(-shares, axis=0, kind="stable")
    return np.take_along_axis(options, order, axis=0), np.take_along_axis(shares, order, axis=0)


def _softmax(score: FloatArray) -> FloatArray:
    share = np.exp(score - score.max(axis=0))
    return np.asarray(share / share.sum(axis=0))
