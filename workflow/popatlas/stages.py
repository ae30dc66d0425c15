"""The stages that a scan goes through, by name."""

from __future__ import annotations

STAGES = ("index", "preprocess", "register", "fuse", "measure")
EARLY = ("preprocess", "register")  # what an atlas has to come through to serve others
# Stages beside that chain, and the stage that each one needs; their failures keep no scan from the group results
SIDE_STAGES = {"channel": "preprocess", "tissues": "register", "page": "measure", "bench": "preprocess"}
