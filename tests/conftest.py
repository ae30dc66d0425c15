"""Settings of all tests: one thread for each library, and which files share a process."""

import os

import pytest

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ[name] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# both use the fixture `first_run`, which takes minutes
SAME_PROCESS = {"tests/e2e/test_faults.py": "tests/e2e/test_pipeline.py"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep the tests of a file in one process, and those of files that share a costly fixture."""
    from xdist.scheduler import LoadFileScheduling

    class ByFixture(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return SAME_PROCESS.get(file, file)

    return ByFixture(config, log)
