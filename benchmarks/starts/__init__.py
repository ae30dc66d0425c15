"""Starts and poses: turned, shifted, mirrored, cropped and otherwise damaged brains, and what a registration makes of them."""
