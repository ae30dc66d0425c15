"""The gate before poses were judged: one start (centres of mass), one deformation, then masks, folds and correlation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from popatlas.images.antspy import deterministic_ants
from popatlas.measures.correlation import correlation
from popatlas.registration.attempt import deform
from popatlas.registration.engines.affine import register
from popatlas.registration.gate import gate_metrics, judge
from popatlas.registration.initialisation import centre_of_mass
from popatlas.registration.pair import Pair
from popatlas.registration.types import Attempt
from popatlas.transforms.affine import Matrix
from popatlas.transforms.displacement import apply_chain, compose, write_jacobian
from popatlas.transforms.fields import compose as compose_fields
from popatlas.transforms.itk import read_displacement, write_affine

LIMITS = ("mask_dice", "scale", "shear", "nonpositive_jacobian", "similarity_gain", "inverse_error")


def align_unseen(pair: Pair) -> Matrix:
    """Return the affine from the centres of mass, whatever it is."""
    fixed, moving = (replace(scan, mask=None) for scan in pair.scans())
    start = centre_of_mass(*pair.scans())
    return register(fixed, moving, kinds=("rigid", "affine"), initial=start).matrix


def first_attempt(pair: Pair, attempt: Attempt, limits: Mapping[str, object], folder: Path) -> list[str]:
    """Register as before, leave `warp.nii.gz` and `affine.mat` in a folder, and return the reasons of the old gate."""
    matrix = align_unseen(pair)
    affine = folder / "affine.mat"
    write_affine(affine, matrix)
    files = deform(pair, attempt, affine, folder)
    chain, keep = [files.warp, affine], [False, False]
    compose(pair.fixed_file, pair.moving_file, chain, keep, folder / "composed.nii.gz")
    determinant = write_jacobian(folder / "composed.nii.gz", pair.fixed_file, folder / "logjacobian.nii.gz")
    warped = apply_chain(pair.fixed, pair.moving, chain, keep)
    warped_mask = apply_chain(pair.fixed, pair.moving_mask, chain, keep, "nearestNeighbor")
    mask = pair.fixed_mask.numpy()
    metrics = gate_metrics(matrix, determinant, mask, warped_mask.numpy())
    for name, transforms in (("ncc_before", []), ("ncc_affine", chain[1:]), ("ncc", chain)):
        image = apply_chain(pair.fixed, pair.moving, transforms, [False] * len(transforms))
        metrics[name] = correlation(pair.fixed.numpy(), image.numpy(), mask)
    there, back = (torch.as_tensor(read_displacement(path)[0])[None].float() for path in (files.warp, files.inverse_warp))
    metrics["inverse_error"] = float(compose_fields(there, back).norm(dim=1)[0].numpy()[mask > 0].mean())
    metrics["diverged"] = float(files.diverged)
    deterministic_ants().image_write(warped, str(folder / "warped.nii.gz"))
    deterministic_ants().image_write(warped_mask, str(folder / "warped_mask.nii.gz"))
    compose(pair.moving_file, pair.fixed_file, [affine, files.inverse_warp], [True, False], folder / "inverse.nii.gz")
    return judge(metrics, {name: limits[name] for name in LIMITS})
