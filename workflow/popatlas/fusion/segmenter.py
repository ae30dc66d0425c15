"""A segmentation network of the cohort: trained on fused labels, it labels a new scan without any registration.

It is the network of the data parameters (:mod:`popatlas.fusion.dataparams.train`) and its trainer, with one label image for
each target, which is believed: data parameters never start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from popatlas.errors import InputError
from popatlas.fusion.candidates import Candidates
from popatlas.fusion.dataparams.data import label_values, standardised, training_target
from popatlas.fusion.dataparams.files import Labels, load_labelled, save_labelled, training_json
from popatlas.fusion.dataparams.train import train_data_parameters
from popatlas.fusion.settings import DataParametersSettings
from popatlas.images.arrays import FloatArray, IntArray
from popatlas.images.io import PathLike
from popatlas.networks.segmentation import SegmentationNet

Image = FloatArray


class Segmenter(NamedTuple):
    """A trained network, the values (n_labels,) of its classes, and the mean cross-entropy of each epoch."""

    network: SegmentationNet
    labels: Labels
    losses: list[float]


def train_segmenter(
    images: Sequence[Image],
    dsegs: Sequence[IntArray],
    names: Sequence[str],
    settings: DataParametersSettings | None = None,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> Segmenter:
    """Train a network on images and their labels.

    Parameters
    ----------
    images : sequence of (x, y[, z]) float ndarray
        Brains, 0 outside.
    dsegs : sequence of (x, y[, z]) int ndarray
        Labels of each image, on its grid.
    names : sequence of str
        Of the images, for messages.
    settings : DataParametersSettings, optional
        Those of the network; those of data parameters have no effect.
    device : str
        ``cpu`` or ``cuda``.
    progress : callable, optional
        Called with a line of text after each epoch.

    Returns
    -------
    Segmenter
        The same for the same input on one device and thread.

    Raises
    ------
    InputError
        No image, grids that differ, labels or images that cannot be used.
    """
    settings = settings or DataParametersSettings()
    if not images:
        raise InputError("no image to train a segmentation network on", remedy="check that label fusion has results")
    stacks = [
        Candidates(np.asarray(dseg)[None], np.asarray(image), subject=name)
        for image, dseg, name in zip(images, dsegs, names, strict=True)
    ]
    labels = label_values(stacks)
    targets = [training_target(stack, labels) for stack in stacks]
    believed = replace(settings, warm_up=settings.epochs, per_label=False)
    result = train_data_parameters(targets, labels, believed, device, progress)
    return Segmenter(result.network, labels, result.losses)


def segment(
    network: SegmentationNet, labels: Labels, image: Image, device: str = "cpu", subject: str | None = None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Label an image.

    Parameters
    ----------
    network : SegmentationNet
        From :func:`train_segmenter`.
    labels : (n_labels,) int64 ndarray
        Values of its classes.
    image : (x, y[, z]) float ndarray
        Brain, 0 outside; cropped and standardised as in training.
    device : str
        ``cpu`` or ``cuda``.
    subject : str, optional
        Named in messages.

    Returns
    -------
    dseg : (x, y[, z]) int32 ndarray
        Label values; background outside of the crop.
    probability : (x, y[, z]) float32 ndarray
        Of the label, 1 outside of the crop.

    Raises
    ------
    InputError
        An image that is empty, not finite, or of another number of axes than the network.
    """
    import torch

    if image.ndim != network.backbone.ndim:
        message = f"the image has {image.ndim} axes, the network takes {network.backbone.ndim}"
        raise InputError(message, subject=subject, remedy="extract one volume")
    if not np.isfinite(image).all() or not image.any():
        message = "the image is empty or has voxels that are not finite"
        raise InputError(message, subject=subject, remedy="preprocess the image again")
    seen, box = standardised(image)
    classes, share = network.to(device).predict(torch.from_numpy(seen)[None, None].to(device))
    dseg, probability = np.zeros(image.shape, dtype=np.int32), np.ones(image.shape, dtype=np.float32)
    dseg[box] = labels[classes[0].cpu().numpy()]
    probability[box] = share[0].cpu().numpy()
    return dseg, probability


def save_segmenter(segmenter: Segmenter, settings: DataParametersSettings, path: PathLike) -> None:
    """Write network, label values and settings to a safetensors file, at once."""
    save_labelled(segmenter.network, segmenter.labels, {"segmenter_settings": training_json(settings)}, path)


def load_segmenter(path: PathLike) -> tuple[SegmentationNet, Labels]:
    """Read a network and the values (n_labels,) of its classes; InputError when the file is missing or damaged."""
    return load_labelled(path)[:2]
