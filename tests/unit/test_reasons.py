"""The code of a failure: from the error of a step, and from what others said of the end of a job."""

import errno

import pytest

from popatlas.diskspace import FULL
from popatlas.errors import ConfigError, GateError, InputError, PackageError, PopatlasError
from popatlas.reasons import CODES, code_of, code_of_words, kernel_kills, parse_codes
from popatlas.resources import schema_path
from popatlas.yamlfile import read_yaml


class OutOfMemoryError(RuntimeError):
    """As torch has one."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("the image is empty"), "input"),
        (InputError("the prediction failed: OutOfMemoryError: CUDA out of memory"), "oom"),
        (InputError("2 pair(s) of 9 x 9 x 9 voxels do not fit into the memory of the device"), "oom"),
        (GateError("registration gate failed: mask Dice 0.1"), "gate"),
        (ConfigError("no such key"), "setup"),
        (PackageError("ants is not installed"), "setup"),
        (PopatlasError("x"), "input"),
        (MemoryError(), "oom"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes"), "oom"),
        (RuntimeError("itk: Failed to allocate memory for image."), "oom"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom"),
        *((OSError(number, "full", "x"), "disk") for number in FULL),
        (PermissionError(errno.EACCES, "no", "x"), "disk"),
        (OSError(errno.EROFS, "read-only", "x"), "disk"),
        (ZeroDivisionError("division by zero"), "bug"),
        (ValueError("shapes differ"), "bug"),
    ],
)
def test_the_error_of_a_step_has_a_code(error, code):
    assert code_of(error) == code


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("the job ended with 'Killed': out of memory, the kernel says", "oom"),
        ("the job ended with 'Killed': by somebody, or since it needed more memory or time than there was", "signal"),
        ("the job ended with 'Terminated'", "signal"),
        ("the job ended with 'Segmentation fault'", "bug"),
        ("the job ended with 'Illegal instruction'", "bug"),
        ("SLURM-job '12' failed, SLURM status is: 'OUT_OF_MEMORY'", "oom"),
        ("SLURM-job '12' failed, SLURM status is: 'TIMEOUT'", "time"),
        ("SLURM-job '12' failed, SLURM status is: 'NODE_FAIL'", "signal"),
        ("SLURM-job '12' failed, SLURM status is: 'CANCELLED by 0'", "signal"),
        ("OSError: [Errno 28] No space left on device", "disk"),
        ("files that it should make were missing when it had ended", "unknown"),
        ("", "unknown"),
    ],
)
def test_what_is_said_of_the_end_of_a_job_has_a_code(said, code):
    assert code_of_words(said) == code


def test_codes_are_those_of_the_schema_and_a_user_may_name_them_in_any_way():
    assert set(read_yaml(schema_path("ledger"), "schema")["properties"]["code"]["enum"]) == {"", *CODES}
    assert parse_codes(["OOM|gate", "Gate, time"]) == ["oom", "gate", "time"]
    with pytest.raises(ValueError, match="'memory' is no reason: use oom, "):
        parse_codes(["memory"])
    assert kernel_kills() >= 0
