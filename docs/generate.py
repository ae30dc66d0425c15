"""Write what follows from the code: pages of configuration, command line, outputs, recipes and benchmarks; JSON Schemas.

python docs/generate.py
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from architecture import api_pages, filled, layer_table, picture, rule_table  # noqa: E402
from benchmarks.common import RESULTS, table_markdown, to_markdown  # noqa: E402
from cards import model_card  # noqa: E402
from containers import FILES as CONTAINERS  # noqa: E402
from containers import container_text  # noqa: E402
from environments import KINDS, environment_text  # noqa: E402
from measured import cost_table, metrics_page, recordings_page, retention_lines  # noqa: E402
from presets import with_presets  # noqa: E402
from registries import engines, fusion_methods, networks, recipe_keys, regularisers, similarities, with_metrics  # noqa: E402
from transforms import transforms  # noqa: E402

from popatlas.cli.main import VERBS  # noqa: E402
from popatlas.cohort.outputs import NATIVE_LABELS, stage_outputs  # noqa: E402
from popatlas.config.load import default_config, default_content  # noqa: E402
from popatlas.images.io import read_json, write_if_changed  # noqa: E402
from popatlas.measures import dictionary  # noqa: E402
from popatlas.measures.metrics import BENCH_METRICS, METRICS  # noqa: E402
from popatlas.networks.registration import build_registration_network  # noqa: E402
from popatlas.reasons import CODES  # noqa: E402
from popatlas.regularisers.registry import entry_of  # noqa: E402
from popatlas.report.limits import limit  # noqa: E402
from popatlas.resources import schema_path  # noqa: E402
from popatlas.training.recipe import Recipe, load_recipe, recipe_names  # noqa: E402
from popatlas.training.sections import LossSection  # noqa: E402
from popatlas.training.train import count_parameters  # noqa: E402
from popatlas.zoo.lock import read_lock  # noqa: E402
from popatlas.zoo.store import load_weights  # noqa: E402
from schemas import SCHEMAS, schema_text  # noqa: E402

DESCRIBED = """As in BIDS, a JSON file says what the columns of a table are (`Description`, `Units`, `Levels`), and a lookup
table names the labels of a label image. The tables of the group have theirs beside them: `group/metrics.json`,
`volumes.json`, `summary.json`, `truth.json`, `trust.json`; `fusion-bench.json` also has the statistics. For files of scans
one at the top of OUT_DIR serves all, by the inheritance principle of BIDS: all scans and methods share names and columns.

| file | describes |
|---|---|
| `dseg.tsv` | all `*_dseg.nii.gz`: `index`, `name` and `color` of each label that has a name |
| `desc-metrics_table.json` | all `*_desc-metrics_table.tsv` |
| `trust.json` | all `*_trust.tsv` of scans |
| `desc-convergence_table.json` | the convergence table of the template |
"""
MARK = "<!-- written by docs/generate.py -->\n"


def keys(schema: dict[str, Any], values: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield key, default and meaning of a schema's properties, depth first."""
    for name, part in schema.get("properties", {}).items():
        where, value = f"{prefix}{name}", values[name]
        if part.get("properties"):
            yield from keys(part, value, f"{where}.")
        else:
            shown = (
                "see config.yaml"
                if isinstance(value, dict)
                else yaml.safe_dump(value, default_flow_style=True).split("\n")[0]
            )
            allowed = f" One of: {', '.join(map(str, part['enum']))}." if "enum" in part else ""
            yield where, shown, part.get("description", "") + "." + allowed


PRESET_OF_ONES_OWN = """A preset of your own needs only what differs too: the rest is that of the engine's `default`.

```yaml
register:
  preset: smooth
  presets:
    instance:
      smooth: {fluid: 2.5, elastic: 1.0}
```

Options that belong to another choice do not stay: with `similarity: nmi` or, of `ants`, `metric: mattes`, the options of the
similarity and the `sampling` of the metric take their own defaults, unless they are given too.
"""


def configuration() -> str:
    """Return the page of all configuration keys."""
    schema = yaml.safe_load(schema_path("config").read_text(encoding="utf-8"))
    rows = [f"| `{key}` | `{value}` | {meaning} |" for key, value, meaning in keys(schema, default_content())]
    head = (
        "# Configuration\n\nA file of yours holds only what differs: `popatlas run BIDS_DIR OUT_DIR --config my.yaml`. "
        "For once, `--set preprocess.resolution_mm=1 atlas.label=fine` goes before the file; values are YAML. Unknown keys "
        "are refused with the nearest known one. Threads, memory and partitions are in the profiles.\n\n"
        f"{PRESET_OF_ONES_OWN}\n"
    )
    return f"{head}| key | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def command_line() -> str:
    """Return the page of all verbs, from their `--help`."""
    parts = ["# Command line\n"]
    surroundings = {"COLUMNS": "100", "PATH": "", "PYTHONPATH": str(ROOT / "workflow")}
    for verb in ("", *VERBS, "fuse bench"):
        line = [sys.executable, "-m", "popatlas.cli.main", *verb.split(), "--help"]
        text = subprocess.run(line, capture_output=True, text=True, check=True, env=surroundings).stdout
        parts.append(f"## popatlas {verb}\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def codes() -> str:
    """Return the table of the reasons of failures."""
    rows = [f"| `{code}` | {meaning} | {remedy} |" for code, (meaning, remedy) in CODES.items()]
    return "\n".join(["", "| code | what happened | what to do |", "|---|---|---|", *rows, ""])


def outputs() -> str:
    """Return the page of output files and the data dictionary."""
    config = default_config()
    lines = [
        "# Outputs and data dictionary\n",
        "`{scan}` stands for `sub-01/anat/sub-01`, or `sub-01/ses-1/anat/sub-01_ses-1` in a dataset with sessions. "
        "Everything is in OUT_DIR; the label of the template is `popatlas` unless `atlas.label` says otherwise.\n",
        "## Files that prove that a stage is done\n",
        "| stage | file |",
        "|---|---|",
    ]
    for stage, patterns in stage_outputs(config, labelled=True).items():
        lines += [f"| {stage} | `{pattern}` |" for pattern in patterns]
    native = " and ".join(f"`{path.replace('{method}', 'jlf')}`" for path in NATIVE_LABELS.values())
    lines += ["", f"With `fuse.space: native` also {native}, and so on for each method."]
    lines += ["", *retention_lines(), "## Columns of the metric tables\n"]
    lines.append(
        "`{scan}_desc-metrics_table.tsv`, `group/metrics.tsv`, `group/metrics.parquet` and `group/truth.tsv`. Those of the "
        "group but `truth` also have the columns of participants.tsv, as numbers in Parquet where all cells are.\n"
    )
    of_group = {name: f"{text} (tables of the group)" for name, text in dictionary.GROUP_COLUMN_TEXT.items()}
    lines += columns(dictionary.COLUMN_TEXT | of_group)
    lines += ["", "## Metrics\n", "| metric | unit | better | meaning |", "|---|---|---|---|"]
    for name, metric in METRICS.items():
        text = dictionary.metric_text(name, metric).replace("|", "\\|")
        lines.append(f"| `{name}` | {metric.unit} | {metric.better} | {text} |")
    lines += ["", "## Other files of the group\n", "| file | content |", "|---|---|"]
    lines += [f"| `group/{name}` | {text} |" for name, text in dictionary.OTHER_FILES.items()]
    for title, text in (
        ("group/summary.tsv", dictionary.SUMMARY_COLUMN_TEXT),
        ("group/trust.tsv, group/trust.parquet", dictionary.ATLAS_WEIGHTS_COLUMN_TEXT),
        ("group/fusion-bench.tsv, group/fusion-bench.parquet", dictionary.BENCH_COLUMN_TEXT),
        ("tpl-popatlas/tpl-popatlas_desc-convergence_table.tsv", dictionary.CONVERGENCE_COLUMN_TEXT),
        *((f"tpl-popatlas/tpl-popatlas_desc-along_{kind}.tsv", text) for kind, text in dictionary.ALONG_COLUMN_TEXT.items()),
    ):
        lines += ["", f"## Columns of {title}\n", *columns(text)]
    lines += ["", "## Files that describe others\n", DESCRIBED]
    return "\n".join(lines) + "\n"


def columns(text: Mapping[str, str]) -> list[str]:
    """Return the columns of a table with their meaning, as a table."""
    return ["| column | meaning |", "|---|---|", *(f"| `{name}` | {meaning} |" for name, meaning in text.items())]


def outlier_limits() -> str:
    """Return the limits of outliers for some numbers of scans and measures, as a table."""
    measures = (1, 10, 20)
    head = ["| scans | 1 measure | 10 measures | 20 measures |", "|---|---|---|---|"]
    numbers = (5, 8, 12, 20, 50, 200, 1000)
    rows = [f"| {scans} | {' | '.join(f'{limit(scans, count):.1f}' for count in measures)} |" for scans in numbers]
    return "\n".join([*head, *rows, ""])


# what papers and their authors' code say of the weight of smoothness
PUBLISHED = {
    "bounding-boxes": "not printed",
    "dual-prnet": "not printed; averaged as in VoxelMorph",
    "dual-prnet-plus": "not printed; averaged as in VoxelMorph",
    "labelreg": "0.5; the authors' code averages over components",
    "pediatric": "not printed; DeepReg averages over components",
    "rcn": "half of the squares; the authors' code averages over components",
    "voxelmorph": "1 with local correlation; the authors' code averages over components and axes",
    "voxelmorph-diffeo": "a probabilistic loss; here that of VoxelMorph",
}

MIXED = "Experiment II"  # table of the fusion benchmark


def recipes() -> str:
    """Return the page of all recipes of the package."""
    lines = [
        "# Recipes\n",
        "A recipe says how a registration network is trained: `popatlas train NAME OUT_DIR --table scans.tsv` "
        "([Training](../training.md)). `popatlas train NAME --show` prints a recipe with all of its keys, which "
        "[Keys of a recipe](keys.md) explains. The page of each recipe tells what the paper says, what it leaves open or "
        "contradicts, and what we chose.\n",
        "| recipe | | network | parameters | losses | reference |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_recipe(load_recipe(name)) for name in recipe_names()]
    lines += [
        "\n## Weights of smoothness\n",
        "A penalty on the field has terms for each voxel: the squared derivatives of each component, nine first ones in 3D. "
        "`loss.regulariser.reduction` says what becomes of them: their `sum`, the sum averaged over the `components` of the "
        "field, or the `mean` over components and derivatives. So a published weight means what its authors mean by it. The "
        "last column is the weight that does the same with `sum`, the default of a recipe of yours that extends none of "
        "these.\n",
        "| recipe | penalty | as published | weight | reduction | weight of the sum |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_smoothness(load_recipe(name)) for name in recipe_names()]
    return "\n".join(lines) + "\n"


def _recipe(recipe: Recipe) -> str:
    """Return the row of a recipe; the page of a family is called as its first member."""
    name = recipe.name
    page = "brains" if name.startswith("brain-") else name.removesuffix("-diffeo").removesuffix("-plus")
    with torch.device("meta"):
        net = build_registration_network(recipe.network.name, recipe.ndim, **recipe.network.options)
    cells = [
        f"[{name}]({page}.md)",
        f"{recipe.ndim}D",
        f"`{net.name}`",
        f"{count_parameters(net):,}",
        losses(recipe.loss),
        recipe.reference,
    ]
    return f"| {' | '.join(cells)} |"


def _smoothness(recipe: Recipe) -> str:
    """Return the row of a recipe in the table of weights of smoothness."""
    name, weight, reduction = (getattr(recipe.loss.regulariser, key) for key in ("name", "weight", "reduction"))
    summed = weight / entry_of(name).divisor(reduction, recipe.ndim)
    cells = [f"`{recipe.name}`", name, PUBLISHED.get(recipe.name, "ours"), f"{weight:g}", reduction, f"{summed:.4g}"]
    return f"| {' | '.join(cells)} |"


def losses(loss: LossSection) -> str:
    """Return the terms of a recipe's loss with their weights."""
    labels, affine = loss.labels, loss.affine
    names = {
        loss.similarity.name: loss.similarity.weight,
        f"{labels.kind.replace('_', ' ')} of labels": labels.weight,
        "boxes": loss.boxes.weight,
        "mask": loss.mask.weight,
        {"grid": "distance of grids", "euler": "Euler angles"}[loss.pose.kind]: loss.pose.weight,
        _penalty(loss): loss.regulariser.weight,
        "determinant": affine.determinant,
        "orthogonality": affine.orthogonality,
    }
    return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in names.items() if weight)


def _penalty(loss: LossSection) -> str:
    """Return the regulariser in words."""
    name, reduction = loss.regulariser.name, loss.regulariser.reduction
    return name if reduction == "sum" else f"{name} ({reduction})"


def benchmarks() -> str:
    """Return the committed benchmark results as one page."""
    head = (
        "# Benchmarks\n\nEach table is what `python -m benchmarks.<name>` printed, on the machine and data that it names.\n"
    )
    return "\n".join([head, *map(_benchmark, sorted(RESULTS.glob("*.json")))])


def choosing_page() -> str:
    """Return the page of what to choose; its module reads config.yaml when it is imported, which is written first."""
    from choosing import choosing

    return choosing()


def mixed_table() -> str:
    """Return the table of Experiment II of the data parameters, from the results of the fusion benchmark."""
    rows = read_json(RESULTS / "fusion.json")["rows"][MIXED]
    shown = {name: ["" if row[name] is None else row[name] for row in rows] for name in rows[0] if name != "n"}
    return table_markdown(pd.DataFrame(shown))


def _benchmark(path: Path) -> str:
    """Return one result as a section, with its picture where there is one."""
    title, rest = to_markdown(read_json(path)).replace("\n## ", "\n### ").split("\n", 1)
    picture = f"images/{path.stem}.png"
    image = f"\n![{path.stem}]({picture})\n" if (DOCS / picture).exists() else ""
    return f"#{title}\n{image}{rest}"


def models() -> Iterator[tuple[str, str]]:
    """Yield place and text of the card of each shipped network."""
    for entry in read_lock(shipped=True):
        yield f"models/{entry.name}", model_card(entry, count_parameters(load_weights(entry.name)[0]))


def examples() -> str:
    """Return the page of the examples: what each shows, and its code."""
    lines = [
        "# Examples\n",
        "Short scripts on simulated brains; each takes seconds. Copy one, or run it where popatlas is installed, for "
        "example `python docs/examples/register_two_files.py`. The comment at the end is the last line that it prints. The "
        "tests run them all.\n",
    ]
    for path in sorted(DOCS.glob("examples/*.py")):
        text = path.read_text(encoding="utf-8")
        code = text.split('"""', 2)[2].strip()
        lines += [f"## {path.stem.replace('_', ' ').capitalize()}\n", f"{ast.get_docstring(ast.parse(text))}\n"]
        lines.append(f'```python title="docs/examples/{path.name}"\n{code}\n```\n')
    return "\n".join(lines)


def main() -> None:
    """Write all pages and schemas; files that would not change are left alone."""
    shipped = ROOT / "config.yaml"  # before anything reads it
    write_if_changed(shipped, with_presets(shipped.read_text(encoding="utf-8")))
    for kind in KINDS:
        write_if_changed(ROOT / "envs" / f"{kind}.yaml", environment_text(kind))
    for name in CONTAINERS:
        write_if_changed(ROOT / name, container_text(name))
    for name in SCHEMAS:
        write_if_changed(schema_path(name), schema_text(name))
    for name, page in (
        ("configuration", configuration()),
        ("cli", command_line()),
        ("outputs", outputs()),
        ("recipes/index", recipes()),
        ("benchmarks", benchmarks()),
        ("choosing", choosing_page()),
        ("howto/metrics", metrics_page()),
        ("recordings", recordings_page()),
        ("examples/index", examples()),
        ("reference/similarities", similarities()),
        ("reference/regularisers", regularisers()),
        ("reference/fusion-methods", fusion_methods()),
        ("reference/networks", networks()),
        ("reference/engines", engines()),
        ("reference/transforms", transforms()),
        ("recipes/keys", recipe_keys()),
        *models(),
        *api_pages(),
    ):
        write_if_changed(DOCS / f"{name}.md", MARK + page)
    page = DOCS / "runs.md"
    write_if_changed(page, filled(page.read_text(encoding="utf-8"), "codes", codes()))
    page = DOCS / "stages" / "report.md"
    write_if_changed(page, filled(page.read_text(encoding="utf-8"), "limits", outlier_limits()))
    page = DOCS / "stages" / "fuse.md"
    write_if_changed(page, filled(page.read_text(encoding="utf-8"), "mixed", mixed_table()))
    for page in (ROOT / "README.md", DOCS / "tutorial.md"):
        write_if_changed(page, filled(page.read_text(encoding="utf-8"), "cost", cost_table()))
    page = DOCS / "developers" / "architecture.md"
    text = filled(page.read_text(encoding="utf-8"), "layers", layer_table())
    write_if_changed(page, filled(text, "rules", rule_table()))
    write_if_changed(DOCS / "images" / "packages.svg", picture())
    for name, metrics in (("metrics", METRICS), ("fusion-bench", BENCH_METRICS)):
        schema = schema_path(name)
        write_if_changed(schema, with_metrics(schema.read_text(encoding="utf-8"), metrics))


if __name__ == "__main__":
    main()
