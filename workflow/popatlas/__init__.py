"""Population imaging: cohort to atlas, fused labels, tables and QC."""

__version__ = "0.1.0"
