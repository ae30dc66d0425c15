"""Apply a chain of transforms to an image, to labels and to points, each interpolated once; and go back by its inverse.

A chain holds its steps in the order in which a point of the fixed image goes through them. Here a smooth field bends the
head and an affine turns it by 10 degrees; both could as well be read from ITK files.
"""

import numpy as np
import torch

from popatlas.images.miniature import draw_miniature
from popatlas.transforms.chain import Affine, Chain, Field
from popatlas.transforms.ffd import control_shape, dense_from_control
from popatlas.transforms.linear import matrix
from popatlas.transforms.velocity import integrate_stationary

brain = draw_miniature(1)
scan = brain.scan()
grid, labels = scan.grid, torch.from_numpy(brain.labels)[None, None]

turn = torch.tensor([[0, 0, 0, 0, 0, np.deg2rad(10)]])  # translation in mm, then the rotation vector
affine = Affine(matrix(turn, "rigid", grid.centre.copy()))
torch.manual_seed(1)
control = 2 * torch.randn(1, 3, *control_shape(grid.shape, 12))  # a cubic B-spline with a control point every 12 voxels
velocity = dense_from_control(control, grid.shape, 12)
bend = Field(integrate_stationary(velocity), grid)
chain = Chain((bend, affine))

image = chain.apply(scan.image, grid, grid, "cubic")
dseg = chain.apply(labels, grid, grid, "nearest")
print(f"image {tuple(image.shape)}, labels {dseg.unique().tolist()}")

points = torch.tensor(grid.corners()).mean(0) + 20 * torch.randn(100, 3, dtype=torch.float64)
there = chain.points(points)
back = chain.inverse().points(there)
moved, missed = ((places - points).norm(dim=1) for places in (there, back))
print(f"points moved {moved.mean():.1f} mm on average and came back to within {missed.max():.2f} mm")
# points moved 7.7 mm on average and came back to within 0.04 mm
