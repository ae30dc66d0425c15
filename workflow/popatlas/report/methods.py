"""The methods section of a run, written from its configuration and counts, with the references that it cites."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from popatlas.config.attempts import iteration_preset
from popatlas.config.sections import Config, Fuse, Measure, Tissues
from popatlas.fusion.methods import METHODS, SEGMENTER
from popatlas.fusion.sections import describe as describe_fusion
from popatlas.preprocess.settings import PreprocessSettings
from popatlas.registration.engines.registry import ENGINES
from popatlas.report.limits import CHANCE, FEWEST
from popatlas.resources import template_folder
from popatlas.settings import as_content, settings_from
from popatlas.zoo.find import find_weights

CITATION = re.compile(r"\[@([a-z0-9, @]+)\]")
LATEX = {
    r"{\'o}": "\u00f3",
    r"{\'e}": "\u00e9",
    r"{\'\i}": "\u00ed",
    r"{\"o}": "\u00f6",
    r"{\~n}": "\u00f1",
    r"{\.z}": "\u017c",
    "--": "\N{EN DASH}",
}


@dataclass(frozen=True)
class Reference:
    """A reference: BibTeX key, its number in the text, a line to read, address (its DOI if it has one), BibTeX entry."""

    key: str
    number: int
    text: str
    address: str
    bibtex: str


@dataclass(frozen=True)
class Methods:
    """The methods section: (heading, text with numbered citations) pairs, and the references in order."""

    sections: list[tuple[str, str]]
    references: list[Reference]

    @property
    def bibtex(self) -> str:
        """Content of the BibTeX file."""
        return "\n\n".join(reference.bibtex for reference in self.references) + "\n"


@dataclass(frozen=True)
class Counts:
    """What a run counted.

    Attributes
    ----------
    scans, included : int
        Scans found, and those in the results.
    out : mapping of str to int
        Scans that are out, by state.
    members, atlases : int
        Of the template; labelled ones.
    held_out : int
        Targets of the bench that the run has made.
    channels : mapping of str to int
        Extra channel to the scans that it was aligned for.
    referenced : int
        Scans whose fused labels were scored against reference labels.
    """

    scans: int
    included: int
    out: Mapping[str, int]
    members: int = 0
    atlases: int = 0
    held_out: int = 0
    channels: Mapping[str, int] = field(default_factory=dict)
    referenced: int = 0


def write_methods(config: Config, counts: Counts, methods: Sequence[str], versions: Mapping[str, str]) -> Methods:
    """Write the methods section.

    Parameters
    ----------
    config : dict
        Complete configuration of the run.
    counts : Counts
        From the ledger and the frozen tables.
    methods : sequence of str
        Fusion methods that were run; none when there are no labelled atlases.
    versions : mapping of str to str
        Package name to version.

    Returns
    -------
    sections : Methods
        Text and references.
    """
    drafts = [
        ("Cohort", " ".join(_cohort(config, counts))),
        ("Preprocessing", " ".join(_preprocessing(config.preprocess, counts.channels))),
        ("Template", " ".join(_template(config, counts))),
        ("Registration", " ".join(_registration(config))),
        ("Tissues", " ".join(_tissues(config.tissues))),
        ("Label fusion", " ".join(_fusion(config.fuse, methods, counts))),
        ("Measures and quality control", " ".join(_measures(config.measure, counts))),
        ("Software", _software(versions)),
    ]
    return _cite([(heading, text) for heading, text in drafts if text])


def _cohort(config: Config, counts: Counts) -> Iterator[str]:
    yield f"The cohort (BIDS [@gorgolewski2016]) has {_several(counts.scans, 'T1-weighted scan')}."
    if config.cohort.query:
        yield f"Scans were selected by the query \u201c{config.cohort.query}\u201d."
    out = [f"{number} {state}" for state, number in counts.out.items() if number]
    if out:
        yield f"{counts.included} entered the group results; left out were {_list(out)} (reasons in the ledger)."
    elif counts.scans:
        yield "All of them entered the group results."


def _preprocessing(options: PreprocessSettings, channels: Mapping[str, int]) -> Iterator[str]:
    n4, brain = options.n4, options.brain
    if options.denoise:
        yield "Images were denoised by adaptive non-local means [@manjon2010]."
    if n4.enabled:
        mask = "inside an Otsu foreground mask" if n4.mask == "otsu" else "on the whole image"
        yield (
            f"Intensity non-uniformity was corrected with N4 [@tustison2010] {mask} (shrink factor {n4.shrink_factor}, "
            f"{_by(n4.iterations)} iterations, knot distance {n4.spline_mm:g} mm)."
        )
    yield f"Images were reoriented to RAS and resampled to {options.resolution_mm:g} mm isotropic voxels."
    if brain.method == "deepbet":
        yield f"Brains were extracted with the deepbet network [@fisch2024] (threshold {brain.threshold:g})."
    elif brain.method == "template":
        yield "Brains were extracted by registering the ICBM 152 brain [@fonov2011] with ANTs [@avants2008]."
    else:
        yield "The images had been skull-stripped before."
    intensity = {
        "robust": "scaled so that the 1st and 99th percentile of the brain became 0 and 1",
        "zscore": "transformed to zero mean and unit variance in the brain",
    }.get(options.intensity)
    if intensity:
        yield f"Intensities were {intensity}."
    aligned = [f"{name} images of {_several(number, 'scan')}" for name, number in channels.items() if number]
    if aligned:
        yield f"{_list(aligned)} were aligned rigidly to the T1-weighted image of their session."


def _template(config: Config, counts: Counts) -> Iterator[str]:
    atlas = config.atlas
    if atlas.template is not None:
        yield "An existing template was used."
        return
    is_drawn = isinstance(atlas.members, int) or (atlas.members == "all" and counts.members == atlas.most_members)
    drawn = ", drawn evenly from the cohort" * is_drawn
    if atlas.is_grouped:
        yield (
            f"An unbiased template was built from {_several(counts.members, 'scan')}{drawn}: after rigid alignment to the "
            f"pose of the ICBM 152 average [@fonov2011] all members were registered as one group to a common space with "
            f"{atlas.xcoreg.classes} latent classes (X-CoReg [@luo2023], {atlas.xcoreg.motion}), each registration was "
            "judged and, where it failed, made anew, and the registered images were averaged."
        )
        return
    yield (
        f"An unbiased template was built from {_several(counts.members, 'scan')}{drawn}: after rigid alignment to the pose "
        f"of the ICBM 152 average [@fonov2011], each of {_several(atlas.iterations, 'iteration')} registered all members to "
        "the current template, averaged the registered images, and deformed the average by the inverse of the mean "
        f"transform [@joshi2004, @avants2010] (step {atlas.shape_step:g})."
    )
    presets = [iteration_preset(config, number) for number in range(1, atlas.passes + 1)]
    yield f"The schedules were {', '.join(presets)} (see Registration)."
    if atlas.sharpen:
        yield f"The average was sharpened by unsharp masking (weight {atlas.sharpen:g})."


def _tissues(options: Tissues) -> Iterator[str]:
    if not options.enabled:
        return
    contrasts = _list(["the T1-weighted image", *(f"the {name} image" for name in options.channels)])
    source = (
        "were given"
        if options.maps
        else "were found in the registered brains by mixtures of Gaussians whose prior says nothing of places, then with "
        "the mean of these posteriors as prior"
    )
    yield (
        f"Each brain was divided into cerebrospinal fluid, grey and white matter by mixtures of "
        f"{options.mixture.components} Gaussians for each tissue in {contrasts}, with the tissue maps of the template as "
        f"prior (MvMM [@zhuang2019]). The maps {source} [@ashburner2005]. Volumes are sums of the probabilities."
    )


def _registration(config: Config) -> Iterator[str]:
    options = config.register
    used = [options.preset]
    if config.atlas.template is None:
        used += [iteration_preset(config, number) for number in range(1, config.atlas.passes + 1)]
    linear = {"affine": "our affine engine (multi-resolution, mutual information)", "ants": "ANTs [@avants2008]"}
    yield f"Brains were aligned rigidly and affinely with {linear[options.linear]}."
    engine = ENGINES[options.engine]
    yield f"The deformable stage was {engine.methods}."
    if engine.name == "network":
        entry = find_weights(options.weights)
        yield f"The weights of the network were {entry.name}, version {entry.version} (SHA-256 {entry.sha256[:12]})."
    yield f"Every scan was registered to the final template with the schedule {options.preset}."
    for name in dict.fromkeys(used):
        settings = settings_from(
            engine.settings, options.presets[engine.name][name], f"register.presets.{engine.name}.{name}"
        )
        yield f"Schedule {name}: {settings.schedule()}."
    gate = options.gate
    yield (
        "The pose of each affine was compared with turned ones by the agreement of edges (at least "
        f"{gate.pose:g} standard deviations), and left and right with the mean asymmetry of people's brains. "
        f"Registrations whose pose was not clear, or with edges that agree by less than {gate.edges:g}, a mask Dice "
        f"below {gate.mask_dice:g}, scales outside {gate.scale[0]:g} to {gate.scale[1]:g}, shear above "
        f"{gate.shear:g} or more than {100 * gate.nonpositive_jacobian:g} % of brain voxels with a non-positive "
        "Jacobian determinant were repeated from other starts and with other engines, and left out when they failed again."
    )


def _fusion(options: Fuse, methods: Sequence[str], counts: Counts) -> Iterator[str]:
    if not methods:
        return
    way = (
        "through the template, with atlas and target transforms composed and labels resampled once"
        if options.through == "template"
        else "by one registration for each pair of atlas and target"
    )
    who = _several(counts.atlases, "labelled atlas was", "labelled atlases were") if counts.atlases else "Labels were"
    yield f"{who} propagated {way}."
    if options.select:
        best = {"similarity": "images were most similar to the target", "trust": "data parameters were highest"}
        yield f"Of these, the {options.select} whose {best[options.select_by]} were used."
    content = as_content(options)
    told = [describe_fusion(method, content) for method in methods if method in METHODS]
    if told:
        yield f"They were fused by {_list(told)}."
    if not isinstance(options.atlases, str):
        yield "A labelled atlas is never used for itself, so that its own labels come from one atlas fewer."
    if options.space == "native":
        yield "Labels were also brought to the grid of each raw image, by the largest linear weight at each of its voxels."
    if SEGMENTER in methods:
        yield (
            f"A segmentation network that was trained on labels fused by {options.segmenter.labels} labelled the scans "
            "without registration."
        )
    if counts.held_out:
        yield (
            f"The methods were compared on {_several(counts.held_out, 'held-out atlas', 'held-out atlases')}, each labelled "
            "from the others, by paired two-sided Wilcoxon signed-rank tests [@wilcoxon1945] of the mean Dice coefficient "
            "with Holm's correction [@holm1979]."
        )


def _measures(options: Measure, counts: Counts) -> Iterator[str]:
    if counts.referenced:
        surface = ", and by surface distances (95th percentile Hausdorff, average symmetric)" if options.surface else ""
        yield (
            f"The fused labels of {_several(counts.referenced, 'scan')} were scored against reference labels by the Dice "
            f"coefficient [@dice1945]{surface}."
        )
    if counts.included < FEWEST:
        return
    yield (
        "Each scan has an outlier score: the largest distance of its key measures from the cohort's median, in units of "
        "1.4826 times the median absolute deviation, relative to the distance beyond which a scan counts as an outlier; "
        "measures with a good direction count on their bad side only. That distance was set, for the number of scans and of "
        f"measures, such that in a cohort of normal values any scan is called an outlier with a chance of at most "
        f"{100 * CHANCE:g} %."
    )


def _software(versions: Mapping[str, str]) -> str:
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"popatlas runs on Snakemake [@molder2021] with Nipype interfaces [@gorgolewski2011]. Versions: {listed}."


def _by(numbers: Sequence[int]) -> str:
    return "\N{MULTIPLICATION SIGN}".join(str(number) for number in numbers)


def _several(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _cite(drafts: list[tuple[str, str]]) -> Methods:
    """Replace citation keys by numbers in order of appearance; collect their references."""
    known, order = read_references(), list[str]()

    def numbered(match: re.Match[str]) -> str:
        keys = [key.strip().lstrip("@") for key in match.group(1).split(",")]
        order.extend(key for key in keys if key not in order)
        return f"[{', '.join(str(order.index(key) + 1) for key in keys)}]"

    sections = [(heading, CITATION.sub(numbered, text)) for heading, text in drafts]
    return Methods(sections, [_reference(key, number, known[key]) for number, key in enumerate(order, start=1)])


def read_references() -> dict[str, str]:
    """Return the shipped BibTeX entries by key."""
    text = (template_folder() / "references.bib").read_text(encoding="utf-8")
    entries = [entry.strip() for entry in re.split(r"(?m)^(?=@)", text) if entry.strip()]
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in entries}


def _reference(key: str, number: int, bibtex: str) -> Reference:
    fields = _fields(bibtex)
    address = f"https://doi.org/{fields['doi']}" if "doi" in fields else fields["url"]
    return Reference(key, number, reference_line(bibtex), address, bibtex)


def reference_line(bibtex: str) -> str:
    """Return a BibTeX entry as a line to read."""
    fields = _fields(bibtex)
    authors = [author.split(",")[0] for author in fields["author"].split(" and ")]
    who = " and ".join(authors) if len(authors) < 3 else f"{authors[0]} et al."
    issue = f"({fields['number']})" if "number" in fields else ""
    where = f"{fields['journal']} {fields['volume']}{issue}:{fields['pages']}, {fields['year']}"
    return f"{who.rstrip('.')}. {fields['title']}. {where}."


def _fields(bibtex: str) -> dict[str, str]:
    found: list[tuple[str, str]] = re.findall(r"(?m)^  (\w+) = \{(.*)\},?$", bibtex)
    return {name: _plain(value) for name, value in found}


def _plain(value: str) -> str:
    for latex, letter in LATEX.items():
        value = value.replace(latex, letter)
    return value.replace("{", "").replace("}", "")
