"""Brains of heads, for a registration of two files without masks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from popatlas.errors import InputError
from popatlas.images.io import load_image, save_image
from popatlas.pairwise.prepare import Given
from popatlas.preprocess.settings import BrainSettings


@contextmanager
def with_brains(fixed: Given, moving: Given, *, extract: bool, gpu: bool = False) -> Iterator[tuple[Given, Given]]:
    """Yield both sides, each with a mask of its brain where it has none and brains are to be extracted.

    Parameters
    ----------
    fixed, moving : Given
        Heads in 3D.
    extract : bool
        Otherwise both sides are yielded as they are.
    gpu : bool
        Run the network of the brain extraction there.

    Yields
    ------
    tuple of Given
        Their masks are gone afterwards.

    Raises
    ------
    InputError
        For images that are not 3D, and heads in which no brain is found.
    """
    if not extract or (fixed.mask and moving.mask):
        yield fixed, moving
        return
    from popatlas.preprocess.brain import deepbet_extractor

    settings = BrainSettings()
    find = deepbet_extractor(settings.threshold, settings.dilate, gpu=gpu)
    with tempfile.TemporaryDirectory() as folder:
        sides = []
        for name, side in (("fixed", fixed), ("moving", moving)):
            if side.mask is None:
                image = load_image(side.image)
                if image.ndim != 3:
                    remedy = "give masks, or leave out --extract-brain"
                    message = f"brains are found in 3D, the {name} image has the shape {image.shape}"
                    raise InputError(message, file=side.image, remedy=remedy)
                mask = find(image)
                if not mask.any():
                    remedy = f"give its mask by --{name}-mask"
                    raise InputError(f"no brain was found in the {name} image", file=side.image, remedy=remedy)
                path = Path(folder) / f"{name}.nii.gz"
                save_image(mask, image.affine, path)
                side = replace(side, mask=path, is_found=True)
            sides.append(side)
        yield sides[0], sides[1]
