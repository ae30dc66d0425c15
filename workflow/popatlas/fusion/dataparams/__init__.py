"""Data parameters: trust in each registered label, learned with a segmentation network, and the vote that it weighs."""
