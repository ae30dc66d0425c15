"""Record what a terminal shows of the demo and of a cohort run, as text: `python docs/recordings/record.py FOLDER`.

`--data BIDS_DIR` gives the cohort of the second one (`--labels` its labels); simulated heads are taken when it is left out.
FOLDER gets the work and may be removed afterwards. The texts are written beside this file; folders in them are made neutral.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import popatlas

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FIRST, MORE = 3, 1  # subjects of the cohort run, and those that are added
Shown = tuple[str, Sequence[str]]  # a command as a user writes it, and as it is run


def demo(folder: Path) -> Iterator[Shown]:
    """Yield the commands of the demo, in a clone, with the environment that is there."""
    clone, stamp = folder / "popatlas", Path(sys.prefix) / ".installed"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    yield "make demo", ["make", "--no-print-directory", "-C", str(clone), "-o", str(stamp), f"VENV={sys.prefix}", "demo"]


def cohort(folder: Path, data: Path | None, labels: str) -> Iterator[Shown]:
    """Yield the commands of a cohort run: look, settings, plan, run, a subject more."""
    bids = folder / "bids"
    if data is None:
        _popatlas("simulate", bids, "--subjects", FIRST, "--seed", 7)
    else:
        _take(data, bids, range(FIRST))
    settings = "atlas: {label: mystudy}\n" + (f'fuse: {{labels: "{labels}"}}\n' if labels else "")
    (folder / "my.yaml").write_text(settings + (f'measure: {{reference: "{labels}"}}\n' if labels else ""))
    line = ("bids", "out", "--config", "my.yaml")
    yield _shown("check", "bids", "--config", "my.yaml")
    yield "cat my.yaml", ["cat", "my.yaml"]
    yield _shown("plan", *line)
    yield _shown("run", *line)
    if data is None:
        _popatlas("simulate", bids, "--subjects", MORE, "--first", FIRST + 1, "--seed", 7)
    else:
        _take(data, bids, range(FIRST, FIRST + MORE))
    yield "# a subject more", []
    yield _shown("run", *line)
    yield _shown("status", "out")


def _shown(*words: str) -> Shown:
    return shlex.join(["popatlas", *words]), [sys.executable, "-m", "popatlas.cli.main", *words]


def _popatlas(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "popatlas.cli.main", *map(str, words)], check=True, stderr=subprocess.DEVNULL)


def _take(data: Path, bids: Path, numbers: Sequence[int]) -> None:
    """Link some subjects of a dataset into a folder, and all that belongs to the whole of it."""
    bids.mkdir(exist_ok=True)
    subjects = sorted(data.glob("sub-*"))
    for path in [*(subjects[number] for number in numbers), data / "derivatives", data / "dataset_description.json"]:
        if path.exists() and not (bids / path.name).exists():
            (bids / path.name).symlink_to(path)
    head, *rows = (data / "participants.tsv").read_text(encoding="utf-8").splitlines()
    kept = [row for row in rows if (bids / row.split("\t", 1)[0]).exists()]
    (bids / "participants.tsv").write_text("\n".join([head, *kept, ""]), encoding="utf-8")


def record(name: str, commands: Iterator[Shown], folder: Path, hidden: dict[str, str], note: str) -> None:
    """Run commands one after the other and write what they show; the note says under what circumstances."""
    said = [f"# popatlas {popatlas.__version__}, {datetime.now(UTC):%Y-%m-%d}, {len(os.sched_getaffinity(0))} cores{note}"]
    for shown, line in commands:
        said.append(f"$ {shown}")
        if line:
            done = subprocess.run(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            said.append(done.stdout.rstrip("\n") + (f"\n(exit code {done.returncode})" if done.returncode else ""))
        text = "\n".join(said) + "\n"
        for path, neutral in hidden.items():
            text = text.replace(path, neutral)
        (HERE / f"{name}.txt").write_text(text, encoding="utf-8")


def main() -> None:
    """Record both."""
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("folder", type=Path)
    line.add_argument("--data", type=Path, help="BIDS dataset of the cohort run")
    line.add_argument("--labels", default="", help="pattern of its label images, as in fuse.labels")
    line.add_argument("--note", default="", help='circumstances, for the first line: " that other work shared"')
    line.add_argument("--only", choices=["demo", "cohort"])
    args = line.parse_args()
    for name in ("demo", "cohort") if args.only is None else (args.only,):
        folder = args.folder.resolve() / name
        folder.mkdir(parents=True)
        commands = demo(folder) if name == "demo" else cohort(folder, args.data, args.labels)
        hidden = {str(folder): "~"} | ({str(args.data.resolve()): "~/bids"} if args.data else {})
        record(name, commands, folder, hidden | {sys.prefix: "~/popatlas/.venv", str(ROOT): "~/popatlas"}, args.note)


if __name__ == "__main__":
    main()
