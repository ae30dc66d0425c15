"""Deformable registration engines side by side; see `__main__`."""
