"""Registries: names that a configuration or a recipe uses, what they stand for, and where their code is.

They are light: code is loaded when it is used, so that a command line, a schema or a methods text can name what exists.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from popatlas.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What stands behind a name.

    Attributes
    ----------
    code : str
        ``module:name`` of its class or function.
    title : str
        What it is, in a few words that fit into a sentence.
    references : tuple of str
        Keys of `workflow/report/references.bib`.
    formula : str
        What it computes, in LaTeX.
    """

    code: str
    title: str
    references: tuple[str, ...] = ()
    formula: str = ""

    def load(self) -> Any:
        """Import and return its class or function."""
        return load_code(self.code)

    @property
    def cited(self) -> str:
        """Its title with its references, as in the methods text."""
        return f"{self.title} [{', '.join(f'@{key}' for key in self.references)}]" if self.references else self.title


Kind = TypeVar("Kind", bound=Entry)


def load_code(code: str) -> Any:
    """Import and return what ``module:name`` names."""
    module, name = code.split(":")
    return getattr(importlib.import_module(module), name)


def find_entry(entries: Mapping[str, Kind], name: str, what: str) -> Kind:
    """Return an entry by its name.

    Parameters
    ----------
    entries : mapping of str to Entry
        A registry.
    name : str
        The name.
    what : str
        What the registry holds, for the message.

    Raises
    ------
    InputError
        When there is no such entry; all are named.
    """
    if name not in entries:
        raise InputError(f"unknown {what} {name!r}", remedy=f"use one of {', '.join(entries)}")
    return entries[name]
