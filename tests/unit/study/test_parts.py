"""Parts of a study, each made alone: what they answer to the rules."""

from types import SimpleNamespace

import pytest

from popatlas.cohort.batches import BRAINS, Batches
from popatlas.cohort.targets import Training
from popatlas.config.load import load_config
from popatlas.study.atlas import Atlas
from popatlas.study.bench import Bench
from popatlas.study.fuse import Fuse
from popatlas.study.jobs import Jobs
from popatlas.study.preprocess import Preprocess
from popatlas.study.register import Register
from popatlas.study.template import Template
from popatlas.study.train import Train

SCAN, OTHER, AGAIN = "sub-1/ses-1/anat/sub-1_ses-1", "sub-2/anat/sub-2", "sub-1/ses-2/anat/sub-1_ses-2"
TEMPLATE = Template("mni", "0badcafe")
NAMES = {"label": "mni", "version": "0badcafe", "brains": "work/brain/deepbet", "predictions": ""}


class Found(SimpleNamespace):
    """Wildcards of a job."""

    def items(self):
        return vars(self).items()


def jobs(**changes):
    return Jobs(
        **{"config": load_config({}), "filled": NAMES, "trained": {}, "made_of": lambda rule, **wildcards: rule} | changes
    )


def fuse(through="template", **settings):
    config = load_config({"fuse": {"through": through} | settings})
    atlases = {SCAN: "one.nii.gz", OTHER: "two.nii.gz"}
    return Fuse(config, TEMPLATE, (SCAN, OTHER, AGAIN), atlases, {})


def test_a_job_asks_for_its_inputs_until_it_is_made():
    asked = {"image": "{scan}_T1w.nii.gz", "files": ["a", "b"], "found": lambda wildcards: f"{wildcards.scan}.json"}
    more = lambda wildcards: {"mask": "m"}  # noqa: E731
    found = jobs().asks("conform_image", more, **asked)(Found(scan=OTHER))
    assert found == {"image": f"{OTHER}_T1w.nii.gz", "files": ["a", "b"], "found": f"{OTHER}.json", "mask": "m"}
    made = frozenset({f"preprocess/{OTHER}_conform"})
    assert jobs(made=made).asks("conform_image", more, **asked)(Found(scan=OTHER)) == {}
    assert jobs(made=made).asks("conform_image", more, **asked)(Found(scan=SCAN)) != {}


def test_a_training_is_left_until_its_version_is_made_and_its_files_have_that_version():
    trained = {"train_trust": {"version": "12345678"}}
    assert jobs().is_left("train_trust") is False, "nobody wants it"
    assert jobs(trained=trained).is_left("train_trust") is True
    assert jobs(trained=trained, made=frozenset({"train/trust-12345678"})).is_left("train_trust") is False
    assert jobs(trained=trained, made=frozenset({"train/trust-87654321"})).is_left("train_trust") is True
    assert jobs(trained=trained).outputs("train_trust")["network"] == "networks/trust-12345678/network.safetensors"
    assert "0badcafe" in jobs(trained=trained).outputs("make_reference")["image"]
    with pytest.raises(KeyError):  # not the version of the template
        jobs().outputs("train_trust")


def test_a_receipt_is_called_as_its_job():
    text = jobs().proof("register_to_template")(Found(scan=OTHER))
    assert text == f"--made_of register_to_template --receipt cohort/receipts/register/{OTHER}_space-mni.json"


def test_labels_come_from_atlases_of_other_subjects_through_the_template_or_straight():
    target = Found(scan=SCAN)
    assert fuse().atlases_for(SCAN) == [OTHER]
    lists = fuse().listed()
    assert fuse().names(target) == "--names @cohort/lists/fuse-without-sub-1-names.txt"
    assert lists["cohort/lists/fuse-without-sub-1-names.txt"] == [OTHER]
    assert lists["cohort/lists/fuse-without-sub-1-dsegs.txt"] == ["two.nii.gz"]
    assert fuse().atlas_affines(target) == [f"{OTHER}_from-T1w_to-mni_mode-image_desc-affine_xfm.mat"]
    assert fuse().target_options(target) == (
        f"--in_target_affine {SCAN}_from-T1w_to-mni_mode-image_desc-affine_xfm.mat"
        f" --in_target_inverse_warp {SCAN}_from-mni_to-T1w_mode-image_desc-warp_xfm.nii.gz"
    )
    assert fuse("direct").atlas_affines(target) == [f"work/pairs/{SCAN}/from/{OTHER}_desc-affine_xfm.mat"]
    assert fuse("direct").target_options(target) == ""


def test_without_atlases_there_is_neither_fusion_nor_bench():
    whole = fuse(bench=True)
    bare = Fuse(whole.config, TEMPLATE, whole.own, {}, {})
    assert (bare.all_methods, bare.scan_atlas_weights(), bare.atlas_weights_tables(), bare.listed()) == ([], [], [], {})
    assert Bench(bare.config, bare, frozenset()).shown == []
    assert Bench(whole.config, whole, frozenset()).scans == [SCAN, OTHER]
    assert Bench(whole.config, whole, frozenset({OTHER})).references == ["one.nii.gz"]


def test_the_segmenter_labels_scans_that_no_atlas_can():
    config, training = (
        load_config({"fuse": {"methods": ["majority"]}}),
        {"segmenter": Training("segmenter", "v", (OTHER,), False)},
    )
    part = Fuse(config, TEMPLATE, (SCAN, OTHER), {SCAN: "one.nii.gz"}, training)
    assert part.all_methods == ["segmenter", "majority"]
    assert [part.scan_methods(scan) for scan in (SCAN, OTHER)] == [["segmenter"], ["segmenter", "majority"]]
    lists = Train(config, training, part.atlases).listed()
    assert lists["cohort/segmenter-training-scans.txt"] == [OTHER]
    assert lists["cohort/segmenter-training-targets.txt"] == [f"{OTHER}_desc-brain_T1w.nii.gz"]


def test_what_is_predicted_is_taken_from_the_batch_unless_the_job_is_made(tmp_path):
    batches = Batches(tmp_path, BRAINS, "{scan}", {OTHER}, {OTHER: 1}, {1: (OTHER,)})
    part = Register(load_config({}), TEMPLATE, {}, "work/network/x", batches)
    assert part.prediction_inputs(Found(scan=OTHER)) == {"batch_record": "work/network/x/batch-1.json"}
    given = SimpleNamespace(batch_record="work/network/x/batch-1.json")
    assert part.prediction_options(Found(scan=OTHER), given) == (
        f"--in_prediction work/network/x/{OTHER} --in_batch_record work/network/x/batch-1.json"
    )
    assert part.prediction_options(Found(scan=OTHER), SimpleNamespace()) == ""
    alone = Register(load_config({}), TEMPLATE, {}, "", batches)
    assert alone.prediction_inputs(Found(scan=OTHER)) == {}


def test_an_iteration_of_the_template_starts_from_the_one_before():
    part = Atlas(load_config({"atlas": {"iterations": 2}}), TEMPLATE, (SCAN, OTHER), {}, {})
    before = {
        "fixed": "work/tpl-mni/0badcafe/iter-1/template_T1w.nii.gz",
        "fixed_mask": "work/tpl-mni/0badcafe/iter-1/template_mask.nii.gz",
    }
    assert part.fixed(Found(iteration="2")) == before
    averaged = part.averaged(Found(iteration="2"))
    assert (
        averaged["template"] == before["fixed"]
        and averaged["warps"][1] == f"work/tpl-mni/0badcafe/iter-2/{OTHER}_xfm.nii.gz"
    )
    assert part.iteration_inputs(Found(iteration="2", scan=OTHER)) == {}
    sources = part.sources(Found())
    assert sources["template"] == "work/tpl-mni/0badcafe/iter-2/template_T1w.nii.gz" and len(sources["rows"]) == 2
    assert part.options(Found(), SimpleNamespace()) == "--label mni --version 0badcafe"


def test_a_brain_mask_is_there_when_its_batch_is_and_found_as_the_method_says(tmp_path):
    batches = Batches(tmp_path, BRAINS, "{scan}", {OTHER}, {OTHER: 3}, {3: (OTHER,)})
    brains = {method: load_config({"preprocess": {"brain": {"method": method}}}) for method in ("none", "template")}
    found = {method: Preprocess(config, {}, {}, batches) for method, config in brains.items()}
    assert found["none"].brain_evidence(Found(scan=OTHER)) == "work/brain/none/batch-3.json"
    masks = {method: part.extraction(Found(scan=OTHER)).split("--out_mask")[1] for method, part in found.items()}
    assert masks["template"] == f" work/brain/template/{OTHER}_mask.nii.gz"
    assert masks["none"].startswith(
        f"s work/brain/none/{OTHER}_mask.nii.gz --out_batch_record work/brain/none/{OTHER}_found"
    )
