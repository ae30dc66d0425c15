"""Affine and displacement transforms and their files."""
