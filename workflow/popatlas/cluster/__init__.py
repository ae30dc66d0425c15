"""Runs on a cluster: what Snakemake's Slurm plugin needs to survive it, what a site has, what jobs asked for and used."""
