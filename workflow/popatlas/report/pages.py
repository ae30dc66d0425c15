"""Page templates, links and file facts that all pages share."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.config.load import default_config, resolved_config
from popatlas.config.sections import Config
from popatlas.images.io import read_json, read_table, write_text
from popatlas.resources import template_folder
from popatlas.settings import Content

if TYPE_CHECKING:
    import pandas as pd
    from jinja2 import Environment

SUBJECTS = "report/subjects"
THUMBNAILS = "report/thumbnails"


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template_folder()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["sentence"] = sentence
    return environment


def write_page(name: str, path: Path, /, **context: object) -> None:
    """Render a page template and write it atomically.

    Parameters
    ----------
    name : str
        Page template, without `.html.j2`.
    path : Path
        Output page.
    **context
        What the template shows; all text in it is escaped.
    """
    page = _environment().get_template(f"{name}.html.j2").render(**context)
    write_text(path, page)


def number(value: float | str | None, digits: int = 3) -> str:
    """Return a number for readers, a dash when it is missing."""
    if value is None or value != value:
        return "\N{EN DASH}"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def sentence(text: str) -> str:
    """Return a text with a capital first letter."""
    return text[:1].upper() + text[1:]


def link(target: Path, page: Path) -> str:
    """Return the relative address of a file as seen from a page; both inside one folder tree."""
    from urllib.parse import quote

    return quote(Path(os.path.relpath(target.absolute(), page.absolute().parent)).as_posix())


def scan_name(scan: str) -> str:
    """Return the name of a scan, for example `sub-01_ses-1`."""
    return Path(scan).name


def subject_page(out_dir: Path, scan: str) -> Path:
    """Return the page of a scan."""
    return out_dir / SUBJECTS / f"{scan_name(scan)}.html"


def thumbnail(out_dir: Path, scan: str) -> Path:
    """Return the montage picture of a scan."""
    return out_dir / THUMBNAILS / f"{scan}.png"


def optional_json(path: Path) -> Content:
    """Return a JSON file, empty when it does not exist."""
    return dict(read_json(path)) if path.is_file() else {}


def optional_table(path: Path, **options: object) -> pd.DataFrame:
    """Return a table, empty when it does not exist."""
    import pandas as pd

    return read_table(path, **options) if path.is_file() else pd.DataFrame()


def read_config(path: Path | None) -> Config:
    """Return the resolved configuration of a run, the shipped one when there is none."""
    return default_config() if path is None or not path.is_file() else resolved_config(path)


def study_name(config: Config, out_dir: Path) -> str:
    """Return the name of the dataset, or the name of its folder."""
    bids_dir = Path(config.bids_dir)
    for folder in (bids_dir, out_dir):
        name = optional_json(folder / "dataset_description.json").get("Name")
        if isinstance(name, str) and name.strip():
            return name.strip()
    return bids_dir.stem if bids_dir.suffix else bids_dir.resolve().name


def step_records(out_dir: Path, scan: str) -> list[Content]:
    """Return the JSON records of the steps of a scan, with their stage, name and log file, in pipeline order."""
    order = {"preprocess": 0, "atlas": 1, "register": 2, "fuse": 3, "measure": 4}
    logs = out_dir / "logs"
    found = []
    for path in sorted(logs.glob(f"*/{scan}_*.log.json")):
        stage = path.relative_to(logs).parts[0]
        if stage in order:
            record = optional_json(path)
            found.append(record | {"stage": stage, "log": path.with_suffix(""), "file": path})
    return sorted(found, key=lambda record: (order[record["stage"]], str(record.get("started", "")), str(record["file"])))
