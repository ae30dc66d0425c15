"""The fusion methods by name: what each is, where its code is, what it reads of a configuration, and its words.

A new one is a module with a function from Candidates to a Fusion, and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from popatlas.registry import Entry

if TYPE_CHECKING:
    from popatlas.fusion.settings import DataParametersSettings, JointSettings, SimilaritySettings, StapleSettings

# labels of the trained segmentation network stand beside those of the fusion methods
SEGMENTER = "segmenter"
MAPS = ("probability", "agreement", "entropy")


@dataclass(frozen=True, kw_only=True)
class FusionMethod(Entry):
    """A way to fuse; its function takes Candidates, and options by name.

    Attributes
    ----------
    needs_images : bool
        It looks at the target and the images of the atlases.
    sections : tuple of str
        Sections of `fuse` in a configuration that its labels depend on, see `popatlas.fusion.sections.SECTIONS`.
    options : tuple of str
        Those of the first section that its function takes; all where none are named.
    trained : bool
        A network and data parameters are trained for it first.
    words : callable, optional
        Takes the settings of its sections and says how it was done, for the methods text; `cited` where there is none.
    """

    needs_images: bool = False
    sections: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    trained: bool = False
    words: Callable[..., str] | None = None


def _staple(own: StapleSettings) -> str:
    where = "at the voxels where atlases differ" if own.region == "disputed" else "at all voxels of the labels' box"
    prior = {
        "volumes": "such that the expected volumes are the mean of the atlases'",
        "frequency": "the frequency of the labels in the atlases",
    }
    return f"multi-label STAPLE [@warfield2004, @rohlfing2004], reliability estimated {where}, prior {prior[own.prior]}"


def _joint(joint: JointSettings) -> str:
    return f"beta {joint.beta:g}, patch radius {joint.radius}, search radius {joint.search}, rho {joint.rho:g}"


def _global(similarity: SimilaritySettings) -> str:
    return f"a vote weighted by the global correlation of the images to the power {similarity.power:g} [@artaechevarria2009]"


def _local(similarity: SimilaritySettings) -> str:
    return (
        f"a vote weighted by the local correlation of the images to the power {similarity.power:g} "
        f"in windows of radius {similarity.radius} [@artaechevarria2009]"
    )


def _dataparams(joint: JointSettings, own: DataParametersSettings) -> str:
    votes = {
        "softmax": "the softmax of these parameters as weights",
        "label": "the softmax of a parameter for each label as weights",
        "joint": "joint label fusion [@wang2013] with weights multiplied by the sigmoid of these parameters",
        "auto": "joint label fusion [@wang2013] with weights multiplied by the sigmoid of these parameters where the "
        "atlases look like the target, and their softmax as weights elsewhere",
    }
    pooled = f", pooled with the network's opinion (weight {own.network_weight:g})" if own.network_weight else ""
    return (
        "a consensus by data parameters [@weihsbach2022, @saxena2019], one trainable weight for each propagated label image,"
        f" learned with a segmentation network ({own.network}, {own.epochs} epoch{'' if own.epochs == 1 else 's'}, at most "
        f"{own.targets} targets), using {votes[own.votes]}{pooled}"
    )


METHODS: dict[str, FusionMethod] = {
    "majority": FusionMethod(
        code="popatlas.fusion.majority:majority_vote",
        title="majority vote",
        references=("heckemann2006",),
        formula=r"\arg\max_l \sum_n [L_n(x) = l]",
        words=lambda: "majority voting [@heckemann2006]",
    ),
    "global": FusionMethod(
        code="popatlas.fusion.weighted_global:global_vote",
        title="vote weighted by global similarity",
        references=("artaechevarria2009",),
        formula=r"\arg\max_l \sum_n \max(\mathrm{corr}(T, I_n), 0)^p\, [L_n(x) = l]",
        needs_images=True,
        sections=("similarity",),
        options=("power",),
        words=_global,
    ),
    "local": FusionMethod(
        code="popatlas.fusion.weighted_local:local_vote",
        title="vote weighted by local similarity",
        references=("artaechevarria2009",),
        formula=r"\arg\max_l \sum_n \max(\mathrm{corr}_x(T, I_n), 0)^p\, [L_n(x) = l]",
        needs_images=True,
        sections=("similarity",),
        options=("power", "radius"),
        words=_local,
    ),
    "staple": FusionMethod(
        code="popatlas.fusion.staple:multilabel_staple",
        title="multi-label STAPLE",
        references=("warfield2004", "rohlfing2004"),
        formula=r"\arg\max_l\; \pi_l \prod_n \theta_n(L_n(x) \mid l)",
        sections=("staple",),
        words=_staple,
    ),
    "jlf": FusionMethod(
        code="popatlas.fusion.joint:joint_label_fusion",
        title="joint label fusion",
        references=("wang2013",),
        formula=r"w_x = \frac{(M_x + \rho I)^{-1} 1}{1^\top (M_x + \rho I)^{-1} 1},"
        r" \quad \arg\max_l \sum_n w_{x,n}\, [L_n(x) = l]",
        needs_images=True,
        sections=("jlf",),
        words=lambda joint: f"joint label fusion [@wang2013] ({_joint(joint)})",
    ),
    "jlfants": FusionMethod(
        code="popatlas.fusion.joint_ants:joint_label_fusion_ants",
        title="joint label fusion (ANTs)",
        references=("wang2013",),
        needs_images=True,
        sections=("jlf",),
        words=lambda joint: f"joint label fusion [@wang2013] as in ANTs ({_joint(joint)})",
    ),
    "dataparams": FusionMethod(
        code="popatlas.fusion.dataparams.consensus:data_parameters_vote",
        title="data-parameter consensus",
        references=("weihsbach2022", "saxena2019"),
        formula=r"\arg\max_l \sum_n \mathrm{softmax}(d)_n\, [L_n(x) = l]",
        needs_images=True,
        sections=("jlf", "dataparams"),
        trained=True,
        words=_dataparams,
    ),
}
