"""Clouds: what a run on Kubernetes or AWS Batch needs, checked before a job is sent.

All jobs read the dataset and write OUT_DIR under the paths that the run itself uses, so both must lie on a volume that the
profile has every job mount, and the image of the jobs must hold popatlas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from popatlas.errors import ConfigError

# executor: module of its plugin
MODULES = {"kubernetes": "snakemake_executor_plugin_kubernetes", "aws-batch": "snakemake_executor_plugin_aws_batch"}
VOLUMES, IMAGE = "kubernetes-persistent-volumes", "container-image"  # keys of the profile
EFS = "efs"  # resource of the jobs: the file system of AWS that they mount, and where
EXAMPLES = {
    "kubernetes": f"{VOLUMES}: [study:/study]",
    "aws-batch": "default-resources: [\"efs='fs-0123456789abcdef0:/study'\"]",
}
SITE = "docs/hpc.md, Clouds"


@dataclass(frozen=True)
class Volume:
    """A volume that jobs mount.

    Attributes
    ----------
    name : str
        Persistent volume claim, or file system of EFS.
    path : Path
        Where it is mounted.
    """

    name: str
    path: Path

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the volume of ``NAME:PATH``.

        Raises
        ------
        ConfigError
            For another text.
        """
        name, colon, path = text.strip().strip("'\"").partition(":")
        if not (name and colon and path.startswith("/")):
            raise ConfigError(f"'{text}' is no volume. Remedy: give NAME:PATH, such as study:/study")
        return cls(name, Path(path))


def check_cloud(executor: str, profile: Mapping[str, Any], places: Mapping[str, str]) -> None:
    """Raise ConfigError where jobs could not work in a cloud.

    Parameters
    ----------
    executor : str
        One of `MODULES`.
    profile : mapping
        Keys of the profile, those of the command line included.
    places : mapping
        What jobs read and write: name, and absolute path.

    Raises
    ------
    ConfigError
        With a remedy.
    """
    image = str(profile.get(IMAGE) or "")
    if not image or "EXAMPLE" in image:
        raise ConfigError(f"{executor}: jobs need an image with popatlas. Remedy: {IMAGE} of a copy of the profile ({SITE})")
    volumes = [Volume.parse(text) for text in _volumes(executor, profile)]
    if not volumes:
        raise ConfigError(f"{executor}: jobs mount no shared volume. Remedy: {EXAMPLES[executor]} in a copy of the profile")
    for what, place in places.items():
        if not any(Path(place).is_relative_to(volume.path) for volume in volumes):
            there = ", ".join(str(volume.path) for volume in volumes)
            raise ConfigError(
                f"{executor}: {what} ({place}) is on no volume that jobs mount ({there}), so they could not see it. "
                f"Remedy: put it there, or mount its volume under its path ({SITE})"
            )


def _volumes(executor: str, profile: Mapping[str, Any]) -> Iterable[str]:
    if executor == "kubernetes":
        found = profile.get(VOLUMES) or []
        return found.split() if isinstance(found, str) else [str(one) for one in found]
    pairs = (str(one).partition("=") for one in profile.get("default-resources") or [])
    return [value for name, _, value in pairs if name.strip() == EFS]
