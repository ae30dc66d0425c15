"""A cohort of three targets with candidates, and a training of data parameters on two of them, by its step and by Python."""

import pytest

from popatlas.fusion.dataparams.data import label_values, training_target
from popatlas.fusion.dataparams.train import train_data_parameters
from popatlas.fusion.settings import DataParametersSettings
from popatlas.interfaces.fusion_networks import TrainDataParameters
from tests.unit.fusion.steps import TRAINING, training_inputs
from tests.unit.fusion_files import case


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    return [case(folder, f"sub-{number}/anat/sub-{number}".replace("/", "-"), number) for number in range(3)]


@pytest.fixture(scope="module")
def trained(cohort, tmp_path_factory):
    """Traits of a training that has run; sub-2 was not in it."""
    inputs = training_inputs(cohort[:2], tmp_path_factory.mktemp("trained"))
    TrainDataParameters(**inputs).run()
    return inputs


@pytest.fixture(scope="module")
def python(cohort):
    """The same training without files."""
    labels = label_values([one.candidates for one in cohort[:2]])
    targets = [training_target(one.candidates, labels) for one in cohort[:2]]
    return train_data_parameters(targets, labels, DataParametersSettings(**TRAINING))


@pytest.fixture
def target(tmp_path):
    return case(tmp_path, "sub-9", 9)
