"""What a header announces is judged before voxels are read, and no more than that is ever read."""

import gzip
import os
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from popatlas.cohort.inspect import inspect_image
from popatlas.config.sections import Cohort
from popatlas.errors import InputError
from popatlas.images import bounds
from popatlas.images.bounds import SizeError, is_unfetched, read_announced, size_fault, voxel_pieces
from popatlas.images.io import load_image

LIMITS = Cohort(spacing_mm=(0.3, 6.0), min_shape=16)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
SHAPE = (20, 21, 22)
DATA = np.random.default_rng(0).integers(1, 200, SHAPE).astype(np.int16)


@pytest.fixture(params=[".nii", ".nii.gz"])
def path(request, tmp_path):
    path = tmp_path / f"T1w{request.param}"
    nib.save(nib.Nifti1Image(DATA, AFFINE), path)
    return path


def rewritten(path, change):
    """Write the bytes of an image anew after a change of the uncompressed ones."""
    compressed = path.name.endswith(".gz")
    content = bytearray(gzip.decompress(path.read_bytes()) if compressed else path.read_bytes())
    content = bytes(change(content))
    path.write_bytes(gzip.compress(content) if compressed else content)
    return path


def announce(content, **fields):
    """Change fields of the header."""
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + content[348:]


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64, ">i4", ">f4"])
def test_pieces_are_the_voxels_as_stored(tmp_path, monkeypatch, kind, dtype):
    monkeypatch.setattr(bounds, "PIECE_VOXELS", 1000)
    image = kind(DATA.astype(dtype), AFFINE)
    image.header.set_slope_inter(2.0, 5.0)
    nib.save(image, tmp_path / "T1w.nii.gz")
    announced = read_announced(tmp_path / "T1w.nii.gz")
    assert announced.shape == SHAPE
    assert announced.voxels == DATA.size
    pieces = list(voxel_pieces(tmp_path / "T1w.nii.gz", announced))
    assert max(piece.size for piece in pieces) == 1000
    stored = nib.load(tmp_path / "T1w.nii.gz").dataobj.get_unscaled()
    np.testing.assert_array_equal(np.concatenate(pieces), np.ravel(stored, order="F"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dim": [3, 3000, 21, 22, 1, 1, 1, 1]}, "expected 1 to 2048 along an axis"),
        ({"dim": [3, 20, -21, 22, 1, 1, 1, 1]}, "expected 1 to 2048 along an axis"),
        ({"dim": [3, 2000, 2000, 2000, 1, 1, 1, 1]}, "expected at most 4,096 MB"),
        ({"dim": [4, 2000, 2000, 2, 2000, 1, 1, 1]}, "expected at most 4,096 MB"),
        ({"vox_offset": 1e9}, "a header of 954 MB"),
        ({"dim": [3, 2, 2, 2, 1, 1, 1, 1]}, "its header announces"),
    ],
)
def test_what_the_header_announces_is_held_against_limits(path, monkeypatch, fields, words):
    monkeypatch.setattr(bounds, "TAIL_BYTES", 100)
    rewritten(path, lambda content: announce(content, **fields))
    assert words in size_fault(path)
    found = inspect_image(path, LIMITS)
    assert found.code == "size"
    assert found.lasting


@pytest.mark.parametrize(
    "fields", [{"dim": [3, 30000, 30000, 3000, 1, 1, 1, 1]}, {"dim": [4, 2000, 2000, 2, 2000, 1, 1, 1]}]
)
def test_no_step_unpacks_more_than_images_have(path, fields):
    rewritten(path, lambda content: announce(content, **fields))
    with pytest.raises(InputError, match=r"expected at most 4,096 MB|expected 1 to 2048"):
        load_image(path)


def test_a_section_may_be_wider_than_a_head(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((1, 2501, 3), np.uint8), np.eye(4)), tmp_path / "section.nii.gz")
    assert size_fault(tmp_path / "section.nii.gz") == ""
    assert load_image(tmp_path / "section.nii.gz").shape == (1, 2501, 3)


def test_a_bomb_is_not_unpacked(tmp_path):
    """3 MB of zeros would be 3 GB: what is read ends with what was announced."""
    path = tmp_path / "T1w.nii.gz"
    nib.save(nib.Nifti1Image(DATA, AFFINE), tmp_path / "T1w.nii")
    with gzip.open(path, "wb", compresslevel=9) as stream:
        stream.write((tmp_path / "T1w.nii").read_bytes())
        for _ in range(64):
            stream.write(bytes(1 << 20))
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    found = inspect_image(path, LIMITS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.code == "unreadable"
    assert "holds more than the 18,832 bytes that its header announces" in found.detail
    assert peak < 8 << 20


def test_an_image_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "PIECE_VOXELS", 1 << 16)
    data = np.random.default_rng(1).random((128, 128, 128), dtype=np.float32)
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "T1w.nii")
    tracemalloc.start()
    found = inspect_image(tmp_path / "T1w.nii", LIMITS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.code == ""
    assert peak < data.nbytes / 2


@pytest.mark.parametrize("bytes_lost", [1, 100])
def test_fewer_voxels_than_announced(path, bytes_lost):
    rewritten(path, lambda content: content[:-bytes_lost])
    with pytest.raises(SizeError, match=f"holds {18832 - bytes_lost} of the 18832 bytes"):
        list(voxel_pieces(path, read_announced(path)))
    assert inspect_image(path, LIMITS).code == "unreadable"


def test_a_short_tail_is_allowed(path):
    rewritten(path, lambda content: content + bytes(1000))
    assert inspect_image(path, LIMITS).code == ""


def test_voxels_are_the_same_in_files_that_differ_in_header_and_compression(tmp_path):
    moved = AFFINE.copy()
    moved[0, 3] = 7
    nib.save(nib.Nifti1Image(DATA, AFFINE), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image(DATA, moved), tmp_path / "b.nii.gz")
    nib.save(nib.Nifti1Image(DATA + 1, AFFINE), tmp_path / "c.nii")
    first, second, third = (inspect_image(tmp_path / name, LIMITS) for name in ("a.nii", "b.nii.gz", "c.nii"))
    assert first.voxels == second.voxels != third.voxels
    assert first.sha256 != second.sha256


@pytest.mark.parametrize("text", ["/annex/objects/MD5E-s1--0.nii.gz\n", "version https://git-lfs.github.com/spec/v1\n"])
def test_files_that_stand_for_content_elsewhere(tmp_path, text):
    pointer = tmp_path / "T1w.nii.gz"
    pointer.write_text(text)
    assert is_unfetched(pointer)
    found = inspect_image(pointer, LIMITS)
    assert found.code == "unfetched"
    assert "git annex get" in found.remedy


def test_a_link_to_content_that_was_not_fetched(tmp_path):
    link = tmp_path / "T1w.nii.gz"
    link.symlink_to("../.git/annex/objects/aa/MD5E-s1--0.nii.gz")
    assert inspect_image(link, LIMITS).code == "unfetched"
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere.nii.gz")
    assert inspect_image(link, LIMITS).code == "absent"


def test_what_can_change_while_the_file_does_not_is_not_lasting(tmp_path, monkeypatch):
    path = tmp_path / "T1w.nii"
    assert not inspect_image(path, LIMITS).lasting
    nib.save(nib.Nifti1Image(DATA, AFFINE), path)
    monkeypatch.setattr(bounds.Path, "open", lambda *args: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert not inspect_image(path, LIMITS).lasting
    monkeypatch.undo()
    path.write_bytes(os.urandom(5000))
    assert inspect_image(path, LIMITS).lasting


def test_values_that_do_not_fit_into_32_bits(tmp_path):
    nib.save(nib.Nifti1Image(DATA * 1e300, AFFINE), tmp_path / "T1w.nii")
    assert inspect_image(tmp_path / "T1w.nii", LIMITS).code == "nan"
