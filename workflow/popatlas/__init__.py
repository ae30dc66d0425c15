"""Population imaging: cohort to atlas, fused labels, tables and QC."""

__version__ = "0.2.0"
