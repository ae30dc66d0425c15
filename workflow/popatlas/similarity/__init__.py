"""Losses that compare two images or label maps: differentiable, masked, batched, 2D and 3D."""
