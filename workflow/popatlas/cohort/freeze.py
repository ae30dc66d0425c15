"""What is frozen: the members of the template, the labelled atlases. New scans never change them."""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import pandas as pd

from popatlas.cohort.index import scan_key
from popatlas.cohort.participants import known_ages, read_people
from popatlas.cohort.pathtable import read_atlas_table
from popatlas.cohort.select import subject_name
from popatlas.config import Config, registration_settings
from popatlas.errors import ConfigError, first_few
from popatlas.images.io import mask_beside, read_table, sha256, table_text, write_if_changed

MEMBER_COLUMNS = ["scan", "subject", "session", "sha256"]
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
    return out_dir / "cohort" / f"atlas-{config['atlas']['label']}.tsv"


def freeze_atlas_members(config: Config, index: pd.DataFrame, usable: Sequence[str], out_dir: Path) -> pd.DataFrame:
    """Return the members of the template; draw and write them unless a template has been built from them.

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
    """
    path, label = members_file(config, out_dir), config["atlas"]["label"]
    stamp, request = path.with_suffix(".json"), json.dumps({"members": config["atlas"]["members"]})
    if path.is_file() and (out_dir / f"tpl-{label}" / "template_description.json").is_file():
        frozen = read_table(path, dtype=str).fillna("")
        _require_same_images(frozen, index, path)
        if stamp.is_file() and stamp.read_text(encoding="utf-8") != request:
            print(
                f"popatlas: atlas.members was changed, but template {label} is built and its members are frozen ({path}); "
                "to build a new version beside it, set atlas.label to a new name",
                file=sys.stderr,
            )
        return frozen
    candidates = index[index["scan"].isin(usable) & (index["role"] == "cohort")]
    chosen = _choose(candidates, config["atlas"]["members"], "atlas.members", index, out_dir)
    if len(chosen) < 2:
        raise ConfigError(
            f"a template needs at least 2 usable scans, found {len(chosen)}. "
            f"Remedy: look at `popatlas status {out_dir}`, or give an existing template (atlas.template)"
        )
    members = chosen.sort_values("scan")[MEMBER_COLUMNS]
    write_if_changed(path, table_text(members))
    write_if_changed(stamp, request)
    return members


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


def _choose(candidates: pd.DataFrame, wanted: Any, where: str, index: pd.DataFrame, out_dir: Path) -> pd.DataFrame:
    if wanted == "all":
        return candidates
    if isinstance(wanted, int):
        return draw_evenly(*with_age(candidates, out_dir, wanted))
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
    if config["atlas"]["template"] is not None or not path.is_file():
        return pd.DataFrame(columns=MEMBER_COLUMNS)
    return read_table(path, dtype=str).fillna("")


def template_version(members: pd.DataFrame, config: Config) -> str:
    """Return the template's version: 8 hexadecimal digits of a hash over members and settings.

    An existing template (`atlas.template`) is hashed by its content and that of the mask beside it.
    """
    existing = config["atlas"]["template"]
    if existing is not None:
        if not Path(existing).is_file():
            return "00000000"
        mask = mask_beside(existing)
        both = sha256(existing) + ("" if mask is None else sha256(mask))
        return hashlib.sha256(both.encode()).hexdigest()[:8]
    used = {name: registration_settings(config, name) for name in config["atlas"]["presets"]}
    settings = {
        "members": sorted(zip(members["scan"], members["sha256"], strict=True)),
        "preprocess": preprocess_settings(config),
        "presets": used,
        "atlas": {key: value for key, value in config["atlas"].items() if key != "members"},
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def preprocess_settings(config: Config) -> Config:
    """Return the settings of preprocessing that change an image."""
    not_science = ("batch", "gpu", "volume_ml")  # volume_ml judges a mask and does not change it
    brain = {key: value for key, value in config["preprocess"]["brain"].items() if key not in not_science}
    return {**config["preprocess"], "brain": brain}


def resolve_pattern(pattern: str, scan: str, root: Path) -> Path:
    """Return the file that a pattern with {scan}, {subject} or {session} names.

    Parameters
    ----------
    pattern : str
        Relative to `root`, or absolute.
    scan : str
        Scan key.
    root : Path
        Dataset; for a table of paths, the folder of the table.
    """
    parts = scan.split("/")
    session = next((part for part in parts if part.startswith("ses-")), "")
    subject = next(part for part in parts if part.startswith("sub-"))
    base = root.parent if root.is_file() else root
    try:
        return base / pattern.format(scan=scan, subject=subject, session=session)
    except (KeyError, IndexError, ValueError) as error:
        allowed = "{scan}, {subject} and {session}"
        raise ConfigError(f"pattern '{pattern}': cannot fill in {error}. Remedy: use {allowed} only") from error


def is_label_image(path: Path) -> bool:
    """Tell whether a label image is there and opens; one that does not would fail every target."""
    try:
        return path.is_file() and len(nib.load(path).shape) >= 3
    except Exception:  # nibabel raises many kinds on damaged files
        return False


def freeze_label_atlases(config: Config, index: pd.DataFrame, usable: Sequence[str], out_dir: Path) -> pd.DataFrame:
    """Return the labelled atlases; they are drawn once and stay, as long as their scans and labels are usable.

    Another request draws them anew: other settings, or an external table whose content has changed.

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
    wanted = config["fuse"]["atlases"]
    path = out_dir / "cohort" / "label-atlases.tsv"
    stamp = out_dir / "cohort" / "label-atlases.json"
    content = {"table": sha256(wanted)} if isinstance(wanted, str) else {}
    request = json.dumps({"atlases": wanted, "labels": config["fuse"]["labels"]} | content)
    if path.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == request:
        frozen = read_label_atlases(out_dir)
        good = len(frozen) > 0 and all(is_label_image(Path(dseg)) for dseg in frozen["dseg"])
        if good and set(frozen["atlas"]) <= set(usable):
            return frozen
    table = _external(wanted) if isinstance(wanted, str) else _own(config, index, usable, out_dir)
    write_if_changed(path, table_text(table))
    write_if_changed(stamp, request)
    return table


def atlas_request(config: Config) -> dict[str, Any]:
    """Return which labelled atlases a configuration asks for, whether they can be used or not.

    Their names where it lists them or gives a table; their number, for a draw.
    """
    wanted, labels = config["fuse"]["atlases"], {"labels": config["fuse"]["labels"]}
    if isinstance(wanted, int):
        return {"number": wanted, **labels}
    if isinstance(wanted, str):
        return {"external": sorted(subject_name(name) for name in read_atlas_table(Path(wanted))["atlas"])}
    return {"subjects": sorted({subject_name(name) for name in wanted}), **labels}


def _external(source: str) -> pd.DataFrame:
    table = read_atlas_table(Path(source))
    keys = [scan_key(subject_name(name), "", role="atlas") for name in table["atlas"]]
    found = pd.DataFrame({"atlas": keys, "dseg": table["dseg"], "external": True})
    good = [is_label_image(Path(path)) for path in found["dseg"]]
    for path in found.loc[[not one for one in good], "dseg"]:
        print(f"popatlas: fuse.atlases: {path} does not open and is left out", file=sys.stderr)
    return found[good].reset_index(drop=True)


def _own(config: Config, index: pd.DataFrame, usable: Sequence[str], out_dir: Path) -> pd.DataFrame:
    root = Path(config["bids_dir"])
    candidates = index[index["scan"].isin(usable) & (index["role"] == "cohort")]
    files = {scan: resolve_pattern(config["fuse"]["labels"], scan, root) for scan in candidates["scan"]}
    labelled = candidates[[is_label_image(files[scan]) for scan in candidates["scan"]]]
    wanted = config["fuse"]["atlases"]
    if labelled.empty or wanted == 0 or not config["fuse"]["methods"]:
        return pd.DataFrame(columns=ATLAS_COLUMNS)
    chosen = _choose(labelled, wanted, "fuse.atlases", index, out_dir).sort_values("scan")
    dsegs = [str(files[scan]) for scan in chosen["scan"]]
    return pd.DataFrame({"atlas": chosen["scan"].to_numpy(), "dseg": dsegs, "external": False})


def read_label_atlases(out_dir: Path) -> pd.DataFrame:
    """Return the frozen labelled atlases, none when nothing has been frozen."""
    path = out_dir / "cohort" / "label-atlases.tsv"
    return read_table(path) if path.is_file() else pd.DataFrame(columns=ATLAS_COLUMNS)


def atlases_for(scan: str, atlases: Sequence[str]) -> list[str]:
    """Return the labelled atlases that serve a target: none of the target's own subject (leave-one-out).

    An external atlas (below atlases/) is another subject than a scan of the cohort with the same name.
    """
    return [atlas for atlas in atlases if _owner(atlas) != _owner(scan)]


def _owner(scan: str) -> str:
    return scan.partition("/anat/")[0].partition("/ses-")[0]
