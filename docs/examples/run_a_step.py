"""Run two steps of the pipeline as Nipype nodes: bias correction, then intensities. The workflow runs the same interfaces.

Outputs are inputs that are named `out_...`; they come back under the same names, so that nodes can be connected. On the
command line it is `popatlas step CorrectAndConform --in_file ...`; with `--help` it tells what a step takes.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from nipype.pipeline.engine import Node, Workflow

from popatlas.config.load import default_config
from popatlas.images.io import load_image, save_image
from popatlas.images.miniature import draw_miniature
from popatlas.interfaces import load_interface
from popatlas.settings import as_content

brain = draw_miniature(1)
biased = brain.image * np.exp(np.linspace(-0.4, 0.4, brain.image.shape[0]))[:, None, None]  # brighter on one side


def unevenness(image: np.ndarray) -> float:
    """Return how strongly the brightness of the white matter follows the way from left to right: 0 not at all, 1 alone."""
    white = np.isin(brain.labels, (3, 6))
    return abs(float(np.corrcoef(np.nonzero(white)[0], image[white])[0, 1]))


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    head, mask, _ = brain.save(folder, "brain")
    save_image(biased, brain.affine, head)
    n4 = as_content(replace(default_config().preprocess.n4, shrink_factor=2))  # 4: too few of these large voxels are left

    correct = Node(load_interface("CorrectAndConform")(in_file=head, resolution_mm=4.0, n4=n4), "correct")
    correct.inputs.out_file = folder / "corrected.nii.gz"
    normalise = Node(load_interface("NormaliseBrain")(in_mask=mask, volume_ml=[700, 2300]), "normalise")
    normalise.inputs.trait_set(out_brain=folder / "out.nii.gz", out_mask=folder / "mask.nii.gz", out_qc=folder / "qc.json")
    flow = Workflow("preprocess", base_dir=str(folder))
    flow.connect(correct, "out_file", normalise, "in_file")
    flow.run()
    image = np.asarray(load_image(folder / "out.nii.gz").dataobj)

print(f"unevenness of the white matter: {unevenness(biased):.2f} -> {unevenness(image):.2f}")
# unevenness of the white matter: 0.88 -> 0.07
