"""Memory and minutes that jobs ask for: above what was measured, more for more voxels, and not far above."""

import pytest

from popatlas.config.load import load_config
from popatlas.study.needs import MARGIN, NEEDS, SNAKEMAKE, STEP, TRAINED, Needs
from popatlas.study.register import registration_memory
from popatlas.study.together import jobs_of
from popatlas.study.train import training_minutes

SCAN = "sub-01/anat/sub-01"
CONFIG = load_config({})
# megabytes of real heads (benchmarks/cost.py): grid of the study, mm, and what a step of a scan took there
GRIDS = {2: (1.3, 0.9), 1: (10.4, 7.06)}  # millions of voxels of a scan and of the template
MEASURED = {
    "extract_brain": (1160, 1322), "normalise_brain": (139, 415), "align_to_reference": (801, 1367),
    "average_template": (325, 1300), "measure_scan": (343, 998), "draw_subject": (426, 1201),
}  # fmt: skip
CONFORMED = {10.8: 1565, 23.0: 2893}  # millions of voxels of a raw image
REGISTERED = {2: 964, 1: 2636}
COMPILED = 474  # of a small scan, with kernels that no job had compiled before
FUSED = {(2, 3): 437, (2, 9): 500, (1, 3): 1468}  # grid and atlases


# phantoms of 1 and 4.1 million voxels: what steps with a network took with 3 and 9 atlases, and labels on the raw grid
PHANTOMS = {
    ("propagate_labels", "dataparams"): {(1.0, 3): 389, (1.0, 9): 423, (4.1, 3): 757, (4.1, 9): 936},
    ("fuse_labels", "dataparams"): {(1.0, 3): 748, (1.0, 9): 792, (4.1, 3): 1419, (4.1, 9): 1714},
    ("segment_scan", "segmenter"): {(1.0, 3): 653, (4.1, 3): 1192},
    ("labels_to_native", "dataparams"): {(1.0, 3): 248, (4.1, 3): 595},
}


def needs(raw=1.3, grid=1.3, template=0.9, atlases=2, members=3):
    run_by = lambda rule, names: jobs_of(CONFIG, rule, names)  # noqa: E731
    return Needs({SCAN: (raw, grid)}, template, lambda scan: atlases, members, run_by)


def asked(of, kind, rule):
    return getattr(of, kind)(rule)({"scan": SCAN})


@pytest.mark.parametrize("rule", MEASURED)
def test_what_was_measured_is_asked_for_and_not_much_more(rule):
    for took, (grid, template) in zip(MEASURED[rule], GRIDS.values(), strict=True):
        found = asked(needs(grid=grid, template=template), "memory", rule)
        assert 1.1 * took < found < 2 * took + STEP + SNAKEMAKE, grid
        assert found >= took + 0.8 * SNAKEMAKE, "on a cluster Snakemake runs within the same limit"


def test_the_bias_correction_follows_the_raw_image():
    for raw, took in CONFORMED.items():
        assert 1.1 * took < asked(needs(raw=raw), "memory", "conform_image") < 1.6 * took


def test_fusion_follows_the_atlases_too():
    for (grid, atlases), took in FUSED.items():
        found = asked(needs(grid=GRIDS[grid][0], atlases=atlases), "memory", "fuse_scan")
        assert 1.1 * took < found < 2 * took + SNAKEMAKE
    assert asked(needs(grid=0.16), "memory", "fuse_scan") > 1.1 * COMPILED


@pytest.mark.parametrize(("rule", "method"), PHANTOMS)
def test_steps_with_a_network_follow_voxels_and_atlases(rule, method):
    for (voxels, atlases), took in PHANTOMS[rule, method].items():
        found = needs(raw=voxels, grid=voxels, atlases=atlases).memory(rule)({"scan": SCAN, "method": method})
        assert 1.1 * took < found < max(1.6 * took, took + SNAKEMAKE + STEP) + STEP, (voxels, atlases)
    alone, together = ({"scan": SCAN, "method": name} for name in ("dataparams", "majority"))
    assert needs().memory("fuse_labels")(alone) > needs().memory("fuse_scan")(together), "it loads a network"


def test_a_training_asks_for_many_times_what_it_takes():
    box = 3.5 / 2**3  # millions of voxels at 2 mm
    took = 64 * 15 * (0.4 + 1.2 * box) / 60  # minutes of the defaults
    assert 5 * took < training_minutes(64, 15, 2, 20_000) < 10 * took + 61
    assert training_minutes(64, 15, 1, 20_000) > training_minutes(64, 15, 2, 20_000) > training_minutes(8, 15, 2, 20_000)
    assert training_minutes(8, 15, 2, 10_000_000) >= 720, "steps over whole images were not measured"


def test_a_registration_follows_the_grid():
    for grid, took in REGISTERED.items():
        config = load_config({"preprocess": {"resolution_mm": grid}})
        assert 1.1 * took < registration_memory(config) < 1.6 * took
    assert registration_memory(load_config({"register": {"engine": "ants"}})) >= 3000, "no peak of it was measured"


@pytest.mark.parametrize("rule", [*sorted(set(NEEDS) - {TRAINED}), "prepare_scan", "fuse_scan", "measure_and_draw"])
def test_more_voxels_and_atlases_never_ask_for_less(rule):
    small = needs()
    for larger in (
        needs(raw=20),
        needs(grid=10),
        needs(template=8),
        needs(atlases=9),
        needs(grid=10, atlases=9),
        needs(members=9),
    ):
        for kind in ("memory", "minutes"):
            assert asked(larger, kind, rule) >= asked(small, kind, rule)


def test_a_job_of_several_steps_needs_the_largest_memory_and_all_their_minutes():
    found, steps = needs(raw=11, grid=10), jobs_of(CONFIG, "prepare_scan", {"scan": SCAN})
    each = {rule: (asked(found, "memory", rule), asked(found, "minutes", rule)) for rule, _ in steps}
    assert asked(found, "memory", "prepare_scan") == max(memory for memory, _ in each.values())
    assert asked(found, "minutes", "prepare_scan") >= max(minutes for _, minutes in each.values()) + 20
    assert asked(found, "minutes", "prepare_scan") <= sum(minutes for _, minutes in each.values())


def test_a_scan_that_is_not_in_the_index_counts_as_a_head_of_1_mm():
    found = needs().memory("conform_image")({"scan": "sub-99/anat/sub-99"})
    assert found >= MARGIN * 1500
    assert needs().minutes("fuse_scan")({"scan": "sub-99/anat/sub-99"}) <= 60
