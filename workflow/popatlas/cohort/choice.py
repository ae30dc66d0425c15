"""Which of several images of a scan is taken, and why the others are not, in words.

What the user asked for comes first (`cohort.filter`, then `cohort.prefer`), then what can be used at all, then what shows a
whole head, then plain images before derived and partial ones, then the finest voxels; names decide among equals only. The
rank of an image depends on itself alone, so that another image never changes the order of two.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from math import log, prod
from pathlib import Path

from popatlas.cohort.inspect import Inspection
from popatlas.config.sections import Cohort
from popatlas.errors import ConfigError

WHOLE_HEAD_MM = 120.0  # an image that is as long along each axis can show a whole head
COVERAGE_STEPS = 10  # shares of a whole head are told apart in steps of 10 %
FINER = 1.2  # ratio of voxel sizes (longest edge, volume) that counts as finer
# entities that only name a protocol, a repetition or a reconstruction; any other marks a derived or partial image
PLAIN = ("acq", "run", "rec")
IMAGES_OF_PHASE = ("phase", "real", "imag")
HINTS = ("localizer", "localiser", "scout", "survey", "aahead", "3plane", "triplane", "planscan", "smartbrain")
WHOLE_HINTS = ("test", "plan", "loc")  # as whole labels only, with or without a number
SHOWN = 4  # other images named in a reason
ANY = ""  # key of a preference for a label of any entity
WRITTEN_FOR_SCANS = ("sub", "subject", "suffix", "extension", "datatype")

Wanted = Mapping[str, Sequence[str | None]]


@dataclass(frozen=True)
class Candidate:
    """An image that may be taken.

    Attributes
    ----------
    path : str
        File.
    found : Inspection
        What opening it told.
    """

    path: str
    found: Inspection

    @property
    def entities(self) -> dict[str, str]:
        """Entities of the file's name, without subject and session."""
        return entities_of(self.path)

    @property
    def variant(self) -> str:
        """The name's entities without the run."""
        return "_".join(f"{key}-{value}" for key, value in self.entities.items() if key != "run")

    @property
    def run(self) -> int:
        """Number of the run; 0 where there is none."""
        text = self.entities.get("run", "")
        return int(text) if text.isdecimal() else 0


@dataclass(frozen=True)
class Rules:
    """What the configuration asks for: by image suffix and entity the values allowed, preferences, and which run.

    Attributes
    ----------
    filters : mapping
        Suffix to entity to the patterns allowed (None: without that entity).
    prefer : sequence
        Entity (`ANY`: any one) to pattern, the most wanted first.
    run : str
        first or last.
    """

    filters: Mapping[str, Wanted] = field(default_factory=dict)
    prefer: Sequence[Mapping[str, str]] = ()
    run: str = "first"

    def why_not(self, path: str, suffix: str) -> str:
        """Return which filter an image does not pass; empty when it passes all."""
        entities = entities_of(path, keep_session=True)
        for key, wanted in self.filters.get(suffix, {}).items():
            if not any(_matches(entities.get(key), pattern) for pattern in wanted):
                return f"is not in cohort.filter ({filter_words({key: wanted})})"
        return ""


@dataclass(frozen=True)
class Choice:
    """Which image of a scan is taken.

    Attributes
    ----------
    best : Candidate
        The image that is taken, if it can be used.
    why : str
        The reason in words: of the choice (empty where there was none), or why no image can be used, with a remedy.
    why_not : mapping
        Path to reason, for each image that is not taken.
    """

    best: Candidate
    why: str
    why_not: Mapping[str, str]

    @property
    def taken(self) -> Candidate | None:
        """The image that is taken, None where none can be used."""
        return None if self.best.found.code else self.best


def judged(path: str, found: Inspection, rules: Rules, suffix: str) -> Candidate:
    """Return an image as a candidate; phases and the like cannot be used unless a filter names them."""
    part = entities_of(path).get("part", "")
    if part in IMAGES_OF_PHASE and "part" not in rules.filters.get(suffix, {}) and not found.code:
        found = replace(found, code="phase", detail=f"part-{part}")
    return Candidate(path, found)


def entities_of(path: str, *, keep_session: bool = False) -> dict[str, str]:
    """Return the entities in the name of an image, without subject and (unless kept) session."""
    return dict(_entities(path.rpartition("/")[2], keep_session=keep_session))


@lru_cache(maxsize=1 << 16)
def _entities(name: str, *, keep_session: bool) -> dict[str, str]:
    ignored = {"sub", "datatype", "suffix", "ext"} | (set() if keep_session else {"ses"})
    return {key: value for key, value in _parsed(name).items() if key not in ignored}


@lru_cache(maxsize=1 << 16)
def _parsed(name: str) -> dict[str, str]:
    from bids2table import parse_bids_entities

    return dict(parse_bids_entities(name))


def read_rules(options: Cohort, names: Iterable[str]) -> Rules:
    """Read `cohort.filter`, `cohort.prefer` and `cohort.run`.

    Parameters
    ----------
    options : mapping
        The configuration's `cohort`.
    names : iterable of str
        Names of the images of the dataset; an entity that is not of BIDS is allowed where it occurs in one.

    Returns
    -------
    Rules

    Raises
    ------
    ConfigError
        For an entity that neither BIDS nor the dataset knows, or a preference that is not made of entities.
    """
    known = _entity_names()
    known |= {key: key for name in names for key in entities_of(name)}
    filters: dict[str, dict[str, list[str | None]]] = {"T1w": {}}
    for key, value in options.filter.items():
        own = {key: value} if not isinstance(value, Mapping) else value
        suffix = "T1w" if not isinstance(value, Mapping) else _channel(key, options.channels)
        for name, values in own.items():
            entity = _entity(name, known, "filter")
            listed = values if isinstance(values, tuple) else [values]
            filters.setdefault(suffix, {})[entity] = [None if one is None else str(one) for one in listed]
    return Rules(filters, [_preference(text, known) for text in options.prefer], options.run)


def _entity_names() -> dict[str, str]:
    """Return the short name of each BIDS entity by its short and its full name."""
    from bids2table import get_arrow_schema

    pairs = [(item.name, item.metadata.get(b"entity", b"").decode()) for item in get_arrow_schema() if item.metadata]
    return {name: short for short, full in pairs if full for name in (short, full)}


def _entity(name: str, known: Mapping[str, str], where: str) -> str:
    if name in WRITTEN_FOR_SCANS:
        raise ConfigError(f"cohort.{where}: '{name}' does not choose among images. Remedy: use cohort.include or channels")
    if name not in known:
        close = difflib.get_close_matches(name, list(known), n=1)
        hint = f"did you mean {close[0]}?" if close else "use BIDS entities, for example acquisition or run"
        raise ConfigError(f"cohort.{where}: '{name}' is no BIDS entity and in no name of the dataset. Remedy: {hint}")
    return known[name]


def _channel(name: str, channels: Sequence[str]) -> str:
    if name not in ("T1w", *channels):
        raise ConfigError(f"cohort.filter: {name} is not in cohort.channels. Remedy: add it there, or remove the filter")
    return name


def _preference(text: str, known: Mapping[str, str]) -> dict[str, str]:
    if "-" not in text and "_" not in text:
        return {ANY: text}
    pairs = [part.partition("-") for part in text.split("_")]
    if not all(middle and value for _, middle, value in pairs):
        raise ConfigError(f"cohort.prefer: '{text}' is not made of entities. Remedy: write them as in names: acq-mprage")
    return {_entity(key, known, "prefer"): value for key, _, value in pairs}


def filter_words(wanted: Wanted) -> str:
    """Return a filter in words, as one writes it: `acq: mprage or spgr`."""
    parts = (f"{key}: {' or '.join('none' if one is None else one for one in values)}" for key, values in wanted.items())
    return ", ".join(parts)


def _matches(value: str | None, pattern: str | None) -> bool:
    if value is None or pattern is None:
        return value is None and pattern is None
    if value.isdecimal() and pattern.isdecimal():  # run-01 is run 1
        return int(value) == int(pattern)
    return fnmatchcase(value, pattern)


# A criterion: the rank of an image (the smallest is taken), and why an image that ranks behind another is not taken
Rank = Callable[[Candidate, Rules], object]
Words = Callable[[Candidate, Candidate, Rules], str]


def _preferred(image: Candidate, rules: Rules) -> list[bool]:
    own = image.entities
    return [not all(_has(own, key, value) for key, value in wanted.items()) for wanted in rules.prefer]


def _has(entities: Mapping[str, str], key: str, pattern: str) -> bool:
    values = entities.values() if key == ANY else [entities.get(key)]
    return any(_matches(value, pattern) for value in values)


def _prefer_words(image: Candidate, taken: Candidate, rules: Rules) -> str:
    pairs = zip(rules.prefer, _preferred(image, rules), _preferred(taken, rules), strict=True)
    wanted = next(wanted for wanted, here, there in pairs if here and not there)
    parts = (value if key == ANY else f"{key}-{value}" for key, value in wanted.items())
    return f"comes after {'_'.join(parts)} (cohort.prefer)"


def _edges_mm(image: Candidate) -> list[float]:
    return [float(text) for text in image.found.spacing_mm.split("x")[:3] if text]


def _extent_mm(image: Candidate) -> list[float]:
    counts = [int(text) for text in image.found.shape.split("x")[:3] if text]
    return [count * edge for count, edge in zip(counts, _edges_mm(image), strict=False)]


def _uncovered(image: Candidate, rules: Rules) -> int:
    covered = prod(min(length / WHOLE_HEAD_MM, 1.0) for length in _extent_mm(image))
    return round(COVERAGE_STEPS * (1 - covered))


def _coverage_words(image: Candidate, taken: Candidate, rules: Rules) -> str:
    return f"covers less: {_by(_extent_mm(image))} mm instead of {_by(_extent_mm(taken))} mm"


def _coarseness(image: Candidate, rules: Rules) -> tuple[int, int]:
    """Return the longest edge of a voxel, then its volume, in steps of a factor."""
    edges = _edges_mm(image)
    return (_step(max(edges)), _step(prod(edges))) if edges and min(edges) > 0 else (0, 0)


def _step(size: float) -> int:
    return round(log(size) / log(FINER))


def _coarse_words(image: Candidate, taken: Candidate, rules: Rules) -> str:
    return f"is coarser: {_by(_edges_mm(image))} mm instead of {_by(_edges_mm(taken))} mm"


def _special(image: Candidate) -> list[str]:
    return [
        f"{key}-{value}" for key, value in image.entities.items() if key not in PLAIN and (key, value) != ("part", "mag")
    ]


def name_hint(path: str) -> str:
    """Return the word in a file's name that says that it is no image of the study, such as localizer; mostly empty."""
    labels = [label.casefold() for label in entities_of(path).values()]
    found = (hint for hint in HINTS if any(hint in label for label in labels))
    whole = (hint for hint in WHOLE_HINTS if any(label.rstrip("0123456789") == hint for label in labels))
    return next(iter((*found, *whole)), "")


def _run_rank(image: Candidate, rules: Rules) -> int:
    return image.run if rules.run == "first" else -image.run


CRITERIA: tuple[tuple[Rank, Words], ...] = (
    (lambda image, rules: bool(image.found.code), lambda image, taken, rules: _fault_words(image)),
    (_preferred, _prefer_words),
    (_uncovered, _coverage_words),
    (
        lambda image, rules: len(_special(image)),
        lambda image, taken, rules: f"is a derived or partial image ({', '.join(_special(image))})",
    ),
    (_coarseness, _coarse_words),
    (
        lambda image, rules: bool(name_hint(image.path)),
        lambda image, taken, rules: f"says {name_hint(image.path)} in its name",
    ),
    (
        lambda image, rules: 2 * len(image.variant.split("_")) * bool(image.variant) - ("acq" in image.entities),
        lambda image, taken, rules: "has more entities in its name",
    ),
)
BY_NAME: tuple[tuple[Rank, Words], ...] = (
    (lambda image, rules: image.variant, lambda image, taken, rules: "is equal, and later in the order of names"),
    (_run_rank, lambda image, taken, rules: f"is equal, and not the {rules.run} run (cohort.run)"),
    (
        lambda image, rules: (not image.path.endswith(".gz"), image.path),
        lambda image, taken, rules: f"has the same name and {'the same' if _same(image, taken) else 'OTHER'} voxels",
    ),
)


def _same(image: Candidate, taken: Candidate) -> bool:
    return image.found.voxels == taken.found.voxels


def choose(images: Sequence[Candidate], rules: Rules, former: str = "") -> Choice:
    """Choose one of the images of a scan.

    Parameters
    ----------
    images : sequence of Candidate
        At least one; those that pass the filters.
    rules : Rules
        What the user asked for.
    former : str
        The file taken last time: among equals its protocol is kept, so that a new file does not change the choice.

    Returns
    -------
    Choice
        `why` is empty where there was nothing to choose.
    """
    kept = Candidate(former, Inspection()).variant
    stays: tuple[Rank, Words] = (
        lambda image, rules: bool(former) and image.variant != kept,
        lambda image, taken, rules: "is equal, and was not taken before",
    )
    criteria = (*CRITERIA, stays, *BY_NAME)
    ranked = sorted(images, key=lambda image: [rank(image, rules) for rank, _ in criteria])
    best, labels = ranked[0], _labels(images)
    if best.found.code:
        return Choice(best, _none_words(ranked, labels), {image.path: _fault_words(image) for image in ranked})
    why_not = {image.path: _why_not(image, best, rules, criteria) for image in ranked[1:]}
    return Choice(best, _why(best, why_not, labels), why_not)


def _why_not(image: Candidate, best: Candidate, rules: Rules, criteria: Sequence[tuple[Rank, Words]]) -> str:
    return next(words(image, best, rules) for rank, words in criteria if rank(image, rules) != rank(best, rules))


def _why(best: Candidate, why_not: Mapping[str, str], labels: Mapping[str, str]) -> str:
    hint = name_hint(best.path)
    doubt = f"although its name says {hint}" if hint else ""
    if not why_not:
        return f"{labels[best.path]}: the only image, {doubt}" if doubt else ""
    others: dict[str, list[str]] = {}
    for path, reason in why_not.items():
        others.setdefault(reason, []).append(labels[path])
    parts = [f"{', '.join(names[:SHOWN])}{', ...' if names[SHOWN:] else ''} {reason}" for reason, names in others.items()]
    more = [f"and {len(parts) - SHOWN} more"] if parts[SHOWN:] else []
    return f"{labels[best.path]}: {'; '.join([*([doubt] if doubt else []), *parts[:SHOWN], *more])}"


def _none_words(ranked: Sequence[Candidate], labels: Mapping[str, str]) -> str:
    """Return why none can be used, with the remedy for the best of them."""
    best = ranked[0].found
    if len(ranked) == 1:
        return best.reason
    faults = "; ".join(f"{labels[image.path]}: {image.found.problem}" for image in ranked[:SHOWN])
    more = f"; and {len(ranked) - SHOWN} more" if ranked[SHOWN:] else ""
    return f"none of {len(ranked)} images can be used: {faults}{more}; remedy: {best.remedy}"


def _fault_words(image: Candidate) -> str:
    return f"cannot be used: {image.found.problem}"


def _labels(images: Sequence[Candidate]) -> dict[str, str]:
    """Return a short name of each image: what tells it from the others."""
    short = {image.path: "_".join(f"{key}-{value}" for key, value in image.entities.items()) for image in images}
    names = list(short.values())
    return {path: text if text and names.count(text) == 1 else Path(path).name for path, text in short.items()}


def _by(lengths: Sequence[float]) -> str:
    return "x".join(f"{length:.3g}" for length in lengths)
