"""Names of the fusion methods and of what they leave, for code that must not load the methods themselves."""

from __future__ import annotations

# the keys of popatlas.fusion.fuse.METHODS
METHODS = ("majority", "global", "local", "staple", "jlf", "jlfants", "dataparams")
# labels of the trained segmentation network stand beside those of the fusion methods
SEGMENTER = "segmenter"
MAPS = ("probability", "agreement", "entropy")
