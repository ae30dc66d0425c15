"""The training of a registration network as the Snakefile sees it: its inputs, outputs, budget and memory."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

from popatlas.cohort.freeze import resolve_pattern
from popatlas.cohort.training import REFERENCE, SCANS, NetworkTraining
from popatlas.config.sections import Config
from popatlas.images.io import write_if_changed
from popatlas.study.jobs import JobStudy
from popatlas.study.rules import Resources, Wildcards
from popatlas.training.recipe import slice_places

# Memory of a process: MB of the process itself, bytes of a voxel of a pair that goes through the network with its gradients,
# and of a voxel of a scan (image, labels and mask); measured on `brain-t1w` with 24 scans: 1.1 GB
PROCESS, PAIR, HELD = 2000, 2000, 12
# Minutes before the end of a job in which its checkpoint is written: a share of its runtime, within limits
SHARE, LEAST, MOST = 0.1, 2.0, 15.0


def network_memory(voxels: int, batch: int, scans: int, processes: int = 1) -> int:
    """Return the memory that a training needs, megabytes.

    Parameters
    ----------
    voxels : int
        Of an image on the training grid.
    batch : int
        Pairs of a step.
    scans : int
        Images, of a scan its slices for networks of two axes; all are held by each process.
    processes : int
        One for each GPU.
    """
    return processes * math.ceil(PROCESS + voxels * (PAIR * batch + HELD * scans) / 1e6)


def budget(minutes: float, runtime: float) -> float:
    """Return after how many minutes a training stops: those asked for, or (0) shortly before the runtime of its job ends."""
    return minutes or max(runtime / 2, runtime - min(MOST, max(LEAST, SHARE * runtime)))


class TrainStudy(JobStudy):
    """Input functions and targets of the rules that train a registration network; `Study` holds what they read."""

    config: Config
    out_dir: Path
    network: NetworkTraining | None

    @property
    def needs_network(self) -> bool:
        """Tell whether a registration network is wanted and not made; once it is, no rule makes it."""
        return self.network is not None and self.job_name("train_registration", {}) not in self.made

    @property
    def plan(self) -> NetworkTraining:
        """The training of the network, for the rules that are there only where it is wanted."""
        if self.network is None:
            raise RuntimeError("no registration network is trained: train.recipe is null")
        return self.network

    def network_targets(self) -> list[str]:
        """Return the files of the network, none without a recipe."""
        return list(self.network.files().values()) if self.network else []

    def network_inputs(self) -> dict[str, list[str]]:
        """Return what is known of each training scan: image, mask, and as far as the recipe reads them affine and labels."""
        grid, label, method = self.plan.recipe.grid, self.config.atlas.label, self.config.train.labels
        patterns = {
            "images": f"{{scan}}_desc-{'brain' if grid.stripped else 'preproc'}_T1w.nii.gz",
            "masks": "{scan}_desc-brain_mask.nii.gz",
        }
        if grid.affine_first:
            patterns["affines"] = f"{{scan}}_from-T1w_to-{label}_mode-image_desc-affine_xfm.mat"
        if method not in (None, REFERENCE):
            patterns["labels"] = f"{{scan}}_desc-{method}_dseg.nii.gz"
        files = {key: [pattern.format(scan=scan) for scan in self.plan.scans] for key, pattern in patterns.items()}
        if method == REFERENCE:
            root, pattern = Path(self.config.bids_dir), self.config.measure.reference
            files["labels"] = [str(resolve_pattern(pattern, scan, root)) for scan in self.plan.scans]
        return files

    def network_files(self, wildcards: Wildcards) -> dict[str, list[str]]:
        """Return what the workflow makes of the inputs of a training."""
        own = self.config.train.labels != REFERENCE
        return {key: files for key, files in self.network_inputs().items() if own or key != "labels"}

    def network_list(self, key: str) -> str:
        """Return the file that lists the images, masks, affines or labels of a training; empty where there are none."""
        return f"cohort/network-{key}.txt"

    def write_network_lists(self) -> None:
        """Write the lists of files that the table of a training is made from."""
        if self.needs_network:
            inputs = self.network_inputs()
            for key in ("images", "masks", "affines", "labels"):
                lines = [f"{path}\n" for path in inputs.get(key, [])]
                write_if_changed(self.out_dir / self.network_list(key), "".join(lines))

    def network_table(self) -> dict[str, str]:
        """Return the table of training scans, nothing for a recipe that needs no data."""
        return {"table": f"{self.plan.work_folder}/scans.tsv"} if self.plan.scans else {}

    def table_option(self) -> str:
        """Return TrainRegistration's option for the table."""
        return "".join(f"--in_table {shlex.quote(path)}" for path in self.network_table().values())

    @staticmethod
    def frozen_scans() -> str:
        """Return the table of frozen scans."""
        return SCANS

    def network_recipe(self) -> str:
        """Return the complete recipe as JSON."""
        return json.dumps(self.plan.recipe.content)

    def network_budget(self, wildcards: Wildcards, resources: Resources) -> float:
        """Return after how many minutes a job stops with a checkpoint."""
        return budget(self.config.train.minutes, float(resources.runtime))

    def network_memory(self) -> int:
        """Return the memory that the training needs, megabytes."""
        recipe = self.plan.recipe
        voxels = math.prod(recipe.grid.shape)
        held = len(self.plan.scans) * max(1, len(slice_places(recipe.grid)))
        return network_memory(voxels, recipe.schedule.batch, held, max(1, self.config.train.gpus))
