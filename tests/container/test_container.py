"""The container files say what they should, and their steps give a popatlas that works where a container runs.

The steps are run in a clean Debian root by debootstrap and chroot, as no builder of images is needed then. That takes some
minutes, 5 GB, root and the network, so only with `POPATLAS_CONTAINER=1` (and `POPATLAS_CONTAINER_ROOT` to keep the root).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from docs.containers import ENVIRONMENT, FILES, SOURCES, STEPS, container_text

from popatlas.resources import workflow_root

ROOT = workflow_root()
Instruction = tuple[str, str]


def instructions() -> Iterator[Instruction]:
    """Yield what the Dockerfile does, in order."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            yield name, " ".join(rest.split())


@pytest.mark.parametrize("name", FILES)
def test_a_container_file_is_as_it_would_be_written_now(name: str) -> None:
    assert (ROOT / name).read_text() == container_text(name), "run docs/generate.py"


def test_both_files_take_the_same_steps_from_the_same_sources() -> None:
    runs = [rest for name, rest in instructions() if name == "RUN"]
    assert runs == list(STEPS)
    definition = (ROOT / "apptainer.def").read_text()
    assert all(step in definition for step in STEPS)
    copied = {name for kind, rest in instructions() if kind == "COPY" for name in rest.split()[:-1]}
    assert copied == set(SOURCES) and all((ROOT / name).exists() for name in copied)
    assert all(f"    {name} /src/{name}\n" in definition for name in SOURCES)


def test_it_is_a_bids_app_that_nobody_runs_as_root() -> None:
    told = dict(instructions())
    assert told["ENTRYPOINT"] == '["popatlas"]' and not told["USER"].startswith(("0", "root"))


def test_hadolint_has_nothing_to_say() -> None:
    # it is a program of the environment, which need not be activated
    found = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip("hadolint is not installed")
    subprocess.run([found, ROOT / "Dockerfile"], check=True)


def inside(root: Path, *line: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the root, with the variables of the image and those of pip."""
    pip = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "http", "HTTP"))}
    if "PIP_CERT" in pip:  # of a network whose certificates only this machine knows
        shutil.copy(pip["PIP_CERT"], root / "tmp/certificates.pem")
        pip["PIP_CERT"] = "/tmp/certificates.pem"
    environment = ENVIRONMENT | pip | {"HOME": "/nowhere"}
    return subprocess.run(
        ["chroot", root, *line], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root in which the steps were taken."""
    if not os.environ.get("POPATLAS_CONTAINER") or shutil.which("debootstrap") is None or os.geteuid() != 0:
        pytest.skip("the steps are only run with POPATLAS_CONTAINER=1, debootstrap and root")
    kept = os.environ.get("POPATLAS_CONTAINER_ROOT")
    root = Path(kept) if kept else tmp_path_factory.mktemp("container") / "root"
    if not (root / "bin/sh").exists():
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", root], check=True)
    with mounted(root):
        if not (root / "opt/popatlas/bin/popatlas").exists():
            build(root)
        yield root


def build(root: Path) -> None:
    """Take the steps of the Dockerfile."""
    for name, rest in instructions():
        if name == "COPY":
            *sources, target = rest.split()
            files = subprocess.run(["git", "ls-files", *sources], cwd=ROOT, check=True, capture_output=True, text=True)
            for file in files.stdout.splitlines():
                place = root / target.strip("/") / (file if len(sources) > 1 else Path(file).relative_to(sources[0]))
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, place)
        elif name == "RUN":
            done = inside(root, "/bin/sh", "-e", "-c", rest)
            assert done.returncode == 0, done.stdout[-3000:]


@contextmanager
def mounted(root: Path) -> Iterator[None]:
    """Have the host's /proc, and what pip finds on its disk, in a root."""
    local = [Path(part.removeprefix("file://")) for part in os.environ.get("PIP_FIND_LINKS", "").split()]
    places = [Path("/proc"), *(path for path in local if path.is_dir())]
    with ExitStack() as stack:
        for place in places:
            target = root / place.relative_to("/")
            target.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--bind", place, target], check=True)
            stack.callback(subprocess.run, ["umount", target], check=True)
        yield


def test_it_runs_as_a_foreign_user_with_a_read_only_root_and_without_network(image: Path) -> None:
    (image / "out").mkdir(exist_ok=True)
    run = "popatlas /out/bids /out/derivatives participant --cores 2 --set preprocess.resolution_mm=4"
    line = (
        f"! touch /etc/x 2>/dev/null; id -u; popatlas simulate /out/bids --subjects 3 --seed 1; {run}; ls /out/derivatives"
    )
    stranger = "setpriv --reuid=54321 --regid=54321 --clear-groups"
    script = [
        f"mount --rbind {image} {image}",
        f"mount -t tmpfs none {image}/out",
        f"chmod 777 {image}/out",
        f"mount -o remount,ro,bind {image}",
        f"exec chroot {image} {stranger} /bin/sh -e -c {shlex.quote(line)}",
    ]
    alone = ["unshare", "--mount", "--net", "/bin/sh", "-e", "-c", "\n".join(script)]
    environment = ENVIRONMENT | {"HOME": "/nowhere", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(alone, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "54321" in done.stdout and "sub-01" in done.stdout.splitlines()
