"""Names that a shell, a page, Snakemake or a file system might take for something else: refused, or harmless."""

import gzip
import resource
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from popatlas.cli.main import main
from popatlas.cohort.index import index_cohort
from popatlas.config.load import load_config
from popatlas.errors import PopatlasError

from ...cohorts import noise_cohort, noise_image

HOSTILE = (
    "sub-a b", "sub-$(touch pwned)", "sub-`touch pwned`", "sub-{scan}", "sub-<script>alert(1)</script>", "sub-it's",
    'sub-"q"', "sub-..", "sub-a\nb", "sub-a;touch pwned", "sub-a|b", "sub-*", "sub-%s", "sub-\x1b[2J", "sub-größe", "sub-",
)  # fmt: skip


@pytest.fixture
def cohort(tmp_path):
    noise_cohort(tmp_path / "bids", ["sub-01", "sub-02"])
    return tmp_path


def folder_name(name):
    """Return what a folder can be called: no slash."""
    return name.replace("/", "")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_folder_of_a_subject_with_an_odd_name_is_no_scan_and_the_others_go_on(cohort, name):
    folder = cohort / "bids" / folder_name(name) / "anat"
    folder.mkdir(parents=True)
    shutil.copy(cohort / "bids/sub-01/anat/sub-01_T1w.nii.gz", folder / f"{folder_name(name)}_T1w.nii.gz")
    index = index_cohort(load_config(bids_dir=str(cohort / "bids")), cohort / "out")
    good = index[index["state"] == "ok"]
    assert list(good["scan"]) == ["sub-01/anat/sub-01", "sub-02/anat/sub-02"]
    assert not list(cohort.rglob("pwned"))


@pytest.mark.parametrize("name", ["../../etc", "a b", "$(touch pwned)", "{scan}", "<b>", "it's", "a/b", "..", "sub-../x"])
def test_a_table_of_paths_with_an_odd_subject_is_refused(cohort, name):
    table = cohort / "table.tsv"
    table.write_text(f"subject\tt1w\n01\tbids/sub-01/anat/sub-01_T1w.nii.gz\n{name}\tbids/sub-02/anat/sub-02_T1w.nii.gz\n")
    with pytest.raises(PopatlasError, match=r"letters and digits|label"):
        index_cohort(load_config(bids_dir=str(table)), cohort / "out")


@pytest.mark.parametrize("name", ["../out", "a b", "$(x)", "{scan}", "<b>", "x/y", ""])
def test_a_template_with_an_odd_label_is_refused(name):
    with pytest.raises(PopatlasError, match=r"atlas\.label"):
        load_config({"atlas": {"label": name}})


@pytest.mark.parametrize("verb", [["withdraw", "out"], ["logs", "out"]])
@pytest.mark.parametrize("name", ["../../etc", "$(touch pwned)", "{scan}", ".."])
def test_verbs_that_take_a_subject_take_no_path(cohort, verb, name, monkeypatch, capsys):
    index_cohort(load_config(bids_dir=str(cohort / "bids")), cohort / "out")
    (cohort / "out/cohort/ledger.tsv").write_text("scan\tsubject\tsession\tstage\tstate\treason\tlog\n")
    monkeypatch.chdir(cohort)
    before = sorted(cohort.rglob("*"))
    assert main([*verb, name]) in (1, 2)
    assert sorted(cohort.rglob("*")) == before and "Traceback" not in capsys.readouterr().err


def header(shape, kind=np.int16):
    """Return the first bytes of a NIfTI file that announces a shape, also an absurd one."""
    found = nib.Nifti1Header()
    found.set_data_dtype(kind)
    found.set_sform(np.diag([2.0, 2.0, 2.0, 1.0]), 1)
    found["dim"][: len(shape) + 1] = (len(shape), *shape)
    found["vox_offset"], found["magic"] = 352, b"n+1"
    return found.binaryblock + bytes(4)


def bomb(path, shape, kind=np.int16, megabytes=40):
    """Write a file of some kilobytes that inflates to megabytes and announces a shape."""
    path.write_bytes(gzip.compress(header(shape, kind) + bytes(megabytes * 1_000_000)))
    assert path.stat().st_size < 100_000


BOMBS = {
    "4000^3 voxels in 20 kB": ((4000, 4000, 4000), np.int16, 20),
    "2000^3 voxels": ((2000, 2000, 2000), np.int16, 20),
    "1000^3 voxels of float64": ((1000, 1000, 1000), np.float64, 20),
    "inflates to far more than it announces": ((36, 36, 36), np.int16, 100),
    "negative axis": ((36, 36, -5), np.int16, 20),
    "no voxels": ((0, 36, 36), np.int16, 20),
    "30000 volumes": ((36, 36, 36, 1, 30000), np.int16, 20),
}
LIMIT = 300  # megabytes beyond those of the program itself
CODE = """
import resource, sys
from popatlas.cohort.inspect import inspect_image
from popatlas.config.load import default_config
from popatlas.images.io import load_image
import nibabel, numpy, pandas, scipy.ndimage
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    assert inspect_image(path, default_config().cohort).reason, path
    try:
        numpy.asarray(load_image(path).dataobj)
    except Exception as error:
        print(type(error).__name__, error)
    else:  # of what it announces, which is little
        assert "3.nii.gz" in path, f"{path} was read"
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_bombs_are_refused_before_memory_is_taken(tmp_path):
    paths = []
    for number, (shape, kind, megabytes) in enumerate(BOMBS.values()):
        paths.append(tmp_path / f"{number}.nii.gz")
        bomb(paths[-1], shape, kind, megabytes)
    noise_image(tmp_path / "good.nii.gz", seed=1)
    limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))}
    result = subprocess.run([sys.executable, "-c", CODE, *map(str, paths)], capture_output=True, text=True, **limited)
    assert result.returncode == 0, result.stderr + result.stdout
    assert int(result.stdout.splitlines()[-1]) < LIMIT * 1000
    assert "Error" in result.stdout and "MemoryError" not in result.stdout
