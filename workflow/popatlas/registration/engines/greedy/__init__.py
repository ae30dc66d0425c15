"""Greedy as engine."""
