"""Starts and poses: turned, shifted, mirrored, cropped and otherwise damaged brains, and what becomes of them."""
