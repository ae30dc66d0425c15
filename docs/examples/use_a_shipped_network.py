"""Use a network of the zoo: what it expects, how images are brought to that, and what it does in one pass.

`brain-t1w-2d` registers axial slices of T1w brains. Its contract says which voxels, orientation and intensities it was
trained with; `conform_pair` makes them, and takes the displacement back to the grid of the image.
"""

import numpy as np
import torch

from popatlas.images.miniature import draw_miniature
from popatlas.measures.overlap import overlap
from popatlas.transforms.fields import warp_labels
from popatlas.zoo.contract import conform_pair
from popatlas.zoo.store import load_weights

net, entry = load_weights("brain-t1w-2d")
print(f"{entry.name} {entry.version}: {entry.licence}, trained on {entry.training.data}")
print(f"expects {entry.input.spacing_mm[0]:g} mm, {entry.input.orientation}, multiples of {entry.input.multiple} voxels")

fixed, moving = (draw_miniature(seed, spacing_mm=2, bend_mm=6.0).axial(42) for seed in (1, 2))
pair = conform_pair(fixed.scan(), moving.scan(), np.eye(3), entry.input)
with torch.no_grad():
    displacement = pair.back(net(pair.fixed.image, pair.moving).displacement)
print(f"longest displacement: {float(displacement.norm(dim=1).max()):.1f} voxels")

moved = warp_labels(torch.from_numpy(moving.labels)[None, None], displacement, "nearest")[0, 0].numpy()
before, after = (overlap(fixed.labels, labels).dice.mean() for labels in (moving.labels, moved))
print(f"mean Dice of 6 labels: {before:.2f} -> {after:.2f}")
# mean Dice of 6 labels: 0.50 -> 0.84
