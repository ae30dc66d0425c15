"""Generated BIDS trees with ragged sessions and runs: what the index and the frozen tables promise for all of them."""

import tempfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from popatlas.cohort.batches import batches
from popatlas.cohort.freeze import draw_evenly
from popatlas.cohort.index import index_cohort, scan_key
from popatlas.config.load import load_config
from popatlas.images.io import read_table, save_image

LABEL = st.from_regex(r"[0-9A-Za-z]{1,6}", fullmatch=True)
RUNS = st.sets(st.integers(1, 12), max_size=3)
SESSIONS = st.one_of(st.fixed_dictionaries({"": RUNS}), st.dictionaries(LABEL, RUNS, max_size=3))
TREES = st.dictionaries(LABEL, SESSIONS, min_size=1, max_size=4)
FEW = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def write_tree(root, tree):
    """Write one tiny image per run; return scan -> runs (an empty set stands for one image without run entity)."""
    expected = {}
    for subject, sessions in tree.items():
        (root / f"sub-{subject}").mkdir(parents=True, exist_ok=True)
        for session, runs in sessions.items():
            scan = scan_key(f"sub-{subject}", f"ses-{session}" if session else "")
            expected[scan] = runs
            for run in sorted(runs) or [None]:
                path = root / f"{scan}{'' if run is None else f'_run-{run}'}_T1w.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                seed = zlib.crc32(f"{scan} {run}".encode())
                data = np.random.default_rng(seed).integers(0, 1000, (5, 5, 5)).astype(np.int16)
                save_image(data, np.diag([2.0, 2.0, 2.0, 1.0]), path)
    return expected


@FEW
@given(tree=TREES, policy=st.sampled_from(["first", "last"]))
def test_every_scan_has_one_row_and_the_right_run(tree, policy):
    with tempfile.TemporaryDirectory() as folder:
        root, out_dir = Path(folder) / "bids", Path(folder) / "out"
        expected = write_tree(root, tree)
        config = load_config({"cohort": {"run": policy, "min_shape": 4}}, bids_dir=str(root))
        index = index_cohort(config, out_dir)
        assert index["scan"].is_unique
        found = index[index["state"] == "ok"].set_index("scan")
        assert set(found.index) == set(expected)
        for scan, runs in expected.items():
            wanted = f"_run-{(min if policy == 'first' else max)(runs)}" if runs else ""
            assert found.loc[scan, "t1w"] == str(root / f"{scan}{wanted}_T1w.nii.gz")
            assert found.loc[scan, "runs"] == max(1, len(runs))
        silent = {f"sub-{name}" for name, sessions in tree.items() if not sessions}
        assert set(index.loc[index["state"] == "unavailable", "subject"]) == silent
        pd.testing.assert_frame_equal(index_cohort(config, out_dir), index)
        pd.testing.assert_frame_equal(read_table(out_dir / "cohort" / "index.parquet"), index)


@FEW
@given(tree=TREES, data=st.data())
def test_include_and_exclude_part_the_cohort(tree, data):
    chosen = data.draw(st.sets(st.sampled_from(sorted(tree)), min_size=1))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "bids"
        write_tree(root, tree)
        subjects = {}
        for key in ("include", "exclude"):
            config = load_config({"cohort": {key: sorted(chosen), "min_shape": 4}}, bids_dir=str(root))
            index = index_cohort(config, Path(folder) / key)
            subjects[key] = set(index.loc[index["state"] != "excluded", "subject"])
        assert subjects["include"] == {f"sub-{name}" for name in chosen}
        assert subjects["include"] | subjects["exclude"] == {f"sub-{name}" for name in tree}
        assert not subjects["include"] & subjects["exclude"]


@given(ages=st.lists(st.integers(18, 90), min_size=1, max_size=60), count=st.integers(1, 70))
def test_an_even_draw_has_its_size_and_reaches_both_ends(ages, count):
    table = pd.DataFrame({"scan": [f"{number:03d}" for number in range(len(ages))], "age": ages})
    drawn = draw_evenly(table, count, "age")
    assert len(drawn) == min(count, len(ages))
    assert drawn["scan"].is_unique
    assert drawn["age"].min() == min(ages)
    assert count == 1 or drawn["age"].max() == max(ages)
    shuffled = draw_evenly(table.sample(frac=1, random_state=0), count, "age")
    assert list(drawn["scan"]) == list(shuffled["scan"])


@settings(deadline=None)
@given(waves=st.lists(st.sets(st.integers(0, 40)), min_size=1, max_size=4), size=st.integers(1, 7))
def test_batches_only_grow_and_are_never_too_large(waves, size):
    with tempfile.TemporaryDirectory() as folder:
        known = {}
        for wave in waves:
            assigned = batches([f"sub-{number:02d}" for number in sorted(wave)], size, Path(folder))
            assert known.items() <= assigned.items()
            assert set(assigned) == set(known) | {f"sub-{number:02d}" for number in wave}
            known = assigned
        assert max(pd.Series(list(known.values()), dtype=int).value_counts(), default=0) <= size
