"""Data parameters: a weight of each registered label, learned with a segmentation network, and the vote by these weights."""
