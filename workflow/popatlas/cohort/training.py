"""The registration network that is trained on the cohort: its recipe, and its scans, drawn once and then frozen.

The scans follow the cohort until the training has begun (a checkpoint is there). From then on new subjects change nothing,
so that a training that takes several jobs, or several runs, goes on; once the network is there no rule makes it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from popatlas.cohort.drawn import Drawn
from popatlas.cohort.freeze import (
    MEMBER_COLUMNS,
    atlases_for,
    draw_evenly,
    preprocess_settings,
    read_members,
    template_version,
    with_age,
)
from popatlas.cohort.labelfiles import REFERENCE as REFERENCE
from popatlas.cohort.labelfiles import read_label_files, used_as
from popatlas.cohort.targets import atlas_files, fusion_request, label_request
from popatlas.config.attempts import registration_settings
from popatlas.config.sections import Config
from popatlas.errors import ConfigError
from popatlas.images.io import sha256
from popatlas.settings import Content
from popatlas.training.recipe import Recipe, comparable, load_brain_recipe

SCANS = "cohort/network-scans.tsv"
FILES = {"weights": "weights.safetensors", "training": "training.json", "curve": "curve.csv", "picture": "curve.png"}
FEWEST = 2  # scans make a pair
# settings of the section that have no part in the result
EXECUTION = ("recipe", "changes", "gpus", "minutes", "name")


@dataclass(frozen=True)
class NetworkTraining:
    """A registration network and what it is trained on.

    Attributes
    ----------
    name, version : str
        Of its folder; the version is a hash over recipe, scans and all that made them.
    recipe : Recipe
        Recipe.
    scans : tuple of str
        Frozen scans; none for a recipe that needs no data.
    is_trained : bool
        It has been trained, whether all its files are there or not.
    """

    name: str
    version: str
    recipe: Recipe
    scans: tuple[str, ...]
    is_trained: bool = False

    @property
    def work_folder(self) -> str:
        """Folder of checkpoint and table, relative to the output folder."""
        return f"work/train/{self.name}-{self.version}"

    def files(self) -> dict[str, str]:
        """Return the network's files by what they are, relative to the output folder."""
        return {key: f"networks/{self.name}-{self.version}/{file}" for key, file in FILES.items()}

    def is_there(self, out_dir: Path) -> bool:
        """Tell whether all its files lie in an output folder."""
        return all((out_dir / file).is_file() for file in self.files().values())


def freeze_network(
    config: Config, index: pd.DataFrame, usable: Sequence[str], atlases: pd.DataFrame, out_dir: Path
) -> NetworkTraining | None:
    """Return the training that a configuration asks for; draw and write its scans unless it has begun.

    Parameters
    ----------
    config : dict
        Complete configuration.
    index : DataFrame
        Cohort index.
    usable : sequence of str
        Scans that are available and not failed.
    atlases : DataFrame
        Frozen labelled atlases.
    out_dir : Path
        Output folder. Written are `SCANS` (scan, subject, session, sha256, split, labels: digest of the reference labels)
        and a JSON file beside it (version and what it is made of).

    Returns
    -------
    NetworkTraining or None
        None without a recipe.

    Raises
    ------
    ConfigError
        When too few scans are usable, or have labels; when a trained network has to be trained again and some of its scans
        cannot be used any more.
    InputError
        From the recipe; when the list of scans of a trained network is lost or changed, and would be drawn otherwise today.
    """
    if config.train.recipe is None:
        return None
    recipe = load_brain_recipe(config.train.recipe, config.train.changes)
    served = atlases[atlases["atlas"].isin(usable)]
    request = _request(config, recipe, out_dir)
    files = atlas_files(index, served) if "fusion" in request else {}
    candidates = _candidates(config, recipe, index, usable, list(served["atlas"]), out_dir)
    made_of = {"request": request, "atlases": files}
    written = drawn_scans(config.train.name or recipe.name, out_dir)
    written.mend(made_of)
    found = read_network(config, out_dir)
    is_same = found is not None and _is_same(written, request, files, candidates, index)
    if found is not None and is_same and written.is_whole() and _is_kept(found, usable, out_dir):
        if found.is_trained:
            written.note_trained()
            if not found.is_there(out_dir):
                written.require_usable(found.scans, usable)
        return found
    scans = _draw(config, candidates, out_dir) if needs_scans(recipe) else candidates
    if found is not None and is_same and found.is_trained and written.version(scans, made_of) != found.version:
        raise written.refusal()
    written.write(scans, made_of)
    return read_network(config, out_dir)


def needs_scans(recipe: Recipe) -> bool:
    """Tell whether a recipe learns from scans or their label maps."""
    return recipe.data.source != "shapes"


def drawn_scans(name: str, out_dir: Path) -> Drawn:
    """Return the list of the scans of a network, with the note beside it."""
    return Drawn(out_dir, SCANS, name, "scans")


def read_network(config: Config, out_dir: Path) -> NetworkTraining | None:
    """Return the training as it was written, None when none is wanted or there is no note of one."""
    written = drawn_scans(config.train.name or "", out_dir)
    if config.train.recipe is None or not written.note:
        return None
    note, rows = written.note, written.rows()
    recipe = Recipe.of(note["request"]["recipe"])
    name = config.train.name or recipe.name
    plan = NetworkTraining(name, note["version"], recipe, () if rows is None else tuple(rows["scan"]))
    trained = plan.is_there(out_dir) or drawn_scans(name, out_dir).is_trained(plan.version)
    return NetworkTraining(name, plan.version, recipe, plan.scans, is_trained=trained)


def _request(config: Config, recipe: Recipe, out_dir: Path) -> Content:
    """Return what a training depends on, beside scans and atlases."""
    content = comparable(recipe.content)
    if not needs_scans(recipe):
        return {"recipe": content}
    settings = {key: value for key, value in config.content["train"].items() if key not in EXECUTION}
    request: Content = {"recipe": content, "train": settings, "preprocess": preprocess_settings(config)}
    if recipe.grid.affine_first:
        version = template_version(read_members(config, out_dir), config)
        request |= {"register": registration_settings(config, config.register.preset), "template": version}
    if (method := config.train.labels) not in (None, REFERENCE):
        request |= {"fusion": fusion_request(config, method), "candidates": label_request(config, out_dir)}
    return request


def _candidates(
    config: Config, recipe: Recipe, index: pd.DataFrame, usable: Sequence[str], atlases: Sequence[str], out_dir: Path
) -> pd.DataFrame:
    """Return the scans that can be trained on, with the files of their reference labels where those are used."""
    own = index[index["scan"].isin(usable) & (index["role"] == "cohort")].assign(dseg="")
    labels = config.train.labels
    if not needs_scans(recipe):
        own = own[:0]
    elif labels == REFERENCE:
        good = used_as(read_label_files(out_dir), REFERENCE, good=True).set_index("scan")["file"]
        own = own[own["scan"].isin(good.index)]
        own = own.assign(dseg=own["scan"].map(good))
    elif labels is not None:
        own = own[[bool(atlases_for(scan, list(atlases))) for scan in own["scan"]]]
    return own[[*MEMBER_COLUMNS, "dseg"]]


def _draw(config: Config, candidates: pd.DataFrame, out_dir: Path) -> pd.DataFrame:
    """Return the scans of a new training with their splits."""
    section = config.train
    table, count, by = with_age(candidates, out_dir, section.scans)
    drawn = _split(draw_evenly(table, count, by), section.validation, by).sort_values("scan", ignore_index=True)
    if (drawn["split"] == "train").sum() < FEWEST or drawn["subject"].nunique() < FEWEST:
        which = "" if section.labels is None else f" with labels ({section.labels})"
        raise ConfigError(
            f"train: {len(drawn)} usable scan(s){which} of {drawn['subject'].nunique()} subject(s) are too few to train a "
            f"network on. Remedy: at least {FEWEST} to learn from and one of another subject are needed"
        )
    digests = [sha256(dseg) if dseg else "" for dseg in drawn["dseg"]]
    return drawn.assign(labels=digests)[[*MEMBER_COLUMNS, "split", "labels"]]


def _split(scans: pd.DataFrame, share: float, by: str) -> pd.DataFrame:
    """Give all scans of a subject the same split; the subjects for validation lie evenly inside the range of a column."""
    people = scans.sort_values([by, "scan"]).drop_duplicates("subject")["subject"].tolist()
    count = max(1, round(share * len(people)))
    held = {people[int((number + 0.5) * len(people) / count)] for number in range(count)} if people else set()
    return scans.assign(split=["validation" if subject in held else "train" for subject in scans["subject"]])


def _is_kept(found: NetworkTraining, usable: Sequence[str], out_dir: Path) -> bool:
    """Tell whether the scans stay as they are: the network was trained, or its training has begun and can go on."""
    begun = (out_dir / found.work_folder / "checkpoint.pt").is_file()
    return found.is_trained or (begun and set(found.scans) <= set(usable))


def _is_same(
    written: Drawn,
    request: Mapping[str, object],
    files: Mapping[str, list[str]],
    candidates: pd.DataFrame,
    index: pd.DataFrame,
) -> bool:
    """Tell whether nothing that a network is trained with has changed; scans and atlases that are gone do not count."""
    made_of = written.note
    if json.dumps(made_of["request"], sort_keys=True) != json.dumps(request, sort_keys=True):  # false is not 0
        return False
    if written.is_whole() and not _has_same_images(written.rows(), candidates, index):
        return False
    # an atlas that had failed then and is tried again is not among those of the training
    return all(made_of["atlases"].get(atlas, digests) == digests for atlas, digests in files.items())


def _has_same_images(frozen: pd.DataFrame | None, candidates: pd.DataFrame, index: pd.DataFrame) -> bool:
    good = index[index["state"] == "ok"]
    images = dict(zip(good["scan"], good["sha256"], strict=True))
    labels = dict(zip(candidates["scan"], candidates["dseg"], strict=True))
    for row in [] if frozen is None else frozen.to_dict("records"):
        if images.get(row["scan"], row["sha256"]) != row["sha256"]:
            return False
        if row["labels"] and row["scan"] in labels and sha256(labels[row["scan"]]) != row["labels"]:
            return False
    return True
