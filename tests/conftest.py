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

# units that take more than a few seconds: `make test-fast` leaves them out
SLOW = {
    "tests/unit/benchmarks/test_registration.py",
    "tests/unit/cohort/test_targets.py",
    "tests/unit/report/test_fusion.py",
    "tests/unit/report/test_pages.py",
    "tests/unit/registration/test_ffd_engine.py",
    "tests/unit/fusion/test_dataparams.py",
    "tests/unit/images/test_simulate.py",
    "tests/unit/networks/test_pyramid.py",
    "tests/unit/pairwise/test_pairwise.py",
    "tests/unit/networks/test_segmentation.py",
    "tests/unit/networks/test_twostream.py",
    "tests/unit/networks/test_unet.py",
    "tests/unit/preprocess/test_brain.py",
    "tests/unit/preprocess/test_head.py",
    "tests/unit/registration/test_affine_engine.py",
    "tests/unit/registration/test_engines.py",
    "tests/unit/registration/test_global_search.py",
    "tests/unit/registration/test_instance.py",
    "tests/unit/registration/test_instance_inputs.py",
    "tests/unit/registration/test_network_engine.py",
    "tests/unit/registration/test_pose.py",
    "tests/unit/registration/test_predict.py",
    "tests/unit/registration/test_sides.py",
    "tests/unit/registration/test_wrong_poses.py",
    "tests/unit/training/test_loop.py",
    "tests/unit/training/test_recipes_learn.py",
    "tests/unit/training/test_train_step.py",
    "tests/unit/zoo/test_facts.py",
    "tests/unit/zoo/test_store.py",
}


def process_of(nodeid):
    """Return the file that stands for all that run in the process of a test."""
    file = nodeid.split("::", 1)[0]
    return SAME_PROCESS.get(file, file)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.split("::", 1)[0] in SLOW:
            item.add_marker("slow")
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
