"""The training of a registration network as the rules ask for it: its inputs, budget and memory."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path

from popatlas.cohort.freeze import resolve_pattern
from popatlas.cohort.training import REFERENCE, SCANS, NetworkTraining
from popatlas.config.sections import Config
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


@dataclass(frozen=True)
class Network:
    """What the rules ask that train a registration network on the cohort.

    Attributes
    ----------
    config : dict
        Complete configuration.
    plan : NetworkTraining
        The network and its frozen scans.
    """

    config: Config
    plan: NetworkTraining

    def inputs(self) -> dict[str, list[str]]:
        """Return what is known of each training scan: image, mask, and as far as the recipe reads them affine and labels."""
        grid, label, method = self.plan.recipe.grid, self.config.atlas.label, self.config.train.labels
        patterns = {
            "images": "{scan}_desc-brain_T1w.nii.gz",
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

    def files(self, wildcards: Wildcards) -> dict[str, list[str]]:
        """Return what the workflow makes of the inputs of a training."""
        own = self.config.train.labels != REFERENCE
        return {key: files for key, files in self.inputs().items() if own or key != "labels"}

    @property
    def lists(self) -> dict[str, str]:
        """The files that list images, masks, affines and labels of a training; empty where there are none."""
        return {key: f"cohort/network-{key}.txt" for key in ("images", "masks", "affines", "labels")}

    def listed(self) -> dict[str, list[str]]:
        """Return the lines of these files."""
        inputs = self.inputs()
        return {path: inputs.get(key, []) for key, path in self.lists.items()}

    @property
    def scans(self) -> str:
        """The table of frozen scans."""
        return SCANS

    @property
    def table(self) -> dict[str, str]:
        """The table of training scans, nothing for a recipe that needs no data."""
        return {"table": f"{self.plan.work_folder}/scans.tsv"} if self.plan.scans else {}

    @property
    def table_option(self) -> str:
        """TrainRegistration's option for the table."""
        return "".join(f"--in_table {shlex.quote(path)}" for path in self.table.values())

    @property
    def recipe(self) -> str:
        """The complete recipe as JSON."""
        return json.dumps(self.plan.recipe.content)

    def budget(self, wildcards: Wildcards, resources: Resources) -> float:
        """Return after how many minutes a job stops with a checkpoint."""
        return budget(self.config.train.minutes, float(resources.runtime))

    def memory(self) -> int:
        """Return the memory that the training needs, megabytes."""
        recipe = self.plan.recipe
        held = len(self.plan.scans) * max(1, len(slice_places(recipe.grid)))
        return network_memory(math.prod(recipe.grid.shape), recipe.schedule.batch, held, max(1, self.config.train.gpus))
