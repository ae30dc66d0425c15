"""What anatomical images a BIDS dataset holds: those with a place in it, and those that are nobody's.

bids2table reads the tree (not pybids: it gives an Arrow table in one pass, without a database and without the seconds
per hundred subjects that large cohorts cannot afford). Nothing later walks the dataset.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from popatlas.cohort.folders import unnamed

ENDINGS = (".nii.gz", ".nii")
SHOWN = 3  # files named in a message


@dataclass(frozen=True)
class Tree:
    """Images of a dataset.

    Attributes
    ----------
    images : DataFrame
        Columns sub, ses, suffix, path (relative to the dataset), missing entities empty.
    strays : list of str
        Images whose name belongs to another subject or session than their folder: nobody knows whose they are.
    others : dict
        Subject (with `sub-`) to images that are not asked for or not named as BIDS wants, such as `_t1w.nii.gz`.
    """

    images: pd.DataFrame
    strays: list[str]
    others: dict[str, list[str]]

    def instead(self, subject: str, session: str = "") -> str:
        """Return in words what was found of a subject (of its session) that has no T1w; empty when nothing was."""
        own = [path for path in self.others.get(subject, []) if not session or session in path]
        more = f" and {len(own) - SHOWN} more" if own[SHOWN:] else ""
        return f"only {', '.join(own[:SHOWN])}{more}" if own else ""


def read_tree(root: Path, suffixes: Sequence[str]) -> Tree:
    """Find the anatomical images of a BIDS dataset.

    Parameters
    ----------
    root : Path
        Dataset.
    suffixes : sequence of str
        BIDS suffixes, for example T1w and T2w; they are told apart by case, as BIDS does.

    Returns
    -------
    Tree

    Raises
    ------
    InputError
        For a name that is not in UTF-8.
    """
    found = _listed(root, suffixes)
    named = found["suffix"].isin(suffixes) & found["ext"].isin(ENDINGS) & (found["datatype"] == "anat")
    own = pd.Series([_in_own_folder(*row) for row in _triples(found)], index=found.index, dtype=bool)
    others: dict[str, list[str]] = {}
    for path, subject, _ in _triples(found[~(named & own)]):
        for name in dict.fromkeys((path.split("/")[0], f"sub-{subject}")):
            others.setdefault(name, []).append(path)
    images = found.loc[named & own, ["sub", "ses", "suffix", "path"]]
    return Tree(images, sorted(found.loc[named & ~own, "path"]), {name: sorted(paths) for name, paths in others.items()})


def _listed(root: Path, suffixes: Sequence[str]) -> pd.DataFrame:
    """Return all images of the tree that are anatomical by their folder or, whatever the case, by their suffix."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from bids2table import index_dataset

    logging.getLogger("bids2table").setLevel(logging.ERROR)
    # bids2table gives the root to glob, refuses names with a dot, remembers what it saw: a fresh link avoids all that
    with tempfile.TemporaryDirectory(prefix="popatlas-") as folder:
        link = Path(folder) / "dataset"
        link.symlink_to(root.resolve(), target_is_directory=True)
        try:
            table = index_dataset(link).select(["sub", "ses", "suffix", "ext", "datatype", "path"])
        except UnicodeError as error:
            raise unnamed(root) from error
    lowered = pa.array([suffix.lower() for suffix in suffixes])
    anatomical = pc.or_kleene(pc.equal(table["datatype"], "anat"), pc.is_in(pc.utf8_lower(table["suffix"]), lowered))
    images = pc.is_in(pc.utf8_lower(table["ext"]), pa.array(ENDINGS))
    files: pd.DataFrame = table.filter(pc.and_kleene(images, anatomical)).to_pandas().astype(object)
    return files.where(files.notna(), "")


def _triples(files: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(zip(files["path"], files["sub"], files["ses"], strict=True))


def _in_own_folder(path: str, subject: str, session: str) -> bool:
    parts = path.split("/")
    return parts[0] == f"sub-{subject}" and (parts[1][4:] if parts[1].startswith("ses-") else "") == session
