"""The commands of a run (dry runs of the real Snakefile): files that are found on the way reach the steps."""

import os
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from popatlas.images.io import read_table, write_text
from popatlas.manyvalues import with_values

from ..cohorts import noise_cohort, noise_image, noise_labels, popatlas
from .test_dag import NAMES, opened, plan

# every rule whose job reads many scans: batches, candidates and networks
MANY = {
    "register": {"engine": "network"},
    "preprocess": {"brain": {"batch": 6}},
    "fuse": {
        "through": "direct", "methods": ["jlf", "dataparams"], "bench": True,
        "dataparams": {"gate_quality": True, "targets": 3}, "segmenter": {"enabled": True, "targets": 3},
    },
}  # fmt: skip
PATHS = 10_000
STUB = """#!{python}
import sys
from popatlas.manyvalues import with_values
print(len(with_values(sys.argv[1:])))
"""


class Found(SimpleNamespace):
    """Wildcards of a job."""


class Given(SimpleNamespace):
    """Inputs of a job."""


def commands(folder, settings, step=r"\w+"):
    """Return the commands of a step, as a run would start them."""
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    result = popatlas("run", folder / "bids", folder / "out", "--config", folder / "config.yaml", "-n", "-p", "--verbose")
    return re.findall(rf"popatlas step {step} .*", result.stdout + result.stderr)


def test_every_scan_is_measured_with_the_names_of_the_atlases(tmp_path):
    noise_cohort(tmp_path / "bids", NAMES[:3], labels=False)
    noise_image(tmp_path / "set" / "a_T1w.nii.gz", seed=5)
    noise_labels(tmp_path / "set" / "a_dseg.nii.gz", seed=6)
    write_text(tmp_path / "set" / "dseg.tsv", "index\tname\n17\thippocampus\n")
    write_text(tmp_path / "set" / "atlases.tsv", "atlas\tt1w\tdseg\na\ta_T1w.nii.gz\ta_dseg.nii.gz\n")
    settings = {"fuse": {"atlases": str(tmp_path / "set" / "atlases.tsv"), "methods": ["majority"]}}
    found = commands(tmp_path, settings, r"SegmentTissues .* --then +MeasureScan")
    assert len(found) == 3
    assert all("--in_names cohort/label-names.tsv" in line for line in found)
    opened(tmp_path, settings)
    assert read_table(tmp_path / "out/cohort/label-names.tsv").to_numpy().tolist() == [[17, "hippocampus"]]


def test_an_existing_template_brings_the_mask_beside_it(tmp_path):
    noise_cohort(tmp_path / "bids", NAMES[:3], labels=False)
    template = noise_image(tmp_path / "tpl-x_T1w.nii", seed=9)
    settings = {"atlas": {"template": str(template)}}
    (line,) = commands(tmp_path, settings, "DescribeTemplate")
    assert "--in_mask" not in line
    mask = noise_image(tmp_path / "tpl-x_desc-brain_mask.nii.gz", seed=9)
    (line,) = commands(tmp_path, settings, "DescribeTemplate")
    assert f"--in_mask {mask} " in line
    assert "--in_members" not in line


def test_what_lacks_a_channel_or_its_page_stays_in_everything_else(tmp_path):
    noise_cohort(tmp_path / "bids", NAMES[:3], labels=False)
    for name in NAMES[:2]:
        noise_image(tmp_path / f"bids/{name}/anat/{name}_T2w.nii.gz", seed=int(name[-1]))
    opened(tmp_path, {})
    rows = ["sub-01/anat/sub-01\tchannel\tempty", "sub-03/anat/sub-03\tpage\tno space"]
    (tmp_path / "out/cohort/failures.tsv").write_text("\n".join(["scan\tstage\treason", *rows]) + "\n")
    jobs = plan(tmp_path, {})
    assert jobs["measure_and_draw"] == jobs["register_to_template"] == 3
    assert (jobs["align_channel"], jobs["write_report"]) == (1, 1)


@pytest.fixture(scope="module")
def of_many(tmp_path_factory):
    """Return the folder of a study and the commands of all steps that read many scans, and of the others."""
    folder = tmp_path_factory.mktemp("many")
    noise_cohort(folder / "bids", NAMES)
    return folder, commands(folder, MANY)


def test_no_command_grows_with_the_cohort(of_many):
    """Nor with the atlases: a command names its own scan and, of a pair, another one; those that are many stand in lists."""
    found = of_many[1]
    steps = {line.split()[2] for line in found}
    assert steps >= {
        *("ExtractBrain", "PredictDeformations", "PropagateLabels", "FuseLabels", "InitialiseTemplate", "AverageTemplate"),
        *("TrainDataParameters", "TrainSegmenter", "BenchFusion", "TabulateCohort", "WriteReport"),
    }
    for line in found:
        assert len(set(re.findall(r"sub-0\d", line))) <= 2, line


@pytest.mark.parametrize(
    ("step", "many"),
    [
        ("ExtractBrain", 3),
        ("PredictDeformations", 3),
        ("PropagateLabels", 4),
        ("FuseLabels --subject .* --method dataparams", 2),
    ],
)
def test_ten_thousand_paths_reach_a_step(of_many, tmp_path, step, many):
    """The shell takes the command of the rule as one argument, as Snakemake gives it."""
    line = next(line for line in of_many[1] if re.match(f"popatlas step {step}", line))
    for listed in {word[1:].partition("::")[0] for word in shlex.split(line) if word.startswith("@")}:
        write_text(tmp_path / listed, "".join(f"sub-{number:05d}/anat/sub-{number:05d}\n" for number in range(PATHS)))
    stub = tmp_path / "bin" / "popatlas"
    write_text(stub, STUB.format(python=sys.executable))
    stub.chmod(0o755)
    line = line.partition(" > logs/")[0]
    environment = os.environ | {"PATH": f"{stub.parent}:{os.environ['PATH']}"}
    words = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert many * PATHS < int(words) < many * PATHS + 100


def test_lists_hold_what_a_job_reads(of_many, monkeypatch):
    """The words that a step gets are those of the inputs that Snakemake waits for, in the same order."""
    folder = of_many[0]
    study = opened(folder, MANY)
    monkeypatch.chdir(folder / "out")
    scan, batch = "sub-01/anat/sub-01", Found(batch="1", iteration="1")
    target = Found(scan=scan, method="dataparams")
    fuse, trained = study.fuse, Given(network="n", parameters="p", gates=["g"])
    found = [
        (study.preprocess.batch_options(batch), {"in_files": study.preprocess.batch_images(batch)}),
        (study.register.prediction_list(batch), paired(study.register.prediction_brains(batch))),
        (study.atlas.iteration_list(batch), paired(study.atlas.iteration_brains(batch))),
        (fuse.atlas_options(target), {"in_brains": fuse.atlas_brains(target), "in_warps": fuse.atlas_warps(target),
                                      "in_affines": fuse.atlas_affines(target)}),
        (fuse.names(target), {"names": fuse.atlases_for(scan)}),
        (fuse.data_parameters_options(target, trained), {"in_gates": fuse.data_parameters_inputs(target)["gates"]}),
    ]  # fmt: skip
    for line, wanted in found:
        words = with_values(shlex.split(line))
        for name, values in wanted.items():
            start = words.index(f"--{name}") + 1
            assert len(values) > 1 and words[start : start + len(values)] == list(map(str, values)), name
    words = with_values(shlex.split(study.preprocess.batch_options(batch)))
    masks = words[words.index("--out_masks") + 1 :]
    assert masks == [study.preprocess.raw_mask(scan) for scan in study.preprocess.batches.scans(1)] and len(masks) == 6
    dsegs = with_values(shlex.split(fuse.atlas_options(target)))
    assert dsegs[1 : 1 + len(fuse.atlases_for(scan))] == [fuse.atlases[atlas] for atlas in fuse.atlases_for(scan)]


def paired(brains):
    return {"in_brains": brains["brains"], "in_masks": brains["masks"]}
