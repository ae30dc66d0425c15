"""What makes a shell complete verbs, options and files of popatlas: a script of its own language, made by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from popatlas.cli.arguments import given_path

SHELLS = ("bash", "zsh", "fish", "tcsh")


class PrintCompletion(argparse.Action):
    """Prints the script for a shell, and ends."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """See `argparse.Action`."""
        try:
            print(script(parser, str(values)))
        except ImportError:
            parser.exit(1, "popatlas: completion needs shtab. Remedy: pip install 'popatlas[completion]'\n")
        parser.exit()


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return what a shell has to run to complete the command line of a parser.

    Parameters
    ----------
    parser : ArgumentParser
        With its verbs.
    shell : str
        One of `SHELLS`.
    """
    import shtab

    _mark_files(parser, shtab.FILE)
    return str(shtab.complete(parser, shell))


def _mark_files(parser: argparse.ArgumentParser, files: object) -> None:
    """Have the shell complete files where a path is wanted."""
    for action in parser._actions:
        if action.type is given_path:
            vars(action)["complete"] = files
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _mark_files(below, files)
