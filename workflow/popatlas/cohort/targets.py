"""Training targets of the networks of the fusion stage: drawn once, and frozen when the network is trained.

The file name of a network holds a version: a hash over everything that its training depends on, the targets and their
images included. A trained network is an input like a pretrained one: new or failed scans neither change it nor wait for it,
and neither does an atlas that fails, is excluded or is tried again. Asking for other atlases makes another version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from popatlas.cohort.drawn import Drawn
from popatlas.cohort.drawn import digest_of as digest_of
from popatlas.cohort.freeze import (
    MEMBER_COLUMNS,
    atlas_request,
    atlases_for,
    draw_evenly,
    preprocess_settings,
    read_members,
    template_version,
    with_age,
)
from popatlas.config.attempts import registration_settings
from popatlas.config.sections import Config
from popatlas.errors import ConfigError
from popatlas.fusion.methods import METHODS
from popatlas.fusion.settings import BY_PATCHES
from popatlas.images.io import sha256, write_if_changed
from popatlas.settings import Content

# network -> section of the configuration, what it does not learn from, and what training leaves behind
SECTIONS = {"trust": "dataparams", "segmenter": "segmenter"}
VOTING = ("votes", "network_weight", "gate_quality")
NOT_LEARNED = {"trust": ("preset", "gpu", *VOTING), "segmenter": ("gpu", "enabled")}
FILES = {
    "trust": ("network.safetensors", "parameters.parquet", "curve.tsv"),
    "segmenter": ("network.safetensors", "curve.tsv"),
}
TRAINING_ATLASES = "cohort/trust-atlases.json"
FEWEST_ATLASES = 2  # one candidate agrees with itself


@dataclass(frozen=True)
class Training:
    """A network and what it is trained on.

    Attributes
    ----------
    name : str
        A key of :data:`SECTIONS`.
    version : str
        8 hexadecimal digits.
    scans : tuple of str
        Training targets.
    is_trained : bool
        This version has been trained, whether all its files are there or not.
    """

    name: str
    version: str
    scans: tuple[str, ...]
    is_trained: bool

    def file(self, name: str) -> str:
        """Return the path of one of its files, relative to the output folder."""
        return f"networks/{self.name}-{self.version}/{name}"

    def is_there(self, out_dir: Path) -> bool:
        """Tell whether all its files lie in an output folder."""
        return all((out_dir / self.file(file)).is_file() for file in FILES[self.name])


def wanted_networks(config: Config) -> list[str]:
    """Return the networks that a configuration asks for."""
    fuse = config.fuse
    wanted = {"trust": "dataparams" in fuse.methods, "segmenter": fuse.segmenter.enabled}
    return [name for name in SECTIONS if wanted[name]]


def training_settings(config: Config, name: str) -> Content:
    """Return the settings that the training of a network depends on."""
    section = config.content["fuse"][SECTIONS[name]]
    return {key: value for key, value in section.items() if key not in NOT_LEARNED[name]}


def fusion_settings(config: Config, method: str) -> dict[str, object]:
    """Return the settings of `fuse` that the labels of a method depend on, so that no other key repeats its jobs."""
    fuse = config.content["fuse"]
    used = {key: fuse[key] for key in ("ties", "select")}
    if fuse["select"]:
        used["select_by"] = fuse["select_by"] if method == "dataparams" else "similarity"
    used |= {section: fuse[section] for section in METHODS[method].sections}
    if METHODS[method].trained:
        used["dataparams"] = {key: fuse["dataparams"][key] for key in VOTING}  # the network keeps those of its training
        if fuse["dataparams"]["votes"] not in BY_PATCHES:
            del used["jlf"]
    return used


def freeze_targets(
    config: Config, index: pd.DataFrame, usable: Sequence[str], atlases: pd.DataFrame, out_dir: Path
) -> dict[str, Training]:
    """Return the training targets of each network that is wanted; draw and write them unless it is trained.

    Parameters
    ----------
    config : dict
        Complete configuration.
    index : DataFrame
        Cohort index.
    usable : sequence of str
        Scans that are available and not failed.
    atlases : DataFrame
        Frozen labelled atlases; without any nothing is trained.
    out_dir : Path
        Output folder. Written are, for a network N, ``cohort/N-targets.tsv`` (scan, subject, session, sha256),
        ``cohort/N-targets.json`` (version and what it is made of); for data parameters `TRAINING_ATLASES`, scan to its
        atlases.

    Returns
    -------
    dict
        Network to Training.

    Raises
    ------
    ConfigError
        When no scan has two labelled atlases of other subjects, or a trained network has to be trained again and some of its
        targets cannot be used any more.
    InputError
        When the list of targets of a trained network is lost or changed, and would be drawn otherwise today.
    """
    served = atlases[atlases["atlas"].isin(usable)]
    names = wanted_networks(config) if len(served) else []
    return {name: _freeze(name, config, index, usable, served, out_dir) for name in names}


def _freeze(
    name: str, config: Config, index: pd.DataFrame, usable: Sequence[str], atlases: pd.DataFrame, out_dir: Path
) -> Training:
    request = {"settings": training_settings(config, name), "labels": label_request(config, out_dir)}
    if name == "segmenter":
        request["fusion"] = fusion_request(config, config.fuse.segmenter.labels)
    files, written = atlas_files(index, atlases), drawn_list(name, out_dir)
    made_of = {"request": request, "atlases": files}
    written.mend(made_of)
    found = read_targets(name, out_dir)
    is_kept = found is not None and found.is_trained and _is_same(written, request, files, index)
    if found is not None and is_kept and written.is_whole():
        written.note_trained()
        if not found.is_there(out_dir):
            written.require_usable(found.scans, usable)
        return found
    own = index[index["scan"].isin(usable) & (index["role"] == "cohort")]
    served = {scan: atlases_for(scan, list(atlases["atlas"])) for scan in own["scan"]}
    candidates = own[[len(served[scan]) >= FEWEST_ATLASES for scan in own["scan"]]]
    if candidates.empty:
        raise ConfigError(
            f"fuse.{SECTIONS[name]}: no usable scan has {FEWEST_ATLASES} labelled atlases of other subjects to learn from. "
            "Remedy: give more labelled atlases (fuse.atlases), or leave the method out"
        )
    drawn = draw_evenly(*with_age(candidates, out_dir, request["settings"]["targets"]))
    targets = drawn.sort_values("scan", ignore_index=True)[MEMBER_COLUMNS]
    if found is not None and is_kept and written.version(targets, made_of) != found.version:
        raise written.refusal()
    if name == "trust":
        write_if_changed(out_dir / TRAINING_ATLASES, json.dumps({scan: served[scan] for scan in targets["scan"]}))
    return _training(name, written.write(targets, made_of), targets, out_dir)


def drawn_list(name: str, out_dir: Path) -> Drawn:
    """Return the list of the training targets of a network, with the note beside it."""
    return Drawn(out_dir, f"cohort/{name}-targets.tsv", name, "targets")


def read_targets(name: str, out_dir: Path) -> Training | None:
    """Return the network's training targets as they were written, None when there is no note of any."""
    written = drawn_list(name, out_dir)
    if not written.note:
        return None
    rows = written.rows()
    return _training(name, written.note["version"], pd.DataFrame(columns=MEMBER_COLUMNS) if rows is None else rows, out_dir)


def read_trainings(config: Config, out_dir: Path) -> dict[str, Training]:
    """Return the networks that are wanted, with their training targets."""
    found = {name: read_targets(name, out_dir) for name in wanted_networks(config)}
    return {name: training for name, training in found.items() if training is not None}


def _training(name: str, version: str, targets: pd.DataFrame, out_dir: Path) -> Training:
    training = Training(name, version, tuple(targets["scan"]), is_trained=False)
    trained = training.is_there(out_dir) or drawn_list(name, out_dir).is_trained(version)
    return Training(name, version, training.scans, trained)


def _is_same(written: Drawn, request: Mapping[str, object], files: Mapping[str, list[str]], index: pd.DataFrame) -> bool:
    """Tell whether nothing that a network was trained with has changed; targets and atlases that are gone do not count."""
    rows, made_of, good = written.rows(), written.note, index[index["state"] == "ok"]
    now = dict(zip(good["scan"], good["sha256"], strict=True))
    targets = [] if rows is None else zip(rows["scan"], rows["sha256"], strict=True)
    # of a list that was cut the last checksum may be a part of one
    same = not written.is_whole() or all(now.get(scan, digest) == digest for scan, digest in targets)
    if not same or made_of["request"] != json.loads(json.dumps(request)):
        return False
    # one that had failed then and is tried again is not among those of the training
    return all(made_of["atlases"].get(atlas, digests) == digests for atlas, digests in files.items())


def atlas_files(index: pd.DataFrame, atlases: pd.DataFrame) -> dict[str, list[str]]:
    """Return the digests of image and labels of each atlas."""
    images = dict(zip(index["scan"], index["sha256"], strict=True))
    return {atlas: [images[atlas], sha256(dseg)] for atlas, dseg in atlases[["atlas", "dseg"]].to_numpy().tolist()}


def label_request(config: Config, out_dir: Path) -> dict[str, object]:
    """Return what the candidates of all targets depend on, beside the files of the atlases."""
    through = config.fuse.through
    return {
        "atlases": atlas_request(config),
        "preprocess": preprocess_settings(config),
        "register": registration_settings(config, config.register.preset),
        "through": template_version(read_members(config, out_dir), config) if through == "template" else through,
    }


def fusion_request(config: Config, method: str) -> dict[str, object]:
    """Return what the labels of a method depend on, beside the candidates."""
    trained = {"trained": training_settings(config, "trust")} if method == "dataparams" else {}
    return {"method": method, **fusion_settings(config, method), **trained}
