"""What is frozen: the members of the template, the labelled atlases. New scans never change them."""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import pandas as pd

from popatlas.cohort.labelfiles import ATLAS, atlas_key, inspect_label_files, say, say_left_out, used_as, wants_atlases
from popatlas.cohort.labelfiles import resolve_pattern as resolve_pattern
from popatlas.cohort.members import COLUMNS, MemberList
from popatlas.cohort.participants import known_ages, read_people
from popatlas.cohort.pathtable import read_atlas_table
from popatlas.cohort.select import subject_name
from popatlas.cohort.strata import in_turns, known_strata
from popatlas.config.attempts import registration_settings
from popatlas.config.sections import Config
from popatlas.errors import ConfigError, InputError, first_few
from popatlas.images.io import mask_beside, read_json, read_table, sha256, table_text, write_if_changed
from popatlas.settings import Content

MEMBER_COLUMNS = COLUMNS
MEMBERS = "atlas.members"
# keys of the atlas that do not change its template: who takes part is told by the members themselves
NOT_OF_TEMPLATE = ("members", "most_members", "along", "along_values", "along_most", "conditional")
ALIASES = "cohort/template-versions.json"
ATLAS_COLUMNS = ["atlas", "dseg", "external"]


def draw_evenly(table: pd.DataFrame, count: int, by: str) -> pd.DataFrame:
    """Return `count` rows spread evenly over a column, without chance.

    Parameters
    ----------
    table : DataFrame
        Candidates.
    count : int
        Rows wanted; all when there are fewer.
    by : str
        Column that is covered from its lowest to its highest value.
    """
    ordered = table.sort_values([by, "scan"], ignore_index=True)
    if count >= len(ordered):
        return ordered
    step = (len(ordered) - 1) / max(count - 1, 1)
    return ordered.iloc[sorted({round(position * step) for position in range(count)})]


def members_file(config: Config, out_dir: Path) -> Path:
    """Return the path of the frozen cohort file."""
    return MemberList(out_dir, config.atlas.label).path


def freeze_atlas_members(config: Config, index: pd.DataFrame, usable: Sequence[str], out_dir: Path) -> pd.DataFrame:
    """Return the members of the template; draw and write them unless a template has once been built from them.

    Parameters
    ----------
    config : dict
        Complete configuration; `atlas.members` is "all", a number or a list of subjects.
    index : DataFrame
        Cohort index.
    usable : sequence of str
        Scans that are available and not failed.
    out_dir : Path
        Output folder.

    Returns
    -------
    DataFrame
        Columns scan, subject, session, sha256.

    Raises
    ------
    ConfigError
        When a listed subject is not usable, fewer than two are left, or the image of a frozen member has changed.
    InputError
        When the list of frozen members is lost or changed, and cannot be restored.
    """
    listed, request = MemberList(out_dir, config.atlas.label), config.content["atlas"]["members"]
    frozen = listed.frozen()
    if frozen is not None:
        _require_same_images(frozen, index, listed.path)
        if listed.note.get("members") not in (None, request):
            print(
                f"popatlas: atlas.members was changed, but template {listed.label} is built and its members are frozen "
                f"({listed.path}); to build a new version beside it, set atlas.label to a new name",
                file=sys.stderr,
            )
        return frozen
    candidates = index[index["scan"].isin(usable) & (index["role"] == "cohort")]
    chosen = _choose(candidates, _wanted_members(config, len(candidates)), MEMBERS, index, out_dir)
    if len(chosen) < 2:
        excluded = int((index["state"] == "excluded").sum())
        chosen_out = f" ({excluded} are left out: --participant-label, --query or cohort in the configuration)" * bool(
            excluded
        )
        raise ConfigError(
            f"a template needs at least 2 usable scans, found {len(chosen)}{chosen_out}. Remedy: give an existing template "
            f"(atlas.template), or run more subjects first, then these; why scans cannot be used: popatlas status {out_dir}"
        )
    members = chosen.sort_values("scan")[MEMBER_COLUMNS]
    listed.write(members, request)
    return members


def _wanted_members(config: Config, count: int) -> int | str | Sequence[str]:
    """Return how many members are wanted, or which: of a large cohort not all, unless they are asked for by number."""
    wanted, most = config.atlas.members, config.atlas.most_members
    if wanted != "all" or count <= most:
        return wanted
    print(
        f"popatlas: the template is built from {most} of {count} scans, drawn evenly (atlas.most_members); for more set "
        "atlas.members to a number",
        file=sys.stderr,
    )
    return most


def _require_same_images(frozen: pd.DataFrame, index: pd.DataFrame, path: Path) -> None:
    """Raise ConfigError when the template would be built anew, under the same version, from other images."""
    usable = index[index["state"] == "ok"]
    now = dict(zip(usable["scan"], usable["sha256"], strict=True))
    members = zip(frozen["scan"], frozen["sha256"], strict=True)
    changed = [scan for scan, digest in members if now.get(scan, digest) != digest]
    if changed:
        raise ConfigError(
            f"the T1w of {len(changed)} member(s) of the template changed since they were frozen: {', '.join(changed)}. "
            f"Remedy: put the former files back (checksums: {path}), or set atlas.label to a new name, "
            "so that a new template is built beside the old one"
        )


def _choose(
    candidates: pd.DataFrame, wanted: int | str | Sequence[str], where: str, index: pd.DataFrame, out_dir: Path
) -> pd.DataFrame:
    if wanted == "all":
        return candidates
    if isinstance(wanted, int):
        table, count, by = with_age(candidates, out_dir, wanted)
        return _draw_members(table, count, by, out_dir) if where == MEMBERS else draw_evenly(table, count, by)
    names = [subject_name(name) for name in wanted]
    known, usable = sorted(set(index["subject"])), set(candidates["subject"])
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the dataset has {len(known)} subjects"
            raise ConfigError(f"{where}: {name} is not in the dataset. Remedy: {hint}")
        if name not in usable:  # one broken scan must not stop the study
            print(f"popatlas: {where}: {name} cannot be used and is left out", file=sys.stderr)
    return candidates[candidates["subject"].isin(names)]


def _draw_members(table: pd.DataFrame, count: int, by: str, out_dir: Path) -> pd.DataFrame:
    """Return members that are drawn evenly over site and sex, where participants.tsv has them, and age."""
    strata = known_strata(read_people(out_dir), list(table["scan"]))
    if strata.empty or count >= len(table):
        return draw_evenly(table, count, by)
    over = [*(f"{name} ({strata[name].nunique()} values)" for name in strata), *(["age"] if by == "age" else [])]
    words = " and ".join([", ".join(over[:-1]), over[-1]] if len(over) > 1 else over)
    print(f"popatlas: the {count} members of the template are drawn evenly over {words}", file=sys.stderr)
    drawn = draw_evenly(in_turns(table, strata, by), count, "place")
    return drawn.drop(columns="place")


def with_age(candidates: pd.DataFrame, out_dir: Path, count: int) -> tuple[pd.DataFrame, int, str]:
    """Add each scan's age, that at its own session, to the candidates, so that a draw covers it.

    A scan of unknown age counts as the median, and where more than half are unknown the draw is by name; both are said.
    """
    ages, odd = known_ages(read_people(out_dir))
    own = candidates["scan"].map(ages).astype(float)
    lacking = [scan.rsplit("/", 1)[-1] for scan in candidates.loc[own.isna(), "scan"]]
    is_draw = count < len(candidates)
    if len(lacking) > len(own) / 2:
        why = f"{len(lacking)} of {len(own)} scans have no age: {first_few(odd or lacking)}"
        if is_draw or odd:
            print(f"popatlas: a draw of {count} scans is by name, not by age: {why}", file=sys.stderr)
        return candidates, count, "scan"
    if lacking:
        number = f"{ages.median():g}"
        print(
            f"popatlas: a draw of {count} scans by age: {len(lacking)} of {len(own)} have none and count as {number}, the "
            f"median: {first_few(lacking)}",
            file=sys.stderr,
        )
    return candidates.assign(age=own.fillna(ages.median())), count, "age"


def read_members(config: Config, out_dir: Path) -> pd.DataFrame:
    """Return the frozen members, none when an existing template is used."""
    path = members_file(config, out_dir)
    if config.atlas.template is not None or not path.is_file():
        return pd.DataFrame(columns=MEMBER_COLUMNS)
    return read_table(path, dtype=str).fillna("")


def template_version(members: pd.DataFrame, config: Config) -> str:
    """Return the template's version: 8 hexadecimal digits of a hash over members and settings.

    An existing template (`atlas.template`) is hashed by its content and that of the mask beside it.
    """
    existing = config.atlas.template
    if existing is not None:
        if not Path(existing).is_file():
            return "00000000"
        mask = mask_beside(existing)
        both = sha256(existing) + ("" if mask is None else sha256(mask))
        return hashlib.sha256(both.encode()).hexdigest()[:8]
    used = {name: registration_settings(config, name) for name in config.atlas.presets}
    settings = {
        "members": sorted(zip(members["scan"], members["sha256"], strict=True)),
        "preprocess": preprocess_settings(config),
        "presets": used,
        "atlas": _template_settings(config),
    }
    computed = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return read_aliases(Path(config.out_dir)).get(computed, computed)


def _template_settings(config: Config) -> Content:
    """Return the settings of the atlas that change its template.

    What a way of building does not use is left out, so that templates of the time before it was there keep their version.
    """
    own = config.content["atlas"]
    unused = ("method", "xcoreg") if config.atlas.method == "mean" else ("iterations",)
    return {key: value for key, value in own.items() if key not in (*NOT_OF_TEMPLATE, *unused)}


def read_aliases(out_dir: Path) -> dict[str, str]:
    """Return versions of templates, as computed, to what they are called: a member that withdrew has lost its name."""
    try:
        found = read_json(out_dir / ALIASES)
    except InputError:
        return {}
    return {str(name): str(version) for name, version in found.items()} if isinstance(found, dict) else {}


def preprocess_settings(config: Config) -> Content:
    """Return the settings of preprocessing that change an image."""
    not_science = ("batch", "gpu", "volume_ml")  # volume_ml judges a mask and does not change it
    own = {key: value for key, value in config.content["preprocess"].items() if key != "channels"}  # of extra images
    return {**own, "brain": {key: value for key, value in own["brain"].items() if key not in not_science}}


def freeze_label_atlases(config: Config, index: pd.DataFrame, usable: Sequence[str], out_dir: Path) -> pd.DataFrame:
    """Return the labelled atlases: those that are listed and good, or a number that is drawn once and stays.

    A drawn one that cannot be used any more is replaced, the others stay. Other settings draw anew. What is wrong with
    label files is said on stderr and noted in `popatlas.cohort.labelfiles.LABEL_FILES`.

    Parameters
    ----------
    config : dict
        Complete configuration; `fuse.atlases` is a number, a list of subjects, or a TSV of an external set.
    index : DataFrame
        Cohort index.
    usable : sequence of str
        Scans that are available and not failed.
    out_dir : Path
        Output folder.

    Returns
    -------
    DataFrame
        Columns atlas (scan), dseg (file), external; empty when no labels exist: nothing is fused then.
    """
    wanted = config.fuse.atlases
    path = _atlas_file(out_dir)
    stamp = path.with_suffix(".json")
    content = {"table": sha256(wanted)} if isinstance(wanted, str) else {}
    request = json.dumps({"atlases": wanted, "labels": config.fuse.labels} | content)
    findings = inspect_label_files(config, index, usable, out_dir)
    say_left_out(findings)
    good = used_as(findings, ATLAS, good=True)
    if good.empty and len(used_as(findings, ATLAS)):
        say("none of the label images can be an atlas, so nothing is fused")
    is_same = path.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == request
    frozen = list(read_label_atlases(out_dir)["atlas"]) if is_same else []
    if isinstance(wanted, str):
        chosen = [key for key in map(atlas_key, read_atlas_table(Path(wanted))["atlas"]) if key in set(good["scan"])]
    else:
        chosen = sorted(_own(config, index, good["scan"], frozen, out_dir))
    dsegs = dict(zip(good["scan"], good["file"], strict=True))
    table = pd.DataFrame({"atlas": chosen, "dseg": [dsegs[atlas] for atlas in chosen], "external": isinstance(wanted, str)})
    write_if_changed(path, table_text(table[ATLAS_COLUMNS]))
    write_if_changed(stamp, request)
    return table[ATLAS_COLUMNS]


def atlas_request(config: Config) -> dict[str, object]:
    """Return which labelled atlases a configuration asks for, whether they can be used or not.

    Their names where it lists them or gives a table; their number, for a draw.
    """
    wanted, labels = config.fuse.atlases, {"labels": config.fuse.labels}
    if isinstance(wanted, int):
        return {"number": wanted, **labels}
    if isinstance(wanted, str):
        return {"external": sorted(subject_name(name) for name in read_atlas_table(Path(wanted))["atlas"])}
    return {"subjects": sorted({subject_name(name) for name in wanted}), **labels}


def _own(config: Config, index: pd.DataFrame, good: Iterable[str], frozen: Sequence[str], out_dir: Path) -> list[str]:
    """Return the atlases of the cohort: those that are listed, or those that were drawn and others for what is lost."""
    wanted = config.fuse.atlases
    labelled = index[index["scan"].isin(list(good))]
    if labelled.empty or not wants_atlases(config):
        return []
    kept = [atlas for atlas in frozen if atlas in set(labelled["scan"])]
    if not isinstance(wanted, int) or not kept:
        chosen = list(_choose(labelled, wanted, "fuse.atlases", index, out_dir)["scan"])
        if isinstance(wanted, int) and len(chosen) < wanted:
            say(f"fuse.atlases asks for {wanted}, and {len(chosen)} scan(s) have labels that can be used")
        return chosen
    lost, free = [atlas for atlas in frozen if atlas not in kept], labelled[~labelled["scan"].isin(kept)]
    others = _nearest(lost, free, index, out_dir)
    if lost:
        instead = ", ".join(others) or "none"
        say(f"atlases {', '.join(lost)} cannot be used any more; the others stay, drawn instead: {instead}")
    elif len(free) and len(kept) < wanted:
        say(f"{len(kept)} of {wanted} atlases are frozen, more are labelled now; to draw anew delete {_atlas_file(out_dir)}")
    return kept + others


def _nearest(lost: Sequence[str], candidates: pd.DataFrame, index: pd.DataFrame, out_dir: Path) -> list[str]:
    """Return for each lost atlas the candidate whose scan is next to its own: in age where that is known, else by name."""
    everyone, _, by = with_age(index[index["role"] == "cohort"], out_dir, len(index))
    order = {scan: place for place, scan in enumerate(everyone.sort_values([by, "scan"])["scan"])}
    free, found = list(candidates["scan"]), []
    for atlas in lost[: len(free)]:
        place = order.get(atlas, len(order) // 2)
        found.append(min(free, key=lambda scan: (abs(order[scan] - place), order[scan])))
        free.remove(found[-1])
    return found


def read_label_atlases(out_dir: Path) -> pd.DataFrame:
    """Return the frozen labelled atlases, none when nothing has been frozen."""
    path = _atlas_file(out_dir)
    return read_table(path) if path.is_file() else pd.DataFrame(columns=ATLAS_COLUMNS)


def _atlas_file(out_dir: Path) -> Path:
    return out_dir / "cohort" / "label-atlases.tsv"


def atlases_for(scan: str, atlases: Sequence[str]) -> list[str]:
    """Return the labelled atlases that serve a target: none of the target's own subject (leave-one-out).

    An external atlas (below atlases/) is another subject than a scan of the cohort with the same name.
    """
    return [atlas for atlas in atlases if owner_of(atlas) != owner_of(scan)]


@lru_cache(maxsize=1 << 16)
def owner_of(scan: str) -> str:
    """Return whose scan it is: a subject, or an external atlas."""
    return scan.partition("/anat/")[0].partition("/ses-")[0]
