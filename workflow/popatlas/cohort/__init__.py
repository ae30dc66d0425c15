"""Cohort bookkeeping: index, manifest, ledger, plan."""
