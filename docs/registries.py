"""Write the pages of the registries: what there is, its options and their ranges, from the classes themselves."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from popatlas.fusion.methods import METHODS
from popatlas.fusion.sections import SECTIONS
from popatlas.fusion.settings import PRESETS, DataParametersSettings
from popatlas.measures.metrics import Metric
from popatlas.networks.architectures import ARCHITECTURES
from popatlas.networks.backbones import BACKBONES
from popatlas.registration.engines.engine import Engine
from popatlas.registration.engines.registry import ENGINES
from popatlas.registry import Entry
from popatlas.regularisers.registry import REGULARISERS
from popatlas.report.methods import read_references, reference_line
from popatlas.schema import schema_of
from popatlas.settings import Content, as_content
from popatlas.similarity.registry import SIMILARITIES
from popatlas.training.sections import Sections

ROOT = Path(__file__).resolve().parents[1]
SIDES = (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"), ("exclusiveMaximum", "below"))


def similarities() -> str:
    """Return the page of the similarities."""
    lines = [
        "# Similarities\n",
        "How well two images agree. `similarity` and `options` choose one, in the schedules of the engines `instance`, "
        "`network`, `unigradicon` and `ffd`, and in the loss of a recipe. Lower is better. $F$ and $M$ are the fixed and "
        "the moving image, $x$ voxels, $\\Omega$ the voxels that count.\n",
    ]
    for name, entry in SIMILARITIES.items():
        kind = entry.load()
        lines += [*section(name, entry, kind), *options_table(kind)]
        if entry.one_contrast:
            lines.append("Both images need one contrast.\n")
        if not entry.symmetric:
            lines.append("Exchanging the images changes the value.\n")
    return "\n".join(lines)


def regularisers() -> str:
    """Return the page of the regularisers."""
    lines = [
        "# Regularisers\n",
        "Penalties on a displacement $u$: `regulariser` in the schedules of the engine `ffd` and in the loss of a recipe. "
        "$i, j, k$ are axes, $x$ voxels of the grid of $u$, $\\Omega$ all of them.\n",
    ]
    for name, entry in REGULARISERS.items():
        lines += section(name, entry, entry.load())
        if entry.aliases:
            lines.append(f"Also called {' and '.join(f'`{alias}`' for alias in entry.aliases)}.\n")
    return "\n".join(lines)


def fusion_methods() -> str:
    """Return the page of the fusion methods."""
    lines = [
        "# Fusion methods\n",
        "Each method of `fuse.methods` makes one label image of all candidates of a target. $L_n(x)$ is the label that "
        "atlas $n$ has at voxel $x$, $I_n$ its image, $T$ the target. [Fuse](../stages/fuse.md) tells when to use which.\n",
    ]
    for name, entry in METHODS.items():
        lines += section(name, entry, inspect.getmodule(entry.load()))
        lines.append("It uses labels and images.\n" if entry.needs_images else "It uses labels only.\n")
        for number, place in enumerate(entry.sections):
            only = entry.options if number == 0 else ()
            lines += [f"Options, in `fuse.{place}`:\n", *options_table(SECTIONS[place], only)]
            lines += changes_table(PRESETS) if SECTIONS[place] is DataParametersSettings else []
    return "\n".join(lines)


def engines() -> str:
    """Return the page of the registration engines."""
    lines = [
        "# Registration engines\n",
        "The deformable stage of a registration: `register.engine`, and the engines of `register.fallback`. The options "
        "below are those of a schedule in `register.presets`. [Register](../stages/register.md) tells when to use which "
        "engine.\n",
    ]
    for name, engine in ENGINES.items():
        lines += section(name, engine, about(engine))
        lines += [*facts(engine), *options_table(engine.settings), *presets_table(engine)]
    return "\n".join(lines)


def facts(engine: Engine) -> list[str]:
    """Return where an engine runs and what it needs, as a list."""
    axes = " and ".join(f"{count}D" for count in engine.axes)
    found = [f"for {axes} images", "on the CPU or a GPU (`register.gpu`)" if engine.gpu else "on the CPU"]
    if engine.weights:
        found.append(f"with the weights that `register.{engine.weights}` names")
    if engine.extra:
        found.append(f"after `pip install 'popatlas[{engine.extra}]'`")
    return [f"Runs {', '.join(found)}.\n"]


def presets_table(engine: Engine) -> list[str]:
    """Return a table of the presets of an engine: what they change of the defaults."""
    defaults = as_content(engine.settings())
    changes = {
        name: {key: value for key, value in as_content(preset).items() if value != defaults[key]}
        for name, preset in engine.presets.items()
    }
    return changes_table(changes)


def changes_table(presets: Mapping[str, Content]) -> list[str]:
    """Return a table of what each preset changes of the defaults."""
    rows = []
    for name, content in presets.items():
        changes = [f"`{key}: {inline(value)}`" for key, value in content.items()]
        rows.append(f"| `{name}` | {', '.join(changes) or 'nothing'} |")
    return ["| preset | what differs from the defaults |", "|---|---|", *rows, ""]


def inline(value: Any) -> str:
    """Return a value as YAML on one line."""
    return str(yaml.safe_dump(value, default_flow_style=True, width=1000)).split("\n")[0]


def about(engine: Engine) -> str:
    """Return the docstring of an engine's module, of its `core` where it is a package; it may need what is not installed."""
    own = ROOT / "workflow" / f"{engine.code.split(':')[0].replace('.', '/')}.py"
    core = own.with_name("core.py")
    return ast.get_docstring(ast.parse((core if core.exists() else own).read_text(encoding="utf-8"))) or ""


def networks() -> str:
    """Return the page of the architectures."""
    lines = [
        "# Networks\n",
        "Architectures of registration networks: `network.name` and `network.options` of a recipe. All are for images of "
        "two and of three axes.\n",
    ]
    for name, entry in ARCHITECTURES.items():
        lines += [*section(name, entry, entry.load()), *options_table(entry.settings)]
        if entry.packages:
            lines.append(f"It needs packages that are installed by hand: {', '.join(entry.packages)}.\n")
    lines.append("# Segmentation networks\n\n`fuse.segmenter.network` and `fuse.dataparams.network` of a configuration.\n")
    for name, entry in BACKBONES.items():
        lines += [*section(name, entry, entry.load()), *options_table(entry.settings)]
    return "\n".join(lines)


def recipe_keys() -> str:
    """Return the page of all keys of a recipe."""
    head = (
        "# Keys of a recipe\n\nA recipe of yours says only what differs: from its parent (`extends: NAME`), or from these "
        "defaults. `--set section.key=value` changes one key. Unknown keys are refused with the nearest known one. Options "
        "of the network are those of its [architecture](../reference/networks.md), options of the similarity those of the "
        "[similarity](../reference/similarities.md). `extends` is a file beside the recipe, or the name of a "
        "[recipe](index.md).\n\n"
    )
    return head + "\n".join(options_table(Sections))


def section(name: str, entry: Entry, thing: Any) -> Iterator[str]:
    """Yield heading, formula, meaning (the docstring of `thing`, or `thing` itself), references and source of an entry."""
    yield f"## `{name}`: {entry.title}\n"
    if entry.formula:
        yield f"$$\n{entry.formula}\n$$\n"
    yield explanation(thing if isinstance(thing, str) else inspect.getdoc(thing) or "") + "\n"
    if entry.references:
        known = read_references()
        yield " ".join(reference_line(known[key]) for key in entry.references) + "\n"
    yield f"Source: {source(entry.code)}.\n"


def source(code: str) -> str:
    """Return a link to what ``module:name`` names, in the API reference."""
    name = code.replace(":", ".")
    return f"[`{name}`][{name}]"


def explanation(docstring: str) -> str:
    """Return a docstring up to its first section, as Markdown; citations stand below it anyway."""
    text = re.split(r"\n\w[\w ]*\n---+\n", docstring)[0].removeprefix("Return ")
    text = re.sub(r":\w+:(`[^`]+`)", r"\1", text.replace("``", "`"))
    text = re.sub(r"(?m)^\n?(`[^`]+`)\n    ", r"\n- \1: ", text)  # definition lists are no Markdown
    own = [part for part in text.strip().split("\n\n") if not re.search(r"\d{4};\d+(\(\d+\))?:\d+-\d+\. doi:\S+$", part)]
    first = own[0] if own[0].split(" ")[0].lower() != own[0].split(" ")[0] else own[0][:1].upper() + own[0][1:]
    return "\n\n".join([first, *own[1:]])


def options_table(kind: Any, only: tuple[str, ...] = ()) -> list[str]:
    """Return a table of the options of a class of settings, of all or `only` some; nothing where it has none."""
    schema = schema_of(kind, complete=False)
    if only:
        schema["properties"] = {name: schema["properties"][name] for name in only}
    rows = list(option_rows(schema, as_content(kind())))
    return ["| option | default | allowed | meaning |", "|---|---|---|---|", *rows, ""] if rows else []


def option_rows(schema: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield a row for each option, those of options that have options of their own after a full stop."""
    for name, part in schema.get("properties", {}).items():
        where, value = f"{prefix}{name}", defaults[name]
        if "properties" in part:
            yield from option_rows(part, value, f"{where}.")
        else:
            yield f"| `{where}` | `{inline(value)}` | {allowed(part)} | {part['description']} |"


def allowed(part: Mapping[str, Any]) -> str:
    """Return in words what values a schema allows."""
    if "anyOf" in part:
        return ", or ".join(allowed(inner) for inner in part["anyOf"])
    if "enum" in part:
        return ", ".join("null" if value is None else f"{value}" or "empty" for value in part["enum"])
    kinds = [part["type"]] if isinstance(part["type"], str) else part["type"]
    sides = [f"{words} {part[word]}" for word, words in SIDES if word in part]
    if "array" in kinds:
        least, most = part.get("minItems", 0), part.get("maxItems")
        count = (
            f"{least}" if least == most else f"{least} to {most}" if most else f"{least} or more" if least else "any number"
        )
        return f"{count} of: {allowed(part['items'])}"
    words = {"boolean": "true, false", "integer": "whole number", "number": "number", "string": "text", "null": "null"}
    return ", ".join([*(words.get(kind, kind) for kind in kinds), *sides])


def with_metrics(text: str, metrics: Mapping[str, Metric]) -> str:
    """Return a schema of a table with the names and units of its metrics."""
    units = yaml.safe_dump(list(dict.fromkeys(metric.unit for metric in metrics.values())), default_flow_style=True)
    names = "".join(f"      - {name}\n" for name in metrics)
    text = re.sub(r"(?ms)^  metric:.*?(?=^  \w)", f"  metric:\n    enum:\n{names}", text)
    return re.sub(r"(?m)^  unit:.*$", f"  unit: {{enum: {units.strip()}}}", text)
