"""Penalties on displacement fields: batched, differentiable, 2D and 3D."""
