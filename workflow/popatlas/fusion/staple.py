"""Multi-label STAPLE: expectation maximisation of the candidates' confusion matrices and the hidden labels.

As published, it counts all voxels, and a label is as probable as it is frequent in the candidates (`region` ``all``,
`prior` ``frequency``). Its structures are then too large: most voxels are background for every candidate, which makes each
candidate's word for a structure look almost infallible, and three of ten votes can win. Here, unless told otherwise,

* reliability is estimated at the disputed voxels only (Rohlfing et al. 2004), where a candidate can be wrong, and
* the priors of the decision are those with which each label has, in expectation, as many voxels as in the candidates on
  average, weighted by their reliability (`prior` ``volumes``): an error of registration moves a structure, but does not
  make it larger.

What both change is in docs/benchmarks.md (`benchmarks.fusion`). Only labels that some candidate has at a voxel compete
there, and no label appears that nobody voted for. The engine for all voxels is SimpleITK's MultiLabelSTAPLE (ITK 5.4 seeds
the confusion matrices wrongly at ties; the tests show that the converged labels equal those of a reference implementation
all the same).

Warfield SK, Zou KH, Wells WM. Simultaneous truth and performance level estimation (STAPLE): an algorithm for the validation
of image segmentation. IEEE TMI 2004;23(7):903-921. doi:10.1109/TMI.2004.828354
Rohlfing T, Russakoff DB, Maurer CR. Performance-based classifier combination in atlas-based image segmentation using
expectation-maximization parameter estimation. IEEE TMI 2004;23(8):983-994. doi:10.1109/TMI.2004.830803
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from popatlas.fusion.candidates import Candidates
from popatlas.fusion.labels import bounding_box, to_contiguous, union_mask
from popatlas.fusion.result import Fusion
from popatlas.fusion.settings import Prior, Region, Ties
from popatlas.fusion.vote import NO_LABEL, LabelTable, ShareTable, count_votes, decide, normalised, vote

Floats = npt.NDArray[np.float64]
# a label that a candidate never gave for another one is rare, not impossible
SMALLEST = 1e-12
# search of the priors: most steps, largest step in log-odds, and the error of a label's voxels at which it ends
STEPS, LARGEST_STEP, NEAR, NEAR_VOXELS = 200, 1.0, 0.005, 0.5


def multilabel_staple(
    candidates: Candidates,
    ties: Ties = "nearest",
    *,
    region: Region = "disputed",
    prior: Prior = "volumes",
    max_iterations: int = 25,
    tolerance: float = 1e-3,
) -> Fusion:
    """Fuse candidates by multi-label STAPLE.

    Parameters
    ----------
    candidates : Candidates
        Labels on the grid of the target; images are not used.
    ties : {"nearest", "lowest"}
        Rule at voxels where two labels are equally probable, see :mod:`popatlas.fusion.vote`.
    region : {"disputed", "all"}
        Voxels that reliability is estimated at: those where the candidates differ, or all in the box of the labels.
    prior : {"volumes", "frequency"}
        Probability of a label before anyone is asked: such that the expected volumes are those of the candidates, or its
        frequency in the candidates.
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
    table = np.ascontiguousarray(labels[:, disputed], dtype=np.int32)
    options, shares = count_votes(table, normalised(np.ones(len(table))))
    if region == "all":
        values, indices = to_contiguous(labels[(slice(None), *bounding_box(union_mask(labels)))])
        frequency = np.bincount(indices.ravel(), minlength=len(values)) / indices.size
        votes = _Votes.of(table, options, shares, values)
        matrices = _estimate_everywhere(indices, len(values), max_iterations, tolerance)
    else:
        values = np.unique(table).astype(np.int64)
        votes = _Votes.of(table, options, shares, values)
        frequency = votes.counts.sum(axis=0) / table.size
        matrices = _estimate(votes, _log(frequency), max_iterations, tolerance)
    atlas_weights = normalised(np.array([np.diag(one)[frequency > 0].mean() for one in matrices])).astype(np.float64)
    evidence, log_prior = votes.evidence(matrices), _log(frequency)
    if prior == "volumes":
        log_prior = _balanced(votes, evidence, log_prior, atlas_weights @ votes.counts)
    shares = votes.table(votes.probabilities(evidence, log_prior), options)
    order = np.argsort(-shares, axis=0, kind="stable")
    options, shares = np.take_along_axis(options, order, axis=0), np.take_along_axis(shares, order, axis=0)
    return decide(labels[0], disputed, options, shares, atlas_weights, table, ties, candidates.spacing)


def _log(share: Floats) -> Floats:
    return np.asarray(np.log(np.maximum(share, SMALLEST)))


@dataclass(frozen=True)
class _Votes:
    """The pairs of a disputed voxel and a label that some candidate has there, voxel by voxel.

    Attributes
    ----------
    given : (n_candidates, n_pairs) int32 ndarray
        Number of the label that each candidate has at the voxel of the pair.
    hidden : (n_pairs,) int32 ndarray
        Number of the label of the pair.
    share : (n_pairs,) float64 ndarray
        Share of the candidates that have it.
    start : (n_voxels,) ndarray
        First pair of each voxel.
    size : (n_voxels,) ndarray
        Number of its pairs.
    counts : (n_candidates, n_labels) float64 ndarray
        Disputed voxels of each label in each candidate.
    """

    given: npt.NDArray[np.int32]
    hidden: npt.NDArray[np.int32]
    share: Floats
    start: npt.NDArray[np.intp]
    size: npt.NDArray[np.intp]
    counts: Floats

    @classmethod
    def of(cls, table: LabelTable, options: LabelTable, shares: ShareTable, values: npt.NDArray[np.int64]) -> _Votes:
        known = options != NO_LABEL
        size = known.sum(axis=0)
        numbers = np.searchsorted(values, table).astype(np.int32)
        counts = np.stack([np.bincount(row, minlength=len(values)) for row in numbers]).astype(np.float64)
        hidden = np.searchsorted(values, options.T[known.T]).astype(np.int32)
        start = np.cumsum(size) - size
        return cls(np.repeat(numbers, size, axis=1), hidden, shares.T[known.T].astype(np.float64), start, size, counts)

    def probabilities(self, evidence: Floats, log_prior: Floats) -> Floats:
        """Return the probability of the label of each pair at its voxel, (n_pairs,)."""
        score = evidence + log_prior[self.hidden]
        score = np.exp(score - np.repeat(np.maximum.reduceat(score, self.start), self.size))
        return np.asarray(score / np.repeat(np.add.reduceat(score, self.start), self.size))

    def confusion(self, probability: Floats) -> Floats:
        """Return P(candidate's label | hidden label), (n_candidates, n_labels, n_labels)."""
        count = self.counts.shape[1]
        found = np.zeros((len(self.given), count, count))
        for matrix, row in zip(found, self.given, strict=True):
            pair = row.astype(np.int64) * count + self.hidden
            matrix += np.bincount(pair, weights=probability, minlength=count * count).reshape(count, count)
        return np.asarray(found / np.maximum(found.sum(axis=1, keepdims=True), SMALLEST))

    def evidence(self, matrices: Floats) -> Floats:
        """Return the log-probability of what all candidates say if the label of the pair is the hidden one, (n_pairs,)."""
        total = np.zeros(len(self.hidden))
        for matrix, row in zip(_log(matrices), self.given, strict=True):
            total += matrix[row, self.hidden]
        return total

    def table(self, probability: Floats, options: LabelTable) -> ShareTable:
        """Return numbers of pairs as a table like that of the options, 0 where there is none."""
        found = np.zeros(options.T.shape, dtype=np.float32)
        found[options.T != NO_LABEL] = probability
        return np.ascontiguousarray(found.T)


def _estimate(votes: _Votes, log_prior: Floats, max_iterations: int, tolerance: float) -> Floats:
    """Return the confusion matrices (n_candidates, n_labels, n_labels) by EM at the disputed voxels."""
    matrices = votes.confusion(votes.share)
    for _ in range(max_iterations):
        before, matrices = matrices, votes.confusion(votes.probabilities(votes.evidence(matrices), log_prior))
        if np.abs(matrices - before).max() < tolerance:
            break
    return matrices


def _estimate_everywhere(indices: npt.NDArray[np.uint16], n_labels: int, max_iterations: int, tolerance: float) -> Floats:
    """Return the same by EM at all voxels, where any label may be the hidden one."""
    import SimpleITK

    engine = SimpleITK.MultiLabelSTAPLEImageFilter()
    engine.SetLabelForUndecidedPixels(n_labels)
    engine.SetMaximumNumberOfIterations(max_iterations)
    engine.SetTerminationUpdateThreshold(tolerance)
    engine.Execute([SimpleITK.GetImageFromArray(np.ascontiguousarray(one)) for one in indices])
    # one more row than labels: votes for none of them
    size = (n_labels + 1, n_labels)
    return np.stack([np.asarray(engine.GetConfusionMatrix(number)).reshape(size)[:-1] for number in range(len(indices))])


def _balanced(votes: _Votes, evidence: Floats, log_prior: Floats, wanted: Floats) -> Floats:
    """Return the log-priors, (n_labels,), with which the labels are expected to have the voxels that are wanted.

    Newton steps of the diagonal, halved since what one label gains another one loses, and bounded: where candidates are
    sure, volumes change in jumps.
    """
    log_prior, best, least = log_prior.copy(), log_prior, np.inf
    for _ in range(STEPS):
        probability = votes.probabilities(evidence, log_prior)
        voxels, slope = (
            np.bincount(votes.hidden, weights=weight, minlength=len(wanted))
            for weight in (probability, probability * (1 - probability))
        )
        missing = wanted - voxels
        error = float((np.abs(missing) / np.maximum(wanted, NEAR_VOXELS / NEAR)).max())
        if error < least:
            best, least = log_prior.copy(), error
        if error <= NEAR:
            break
        log_prior += np.clip(0.5 * missing / np.maximum(slope, NEAR_VOXELS), -LARGEST_STEP, LARGEST_STEP)
    return best
