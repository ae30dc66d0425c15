"""Which pictures a scan and a template get; every input is optional."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np

from popatlas.groupwise.settings import TISSUES
from popatlas.images.io import load_image
from popatlas.images.labels import read_labels, read_mask
from popatlas.measures.scan import resample_labels
from popatlas.report.figures import (
    Array,
    Cell,
    ColourBar,
    Cut,
    Diverging,
    Edges,
    Gray,
    Labels,
    Layer,
    Outline,
    View,
    draw_sheet,
    planes,
    symmetric_limit,
    under,
    window,
)

THUMBNAIL_PX = 456
THUMBNAIL_TILES_MM = ((190.0, 200.0), (190.0, 160.0))


def voxels(image: nib.Nifti1Image) -> Array:
    """Return the voxels of an image."""
    return np.asarray(image.dataobj)


@dataclass(frozen=True)
class Figure:
    """A picture of a page."""

    name: str
    title: str
    caption: str
    alt: str
    path: Path
    width: int
    height: int


@dataclass(frozen=True)
class Target:
    """The template: voxels, brain mask, and the view of its brain, the same for every scan."""

    data: Array
    mask: Array
    view: View


@dataclass(frozen=True)
class ScanImages:
    """The images of one scan, read when first used; None where a file does not exist.

    Attributes
    ----------
    out_dir : Path
        Output folder.
    scan : str
        Scan key.
    label : str
        Name of the template.
    methods : tuple of str
        Fusion methods.
    raw, reference : Path or None
        Raw image and reference labels, outside the output folder.
    """

    out_dir: Path
    scan: str
    label: str
    methods: tuple[str, ...] = ()
    raw: Path | None = None
    reference: Path | None = None

    def _load(self, suffix: str) -> nib.Nifti1Image | None:
        path = self.out_dir / f"{self.scan}_{suffix}.nii.gz"
        return load_image(path) if path.is_file() else None

    def _voxels(self, suffix: str) -> Array | None:
        image = self._load(suffix)
        return None if image is None else voxels(image)

    @cached_property
    def preproc(self) -> nib.Nifti1Image | None:
        """Corrected head."""
        return self._load("desc-preproc_T1w")

    @cached_property
    def mask(self) -> Array | None:
        """Brain mask."""
        path = self.out_dir / f"{self.scan}_desc-brain_mask.nii.gz"
        return read_mask(path, self.scan).data if path.is_file() else None

    @cached_property
    def brain(self) -> nib.Nifti1Image | None:
        """Normalised brain."""
        return self._load("desc-brain_T1w")

    @cached_property
    def warped(self) -> Array | None:
        """Brain on the template grid."""
        return self._voxels(f"space-{self.label}_desc-brain_T1w")

    @cached_property
    def logjacobian(self) -> Array | None:
        """Log Jacobian on the template grid."""
        return self._voxels(f"space-{self.label}_desc-logjacobian_T1w")

    @cached_property
    def target(self) -> Target | None:
        """Template with its mask; its positive voxels are the mask when there is none."""
        stem = self.out_dir / f"tpl-{self.label}" / f"tpl-{self.label}"
        if not Path(f"{stem}_T1w.nii.gz").is_file():
            return None
        image, mask = load_image(f"{stem}_T1w.nii.gz"), Path(f"{stem}_desc-brain_mask.nii.gz")
        data = voxels(image)
        inside = read_mask(mask).data if mask.is_file() else data > 0
        return Target(data, inside, View.around(inside, image.affine))

    @cached_property
    def fused(self) -> dict[str, Array]:
        """Fused labels by method."""
        paths = {method: self.out_dir / f"{self.scan}_desc-{method}_dseg.nii.gz" for method in self.methods}
        there = {method: path for method, path in paths.items() if path.is_file()}
        return {method: read_labels(path, self.scan, empty=True).data for method, path in there.items()}

    @cached_property
    def tissues(self) -> Array | None:
        """Most probable tissue of each voxel: 1 CSF, 2 grey matter, 3 white matter."""
        return self._voxels("desc-tissues_dseg")

    @cached_property
    def tissue_maps(self) -> Array | None:
        """Probabilities of the tissues on the template, along the last axis."""
        path = self.out_dir / f"tpl-{self.label}" / f"tpl-{self.label}_probseg.nii.gz"
        return voxels(load_image(path)) if path.is_file() else None

    def agreement(self, method: str) -> Array | None:
        """Return the share of the atlases that agree with the labels fused by a method."""
        return self._voxels(f"desc-{method}_agreement")

    @cached_property
    def reference_labels(self) -> Array | None:
        """Reference labels on the preprocessed grid."""
        if self.reference is None or not self.reference.is_file() or self.preproc is None:
            return None
        return resample_labels(self.reference, self.preproc)

    @cached_property
    def raw_on_grid(self) -> Array | None:
        """Raw image on the preprocessed grid (they share the world space)."""
        from nibabel.processing import resample_from_to

        if self.raw is None or not self.raw.is_file() or self.preproc is None:
            return None
        image = load_image(self.raw)
        if image.ndim > 3:
            image = image.slicer[..., 0]
        return voxels(resample_from_to(image, (self.preproc.shape, self.preproc.affine), order=1))

    @cached_property
    def channels(self) -> dict[str, Array]:
        """Extra channels on the preprocessed grid."""
        prefix = f"{Path(self.scan).name}_space-T1w_desc-preproc_"
        paths = sorted((self.out_dir / self.scan).parent.glob(f"{prefix}*.nii.gz"))
        return {path.name.removeprefix(prefix).removesuffix(".nii.gz"): voxels(load_image(path)) for path in paths}

    @cached_property
    def native(self) -> View | None:
        """View of the head: the box of the brain."""
        image = self.preproc if self.preproc is not None else self.brain
        if image is None:
            return None
        inside = self.mask if self.mask is not None and self.mask.any() else voxels(image) > 0
        return View.around(inside, image.affine)

    @cached_property
    def head(self) -> View | None:
        """View of the whole image, for mistakes that lie far from the brain."""
        return None if self.preproc is None else View.around(np.ones(self.preproc.shape), self.preproc.affine)


def draw_scan(images: ScanImages, folder: Path, name: str) -> list[Figure]:
    """Draw all pictures that a scan has the files for.

    Parameters
    ----------
    images : ScanImages
        Files of the scan.
    folder : Path
        Where the pictures go, as `{name}_{picture}.webp`.
    name : str
        Scan name, for example `sub-01_ses-1`.

    Returns
    -------
    list of Figure
        In page order.
    """
    painters: list[Painter] = [
        *(_correction, _mask, _channels, _brain, _warped, _template_under, _jacobian, _tissues, _labels)
    ]
    return [paint(sheet, folder, name) for painter in painters for sheet in painter(images)]


@dataclass(frozen=True)
class Sheet:
    """A picture before it is drawn."""

    name: str
    title: str
    caption: str
    rows: list[list[Cell]]
    titles: Sequence[str]
    bar: ColourBar | None = None


Painter = Callable[[ScanImages], Iterator[Sheet]]
PLANE_TITLES = ("axial", "coronal", "sagittal")


def paint(sheet: Sheet, folder: Path, name: str) -> Figure:
    """Draw a sheet as `{name}_{sheet}.webp`."""
    path = folder / f"{name}_{sheet.name}.webp"
    width, height = draw_sheet(sheet.rows, path, titles=sheet.titles, bar=sheet.bar)
    alt = f"{sheet.title} of {name}: rows {', '.join(sheet.titles)}; {len(sheet.rows[0])} slices each."
    return Figure(sheet.name, sheet.title, sheet.caption, alt, path, width, height)


def _correction(images: ScanImages) -> Iterator[Sheet]:
    if images.preproc is None or images.head is None or images.raw_on_grid is None:
        return
    raw, corrected, cuts = images.raw_on_grid, voxels(images.preproc), (images.native or images.head).mixed()
    rows = [[Cell(images.head, cut, [Gray(data, *window(data))]) for cut in cuts] for data in (raw, corrected)]
    caption = "Above the image as it came, below after bias correction, each in its own grey window."
    yield Sheet("correction", "Bias correction", caption, rows, ("raw", "corrected"))


def _mask(images: ScanImages) -> Iterator[Sheet]:
    if images.preproc is None or images.head is None or images.mask is None:
        return
    data = voxels(images.preproc)
    rows = planes(images.head, [under(data), Outline(images.mask)], over=images.native)
    caption = "Corrected head with the border of the brain mask. Look for missing cortex and for included neck, eyes, dura."
    yield Sheet("mask", "Brain mask", caption, rows, PLANE_TITLES)


def _channels(images: ScanImages) -> Iterator[Sheet]:
    if images.native is None or images.brain is None or images.mask is None:
        return
    brain = voxels(images.brain)
    rows = [
        [Cell(images.native, cut, [under(data), Edges(brain, images.mask)]) for cut in images.native.mixed()]
        for data in images.channels.values()
    ]
    if rows:
        caption = "Extra channels aligned to the T1w image, with the edges of the T1w brain."
        yield Sheet("channels", "Extra channels", caption, rows, tuple(images.channels))


def _brain(images: ScanImages) -> Iterator[Sheet]:
    if images.native is None or images.brain is None:
        return
    data = voxels(images.brain)
    rows = [[Cell(images.native, cut, [Gray(data, *window(data))]) for cut in images.native.mixed()]]
    caption = "Brain alone, intensities normalised: the image that is registered."
    yield Sheet("brain", "Normalised brain", caption, rows, ("brain",))


def _warped(images: ScanImages) -> Iterator[Sheet]:
    if images.target is None or images.warped is None:
        return
    data, edges = images.warped, Edges(images.target.data, images.target.mask)
    rows = planes(images.target.view, [under(data), edges])
    caption = "Brain on the grid of the template, with the template's edges: they should follow gyri, ventricles and nuclei."
    yield Sheet("registration", "Registered brain, edges of the template", caption, rows, PLANE_TITLES)


def _template_under(images: ScanImages) -> Iterator[Sheet]:
    if images.target is None or images.warped is None:
        return
    data = images.target.data
    rows = planes(images.target.view, [under(data), Edges(images.warped, images.warped > 0)])
    caption = "The other way round: the template with the edges of the registered brain."
    yield Sheet("template", "Template, edges of the registered brain", caption, rows, PLANE_TITLES)


def _jacobian(images: ScanImages) -> Iterator[Sheet]:
    if images.target is None or images.logjacobian is None:
        return
    limit = symmetric_limit(images.logjacobian, images.target.mask)
    rows = planes(images.target.view, [Diverging(images.logjacobian, images.target.mask, limit)])
    caption = "Local volume change on the grid of the template. Red: the subject is larger; blue: smaller."
    bar = ColourBar.symmetric(limit, "log Jacobian")
    yield Sheet("jacobian", "Log Jacobian", caption, rows, PLANE_TITLES, bar)


def _tissues(images: ScanImages) -> Iterator[Sheet]:
    if images.native is None or images.brain is None or images.tissues is None:
        return
    brain, tissues, cuts = voxels(images.brain), images.tissues, images.native.mixed()
    grounds = (Gray(brain, *window(brain)), Gray(tissues, 0.0, float(len(TISSUES))))
    rows = [[Cell(images.native, cut, [ground]) for cut in cuts] for ground in grounds]
    caption = "Below the most probable tissue of each voxel: dark the fluid, grey the grey matter, bright the white matter."
    yield Sheet("tissues", "Tissues", caption, rows, ("brain", "tissues"))


def _labels(images: ScanImages) -> Iterator[Sheet]:
    stacks = dict(images.fused)
    if images.reference_labels is not None:
        stacks = {"reference": images.reference_labels, **stacks}
    image = images.brain if images.brain is not None else images.preproc
    if images.native is None or image is None or not stacks:
        return
    ground = under(voxels(image))
    cuts = images.native.mixed()
    rows = [[Cell(images.native, cut, [ground, Labels(stack)]) for cut in cuts] for stack in stacks.values()]
    what = "Reference labels in the first row, then one row per fusion method" if images.fused else "Reference labels"
    what = what if "reference" in stacks else "One row per fusion method"
    caption = f"{what}; the same slices in every row." if len(stacks) > 1 else f"{what}."
    yield Sheet("labels", "Labels", caption, rows, tuple(stacks))


def draw_thumbnail(images: ScanImages, path: Path) -> tuple[int, int]:
    """Draw the montage tile of a scan: brain mask, registration and labels, axial above sagittal.

    Parameters
    ----------
    images : ScanImages
        Files of the scan; a column without files stays dark.
    path : Path
        PNG or WebP.

    Returns
    -------
    tuple of int
        Width and height in pixels, the same for every scan.
    """
    columns = [_mask_column(images), _registration_column(images), _label_column(images)]
    blank = View((slice(0, 1), slice(0, 1), slice(0, 1)), np.eye(4))
    rows = [
        [Cell(view, cut, layers) if view else Cell(blank, Cut(axis, 0), []) for view, cut, layers in row]
        for axis, row in zip((2, 0), zip(*columns, strict=True), strict=True)
    ]
    return draw_sheet(rows, path, width_px=THUMBNAIL_PX, positions=False, tile_mm=THUMBNAIL_TILES_MM)


Column = list[tuple[View | None, Cut, list[Layer]]]


def _column(view: View | None, layers: list[Layer]) -> Column:
    if view is None or not layers:
        return [(None, Cut(axis, 0), []) for axis in (2, 0)]
    return [(view, view.cuts(axis, 1)[0], layers) for axis in (2, 0)]


def _mask_column(images: ScanImages) -> Column:
    if images.preproc is None:
        return _column(None, [])
    data = voxels(images.preproc)
    outline = [] if images.mask is None else [Outline(images.mask)]
    return _column(images.native, [under(data), *outline])


def _registration_column(images: ScanImages) -> Column:
    if images.warped is None or images.target is None:
        return _column(None, [])
    edges = Edges(images.target.data, images.target.mask)
    return _column(images.target.view, [under(images.warped), edges])


def _label_column(images: ScanImages) -> Column:
    if images.brain is None or not images.fused:
        return _column(None, [])
    data = voxels(images.brain)
    # the last method is the most elaborate one of the configuration
    return _column(images.native, [under(data), Labels(list(images.fused.values())[-1])])
