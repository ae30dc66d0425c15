"""Similarities by the names that a configuration uses; torch is loaded when one is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from popatlas.registry import Entry, find_entry
from popatlas.settings import Content, settings_from

if TYPE_CHECKING:
    from popatlas.similarity.base import Similarity


@dataclass(frozen=True, kw_only=True)
class SimilarityEntry(Entry):
    """A similarity; its options are the fields of its class.

    Attributes
    ----------
    one_contrast : bool
        It needs two images of one contrast.
    images : bool
        It compares images, not maps of labels.
    symmetric : bool
        Exchanging the images changes nothing.
    """

    one_contrast: bool = False
    images: bool = True
    symmetric: bool = True


SIMILARITIES: dict[str, SimilarityEntry] = {
    "ssd": SimilarityEntry(
        code="popatlas.similarity.ssd:SSD",
        title="mean squared difference",
        formula=r"\frac{1}{|\Omega|} \sum_x \big(F(x) - M(x)\big)^2",
        one_contrast=True,
    ),
    "ncc": SimilarityEntry(
        code="popatlas.similarity.ncc:NCC",
        title="global normalised cross-correlation",
        formula=r"-\frac{\mathrm{cov}(F, M)}{\sqrt{\mathrm{var}\,F \; \mathrm{var}\,M}}",
        one_contrast=True,
    ),
    "lncc": SimilarityEntry(
        code="popatlas.similarity.lncc:LNCC",
        title="local normalised cross-correlation",
        references=("avants2008",),
        formula=r"-\frac{1}{|\Omega|} \sum_x"
        r" \frac{\mathrm{cov}_x(F, M)^2}{(\mathrm{var}_x F + \varepsilon)(\mathrm{var}_x M + \varepsilon)}",
        one_contrast=True,
    ),
    "mattes": SimilarityEntry(
        code="popatlas.similarity.mi:MattesMI",
        title="Mattes' mutual information",
        references=("mattes2003",),
        formula=r"-\sum_{f, m} p(f, m) \log \frac{p(f, m)}{p(f)\, p(m)}",
        symmetric=False,
    ),
    "nmi": SimilarityEntry(
        code="popatlas.similarity.mi:NMI",
        title="normalised mutual information",
        references=("studholme1999",),
        formula=r"-\frac{H(F) + H(M)}{H(F, M)}",
    ),
    "mind": SimilarityEntry(
        code="popatlas.similarity.mind:MIND",
        title="modality independent neighbourhood descriptors (MIND)",
        references=("heinrich2012",),
        formula=r"\frac{1}{|\Omega|} \sum_x \Big(\frac{1}{2D} \sum_r \big|S_F(x, r) - S_M(x, r)\big|\Big)^2",
    ),
    "mindssc": SimilarityEntry(
        code="popatlas.similarity.mind:MINDSSC",
        title="descriptors of the self-similarity context (MIND-SSC)",
        references=("heinrich2013",),
        formula=r"\frac{1}{|\Omega|} \sum_x \frac{1}{K} \sum_k \big(S_F(x, k) - S_M(x, k)\big)^2",
    ),
    "ngf": SimilarityEntry(
        code="popatlas.similarity.ngf:NGF",
        title="normalised gradient fields",
        references=("haber2007",),
        formula=r"-\frac{1}{|\Omega|} \sum_x \bigg(\frac{\nabla F \cdot \nabla M}"
        r"{\sqrt{|\nabla F|^2 + \varepsilon^2} \sqrt{|\nabla M|^2 + \varepsilon^2}}\bigg)^2",
    ),
    "dice": SimilarityEntry(
        code="popatlas.similarity.overlap:MultiscaleDice",
        title="soft Dice of label maps smoothed by several Gaussians",
        references=("hu2018",),
        formula=r"-\frac{1}{|S|\,|L|} \sum_{\sigma \in S} \sum_{l \in L}"
        r" \frac{2 \sum_x (G_\sigma a_l)(G_\sigma b_l)}{\sum_x G_\sigma a_l + G_\sigma b_l}",
        images=False,
    ),
    "auto": SimilarityEntry(
        code="popatlas.similarity.mapped:MappedLNCC",
        title="local normalised cross-correlation, of intensities mapped to the other contrast where contrasts differ",
        references=("avants2008", "guimond2001"),
        formula=r"\mathrm{LNCC}\big(F, g(M)\big), \quad g(m) = \mathrm{E}[F \mid M = m]",
    ),
    "nmi_mind": SimilarityEntry(
        code="popatlas.similarity.combined:NMIMIND",
        title="normalised mutual information and modality independent neighbourhood descriptors in one",
        references=("studholme1999", "heinrich2012", "tanner2018"),
        formula=r"\beta\, \mathrm{NMI} + (1 - \beta)\, s\, \mathrm{MIND}",
    ),
}
OF_IMAGES = tuple(name for name, entry in SIMILARITIES.items() if entry.images)
ONE_CONTRAST = tuple(name for name, entry in SIMILARITIES.items() if entry.one_contrast)


def make(name: str, **parameters: object) -> Similarity:
    """Make a similarity.

    Parameters
    ----------
    name : str
        Key of `SIMILARITIES`.
    **parameters
        Its options, as a file holds them: those of a measure inside of another one (of `nmi_mind`) are a mapping.

    Returns
    -------
    Similarity
        ``loss(fixed, moving, mask=None) -> (B,)``, lower is better.

    Raises
    ------
    InputError
        When there is no such similarity, or no such parameter, or its value is impossible.
    """
    kind: type[Similarity] = find_entry(SIMILARITIES, name, "similarity").load()
    return settings_from(kind, parameters, f"similarity {name}")


def describe(name: str, options: Mapping[str, object]) -> str:
    """Return a similarity and its options in words, for the methods text."""
    chosen = ", ".join(f"{key} {value}" for key, value in options.items())
    return f"{SIMILARITIES[name].cited} ({chosen or 'defaults'})"


def similarity_schemas() -> dict[str, Content]:
    """Return the JSON Schema of the options of each similarity; all are loaded for it."""
    from popatlas.schema import schema_of

    return {name: schema_of(entry.load(), complete=False) for name, entry in SIMILARITIES.items()}
