"""Which of several images of a scan is taken: the rules one by one, their order, and what does not change a choice."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from popatlas.cohort.choice import Candidate, Rules, choose, judged, name_hint, read_rules
from popatlas.cohort.inspect import Inspection
from popatlas.config.sections import Cohort
from popatlas.errors import ConfigError
from popatlas.settings import settings_from

DAMAGED = Inspection("unreadable", "EOFError")


def image(name, spacing="1x1x1", shape="200x256x256", code="", **more):
    return Candidate(f"/bids/sub-1/anat/sub-1_{name}.nii.gz", Inspection(code, shape=shape, spacing_mm=spacing, **more))


def rules(**options):
    return read_rules(settings_from(Cohort, options, "cohort"), [])


def taken(*images, former="", **options):
    return choose(images, rules(**options), former)


def name_of(choice):
    return choice.taken.path.split("sub-1_")[1].removesuffix(".nii.gz")


@pytest.mark.parametrize(
    ("best", "other", "why"),
    [
        (image("run-2_T1w"), image("run-1_T1w", code="unreadable"), "run-2: run-1 cannot be used: the file cannot be read"),
        (image("acq-mprage_T1w"), image("acq-localizer_T1w", spacing="1x1x5", shape="256x256x40"), "coarser: 1x1x5 mm"),
        (image("acq-z_T1w"), image("acq-a_T1w", shape="200x256x60"), "covers less: 200x256x60 mm instead of 200x256x256 mm"),
        (image("acq-z_T1w"), image("acq-a_T1w", spacing="2x2x2"), "coarser: 2x2x2 mm instead of 1x1x1 mm"),
        (image("acq-z_T1w"), image("acq-a_T1w", spacing="0.5x0.5x3", shape="400x500x70"), "coarser: 0.5x0.5x3 mm"),
        (image("acq-z_T1w", spacing="0.8x0.8x1"), image("acq-a_T1w"), "coarser: 1x1x1 mm"),
        (image("T1w"), image("ce-gad_T1w", spacing="0.7x0.7x0.7", shape="300x300x300"), "derived or partial image (ce-gad)"),
        (image("rec-rms_T1w"), image("echo-1_T1w"), "derived or partial image (echo-1)"),
        (image("T1w"), image("desc-defaced_T1w"), "derived or partial image (desc-defaced)"),
        (image("acq-mprage_T1w"), image("acq-Scout_T1w"), "says scout in its name"),
        (image("T1w"), image("rec-norm_T1w"), "more entities"),
        (image("part-mag_T1w"), image("inv-1_T1w"), "derived or partial image (inv-1)"),
        (image("acq-a_T1w"), image("acq-b_T1w"), "later in the order of names"),
        (image("run-2_T1w"), image("run-10_T1w"), "not the first run"),
    ],
)
def test_each_rule_decides_and_says_so(best, other, why):
    for order in ((best, other), (other, best)):
        choice = taken(*order)
        assert choice.taken == best
        assert why in choice.why
        assert list(choice.why_not) == [other.path]


def test_one_image_needs_no_reason():
    assert taken(image("T1w")).why == ""
    assert "says localizer" in taken(image("acq-localizer_T1w")).why


def test_what_is_wanted_comes_before_all_but_what_can_be_used():
    images = [image("T1w"), image("acq-fast_T1w", spacing="3x3x3"), image("acq-fast_rec-norm_T1w", spacing="3x3x3")]
    assert name_of(taken(*images)) == "T1w"
    assert name_of(taken(*images, prefer=["acq-fast"])) == "acq-fast_T1w"
    assert name_of(taken(*images, prefer=["acq-fast", "rec-norm"])) == "acq-fast_rec-norm_T1w"
    assert name_of(taken(*images, prefer=["acq-fast_rec-*"])) == "acq-fast_rec-norm_T1w"
    assert name_of(taken(*images, prefer=["norm"])) == "acq-fast_rec-norm_T1w"
    assert "comes after norm (cohort.prefer)" in taken(*images, prefer=["norm"]).why
    assert name_of(taken(*images, prefer=["acq-missing"])) == "T1w"
    assert "comes after acq-fast (cohort.prefer)" in taken(*images, prefer=["acq-fast"]).why
    broken = [images[0], image("acq-fast_T1w", code="unreadable")]
    choice = taken(*broken, prefer=["acq-fast"])
    assert name_of(choice) == "T1w"
    assert "cannot be used" in choice.why


def test_runs_that_are_equal_are_taken_by_the_policy():
    images = [image(f"acq-a_run-{run}_T1w") for run in ("01", "2", "10")]
    assert name_of(taken(*images, run="first")) == "acq-a_run-01_T1w"
    assert name_of(taken(*images, run="last")) == "acq-a_run-10_T1w"
    assert name_of(taken(*images, image("acq-a_run-3_T1w", spacing="0.8x0.8x0.8"), run="last")) == "acq-a_run-3_T1w"


def test_none_can_be_used():
    choice = taken(image("run-1_T1w", code="unreadable"), image("run-2_T1w", code="constant"))
    assert choice.taken is None
    assert choice.why.startswith("none of 2 images can be used: run-1: the file cannot be read; run-2: all voxels")
    assert "remedy" in choice.why
    assert taken(image("T1w", code="constant")).why == Inspection("constant").reason


def test_phase_images_are_no_images_of_the_head_unless_named():
    found = Inspection(shape="200x256x256", spacing_mm="1x1x1")
    path = "/bids/sub-1/anat/sub-1_part-phase_T1w.nii.gz"
    assert choose([judged(path, found, rules(), "T1w")], rules()).taken is None
    named = rules(filter={"part": "phase"})
    assert choose([judged(path, found, named, "T1w")], named).taken is not None


@pytest.mark.parametrize(
    ("wanted", "passing"),
    [
        ({"acquisition": "mprage"}, {"acq-mprage_run-1", "acq-mprage_run-02"}),
        ({"acq": "mp*"}, {"acq-mprage_run-1", "acq-mprage_run-02"}),
        ({"run": 2}, {"acq-mprage_run-02", "run-2"}),
        ({"run": [1, 2], "acquisition": None}, {"run-2"}),
        ({"acquisition": ["fast", None]}, {"acq-fast", "run-2", "part-mag"}),
        ({"part": ["mag", None], "run": None}, {"acq-fast", "part-mag"}),
        ({"T1w": {"acquisition": "fast"}, "T2w": {"acquisition": "space"}}, {"acq-fast"}),
        ({"acquisition": "MPRAGE"}, set()),
    ],
)
def test_filters(wanted, passing):
    names = ["acq-mprage_run-1", "acq-mprage_run-02", "acq-fast", "run-2", "part-mag"]
    chosen = rules(filter=wanted)
    assert {name for name in names if not chosen.why_not(f"sub-1_{name}_T1w.nii.gz", "T1w")} == passing
    assert not chosen.why_not("sub-1_acq-space_T2w.nii.gz", "T2w")


def test_a_filter_of_a_session_sees_the_name():
    assert not rules(filter={"session": "1"}).why_not("sub-1_ses-1_T1w.nii.gz", "T1w")
    assert rules(filter={"ses": "2"}).why_not("sub-1_ses-1_T1w.nii.gz", "T1w")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"filter": {"aquisition": "x"}}, "did you mean acquisition"),
        ({"filter": {"subject": "1"}}, "use cohort.include"),
        ({"filter": {"FLAIR": {"acq": "x"}}}, "FLAIR is not in cohort.channels"),
        ({"prefer": ["acq-a_norm"]}, "not made of entities"),
        ({"prefer": ["acq-"]}, "not made of entities"),
        ({"prefer": ["protocol-x"]}, "no BIDS entity"),
    ],
)
def test_what_is_no_rule_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        rules(**options)


def test_an_entity_of_the_dataset_alone_is_known():
    found = read_rules(Cohort(prefer=("site-A",)), ["sub-1_site-A_T1w.nii.gz"])
    assert found.prefer == [{"site": "A"}]


def test_a_file_beside_with_another_ending_is_said():
    first = image("T1w", voxels="a")
    for voxels, words in (("a", "the same voxels"), ("b", "OTHER voxels")):
        second = Candidate(first.path.removesuffix(".gz"), image("T1w", voxels=voxels).found)
        choice = taken(second, first)
        assert choice.taken == first
        assert words in choice.why


NAMES = st.sampled_from(["", "acq-a_", "acq-b_", "acq-localizer_", "rec-norm_", "ce-x_", "echo-2_", "acq-a_rec-n_"])
IMAGES = st.builds(
    lambda name, run, spacing, shape, code: image(f"{name}{run}T1w", spacing, shape, code),
    NAMES,
    st.sampled_from(["", "run-1_", "run-2_", "run-10_"]),
    st.sampled_from(["1x1x1", "0.8x0.8x0.8", "1x1x5", "2x2x2"]),
    st.sampled_from(["200x256x256", "200x256x40", "36x36x36"]),
    st.sampled_from(["", "", "", "unreadable"]),
)
SETS = st.lists(IMAGES, min_size=2, max_size=6, unique_by=lambda image: image.path)


@given(images=SETS, policy=st.sampled_from(["first", "last"]))
def test_a_choice_depends_neither_on_the_order_nor_on_images_that_are_not_taken(images, policy):
    choice = taken(*images, run=policy)
    for one in itertools.islice(itertools.permutations(images), 6):
        assert taken(*one, run=policy).best == choice.best
    for left in images:
        if left != choice.best:
            rest = [one for one in images if one != left]
            assert taken(*rest, run=policy).best == choice.best
            assert choice.taken is None or choice.why_not[left.path]


@given(images=SETS, new=IMAGES)
def test_a_new_image_is_taken_only_when_it_is_better(images, new):
    """Among equals, what was taken before stays: the rank of the new one must differ in more than its name."""
    if new.path in {one.path for one in images}:
        return
    before = choose(images, rules())
    if before.taken is None:
        return
    after = choose([*images, new], rules(), before.best.path)
    if after.best != before.best:
        assert after.best == new
        assert "later in the order of names" not in after.why_not[before.best.path]


def test_the_protocol_taken_before_stays_among_equals():
    old, new = image("acq-mprage_T1w"), image("acq-another_T1w")
    assert name_of(taken(old, new)) == "acq-another_T1w"
    choice = taken(old, new, former=old.path)
    assert choice.taken == old
    assert "was not taken before" in choice.why


def test_hints():
    assert name_hint("sub-1_acq-AAHeadScout_T1w.nii.gz") == "scout"
    assert name_hint("sub-1_acq-test2_T1w.nii.gz") == "test"
    assert name_hint("sub-1_acq-mprage_T1w.nii.gz") == name_hint("sub-1_acq-latest_T1w.nii.gz") == ""


def test_rules_default_to_nothing():
    assert choose([image("T1w")], Rules()).taken is not None
