"""Write the schedules of the engines into config.yaml: the engines hold them, and a user reads them there."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from popatlas.registration.engines.registry import ENGINES
from popatlas.settings import as_content

BLOCK = re.compile(r"(?<=\n)(  presets: *#[^\n]*\n)((?: {4}[^\n]*\n)+)")
HEADER = re.compile(r"^    (\w+):.*$", re.MULTILINE)
COLUMN = 35  # of the comments


def with_presets(text: str) -> str:
    """Return config.yaml with the presets of all engines.

    Engines and presets that it has as they are keep their place, their line and their comment; new engines come last.
    """
    return BLOCK.sub(lambda found: found[1] + "\n".join(_lines(found[2])) + "\n", text, count=1)


def _lines(old: str) -> Iterator[str]:
    values, written = yaml.safe_load(old), old.splitlines()
    headers = {found[1]: found[0] for found in HEADER.finditer(old)}
    for name in [*(name for name in headers if name in ENGINES), *(name for name in ENGINES if name not in headers)]:
        yield headers.get(name) or f"{f'    {name}:':<{COLUMN}}# {ENGINES[name].title}"
        start = written.index(headers[name]) + 1 if name in headers else 0
        lines = dict(zip(values.get(name, {}), written[start:], strict=False))
        for preset, settings in ENGINES[name].presets.items():
            content = as_content(settings)
            same = values.get(name, {}).get(preset) == content
            flow = yaml.safe_dump(content, default_flow_style=True, sort_keys=False, width=1000).strip()
            yield lines[preset] if same else f"      {f'{preset}:':<10}{flow}"
