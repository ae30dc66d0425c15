"""Head model that the demo cohort is drawn from: the MNI152 brain of the nilearn wheel, with a synthetic head round it.

The brain is real (the ICBM 2009a nonlinear symmetric average and its grey and white matter maps, Fonov et al., NeuroImage
2011;54(1):313-327, doi:10.1016/j.neuroimage.2010.07.033), so registration meets real folds. **The labels are derived from
these maps by the rules below; they are no anatomist's atlas:**

* cerebellum and brainstem: watershed of the T1 image from markers at fixed MNI places (the tentorium is a dark valley);
* tissue: largest of the grey matter, white matter and remaining (CSF) probability;
* lateral ventricles: the largest piece of CSF in a central box; deep grey: darker than white matter in a central ellipsoid;
* cortical parcels: cerebral grey matter goes to the nearest of fixed MNI seed points; hemispheres: the sign of x.

Skull, scalp, fat, face, eyes, air spaces and neck are distance shells and ellipsoids: crude, but enough for skull stripping.
Everything is in MNI152 space, RAS millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pandas as pd

from popatlas.images.arrays import RealArray

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Affine = npt.NDArray[np.float64]

CSF, BRAINSTEM, LEFT, RIGHT = 1, 2, 10, 30
STRUCTURES = (
    "lateral ventricle", "white matter", "deep grey", "cerebellum", "frontal cortex", "orbitofrontal cortex",
    "central cortex", "parietal cortex", "temporal cortex", "occipital cortex", "insula", "cingulate cortex",
    "medial temporal cortex",
)  # fmt: skip
VENTRICLE, WHITE, DEEP, CEREBELLUM, CORTEX = 0, 1, 2, 3, 4
# Left seed points in MNI millimetres, mirrored for the right
SEEDS: dict[str, list[tuple[int, int, int]]] = {
    "frontal cortex": [(-22, 40, 35), (-40, 25, 35), (-10, 55, 15), (-45, 30, 10), (-20, 10, 60)],
    "orbitofrontal cortex": [(-20, 35, -18), (-8, 40, -20), (-38, 35, -15)],
    "central cortex": [(-38, -22, 58), (-55, -8, 30), (-10, -28, 68)],
    "parietal cortex": [(-35, -60, 48), (-55, -40, 38), (-10, -62, 50)],
    "temporal cortex": [(-58, -15, -18), (-45, 12, -32), (-55, -45, -5), (-35, -5, -42), (-55, -10, 0)],
    "occipital cortex": [(-12, -88, 5), (-30, -88, 5), (-15, -65, 0), (-30, -70, -12)],
    "insula": [(-38, 5, 0), (-38, -12, 8)],
    "cingulate cortex": [(-6, 30, 22), (-6, 5, 38), (-6, -40, 32)],
    "medial temporal cortex": [(-26, -18, -18), (-24, -2, -22), (-24, -35, -6)],
}
LANDMARKS: dict[str, tuple[int, int, int]] = {
    "anterior commissure": (0, 2, -4),
    "posterior commissure": (0, -26, -2),
    "genu of corpus callosum": (0, 30, 4),
    "splenium of corpus callosum": (0, -38, 10),
    "left frontal horn": (-11, 24, 7),
    "right frontal horn": (11, 24, 7),
    "left putamen": (-26, 4, 0),
    "right putamen": (26, 4, 0),
    "left temporal pole": (-40, 18, -32),
    "right temporal pole": (40, 18, -32),
    "left occipital pole": (-14, -100, 0),
    "right occipital pole": (14, -100, 0),
}
HEAD_SHAPE, HEAD_MM, HEAD_ORIGIN = (114, 142, 136), 2.0, (-113.0, -156.0, -156.0)


@dataclass(frozen=True)
class HeadModel:
    """The head in MNI152 space.

    Attributes
    ----------
    labels : (x, y, z) int16 ndarray
        Label of each voxel of the 1 mm MNI grid, 0 outside of the brain mask.
    t1w : (x, y, z) float32 ndarray
        The average T1 image of the brain, 0 to 1.
    brain : dict of str to (x, y, z) uint8 ndarray
        Tissue shares (0 to 255 for 0 to 1) on the 1 mm grid: csf, gm, wm.
    affine : (4, 4) ndarray
        1 mm grid to RAS millimetres.
    head : dict of str to (x, y, z) uint8 ndarray
        Shares of the tissues outside of the brain on a 2 mm grid: fluid, bone, soft, fat. The rest is air.
    head_affine : (4, 4) ndarray
        2 mm head grid to RAS millimetres.
    """

    labels: npt.NDArray[np.int16]
    t1w: Array
    brain: dict[str, npt.NDArray[np.uint8]]
    affine: Affine
    head: dict[str, npt.NDArray[np.uint8]]
    head_affine: Affine


def label_table() -> pd.DataFrame:
    """Return the labels as BIDS wants them: columns index and name."""
    sides = [(LEFT + i, f"left {name}") for i, name in enumerate(STRUCTURES)]
    sides += [(RIGHT + i, f"right {name}") for i, name in enumerate(STRUCTURES)]
    return pd.DataFrame([(CSF, "csf"), (BRAINSTEM, "brainstem"), *sides], columns=["index", "name"])


def landmark_table() -> pd.DataFrame:
    """Return the landmarks in MNI152 space: columns name, x, y, z (RAS mm)."""
    return pd.DataFrame([(name, *map(float, at)) for name, at in LANDMARKS.items()], columns=["name", "x", "y", "z"])


@lru_cache(maxsize=1)
def head_model() -> HeadModel:
    """Build the head model (a few seconds; kept for the life of the process)."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
    from scipy.ndimage import binary_closing, binary_fill_holes

    image = load_mni152_template(resolution=1)
    t1w, gm, wm = (
        np.asarray(source.dataobj, dtype=np.float32)
        for source in (image, load_mni152_gm_template(resolution=1), load_mni152_wm_template(resolution=1))
    )
    closed = binary_closing(np.pad(t1w > 0, 4), iterations=2)
    mask = np.asarray(binary_fill_holes(closed))[4:-4, 4:-4, 4:-4]
    affine = np.asarray(image.affine, dtype=np.float64)
    tissues = _tissues(gm, wm, mask)
    labels = _labels(t1w, tissues, mask, _coordinates(t1w.shape, affine))
    head_affine = np.diag([HEAD_MM, HEAD_MM, HEAD_MM, 1.0])
    head_affine[:3, 3] = HEAD_ORIGIN
    return HeadModel(
        labels=labels,
        t1w=t1w,
        brain={name: _to_bytes(share) for name, share in zip(("csf", "gm", "wm"), tissues, strict=True)},
        affine=affine,
        head=_head(mask, affine, head_affine),
        head_affine=head_affine,
    )


def lateral_ventricles(labels: npt.NDArray[np.int16]) -> Mask:
    """Return the lateral ventricles of both sides."""
    return np.isin(labels, (LEFT + VENTRICLE, RIGHT + VENTRICLE))


def _to_bytes(share: RealArray) -> npt.NDArray[np.uint8]:
    return np.asarray(np.clip(np.rint(share * 255), 0, 255), dtype=np.uint8)


def _coordinates(shape: tuple[int, ...], affine: Affine) -> list[Array]:
    """Return sparse x, y, z in millimetres of a grid without rotation."""
    axes = [affine[i, i] * np.arange(n, dtype=np.float32) + np.float32(affine[i, 3]) for i, n in enumerate(shape)]
    return [np.asarray(axis, dtype=np.float32) for axis in np.meshgrid(*axes, indexing="ij", sparse=True)]


def _tissues(gm: Array, wm: Array, mask: Mask) -> tuple[Array, Array, Array]:
    """Return the shares of CSF, grey and white matter; squared, which undoes some of the blur of an average."""
    maps = [np.square(share) * mask for share in (np.clip(1 - gm - wm, 0, 1), gm, wm)]
    total = np.maximum(maps[0] + maps[1] + maps[2], 1e-6)
    return maps[0] / total, maps[1] / total, maps[2] / total


def _labels(t1w: Array, tissues: tuple[Array, Array, Array], mask: Mask, xyz: list[Array]) -> npt.NDArray[np.int16]:
    """Return the label image; the rules are those of the module's docstring."""
    from scipy.ndimage import gaussian_filter

    x, y, z = xyz
    zone = _zones(t1w, mask, xyz)
    tissue = np.argmax(np.stack(tissues), axis=0)
    cerebrum = zone == 1
    half = np.full(t1w.shape, -1, dtype=np.int16)  # structure of either side, -1 where there are no sides
    half[cerebrum & (tissue == 2)] = WHITE
    central = (x / 34) ** 2 + ((y + 5) / 34) ** 2 + ((z - 5) / 20) ** 2 < 1
    grey = cerebrum & central & (tissue != 0) & (t1w < 0.83)
    half[gaussian_filter(grey.astype(np.float32), 0.8) > 0.5] = DEEP
    half[cerebrum & (tissue == 1) & (half != DEEP)] = CORTEX
    half[(zone == 2) & (tissue != 0)] = CEREBELLUM
    half[_ventricles(cerebrum & (tissue == 0), xyz)] = VENTRICLE
    where = np.nonzero(half == CORTEX)
    half[where] = _parcels(np.stack([np.abs(x[where[0], 0, 0]), y[0, where[1], 0], z[0, 0, where[2]]], axis=-1))
    labels = np.where(mask, np.int16(CSF), np.int16(0))
    labels[(zone == 3) & (tissue != 0)] = BRAINSTEM
    side = np.where(x < 0, np.int16(LEFT), np.int16(RIGHT))
    return np.where((half >= 0) & mask, half + side, labels).astype(np.int16)


def _zones(t1w: Array, mask: Mask, xyz: list[Array]) -> npt.NDArray[np.int32]:
    """Return 1 for the cerebrum, 2 for the cerebellum, 3 for the brainstem."""
    from scipy.ndimage import gaussian_filter
    from skimage.segmentation import watershed

    x, y, z = xyz
    tentorium = -2 - 0.27 * np.abs(x) - 0.18 * np.maximum(-y - 45, 0)
    markers = np.zeros(t1w.shape, dtype=np.int32)
    markers[(t1w > 0.55) & (z > tentorium + 14)] = 1
    markers[(t1w > 0.55) & (y > -12) & (np.abs(x) > 14)] = 1
    markers[(t1w > 0.5) & (z < tentorium - 14) & (y < -48)] = 2
    markers[(t1w > 0.6) & ((x / 13) ** 2 + ((y + 26) / 10) ** 2 < 1) & (z < -18) & (y < -20)] = 3
    return np.asarray(watershed(1 - gaussian_filter(t1w, 0.7), markers, mask=mask), dtype=np.int32)


def _ventricles(csf: Mask, xyz: list[Array]) -> Mask:
    """Return the largest piece of CSF in the box that holds the lateral ventricles."""
    from scipy.ndimage import label

    x, y, z = xyz
    pieces = np.empty(csf.shape, dtype=np.int32)
    label(csf & (np.abs(x) < 40) & (y > -62) & (y < 36) & (z > -16) & (z < 34), output=pieces)
    return np.asarray(pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:]))


def _parcels(points: Array) -> npt.NDArray[np.int16]:
    """Return the structure of the nearest seed for points (n, 3) given as |x|, y, z."""
    from scipy.spatial import cKDTree

    seeds = [(STRUCTURES.index(name), (-x, y, z)) for name, places in SEEDS.items() for x, y, z in places]
    _, nearest = cKDTree([place for _, place in seeds]).query(points)
    return np.array([structure for structure, _ in seeds], dtype=np.int16)[nearest]


def _head(mask: Mask, affine: Affine, head_affine: Affine) -> dict[str, npt.NDArray[np.uint8]]:
    """Return the shares of the tissues round the brain on the 2 mm head grid."""
    from scipy.ndimage import affine_transform, binary_closing, distance_transform_edt, gaussian_filter

    to_brain = np.linalg.inv(affine) @ head_affine
    brain = affine_transform(mask.astype(np.float32), to_brain, output_shape=HEAD_SHAPE, order=1) > 0.5
    x, y, z = _coordinates(HEAD_SHAPE, head_affine)
    rng = np.random.default_rng(152)
    noise = gaussian_filter(rng.standard_normal(HEAD_SHAPE).astype(np.float32), 4)
    noise /= noise.std()
    hull = binary_closing(brain, iterations=6)
    outside = np.asarray(distance_transform_edt(~hull, sampling=HEAD_MM), dtype=np.float32)
    surface = _surface(outside, x, y, z)
    depth = np.asarray(distance_transform_edt(surface, sampling=HEAD_MM), dtype=np.float32)
    skull = outside * (1 + 0.12 * noise)  # thickness varies by place
    skin_deep = surface & (skull > 8)
    cord = ((x / 5) ** 2 + ((y + 44) / 5) ** 2 < 1) & (z < -72)
    canal = ((x / 9) ** 2 + ((y + 44) / 8) ** 2 < 1) & (z < -72)
    spine = ((x / 16) ** 2 + ((y + 26) / 11) ** 2 < 1) & (z < -80)
    bone = surface & (skull > 2) & (skull < 8)
    pads = (depth > 1.5) & (depth < 5 + 1.5 * noise) | (noise > 1.1)  # under the skin and between the muscles
    part = _first_wins(
        brain=brain,
        air=_air_spaces(x, y, z) & (skull > 3),
        cord=cord,
        fluid=surface & (skull <= 2) | _eyes(x, y, z) | canal,
        marrow=bone & (np.abs(skull - 5) < 1.4) & (noise > -0.3) | spine & (noise > -0.5),
        bone=bone | spine,
        fat=skin_deep & pads,
        muscle=surface,
    )
    shares = {
        "fluid": part["fluid"],
        "bone": part["bone"],
        "soft": part["muscle"] + part["cord"] + 0.5 * part["marrow"],
        "fat": part["fat"] + 0.5 * part["marrow"],
    }
    eased = {name: gaussian_filter(share, 0.4) for name, share in shares.items()}
    return {name: _to_bytes(share) for name, share in eased.items()}


def _first_wins(**layers: Mask) -> dict[str, Array]:
    """Return the layers as shares without overlap: a voxel belongs to the first layer that has it."""
    free = np.ones(HEAD_SHAPE, dtype=np.bool_)
    shares = {}
    for name, layer in layers.items():
        shares[name] = (layer & free).astype(np.float32)
        free &= ~layer
    return shares


def _surface(outside: Array, x: Array, y: Array, z: Array) -> Mask:
    """Return the head: the brain's surroundings, the face and the neck, with rounded joints."""
    from scipy.ndimage import gaussian_filter

    crown = outside < 14
    face = (x / 62) ** 2 + ((y - 28) / 68) ** 2 + ((z + 58) / 72) ** 2 < 1
    nose = (x / (13 - (z + 45) / 6)) ** 2 + ((y - 88) / 24) ** 2 + ((z + 58) / 22) ** 2 < 1
    neck = ((x / 56) ** 2 + ((y + 28) / 58) ** 2 < 1) & (z < -50)
    ears = ((np.abs(x) - 84) / 9) ** 2 + ((y + 22) / 14) ** 2 + ((z + 30) / 26) ** 2 < 1
    solid = (crown | face | nose | neck | ears).astype(np.float32)
    return np.asarray(gaussian_filter(solid, 1.5) > 0.5)


def _eyes(x: Array, y: Array, z: Array) -> Mask:
    return (np.abs(x) - 32) ** 2 + (y - 62) ** 2 + (z + 42) ** 2 < 12**2


def _air_spaces(x: Array, y: Array, z: Array) -> Mask:
    nose = (x / 11) ** 2 + ((y - 60) / 28) ** 2 + ((z + 58) / 20) ** 2 < 1
    sinuses = ((np.abs(x) - 26) / 12) ** 2 + ((y - 56) / 15) ** 2 + ((z + 68) / 14) ** 2 < 1
    throat = ((x / 11) ** 2 + ((y - 12) / 9) ** 2 < 1) & (z < -62)
    mastoid = ((np.abs(x) - 50) / 10) ** 2 + ((y + 26) / 14) ** 2 + ((z + 46) / 12) ** 2 < 1
    return np.asarray(nose | sinuses | throat | mastoid)
