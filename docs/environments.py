"""Conda environments of the rules: what the package needs, at the versions of requirements.lock."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"cpu": "any node", "gpu": "GPU nodes: PyPI's torch for Linux brings CUDA along"}


def environment_text(kind: str) -> str:
    """Return envs/<kind>.yaml; the program `popatlas` is that of the environment in which Snakemake runs."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lock = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split("\n") if "==" in line)
    versions = {_plain(name): (name, version) for name, version in lock.items()}
    pinned = (versions[_plain(re.split(r"[<>=!~\[]", requirement)[0])] for requirement in needed)
    packages = "".join(f"      - {name}=={version}\n" for name, version in pinned)
    return (
        f"# Written by docs/generate.py from pyproject.toml and requirements.lock, for {KINDS[kind]}.\n"
        "# Used with `snakemake --software-deployment-method conda`. It holds what popatlas needs; popatlas itself is that\n"
        "# of the environment in which Snakemake runs.\n"
        f"channels:\n  - conda-forge\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n{packages}"
    )


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
