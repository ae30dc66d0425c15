"""Cohort and subject QC pages."""
