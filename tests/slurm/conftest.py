"""A running Slurm, or no test."""

import os
import re
import shutil
import subprocess

import pytest


def slurm_answers() -> bool:
    """Tell whether a node of a running Slurm takes jobs."""
    if shutil.which("sinfo") is None:
        return False
    state = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False).stdout
    return bool(re.search("idle|mixed|allocated", state))


@pytest.fixture(scope="session")
def slurm():
    if not slurm_answers():
        if os.environ.get("CI") == "true":
            pytest.fail("no Slurm is running: start it with tests/slurm/start-slurm.sh")
        pytest.skip("no Slurm here; tests/slurm/start-slurm.sh starts one (Debian, root)")
