"""`popatlas train`: train a registration network by a recipe."""

from __future__ import annotations

import argparse
import math
import os
import sys

from popatlas.cli.arguments import Subparsers, count, duration, given_path, positive


def add_parser(subparsers: Subparsers) -> None:
    """Add the verb `train`."""
    parser = subparsers.add_parser(
        "train",
        help="train a registration network by a recipe",
        description="Train a registration network. Stopped by a signal, by --minutes or by a crash, the same command goes on"
        " from the last checkpoint and gives the same network. Exit code 0: finished, OUT_DIR/weights.safetensors is"
        " written. 3: stopped before the end. 1: an error.",
        epilog="Then: popatlas weights add OUT_DIR/weights.safetensors --name NAME --licence LICENCE",
    )
    parser.add_argument("recipe", nargs="?", help="name of a recipe, or a YAML file; without one, the recipes are listed")
    parser.add_argument("out_dir", nargs="?", type=given_path, metavar="OUT_DIR", help="folder of this training")
    parser.add_argument(
        "--table", type=given_path, help="TSV of scans: subject, image and optionally labels, mask, affine, split"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change the recipe: schedule.steps=1000")
    parser.add_argument("--gpus", type=count, default=0, help="GPUs, each with a process of its own (0: the CPU)")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads of each process (1)")
    parser.add_argument("--minutes", type=duration, default=math.inf, help="stop after so many minutes, with a checkpoint")
    parser.add_argument("--restart", action="store_true", help="begin anew where there is a checkpoint")
    parser.add_argument("--tensorboard", action="store_true", help="write curves for TensorBoard too")
    parser.add_argument("--show", action="store_true", help="print the complete recipe, train nothing")


def main(args: argparse.Namespace) -> int:
    """Train; 0 when finished, 3 when stopped before."""
    from popatlas.cohort.places import check_results_folder
    from popatlas.errors import InputError
    from popatlas.interfaces.base import limit_threads
    from popatlas.training.recipe import load_recipe, parse_changes

    if args.recipe is None:
        return _list_recipes()
    limit_threads(args.threads)
    recipe = load_recipe(args.recipe, parse_changes(args.set))
    if args.show:
        import yaml

        print(yaml.safe_dump(recipe.content, sort_keys=False), end="")
        return 0
    if args.out_dir is None:
        raise InputError("no folder for the training", remedy=f"popatlas train {args.recipe} OUT_DIR --table FILE")
    check_results_folder(args.out_dir)
    from popatlas.training.launch import UNFINISHED, run_processes
    from popatlas.training.train import Options, check_device, train

    device = check_device(args.gpus)
    if args.gpus > 1 and "WORLD_SIZE" not in os.environ:
        return run_processes(args.gpus, sys.argv[1:])
    options = Options(device, args.minutes, args.restart, args.tensorboard)
    outcome = train(recipe, args.table, args.out_dir, options, lambda line: print(line, flush=True))
    print(f"{outcome.reason}; best step {outcome.checkpoint.best_step}, {_told(outcome.scores)}")
    if not outcome.finished:
        print("not finished: run the same command to go on")
        return UNFINISHED
    print(f"weights: {args.out_dir / 'weights.safetensors'}")
    return 0


def _list_recipes() -> int:
    from popatlas.training.recipe import load_recipe, recipe_names

    for name in recipe_names():
        recipe = load_recipe(name, light=True)
        print(f"{name:20} {recipe.ndim}D  {recipe.title}")
    return 0


def _told(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if not math.isnan(value)) or "no validation"
