"""Several steps in one process: ``popatlas step A ... --then B ... --also C ...``.

A step after ``--then`` needs those before it, one after ``--also`` needs none of them. Each keeps a log, a record and a
receipt of its own, so that one that fails costs no other; what has a receipt of today, and files that agree with it, is not
made again.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from popatlas.settings import Content

THEN, ALSO = "--then", "--also"
OUTPUT = "out_"  # how the options of what a step writes begin


@dataclass(frozen=True)
class Part:
    """One of several steps: its name, its options, and whether it needs those before it."""

    name: str
    options: tuple[str, ...]
    follows: bool


def split(name: str, options: Sequence[str]) -> list[Part]:
    """Return the steps of a command line."""
    parts, follows, words = [], False, [name]
    for word in (*options, ALSO):
        if word in (THEN, ALSO):
            parts.append(Part(words[0], tuple(words[1:]), follows) if words else Part("", (), follows))
            follows, words = word == THEN, []
        else:
            words.append(word)
    return parts


def run_all(
    parts: Sequence[Part],
    parse: Callable[[Part], Content],
    run: Callable[[Part, Content], str],
    command: Callable[[Part], str],
) -> int:
    """Run steps; 1 when one has failed.

    Parameters
    ----------
    parts : sequence of Part
        The steps.
    parse : callable
        Returns the inputs of a step.
    run : callable
        Runs a step and returns why it failed, empty when it did not; what it does not foresee it raises.
    command : callable
        Returns the line that repeats a step.

    Returns
    -------
    int
    """
    failed, stopped = False, False
    given = [parse(part) for part in parts]
    for part, inputs in zip(parts, given, strict=True):
        stopped = stopped and part.follows
        if stopped:
            print(f"{part.name}: not begun", flush=True)
        elif is_made(inputs):
            print(f"{part.name}: kept", flush=True)
        else:
            why = _run_one(part, inputs, run, command)
            stopped = bool(why)
            failed = failed or stopped
            print(f"{part.name}: {f'failed: {why}' if why else 'ok'}", flush=True)
    return int(failed)


def is_made(inputs: Content) -> bool:
    """Tell whether a step has a receipt with the fingerprint that it is given, and what it read and made is as that says.

    A step before it in the same job may just have made other files of what it was made from.
    """
    from popatlas.images.io import sha256
    from popatlas.receipts import Receipt

    receipt = Receipt.read(inputs["receipt"]) if inputs.get("receipt") else None
    if receipt is None or receipt.made_of != inputs.get("made_of"):
        return False
    wanted = {os.path.relpath(file) for name, value in inputs.items() if name.startswith(OUTPUT) for file in _files(value)}
    if not wanted <= {os.path.relpath(file) for file in receipt.outputs}:
        return False
    made = {file: digest for file, (_, digest) in receipt.outputs.items()}
    # a dataset may have been moved since: what is no longer where it was read tells nothing
    read = {file: digest for file, digest in receipt.inputs.items() if Path(file).is_file()}
    return all(Path(file).is_file() and sha256(file) == digest for file, digest in (made | read).items())


def _files(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _run_one(part: Part, inputs: Content, run: Callable[[Part, Content], str], command: Callable[[Part], str]) -> str:
    """Run a step, which writes into the log beside its record, and return why it failed."""
    record = inputs.get("record")
    with _written_to(Path(str(record).removesuffix(".json")) if record else None):
        print(command(part), flush=True)
        try:
            why = run(part, inputs)
        except Exception as error:  # the other steps go on
            traceback.print_exc()
            why = f"{type(error).__name__}: {error}"
        if why:
            print(f"popatlas step {part.name} failed: {why}", file=sys.stderr)
    return why


@contextmanager
def _written_to(log: Path | None) -> Iterator[None]:
    """Have all that this process prints, compiled libraries too, written to a file."""
    if log is None:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with log.open("w", encoding="utf-8", buffering=1) as stream:
            for number in (1, 2):
                os.dup2(stream.fileno(), number)
            with redirect_stdout(stream), redirect_stderr(stream):
                yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)
