import gzip
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from popatlas.cohort import inspect
from popatlas.cohort.inspect import CHECKS, inspect_image, stamp_of
from popatlas.config.sections import Cohort

LIMITS = Cohort(spacing_mm=(0.3, 6.0), min_shape=16)
SHAPE = (20, 21, 22)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def noise(shape=SHAPE, dtype=np.int16):
    return np.random.default_rng(0).integers(1, 200, shape).astype(dtype)


def write(path, data=None, affine=AFFINE, sform=1, qform=1):
    image = nib.Nifti1Image(noise() if data is None else data, affine)
    image.set_sform(affine, code=sform)
    image.set_qform(affine, code=qform)
    nib.save(image, path)
    return path


def code_of(path, **limits):
    own = {key: tuple(value) if isinstance(value, list) else value for key, value in limits.items()}
    return inspect_image(path, replace(LIMITS, **own)).code


@pytest.fixture
def path(tmp_path):
    return tmp_path / "T1w.nii.gz"


def test_what_is_wrong_with_a_file_is_told_whole_however_long_its_path(tmp_path):
    """nibabel names the whole path, and what it says of it was cut away."""
    folder = tmp_path / ("deep" * 40)
    folder.mkdir()
    (folder / "sub-1_T1w.nii.gz").write_bytes(b"no gzip file at all")
    detail = inspect_image(folder / "sub-1_T1w.nii.gz", LIMITS).detail
    assert "sub-1_T1w.nii.gz is not a gzip file" in detail and "deep" not in detail


@pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 1)])
def test_a_good_image_has_facts_and_no_problem(path, shape):
    found = inspect_image(write(path, noise(shape)), LIMITS)
    assert (found.code, found.reason) == ("", "")
    assert (found.spacing_mm, found.orientation) == ("2x2x2", "RAS")
    assert found.shape.startswith("20x21x22")
    assert len(found.sha256) == 64


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_real_scalar_types_are_accepted(path, dtype):
    assert code_of(write(path, noise(dtype=dtype))) == ""


def test_absent_link_to_nothing_and_empty(tmp_path, path):
    assert code_of(path) == "absent"
    path.symlink_to(tmp_path / "annexed")
    assert code_of(path) == "absent"
    path.unlink()
    path.touch()
    assert code_of(path) == "empty"


@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
def test_truncated(path, share):
    whole = write(path).read_bytes()
    path.write_bytes(whole[: max(1, int(len(whole) * share))])
    assert code_of(path) == "unreadable"


def test_truncated_without_compression(tmp_path):
    path = write(tmp_path / "T1w.nii")
    path.write_bytes(path.read_bytes()[:-100])
    assert code_of(path) == "unreadable"


def test_a_wrong_checksum_at_the_end_is_found(path):
    whole = bytearray(write(path).read_bytes())
    whole[-8] ^= 0xFF  # CRC32 of the gzip trailer: all voxels can still be read
    path.write_bytes(bytes(whole))
    nib.load(path).get_fdata()
    assert code_of(path) == "unreadable"


def test_text_named_nifti(path):
    path.write_bytes(gzip.compress(b"this is not an image" * 100))
    assert code_of(path) == "unreadable"


def test_another_format(tmp_path):
    path = tmp_path / "T1w.mgz"
    nib.save(nib.MGHImage(noise(dtype=np.float32), AFFINE), path)
    assert code_of(path) == "format"


def test_types_that_are_not_intensities(path):
    assert code_of(write(path, noise().astype(np.complex64))) == "dtype"
    colour = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour["R"] = noise()
    assert code_of(write(path, colour)) == "dtype"


def test_dimensions_and_shape(path):
    assert code_of(write(path, noise((20, 20)))) == "dimensions"
    assert code_of(write(path, noise((*SHAPE, 2)))) == "dimensions"
    assert code_of(write(path, noise((20, 20, 15)))) == "shape"
    assert code_of(path, min_shape=15) == ""


@pytest.mark.parametrize(("size", "code"), [(0.1, "spacing"), (0.3, ""), (6.0, ""), (7.0, "spacing")])
def test_spacing(path, size, code):
    assert code_of(write(path, affine=np.diag([1.0, 1.0, size, 1.0]))) == code


def test_orientation_unknown_or_contradictory(path):
    assert code_of(write(path, sform=0, qform=0)) == "orientation"
    assert code_of(write(path, sform=0)) == ""
    assert code_of(write(path, qform=0)) == ""
    image = nib.load(write(path))
    image.set_qform(np.diag([-2.0, 2.0, 2.0, 1.0]), code=1)
    nib.save(image, path)
    found = inspect_image(path, LIMITS)
    assert found.code == "orientation"
    assert "RAS" in found.reason
    assert "LAS" in found.reason


@pytest.mark.parametrize(("shift", "turn", "code"), [(0.9, 0, ""), (1.1, 0, "orientation"), (0, 0.1, "orientation")])
def test_sform_and_qform_that_place_the_image_differently(path, shift, turn, code):
    """Same axes, other place: half a voxel is allowed (here 1 mm)."""
    image = nib.load(write(path))
    other = AFFINE @ np.array(
        [[np.cos(turn), -np.sin(turn), 0, 0], [np.sin(turn), np.cos(turn), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    other[0, 3] += shift
    image.set_sform(other, code=2)
    nib.save(image, path)
    found = inspect_image(path, LIMITS)
    assert found.code == code
    assert not code or "sform and qform place the image up to" in found.reason


def test_a_quaternion_that_is_none_is_a_finding_not_an_exception(path):
    image = nib.load(write(path))
    image = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    image.header["quatern_b"] = 3.0
    nib.save(image, path)
    assert inspect_image(path, LIMITS).code == "orientation"


def test_pixdim_that_contradicts_the_affine(path):
    image = nib.load(write(path, qform=0))
    image = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    image.header["pixdim"][1:4] = 1.0
    nib.save(image, path)
    assert code_of(path) == "orientation"


def test_shear_and_singular(path):
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.2
    assert code_of(write(path, affine=sheared, qform=0)) == "shear"
    image = nib.Nifti1Image(noise(), AFFINE)
    image.header.set_sform(np.diag([2.0, 2.0, 0.0, 1.0]), code=1)
    nib.save(nib.Nifti1Image(noise(), None, image.header), path)
    assert code_of(path) in ("orientation", "unreadable")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(path, value):
    data = noise(dtype=np.float32)
    data[3, 4, 5] = value
    found = inspect_image(write(path, data), LIMITS)
    assert found.code == "nan"
    assert "1 voxel" in found.reason


@pytest.mark.parametrize("value", [0, 7])
def test_constant(path, value):
    assert code_of(write(path, np.full(SHAPE, value, np.int16))) == "constant"


def test_a_file_that_may_not_be_read(path, monkeypatch):
    write(path)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    found = inspect_image(path, LIMITS)
    assert found.code == "denied"
    assert "permission denied" in found.reason and "right to read" in found.reason


def test_every_check_has_a_message_and_a_remedy():
    assert all(problem and remedy for problem, remedy in CHECKS.values())


def test_where_times_are_seconds_a_file_that_has_just_changed_has_a_stamp_like_no_other(tmp_path, monkeypatch):
    changed = 1_700_000_000_000_000_000
    status = SimpleNamespace(st_size=1, st_mtime_ns=changed, st_ctime_ns=changed)
    clock = iter(changed + 1_000_000_000 * seconds for seconds in (0, 1, 2, 3))
    monkeypatch.setattr(inspect, "os", SimpleNamespace(stat=lambda _: status))
    monkeypatch.setattr(inspect, "time", SimpleNamespace(time_ns=lambda: next(clock)))
    first, second, third, fourth = (stamp_of(tmp_path) for _ in range(4))
    assert first != second != third == fourth == (1, changed, changed) != first
