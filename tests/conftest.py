"""Settings of all tests: one thread for each library, which files share a process, and which come first."""

import os

import pytest

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ[name] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# they share what takes minutes: the fixture `first_run`, the outcomes of `tests.unit.damaged`
SAME_PROCESS = {
    "tests/e2e/test_faults.py": "tests/e2e/test_pipeline.py",
    "tests/unit/registration/test_wrong_poses.py": "tests/failure/test_bad_input.py",
}
# files by the time they take, so that no long one is left for the end, when the other processes have nothing to do
LONGEST = (
    "tests/e2e/test_pipeline.py",
    "tests/e2e/test_engines.py",
    "tests/e2e/test_variants.py",
    "tests/slurm/test_slurm.py",
    "tests/failure/test_bad_input.py",
    "tests/unit/training/test_recipes_learn.py",
    "tests/dag/test_fusion.py",
    "tests/dag/test_dag.py",
    "tests/examples/test_examples.py",
    "tests/e2e/test_places.py",
    "tests/unit/registration/test_engines.py",
    "tests/unit/registration/test_network_engine.py",
    "tests/unit/training/test_train_step.py",
    "tests/unit/training/test_loop.py",
)


def process_of(nodeid):
    """Return the file that stands for all that run in the process of a test."""
    file = nodeid.split("::", 1)[0]
    return SAME_PROCESS.get(file, file)


def pytest_collection_modifyitems(items):
    place = {file: number for number, file in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(process_of(item.nodeid), len(place)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep the tests of a file in one process, and those of files that share something costly."""
    from xdist.scheduler import LoadFileScheduling

    class ByProcess(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return process_of(nodeid)

    return ByProcess(config, log)
