"""The index of a dataset, as the tests of it ask for one."""

from popatlas.cohort.index import index_cohort
from popatlas.config.load import load_config


def configure(bids_dir, **cohort):
    return load_config({"cohort": cohort}, bids_dir=str(bids_dir))


def run(bids, out_dir, **cohort):
    return index_cohort(configure(bids, **cohort), out_dir).set_index("subject")
