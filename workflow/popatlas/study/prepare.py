"""What the main process does before the job graph: the index, and everything that is drawn and frozen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from popatlas.cohort.batches import MEMBERS, PREDICTIONS, batches
from popatlas.config.beside import beside
from popatlas.config.load import default_config
from popatlas.config.sections import Config
from popatlas.images.io import write_if_changed
from popatlas.study.preprocess import brain_folder
from popatlas.study.register import prediction_folder


def prepare(config: Config, out_dir: Path) -> None:
    """Bring the cohort's tables up to date: index, frozen members, label atlases, training targets, batches."""
    import yaml

    from popatlas.cohort.along import check_covariate
    from popatlas.cohort.described import describe_outputs
    from popatlas.cohort.freeze import freeze_atlas_members, freeze_label_atlases
    from popatlas.cohort.index import index_cohort
    from popatlas.cohort.ledger import failed_atlases, failed_scans
    from popatlas.cohort.names import freeze_label_names
    from popatlas.cohort.participants import read_people
    from popatlas.cohort.targets import freeze_targets
    from popatlas.cohort.training import freeze_network

    index = index_cohort(config, out_dir)
    # the steps, which read it, run in OUT_DIR
    write_if_changed(out_dir / "cohort" / "config.yaml", yaml.safe_dump(beside(config.content), sort_keys=False))
    good, failed, early = list(index.loc[index["state"] == "ok", "scan"]), failed_scans(out_dir)[""], failed_atlases(out_dir)
    usable = [scan for scan in good if scan not in failed]
    serving = [scan for scan in good if scan not in early]  # a target that failed may still be an atlas of the others
    own = set(index.loc[index["role"] == "cohort", "scan"])
    check_covariate(config, read_people(out_dir), [scan for scan in good if scan in own])
    if config.atlas.template is None:
        freeze_atlas_members(config, index, [scan for scan in usable if scan in own], out_dir)
    atlases = freeze_label_atlases(config, index, serving, out_dir)
    freeze_label_names(config, atlases["dseg"], sorted(own), out_dir)
    describe_outputs(out_dir)
    freeze_targets(config, index, usable, atlases, out_dir)
    freeze_network(config, index, usable, atlases, out_dir)
    batches(serving, config.preprocess.brain.batch, out_dir, brain_folder(config))
    if config.register.engine == "network":
        through = set(atlases["atlas"]) if config.fuse.through == "template" else set()
        form_predictions(config, [scan for scan in serving if scan in own | through], out_dir)


def form_predictions(config: Config, usable: Sequence[str], out_dir: Path) -> None:
    """Bring the batches of predictions up to date; what a fallback has registered is not predicted again."""
    from popatlas.cohort.freeze import read_members, template_version
    from popatlas.cohort.outputs import stage_outputs

    members = read_members(config, out_dir)
    size, records = config.register.network.batch, prediction_folder(config, template_version(members, config))
    patterns = stage_outputs(config, labelled=False)["register"]
    done = {scan for scan in usable if all((out_dir / pattern.format(scan=scan)).is_file() for pattern in patterns)}
    batches(usable, size, out_dir, records, table=PREDICTIONS, settled=done)
    batches(list(members["scan"]), size, out_dir, table=MEMBERS)


def simulate_if_missing(config: Config) -> None:
    """Draw the demo cohort when the configuration points at its default place and nothing is there."""
    if is_demo_missing(config):
        from popatlas.images.simulate import simulate_cohort

        simulate_cohort(Path(config.bids_dir), subjects=config.simulate.subjects, seed=config.simulate.seed)


def is_demo_missing(config: Config) -> bool:
    """Tell whether a run would draw the demo cohort."""
    bids_dir = Path(config.bids_dir)
    return config.simulate.enabled and bids_dir == Path(default_config().bids_dir).resolve() and not bids_dir.exists()
