"""`popatlas step NAME --trait value ...`: run one step, with options generated from the interface's traits."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from popatlas.cli.arguments import Subparsers
from popatlas.cli.together import ALSO, THEN, Part, run_all, split
from popatlas.errors import InputError
from popatlas.failures import foreseen
from popatlas.images.antspy import spare_ants
from popatlas.interfaces import STEPS, load_interface
from popatlas.manyvalues import with_values
from popatlas.renamed import step_of_today, with_options_of_today

if TYPE_CHECKING:
    from popatlas.interfaces.base import PopatlasInterface
    from popatlas.settings import Content

Converter = Callable[[str], object]  # of an option


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `step` to the help; its options are parsed here, when the interface is known."""
    parser = subparsers.add_parser("step", help="run one step of the pipeline by hand (the commands in the logs)")
    parser.add_argument("name", choices=tuple(STEPS), metavar="NAME")


def main(args: argparse.Namespace) -> int:
    """Run the step named on the command line; 1 when it fails."""
    if args.name in (None, "-h", "--help"):
        line = f"popatlas step NAME [--trait value ...] [{THEN} NAME ... | {ALSO} NAME ...]"
        print(f"usage: {line}\n\nsteps:\n  " + "\n  ".join(STEPS))
        return 0
    parts = [replace(part, name=step_of_today(part.name)) for part in split(args.name, args.options)]
    for part in parts:
        if part.name not in STEPS:
            print(f"popatlas: no step is called '{part.name}'. Steps: {', '.join(STEPS)}", file=sys.stderr)
            return 2
    socket.has_ipv6 = False  # urllib3, which nilearn imports, would open a socket to find out
    spare_ants()
    if len(parts) > 1:
        return run_all(parts, _inputs, _run, lambda part: command_line(part.name, part.options))
    inputs = _inputs(parts[0])
    print(command_line(parts[0].name, parts[0].options), flush=True)
    if told := _run(parts[0], inputs):
        print(f"popatlas step {parts[0].name} failed: {told}", file=sys.stderr)
    return int(bool(told))


def _inputs(part: Part) -> Content:
    return parse_traits(load_interface(part.name), list(part.options))


def _run(part: Part, inputs: Content) -> str:
    """Run a step and return why it failed, empty when it did not; what is not foreseen is raised."""
    try:
        load_interface(part.name)(**inputs).run()
    except Exception as error:
        told = refused(error) or foreseen(error)
        if told is None:
            raise
        return str(told)
    return ""


def command_line(name: str, options: Sequence[str]) -> str:
    """Return the line that repeats a step when it is pasted into a shell: its paths start at the folder in which it ran."""
    return f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(['popatlas', 'step', name, *options])}"


def refused(error: Exception) -> InputError | None:
    """Return what a user is told about a value that an input does not take; None for other errors."""
    from traits.trait_errors import TraitError

    if not isinstance(error, TraitError):
        return None
    return InputError(" ".join(str(error).split()), remedy="correct the option; see the step with --help")


def parse_traits(interface: type[PopatlasInterface], options: list[str]) -> Content:
    """Turn command-line options into trait values.

    Parameters
    ----------
    interface : type
        A PopatlasInterface class.
    options : list of str
        ``--trait value`` pairs; a list trait takes several values, a dict trait JSON, a bool trait true or false. Values
        may stand in a file (`popatlas.manyvalues`).

    Returns
    -------
    dict
        Trait name to value of the trait's type.
    """
    spec = interface.input_spec()
    parser = argparse.ArgumentParser(
        prog=f"popatlas step {interface.__name__}",
        description=interface.__doc__,
        allow_abbrev=False,
    )
    for name in spec.copyable_trait_names():
        trait = spec.trait(name)
        kind, many = _kind(trait)
        parser.add_argument(
            f"--{name}",
            required=bool(trait.mandatory),
            default=argparse.SUPPRESS,
            type=kind,
            nargs="*" if many else None,
            help=trait.desc.replace("%", "%%") if trait.desc else None,
        )
    try:
        words = with_values(options)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return vars(parser.parse_args(with_options_of_today(words)))


def _kind(trait: Any) -> tuple[Converter, bool]:
    """Return the converter of a trait's values and whether it takes several."""
    handler = type(trait.handler if trait.handler is not None else trait.trait_type).__name__
    if "List" in handler or "MultiObject" in handler:
        return _kind(trait.inner_traits[0])[0], True
    converters: dict[str, Converter] = {"Int": int, "Float": _finite, "Bool": _boolean, "Dict": json.loads}
    return converters.get(handler.removeprefix("Base").removeprefix("Traited"), str), False


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
