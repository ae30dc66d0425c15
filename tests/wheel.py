"""popatlas as its users have it: a wheel, built from this checkout and installed where the checkout is not seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import popatlas
from popatlas.resources import workflow_root

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


def install_wheel(folder: Path) -> Path:
    """Build a wheel, install it into an environment of its own, and return the folder of its programs.

    The environment takes its dependencies from that of the tests, by a line in a .pth file. Python does not follow the
    .pth files that lie there, so what an editable installation adds, this checkout, is not seen.
    """
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder / "dist", workflow_root()]
    subprocess.run([*PIP, *build], check=True)
    venv.create(folder / "env", symlinks=True)
    programs = folder / "env" / "bin"
    (wheel,) = (folder / "dist").glob("*.whl")
    install = ["--python", programs / "python", "install", "--no-deps", "--no-index", "--no-compile", wheel]
    subprocess.run([*PIP, *install], check=True)
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    places = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "dependencies.pth").write_text("".join(f"{place}\n" for place in places))
    _take_kernels(packages / "popatlas")
    return programs


def _take_kernels(package: Path) -> None:
    """Take the compiled kernels along, which would need 20 s; numba takes them for sources of the same size and time."""
    here = Path(popatlas.__file__).parent
    for compiled in [*here.rglob("__pycache__/*.nbi"), *here.rglob("__pycache__/*.nbc")]:
        there = package / compiled.relative_to(here)
        there.parent.mkdir(exist_ok=True)
        shutil.copy2(compiled, there)
        for source in compiled.parents[1].glob(f"{compiled.name.split('.', 1)[0]}.py"):
            shutil.copystat(source, package / source.relative_to(here))


def outside() -> dict[str, str]:
    """Return an environment in which Python finds nothing but what is installed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
