"""The comparison of the fusion methods (`popatlas fuse bench`) as a study of its own beside that of a run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popatlas.cohort.view import view_of
from popatlas.config.sections import Config
from popatlas.errors import PopatlasError
from popatlas.settings import Content

if TYPE_CHECKING:
    from popatlas.study.study import Study

CONFIG = "fuse-bench.yaml"  # in OUT_DIR: the configuration of the last bench


def bench_config(config: Config, methods: Sequence[str]) -> Config:
    """Return a configuration that fuses by the methods of a bench.

    Raises
    ------
    ConfigError
        When its settings contradict each other, for example fewer than two labelled atlases.
    """
    from popatlas.config.load import changed

    fuse: Content = {"methods": list(methods), "bench": True, "maps": True}
    fuse["segmenter"] = {"enabled": False}  # it is no fusion method
    if "dataparams" not in methods:
        fuse["select_by"] = "similarity"
    return changed(config, {"fuse": fuse})


def bench_study(study: Study) -> Study | None:
    """Return the study of the last bench in a folder, with the settings of today; None where it is none any more."""
    from popatlas.study.study import Study

    methods = _last_methods(study.out_dir / CONFIG)
    try:
        return Study.read(bench_config(study.config, methods), study.out_dir) if methods else None
    except PopatlasError:
        return None


def is_valid(study: Study, made_of: str) -> bool:
    """Tell whether a bench with a fingerprint is that of the methods of the last one and of the study of today."""
    found = bench_study(study)
    if found is None:
        return False
    if found.fuse.atlases:
        return bool(found.bench.files) and found.jobs.made_of("bench_fusion") == made_of
    return _is_valid_with_atlases(found, made_of)


def _is_valid_with_atlases(bench: Study, made_of: str) -> bool:
    """Judge a bench where the run itself fuses nothing and so has no atlases: they are drawn as for the bench, in a view."""
    from popatlas.study.study import open_study

    try:
        with view_of(bench.out_dir) as view, redirect_stderr(StringIO()):
            found = open_study(bench.config.content | {"out_dir": str(view)}, main=True)
            return bool(found.bench.files) and found.jobs.made_of("bench_fusion") == made_of
    except PopatlasError:
        return False


def _last_methods(path: Path) -> list[str]:
    import yaml

    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return [str(name) for name in content["fuse"]["methods"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError):
        return []
