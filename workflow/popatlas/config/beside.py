"""Paths of a configuration, and how a study keeps them: relative to OUT_DIR where they lie beside it, to move with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from popatlas.paths import resolved
from popatlas.settings import Content

ONE_WEIGHTS = ".safetensors"  # what ends so is a file, else it is a name of the zoo
RECIPES = (".yaml", ".yml")  # the same of a recipe
PATHS: Mapping[tuple[str, ...], tuple[str, ...]] = {  # keys that are paths, and how their values end where others are names
    ("bids_dir",): (),
    ("out_dir",): (),
    ("atlas", "template"): (),
    ("tissues", "maps"): (),
    ("fuse", "atlases"): (),
    ("register", "weights"): (ONE_WEIGHTS,),
    ("register", "unigradicon", "weights"): (ONE_WEIGHTS,),
    ("train", "recipe"): RECIPES,
}
NOTE = "# Paths that are not absolute start at the folder of this file.\n"


def with_paths(content: Mapping[str, Any], change: Callable[[str], str]) -> Content:
    """Return a configuration, complete or not, with other paths."""
    found: Content = dict(content)
    for (name, *inner), ends in PATHS.items():
        value = found.get(name)
        if inner and isinstance(value, Mapping):
            found[name] = _changed(value, inner, ends, change)
        elif not inner and _is_path(value, ends):
            found[name] = change(str(value))
    return found


def _changed(part: Mapping[str, Any], keys: list[str], ends: tuple[str, ...], change: Callable[[str], str]) -> Content:
    value = part.get(keys[0])
    if len(keys) > 1:
        return {**part, keys[0]: _changed(value, keys[1:], ends, change)} if isinstance(value, Mapping) else dict(part)
    return {**part, keys[0]: change(str(value))} if _is_path(value, ends) else dict(part)


def _is_path(value: object, ends: tuple[str, ...]) -> bool:
    return isinstance(value, str | Path) and bool(str(value)) and (not ends or str(value).endswith(ends))


def beside(content: Mapping[str, Any]) -> Content:
    """Return a configuration of absolute paths with those relative that lie beside OUT_DIR, or in a dataset that does."""
    out_dir, bids_dir = Path(str(content["out_dir"])), Path(str(content["bids_dir"]))
    moves = [bids_dir] if _lies_beside(bids_dir, out_dir) else []

    def relative(text: str) -> str:
        path = Path(text)
        near = _lies_beside(path, out_dir) or any(path.is_relative_to(folder) for folder in moves)
        return os.path.relpath(path, out_dir) if near else text

    return with_paths(content, relative)


def _lies_beside(path: Path, out_dir: Path) -> bool:
    """Tell whether a path lies in OUT_DIR, in the folder of OUT_DIR, or holds OUT_DIR."""
    if path.is_relative_to(out_dir) or path.parent == out_dir.parent:
        return True
    return out_dir.is_relative_to(path) or (len(out_dir.parts) > 2 and path.is_relative_to(out_dir.parent))


def saved_text(content: Mapping[str, Any]) -> str:
    """Return the text of a configuration of absolute paths as a study keeps it in OUT_DIR."""
    import yaml

    return NOTE + yaml.safe_dump(beside(content), sort_keys=False)


def located(content: Mapping[str, Any], files: Iterable[Path | str]) -> Content:
    """Return a configuration, read from files, with absolute paths where a study has kept it."""
    kept = next(filter(is_kept, map(Path, files)), None)
    if kept is None:
        return dict(content)
    folder = Path(resolved(kept)).parent
    return with_paths(content, lambda text: os.path.normpath(folder / text))


def is_kept(file: Path) -> bool:
    """Tell whether a study has kept its configuration in a file."""
    try:
        with file.open("rb") as stream:
            return stream.readline() == NOTE.encode()
    except OSError:
        return False
