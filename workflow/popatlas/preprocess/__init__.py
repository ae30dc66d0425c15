"""Preprocessing: bias, conform, brain, intensity."""
