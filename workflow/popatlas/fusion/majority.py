"""Majority vote: each candidate counts the same.

Heckemann RA, Hajnal JV, Aljabar P, Rueckert D, Hammers A. Automatic anatomical brain MRI segmentation combining
label propagation and decision fusion. NeuroImage 2006;33(1):115-126. doi:10.1016/j.neuroimage.2006.05.061
"""

from __future__ import annotations

from popatlas.fusion.candidates import Candidates
from popatlas.fusion.result import Fusion
from popatlas.fusion.settings import Ties
from popatlas.fusion.vote import vote


def majority_vote(candidates: Candidates, ties: Ties = "nearest") -> Fusion:
    """Fuse candidates by majority vote, background included.

    Parameters
    ----------
    candidates : Candidates
        Labels on the grid of the target; images are not used.
    ties : {"nearest", "lowest"}
        Rule at ties, see :mod:`popatlas.fusion.vote`.

    Returns
    -------
    Fusion
    """
    return vote(candidates.labels, candidates.disputed, ties=ties, spacing=candidates.spacing)
