"""When a file counts as unchanged: by size, time of modification and time of change."""

import os
import shutil
from dataclasses import replace

from popatlas.config.beside import saved_text
from popatlas.config.load import load_config
from popatlas.images.io import read_table, sha256, write_table, write_text
from popatlas.receipts import Receipt
from popatlas.study.inventory import BROKEN, OUTDATED, REPLACED, Inventory
from popatlas.study.study import open_study

from .test_dag import opened
from .test_fusion import leave
from .test_inventory import SCAN, SETTINGS, cohort, left, stock

__all__ = ["cohort"]  # a fixture


def replace_quietly(path):
    """Give a compressed file another content with size and time of modification put back, as rsync -t and cp -p do."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[4] ^= 1  # a time in the header of gzip: the checksum of the file is another one
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_files_with_the_same_size_and_time_are_not_taken_for_the_same(cohort):
    stock(cohort).study.digests.write()
    replace_quietly(cohort / "bids/derivatives/truth/sub-03/anat/sub-03_desc-truth_dseg.nii.gz")
    found = left(stock(cohort))
    assert found["measure_scan", "sub-03/anat/sub-03"] == found["fuse_labels", SCAN] == OUTDATED
    replace_quietly(cohort / f"bids/{SCAN}_T1w.nii.gz")
    found = left(stock(cohort))
    assert found["conform_image", SCAN] == OUTDATED
    assert ("conform_image", "sub-01/anat/sub-01") not in found


def test_a_result_with_the_size_and_time_of_the_former_one_is_not_taken_for_it(cohort):
    shutil.rmtree(cohort / "out")
    leave(opened(cohort, SETTINGS), "all", lambda path: "one")
    stock(cohort).study.digests.write()
    path = cohort / "out" / f"{SCAN}_desc-brain_T1w.nii.gz"
    status = path.stat()
    path.write_text("two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert left(stock(cohort))["normalise_brain", SCAN] == BROKEN


def test_other_rights_or_places_cost_one_reading_and_make_nothing_again(cohort, monkeypatch):
    stock(cohort).study.digests.write()
    for path in [*(cohort / "bids").rglob("*.nii.gz"), *(cohort / "out").rglob("*.nii.gz")]:
        path.chmod(0o640)
    inventory = stock(cohort)
    assert left(inventory) == {}
    inventory.study.digests.write()
    read = []
    for place in ("cohort.digests.sha256", "cohort.index.inspect_image", "cohort.labelfiles.inspect_labels"):
        monkeypatch.setattr(f"popatlas.{place}", lambda *given: read.append(given))
    assert left(stock(cohort)) == {} and read == []
    table = cohort / "out/cohort/digests.parquet"  # of a popatlas that knew no time of change
    monkeypatch.undo()
    write_table(read_table(table).drop(columns="ctime_ns"), table)
    assert left(stock(cohort)) == {}


def test_what_was_made_from_an_image_that_was_put_back_since_is_made_again(cohort):
    inventory = stock(cohort)
    labels = cohort / "bids/derivatives/truth/sub-03/anat/sub-03_desc-truth_dseg.nii.gz"
    for name, path in (("conform_image", cohort / f"bids/{SCAN}_T1w.nii.gz"), ("measure_scan", labels)):
        job = next(job for job in inventory.jobs.jobs.values() if job.rule == name and path.name[:6] in job.scan)
        receipt = Receipt.read(inventory.receipt_path(job.name))
        for digest in (sha256(path), "of another image"):
            replace(receipt, inputs=receipt.inputs | {str(path): digest}).write(inventory.receipt_path(job.name))
            found = left(stock(cohort))
            assert found.get((name, job.scan)) == (None if digest == sha256(path) else REPLACED)
            assert not [rule for rule, _ in found if rule in ("register_to_template", "fuse_labels")]
        assert stock(cohort).replaced("all").endswith(str(path))


def test_a_study_that_is_moved_with_its_dataset_makes_nothing_again(cohort, tmp_path_factory):
    """Its own settings tell where the dataset lies now, and a raw image is known by its content."""
    write_text(cohort / "out/config.yaml", saved_text(stock(cohort).study.config.content))
    place = tmp_path_factory.mktemp("other") / "place"
    shutil.move(cohort, place)
    config = load_config(place / "out/config.yaml")
    assert (config.bids_dir, config.out_dir) == (str(place / "bids"), str(place / "out"))
    study = open_study(config, main=True)
    assert left(Inventory(study)) == {}
    assert str(cohort) not in (place / "out/cohort/config.yaml").read_text()
    assert str(cohort) not in (place / "out/config.yaml").read_text()
