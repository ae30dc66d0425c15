"""Studies for the tests of what is made of a dataset."""

import pytest

from tests.cohorts import noise_cohort
from tests.unit.cohort.labelled import Setup


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path)


@pytest.fixture
def bids(tmp_path):
    return noise_cohort(tmp_path / "bids", ["sub-01", "sub-02", "sub-03"], labels=False)
