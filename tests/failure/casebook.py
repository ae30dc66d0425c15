"""What the cases of bad input share: how one is written down, and the ways to make one."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from popatlas.cli.main import main
from popatlas.cohort.index import index_cohort
from popatlas.config.load import load_config
from popatlas.config.sections import Config
from popatlas.errors import PopatlasError
from popatlas.images.io import save_image
from popatlas.interfaces import load_interface

from ..cohorts import noise_cohort

SHAPE = (36, 36, 36)
THREE = ("sub-1", "sub-2", "sub-3")
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
UNAVAILABLE, FAILED, STOPS = "scan `unavailable`, the others go on", "scan `failed`, the others go on", "nothing is run"
LEFT_OUT, SAID = "left out, the others serve", "said aloud, the run goes on"


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes
    ----------
    stage : str
        Where it is met.
    name : str
        What is wrong.
    follows : str
        What popatlas does about it.
    words : str
        Part of what it says.
    make : callable
        Makes the input in an empty folder, meets it, and returns what popatlas said.
    remedy : bool
        The message must hold a remedy; a notice need not.
    """

    stage: str
    name: str
    follows: str
    words: str
    make: Callable[[Path], str]
    remedy: bool = True


def noise(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(5).random(shape, dtype=np.float32)


def ball(radius: float) -> np.ndarray:
    index = np.indices(SHAPE) - 17.5
    return (np.linalg.norm(index, axis=0) < radius).astype(np.float32)


def write(data: np.ndarray, affine: np.ndarray = AFFINE) -> Callable[[Path], None]:
    return lambda path: save_image(data, affine, path)


def indexed(damage: Callable[[Path], None]) -> Callable[[Path], str]:
    """Damage one of three images, index the dataset, and return what the index says about it."""

    def run(folder: Path) -> str:
        config = dataset(folder, *THREE)
        damage(folder / "bids" / "sub-2" / "anat" / "sub-2_T1w.nii.gz")
        row = index_cohort(config, folder / "out").set_index("subject").loc["sub-2"]
        others = index_cohort(config, folder / "out").set_index("subject").drop("sub-2")
        assert (others["state"] == "ok").all()
        assert row["state"] == "unavailable"
        return str(row["reason"])

    return run


def refusal(work: Callable[[], object]) -> str:
    """Do what popatlas must refuse, and return the message."""
    with pytest.raises(PopatlasError) as caught:
        work()
    return str(caught.value)


def notices(work: Callable[[], object]) -> str:
    """Do something, and return what is said on stderr, without the name of the program before it."""
    with contextlib.redirect_stderr(io.StringIO()) as err:
        work()
    return err.getvalue().removeprefix("popatlas: ").strip()


def step(name: str, **inputs: object) -> str:
    """Run a step that must fail and return its message."""
    return refusal(lambda: load_interface(name)(subject="sub-2", **inputs).run())


def dataset(folder: Path, *names: str, **settings: object) -> Config:
    """Write a dataset of noise in a folder, and return the configuration of its study."""
    return load_config(settings, bids_dir=str(noise_cohort(folder / "bids", [*names])))


def said(*arguments: str | Path, code: int = 1) -> str:
    """Run the command line in this process and return what it said on stderr; it must end with `code`, and no traceback."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = main([str(argument) for argument in arguments])
    text = err.getvalue()
    assert found == code, out.getvalue() + text
    assert "Traceback" not in text
    return text.removeprefix(f"popatlas {arguments[0]}: ").strip()


def checked(settings: str | bytes | dict[str, object] = "", *names: str) -> Callable[[Path], str]:
    """Check a dataset of these subjects with a configuration, and return what is said on stderr."""
    text = yaml.safe_dump(settings) if isinstance(settings, dict) else settings

    def run(folder: Path) -> str:
        if names:
            dataset(folder, *names)
        (folder / "c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return said("check", folder / "bids", "--config", folder / "c.yaml")

    return run
