"""`popatlas weights`: the trained networks that popatlas knows. Nothing here uses the network of the machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from popatlas.cli.arguments import Subparsers, given_path

if TYPE_CHECKING:
    from popatlas.settings import Content
    from popatlas.zoo.lock import Entry
    from popatlas.zoo.metadata import InputContract

# those of popatlas.zoo.importers.base.IMPORTERS, which is slow to import; a test compares them
KINDS = ("voxelmorph-cvpr2018", "voxelmorph-miccai2018", "symnet", "lapirn-lite", "unigradicon")


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `weights` and what it does."""
    parser = subparsers.add_parser(
        "weights",
        help="trained registration networks: list, show, verify, add, import",
        description="Weights are shipped with the package, or yours: in the folder of the variable POPATLAS_WEIGHTS, or "
        "popatlas/weights of your data folder (XDG_DATA_HOME, ~/.local/share). A lock file beside them holds their digests, "
        "what images they expect and where they came from. Nothing is ever downloaded.",
    )
    actions = parser.add_subparsers(dest="action", metavar="list|show|verify|add|import", required=True)
    listed = actions.add_parser("list", help="all weights, one line each")
    listed.add_argument("--json", action="store_true", help="everything, as JSON")
    shown = actions.add_parser("show", help="everything about some weights")
    shown.add_argument("name", help="name, or a .safetensors file")
    shown.add_argument("--json", action="store_true", help="as JSON")
    verified = actions.add_parser(
        "verify",
        help="check files against the lock files",
        description="Present, size, SHA-256, loads, the right network, finite. One line each; exit code 1 when one fails.",
    )
    verified.add_argument("names", nargs="*", metavar="NAME", help="weights (default: all)")
    _add_add(actions)
    imported = actions.add_parser(
        "import",
        help="convert a public checkpoint that you have",
        description="Converts a published checkpoint and adds it to your weights, with its licence and citation.",
    )
    imported.add_argument("kind", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    imported.add_argument("file", type=given_path, metavar="FILE", help="the checkpoint, as its authors published it")
    imported.add_argument("--name", help="name among your weights (default: the kind)")


def _add_add(actions: Subparsers) -> None:
    added = actions.add_parser(
        "add",
        help="add a weights file to yours",
        description="Copies a file and locks it. What training wrote into it (images expected, data, recipe, scores) is "
        "read there; the options tell it for files that lack it.",
    )
    added.add_argument("file", type=given_path, metavar="FILE", help=".safetensors file of popatlas")
    added.add_argument("--name", required=True, help="name: a-z, 0-9, dot, underscore, hyphen")
    added.add_argument("--licence", required=True, help="SPDX identifier, for example CC-BY-4.0")
    added.add_argument("--version", default="1", help="version of the weights (default: 1)")
    added.add_argument("--source", default="trained by the user", help="citation or address")
    added.add_argument("--recipe", help="recipe that trained it")
    added.add_argument("--card", help="page that describes it")
    added.add_argument("--transform", choices=("displacement", "velocity"), help="what it predicts")
    added.add_argument(
        "--contract", type=given_path, metavar="YAML", help="images that it expects, as in `weights show`: input"
    )
    added.add_argument("--trained-on", metavar="TEXT", help="training data in words")
    added.add_argument("--half", action="store_true", help="store float16: half of the space; measure the scores")
    added.add_argument("--shipped", action="store_true", help="into the package, for its maintainers")


def main(args: argparse.Namespace) -> int:
    """Run an action; 1 when `verify` finds a problem."""
    return int({"list": _list, "show": _show, "verify": _verify, "add": _add, "import": _import}[args.action](args))


def _list(args: argparse.Namespace) -> int:
    from popatlas.zoo.lock import read_locks, user_folder

    entries = read_locks()
    if args.json:
        print(json.dumps([_described(entry) for entry in entries], indent=2))
    elif entries:
        print("\n".join(table_lines([row_of(entry) for entry in entries])))
    else:
        print(f"no weights; add yours with `popatlas weights add` or `import` (kept in {user_folder()})")
    return 0


def row_of(entry: Entry) -> dict[str, str]:
    """Return the line of some weights, by column."""
    best = entry.best
    return {
        "name": entry.name,
        "version": entry.version,
        "ndim": f"{entry.ndim}D",
        "recipe": entry.recipe or "-",
        "licence": entry.licence,
        "size": f"{entry.bytes / 1e6:.1f} MB",
        "expects": entry.input.describe(),
        "best score": f"{best.metric} {best.value:.3g} ({best.data}, n={best.n})" if best else "-",
    }


def table_lines(rows: list[dict[str, str]]) -> list[str]:
    """Return rows of one set of columns as aligned lines with a header."""
    columns = list(rows[0])
    lines = [dict(zip(columns, columns, strict=True)), *rows]
    widths = {name: max(len(line[name]) for line in lines) for name in columns}
    return ["  ".join(line[name].ljust(widths[name]) for name in columns).rstrip() for line in lines]


def _described(entry: Entry) -> Content:
    return entry.to_plain() | {"path": str(entry.path)}


def _show(args: argparse.Namespace) -> int:
    import yaml

    from popatlas.zoo.find import find_weights

    values = _described(find_weights(args.name))
    if args.json:
        print(json.dumps(values, indent=2))
    else:
        print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120), end="")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from popatlas.zoo.store import verify

    failed = 0
    for name, problem in verify(args.names):
        print(f"ok      {name}" if problem is None else f"FAILED  {name}: {problem}")
        failed += problem is not None
    return 1 if failed else 0


def _add(args: argparse.Namespace) -> int:
    from popatlas.zoo.metadata import TrainingFacts
    from popatlas.zoo.store import Description, add_half, add_weights

    told = Description(
        name=args.name,
        licence=args.licence,
        version=args.version,
        source=args.source,
        recipe=args.recipe,
        model_card=args.card,
        contract=None if args.contract is None else _read_contract(args.contract),
        training=None if args.trained_on is None else TrainingFacts(args.trained_on),
        transform=args.transform,
    )
    add = add_half if args.half else add_weights
    return _added(add(args.file, told, shipped=args.shipped))


def _read_contract(path: Path) -> InputContract:
    from popatlas.errors import InputError
    from popatlas.yamlfile import read_yaml
    from popatlas.zoo.metadata import InputContract

    try:
        return InputContract.from_plain(read_yaml(path, "the contract"))
    except ValueError as error:
        remedy = "compare with the section input of `popatlas weights show`"
        raise InputError(f"cannot read the contract: {error}", file=path, remedy=remedy) from error


def _import(args: argparse.Namespace) -> int:
    from popatlas.zoo.importers.base import import_weights

    return _added(import_weights(args.kind, args.file, args.name))


def _added(entry: Entry) -> int:
    print(f"added {entry.name}: {entry.path} ({entry.licence}; {entry.input.describe()})")
    return 0
