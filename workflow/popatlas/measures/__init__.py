"""Overlap, surface, Jacobian, volume and landmark measures."""
