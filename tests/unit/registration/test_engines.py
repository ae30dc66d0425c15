"""Each engine through our steps, on a brain with a known deformation."""

import sys

import numpy as np
import pytest
import SimpleITK as sitk

from popatlas.config.attempts import resolve_attempt
from popatlas.config.load import default_content, load_config
from popatlas.errors import ConfigError, InputError, PackageError, PopatlasError, SetupError
from popatlas.groupwise.template import reference_brain
from popatlas.images.grid import Grid
from popatlas.images.io import load_image, read_json, save_image, sha256
from popatlas.interfaces import load_interface
from popatlas.registration.engines import registry
from popatlas.registration.engines.engine import Engine
from popatlas.registration.engines.registry import planned_attempt
from popatlas.registration.pair import load_pair
from popatlas.transforms.affine import read_affine
from popatlas.transforms.composed import compose_forward, compose_inverse
from popatlas.transforms.itk import step_mm
from tests.unit.transforms.test_displacement import field_array, read_field


def attempt(engine, linear, preset, start="mass"):
    config = load_config({"register": {"engine": engine, "linear": linear}})
    return resolve_attempt(config, preset) | {"start": start}


ENGINES = {
    "ants": attempt("ants", "ants", "fast"),
    "instance": attempt("instance", "affine", "fast"),
    "instance from moments": attempt("instance", "ants", "default", "moments"),
    "greedy": attempt("greedy", "affine", "default"),
    "symmetric from a global search": attempt("instance", "affine", "accurate", "global"),
}
QUICK = attempt("ants", "ants", "quick")
SEARCH = QUICK | {"start": "search"}
GATE = default_content()["register"]["gate"]
AMPLITUDE_MM = 5.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A 4 mm brain and its image under a smooth known map: moving(x) = fixed(x + u(x))."""
    folder = tmp_path_factory.mktemp("pair")
    data, affine = reference_brain(4.0)
    save_image(data, affine, folder / "fixed.nii.gz")
    save_image((data > 0.05).astype(np.uint8), affine, folder / "fixed_mask.nii.gz")
    fixed = sitk.ReadImage(str(folder / "fixed.nii.gz"))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in fixed.GetSize()[::-1]), indexing="ij"), -1)[..., ::-1]
    direction = np.asarray(fixed.GetDirection()).reshape(3, 3)
    points = index @ (direction * fixed.GetSpacing()).T + fixed.GetOrigin()
    vectors = AMPLITUDE_MM * np.sin(points[..., [1, 2, 0]] / 20)
    field = sitk.GetImageFromArray(vectors, isVector=True)
    field.CopyInformation(fixed)
    sitk.WriteImage(field, str(folder / "true.nii.gz"))
    transform = sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64))
    for name in ("", "_mask"):
        image = sitk.ReadImage(str(folder / f"fixed{name}.nii.gz"))
        kind = sitk.sitkNearestNeighbor if name else sitk.sitkLinear
        sitk.WriteImage(sitk.Resample(image, image, transform, kind), str(folder / f"moving{name}.nii.gz"))
    return folder


FILES = ("fixed", "fixed_mask", "moving", "moving_mask")


def run(pair, out, attempt, fallback=(), **gate):
    inputs = {f"in_{name}": str(pair / f"{name}.nii.gz") for name in FILES}
    names = ("warp", "inverse_warp", "composed", "inverse_composed", "warped", "warped_mask", "logjacobian")
    outputs = {f"out_{name}": str(out / f"{name}.nii.gz") for name in names}
    others = {"out_affine": str(out / "affine.mat"), "out_gate": str(out / "gate.json")}
    options = {"attempt": attempt, "fallback": list(fallback), "gate": GATE | gate}
    load_interface("RegisterImages")(**options, **inputs, **outputs, **others).run()
    return out


@pytest.fixture(scope="module", params=ENGINES)
def engine(request):
    return ENGINES[request.param]


@pytest.fixture(scope="module")
def registered(pair, engine, tmp_path_factory):
    return run(pair, tmp_path_factory.mktemp("registered"), engine)


def test_the_known_field_is_found(pair, registered):
    """The inverse way, moving to fixed points, is the field that made the moving image."""
    true = field_array(read_field(pair / "true.nii.gz"))
    found = field_array(read_field(registered / "inverse_composed.nii.gz"))
    brain = sitk.GetArrayFromImage(sitk.ReadImage(str(pair / "moving_mask.nii.gz"))) > 0
    error = np.linalg.norm(found - true, axis=-1)[brain].mean()
    before = np.linalg.norm(true, axis=-1)[brain].mean()
    assert before > 5
    assert error < 0.4 * before


def test_forward_and_inverse_undo_each_other(pair, registered):
    forward = sitk.DisplacementFieldTransform(read_field(registered / "composed.nii.gz"))
    inverse = sitk.DisplacementFieldTransform(read_field(registered / "inverse_composed.nii.gz"))
    mask = sitk.ReadImage(str(pair / "fixed_mask.nii.gz"))
    voxels = np.argwhere(sitk.GetArrayFromImage(mask) > 0)[::50, ::-1]
    points = [mask.TransformIndexToPhysicalPoint([int(v) for v in voxel]) for voxel in voxels]
    errors = [np.linalg.norm(np.subtract(inverse.TransformPoint(forward.TransformPoint(p)), p)) for p in points]
    assert np.mean(errors) < 0.5


def test_gate_numbers_are_recorded(registered, engine):
    gate = read_json(registered / "gate.json")
    assert gate["verdict"] == "pass"
    assert (gate["engine"], gate["start"]) == (engine["engine"], engine["start"])
    assert gate["ncc"] > gate["ncc_affine"] > gate["ncc_before"]
    assert gate["inverse_error"] < 0.1
    assert gate["diverged"] == 0
    assert gate["mask_dice"] > 0.95
    assert gate["nonpositive_jacobian"] == 0
    assert len(gate["attempts"]) == 1


def test_composed_is_warp_then_affine(registered):
    composed = field_array(read_field(registered / "composed.nii.gz"))
    warp = read_field(registered / "warp.nii.gz")
    matrix = read_affine(registered / "affine.mat")
    index = (20, 22, 18)
    point = np.array(warp.TransformIndexToPhysicalPoint(index))
    moved = point + np.array(warp[index])
    expected = matrix[:3, :3] @ moved + matrix[:3, 3] - point
    assert np.allclose(composed[index[::-1]], expected, atol=1e-2)


def test_what_follows_from_affine_and_warps_is_made_again_to_the_byte(pair, registered, tmp_path):
    affine, warp, back = (registered / name for name in ("affine.mat", "warp.nii.gz", "inverse_warp.nii.gz"))
    compose_forward(affine, warp, pair / "fixed.nii.gz", tmp_path / "composed.nii.gz")
    compose_inverse(affine, back, pair / "moving.nii.gz", tmp_path / "inverse_composed.nii.gz")
    for name in ("composed.nii.gz", "inverse_composed.nii.gz"):
        assert sha256(tmp_path / name) == sha256(registered / name), name


def test_fields_are_stored_in_steps_of_a_thousandth_of_a_voxel(registered):
    for name in ("warp", "inverse_warp", "composed", "inverse_composed"):
        field = read_field(registered / f"{name}.nii.gz")
        steps = field_array(field) / step_mm(Grid.from_sitk(field))
        assert np.array_equal(steps, np.rint(steps)), name


def test_the_same_input_gives_the_same_bytes(pair, engine, registered, tmp_path):
    again = run(pair, tmp_path, engine)
    for name in ("warp", "warped", "composed"):
        one, other = (sitk.ReadImage(str(folder / f"{name}.nii.gz")) for folder in (registered, again))
        assert np.array_equal(sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(other)), name
    assert sha256(again / "affine.mat") == sha256(registered / "affine.mat")


def test_a_failed_gate_tries_another_start_and_then_fails_with_both_attempts(pair, tmp_path):
    with pytest.raises(Exception, match="registration gate failed: mask Dice"):
        run(pair, tmp_path, QUICK, [SEARCH], mask_dice=0.9999)
    gate = read_json(tmp_path / "gate.json")
    assert gate["verdict"] == "fail"
    assert [attempt["start"] for attempt in gate["attempts"]] == ["mass", "search"]
    assert not (tmp_path / "warp.nii.gz").exists()


def test_rigid_alignment_keeps_distances(pair, tmp_path):
    outputs = {"out_affine": str(tmp_path / "rigid.mat"), "out_warped": str(tmp_path / "warped.nii.gz")}
    files = {f"in_{name}": str(pair / f"{name}.nii.gz") for name in FILES}
    load_interface("RegisterRigid")(attempt=QUICK, **files, **outputs).run()
    linear = read_affine(tmp_path / "rigid.mat")[:3, :3]
    assert np.allclose(linear @ linear.T, np.eye(3), atol=1e-5)


def test_free_form_engine_brings_brains_closer(pair, tmp_path):
    """It has no symmetric or diffeomorphic guarantee, and few control points: looser bounds than the others."""
    gate = read_json(run(pair, tmp_path, attempt("ffd", "affine", "quick"), inverse_error=10.0) / "gate.json")
    assert gate["engine"] == "ffd"
    assert gate["ncc"] > gate["ncc_affine"]


def test_a_missing_optional_package_is_named_with_its_remedy(pair, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "picsl_greedy", None)
    monkeypatch.delitem(sys.modules, "popatlas.registration.engines.greedy.core", raising=False)
    with pytest.raises(Exception, match=r"pip install 'popatlas\[greedy\]'"):
        run(pair, tmp_path, attempt("greedy", "affine", "quick"))


@pytest.fixture
def broken_engine(monkeypatch):
    """Make an engine whose deformable stage raises; returns an attempt of it for an error."""

    def make(error):
        def deform(*_):
            raise error

        class Broken(Engine):
            def load(self):
                return deform

        monkeypatch.setitem(registry.ENGINES, "greedy", Broken(**vars(registry.ENGINES["greedy"])))
        return attempt("greedy", "ants", "quick")

    return make


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (InputError("no overlap", remedy="look at it"), "no overlap. Remedy: look at it", "input"),
        (RuntimeError("itk::ERROR"), "RuntimeError: itk::ERROR", "bug"),
        (ValueError("not a shape"), "ValueError: not a shape", "bug"),
    ],
)
def test_an_attempt_that_raises_is_recorded_and_the_next_one_tried(
    pair, tmp_path, capsys, broken_engine, error, reason, code
):
    gate = read_json(run(pair, tmp_path, broken_engine(error), [QUICK]) / "gate.json")
    assert (gate["verdict"], gate["engine"]) == ("pass", "ants")
    first, second = gate["attempts"]
    way = {"engine": "greedy", "linear": "ants", "start": "mass"}
    assert first == {**way, "metrics": {}, "reasons": [reason], "code": code}
    assert second["engine"] == "ants" and second["reasons"] == [] and second["metrics"]["ncc"] == gate["ncc"]
    assert f"greedy from mass raised an error: {reason}" in capsys.readouterr().out
    assert (tmp_path / "warp.nii.gz").exists()


def test_when_every_attempt_raises_all_reasons_are_named(pair, tmp_path, broken_engine):
    broken = broken_engine(RuntimeError("itk::ERROR"))
    with pytest.raises(
        InputError, match=r"greedy from mass: RuntimeError: itk::ERROR; greedy from moments: Runtime.*moving\.nii"
    ):
        run(pair, tmp_path, broken, [broken | {"start": "moments"}])
    gate = read_json(tmp_path / "gate.json")
    assert gate["verdict"] == "fail"
    assert [row["start"] for row in gate["attempts"]] == ["mass", "moments"]
    assert not (tmp_path / "warp.nii.gz").exists()


def test_a_failed_gate_before_an_attempt_that_raises_is_what_is_reported(pair, tmp_path, broken_engine):
    with pytest.raises(InputError, match="registration gate failed: mask Dice"):
        run(pair, tmp_path, QUICK, [broken_engine(RuntimeError("itk::ERROR"))], mask_dice=0.9999)
    gate = read_json(tmp_path / "gate.json")
    assert (gate["verdict"], gate["engine"], len(gate["attempts"])) == ("fail", "ants", 2)
    assert gate["mask_dice"] < 0.9999


OF_THE_SETUP = [
    ConfigError("no such preset"),
    PackageError("no package", remedy="install it"),
    SetupError("no weights"),
    TypeError("unexpected keyword 'raduis'"),
    ImportError("no module"),
]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MemoryError(), *OF_THE_SETUP], ids=lambda error: type(error).__name__
)
def test_what_no_other_attempt_can_mend_ends_the_step(pair, tmp_path, broken_engine, error):
    with pytest.raises(type(error)):
        run(pair, tmp_path, broken_engine(error), [QUICK])


def test_after_a_failed_gate_the_fallbacks_follow_with_another_engine(pair, tmp_path):
    hasty = attempt("ffd", "affine", "quick")
    hasty |= {"preset": hasty["preset"] | {"iterations": [1] * len(hasty["preset"]["iterations"])}}
    gate = read_json(run(pair, tmp_path, hasty, [ENGINES["instance"]], similarity_gain=0.2) / "gate.json")
    assert (gate["verdict"], gate["engine"]) == ("pass", "instance")
    assert [row["engine"] for row in gate["attempts"]] == ["ffd", "instance"]
    assert "correlation rose" in gate["attempts"][0]["reasons"][0]


def loaded(pair, tmp_path, **changed):
    """Load the pair with some of its images replaced by what a function makes of their voxels and affine."""
    paths = {name: pair / f"{name}.nii.gz" for name in FILES}
    for name, change in changed.items():
        image = load_image(paths[name])
        paths[name] = tmp_path / f"{name}.nii.gz"
        save_image(*change(np.array(image.dataobj), image.affine), paths[name])
    return load_pair(*map(str, paths.values()), "sub-07")


def shifted(data, affine):
    moved = affine.copy()
    moved[0, 3] += 2.0
    return data, moved


def with_nan(data, affine):
    data[3, 4, 5] = np.nan
    return data, affine


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("fixed_mask", shifted, "grids of image .*fixed.nii.gz and mask differ: origin"),
        ("moving_mask", lambda data, affine: (data[:-1], affine), "grids of image .*moving.nii.gz and mask differ: shape"),
        ("moving_mask", lambda data, affine: (0 * data, affine), "the mask is empty"),
        ("fixed_mask", with_nan, "not finite"),
        ("moving", with_nan, "not finite"),
        ("fixed", lambda data, affine: (0 * data + 3, affine), "all voxels are equal"),
    ],
)
def test_a_fault_of_the_files_is_named_with_file_subject_and_remedy(pair, tmp_path, name, change, message):
    with pytest.raises(InputError, match=rf"{message}.*{tmp_path}/{name}\.nii\.gz.*sub-07.*Remedy: "):
        loaded(pair, tmp_path, **{name: change})


def test_masks_of_ones_and_grids_that_differ_by_rounding_are_no_fault(pair, tmp_path):
    def rounded(data, affine):
        return 0 * data + 1, affine + 1e-3

    assert loaded(pair, tmp_path, fixed_mask=rounded, moving_mask=rounded).subject == "sub-07"


@pytest.mark.parametrize("engine", ["instance", "ffd", "ants"])
def test_2d_images_pass_the_gate(engine, tmp_path):
    """A ball in the plane that grows and moves; both grids are turned."""
    at = np.stack(np.meshgrid(np.arange(40), np.arange(44), indexing="ij"))
    turn = np.array([[0.955, -0.296, 0, -20], [0.296, 0.955, 0, 12], [0, 0, 1, 0], [0, 0, 0, 1]]) @ np.diag([2, 2, 2, 1])
    for seed, (name, centre, radius) in enumerate((("fixed", 18, 8), ("moving", 21, 10))):
        distance = np.hypot(at[0] - centre, at[1] - 21)
        grain = np.random.default_rng(seed).normal(0, 0.02, distance.shape)
        save_image((1 / (1 + np.exp(distance - radius)) + grain).astype(np.float32), turn, tmp_path / f"{name}.nii.gz")
        save_image((distance < radius + 1).astype(np.uint8), turn, tmp_path / f"{name}_mask.nii.gz")
    linear = "ants" if engine == "ants" else "affine"
    gate = read_json(run(tmp_path, tmp_path, attempt(engine, linear, "fast")) / "gate.json")
    assert gate["verdict"] == "pass"
    assert gate["ncc"] > gate["ncc_before"] + 0.2 and gate["mask_dice"] > 0.95
    assert read_affine(tmp_path / "affine.mat").shape == (3, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"raduis": 2}, "engine greedy: unknown key 'raduis', did you mean 'radius'"),
        ({"radius": -1}, "engine greedy.radius: -1 should be greater than or equal to 1"),
    ],
)
def test_wrong_settings_of_any_attempt_are_refused_before_the_first_attempt(pair, tmp_path, changes, message):
    wrong = attempt("greedy", "affine", "quick")
    wrong = wrong | {"preset": wrong["preset"] | changes}
    for attempts in ([wrong, QUICK], [QUICK, wrong]):
        with pytest.raises(InputError, match=message):
            run(pair, tmp_path, attempts[0], attempts[1:])
        assert not (tmp_path / "gate.json").exists() and not (tmp_path / "warp.nii.gz").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "nowhere"}, "no start is called 'nowhere'"),
        ({"linear": "x"}, "no linear is called 'x'"),
        ({"engine": "syn"}, "no engine is called 'syn'"),
        ({"preset": None}, "the attempt has no preset"),
        ({"preset": {"similarity": "lncc", "options": {"radus": 1}}}, "unknown key 'radus', did you mean 'radius'"),
    ],
)
def test_an_attempt_that_cannot_be_is_refused_when_it_is_planned(changes, message):
    with pytest.raises(PopatlasError, match=message):
        planned_attempt(ENGINES["instance"] | changes)


def test_a_similarity_without_options_has_its_own():
    assert planned_attempt(ENGINES["instance"] | {"preset": {"similarity": "ngf"}}).settings.options == {}
