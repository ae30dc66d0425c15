"""What the pages look for is what the steps write."""

import numpy as np
import pandas as pd
import pytest

from popatlas.config.load import default_content
from popatlas.images.io import save_image
from popatlas.measures.landmarks import landmark_errors
from popatlas.measures.metrics import METRICS, OF_LABELS
from popatlas.measures.scan import ScanFiles, measure_scan
from popatlas.measures.truth import score_truth
from popatlas.preprocess.quality import MaskQuality
from popatlas.report import outliers
from popatlas.report.subject import BY_LABEL, gate_limits, quality_limits
from tests.unit.measures.test_truth import LABEL
from tests.unit.measures.test_truth import Cohort as Simulated

GATE = {name.removeprefix("gate_") for name in METRICS if name.startswith("gate_")}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return method and metric of all rows that measures of a simulated scan with labels and landmarks have."""
    folder = tmp_path_factory.mktemp("written")
    image, mask = np.random.default_rng(0).random((12, 11, 10)), np.ones((12, 11, 10), np.uint8)
    labels = np.pad(np.ones((6, 5, 4), np.int32), 3)
    for name, data in (("brain", image), ("field", np.zeros_like(image)), ("mask", mask), ("labels", labels)):
        save_image(data, np.eye(4), folder / f"{name}.nii.gz")
    brain, field, mask, labels = (folder / f"{name}.nii.gz" for name in ("brain", "field", "mask", "labels"))
    files = ScanFiles(
        "sub-1/anat/sub-1", mask=mask, brain=brain, labels={"jlf": labels}, reference=labels, template_brain=brain,
        template_mask=mask, warped=brain, log_jacobian=field,
    )  # fmt: skip
    points = [
        (f"sub-{number}", "", "", "registration", "tip", f"landmark_{axis}", float(number), "mm")
        for number in (1, 2) for axis in "xyz"
    ]  # fmt: skip
    simulated = Simulated(folder, {0: np.array([1.0, 0, 0])})
    for path in (simulated.out / "{}_desc-brain_mask.nii.gz", simulated.truth / "{}_desc-truth_mask.nii.gz"):
        save_image(np.ones((4, 4, 4), np.uint8), np.eye(4), str(path).format(simulated.scans[0]))
    tables = [
        measure_scan(files),
        landmark_errors(pd.DataFrame(points, columns=measure_scan(files).columns)),
        score_truth(simulated.scans, simulated.out, simulated.truth, LABEL, limit=200),
    ]
    return {pair for table in tables for pair in table[["method", "metric"]].itertuples(index=False, name=None)}


@pytest.mark.parametrize("column", outliers._FROM_METRICS, ids="-".join)
def test_each_column_of_metrics_has_a_writer(written, column):
    assert column in written


def test_columns_of_gate_and_mask_have_writers():
    assert set(outliers._FROM_GATE) <= GATE
    assert set(outliers._FROM_MASK) <= set(MaskQuality.__annotations__)
    assert {"dice", "hd95"} <= set(OF_LABELS) and set(BY_LABEL) <= set(METRICS)


def test_the_limits_on_the_page_of_a_scan_have_writers():
    """Each row of both tables appears as soon as what writes it does."""
    limits = default_content()["register"]["gate"]
    assert len(gate_limits(dict.fromkeys(GATE, 1.0), limits)) == len(gate_limits(Everything(), limits)) > 10
    known = dict.fromkeys(MaskQuality.__annotations__, 1.0)
    assert len(quality_limits(known, [1, 2])) == len(quality_limits(Everything(), [1, 2])) > 5


class Everything(dict):
    """Has all numbers."""

    def get(self, key, default=None):
        return 1.0


def test_a_limit_that_is_not_judged_is_not_shown():
    limits = default_content()["register"]["gate"]
    for one_contrast, allowed in ((1.0, "\u2265 0.85"), (0.0, "")):
        (row,) = [row for row in gate_limits({"contrast": -0.9, "one_contrast": one_contrast}, limits)]
        assert (row.value, row.allowed) == (-0.9, allowed)
