"""A composed field that a study does not keep: `popatlas apply` names what it is made of."""

import pytest

from popatlas.errors import InputError
from popatlas.pairwise.apply import way_of_files

STEM = "sub-01_from-T1w_to-tiny_mode-image"
BACK = "sub-01_from-tiny_to-T1w_mode-image"


@pytest.mark.parametrize("asked", [STEM, BACK])
def test_the_parts_of_a_field_that_is_not_kept_are_named(asked, tmp_path):
    affine, warp = f"{tmp_path}/{STEM}_desc-affine_xfm.mat", f"{tmp_path}/{asked}_desc-warp_xfm.nii.gz"
    parts = f"{warp} {affine}" if asked == STEM else f"inverse:{affine} {warp}"
    with pytest.raises(InputError, match="does not exist") as raised:
        way_of_files([str(tmp_path / f"{asked}_xfm.nii.gz")])
    assert raised.value.remedy == "check the path", "nothing is there"
    for name in (f"{STEM}_desc-affine_xfm.mat", f"{STEM}_desc-warp_xfm.nii.gz", f"{BACK}_desc-warp_xfm.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="does not exist") as raised:
        way_of_files([str(tmp_path / f"{asked}_xfm.nii.gz")])
    assert f"--transforms {parts}, or `popatlas retain`" in raised.value.remedy
