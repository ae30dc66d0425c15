"""`popatlas register`: two files in; transforms, warped files, scores, the gate's verdict and a page out."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from popatlas import __version__
from popatlas.errors import InputError
from popatlas.images.io import write_json
from popatlas.pairwise import files as names
from popatlas.pairwise.apply import resampled
from popatlas.pairwise.files import Outputs
from popatlas.pairwise.page import Drawn, draw_page
from popatlas.pairwise.plan import Wanted, limits_for, plan_attempts
from popatlas.pairwise.prepare import Given, Image, make_pair, read_image, working_spacing
from popatlas.pairwise.scores import Extras, Scores
from popatlas.registration.attempt import attempt_row
from popatlas.registration.evidence import of_affine
from popatlas.registration.fallback import try_in_turn
from popatlas.registration.gate import GATE_REVISION, Limits, doubts, judge
from popatlas.registration.linear import Aligned, find_affine, find_start
from popatlas.registration.pair import Pair
from popatlas.registration.pose import poses_of, turn_of
from popatlas.registration.types import Attempt, Made
from popatlas.settings import Content
from popatlas.transforms.affine import Matrix, read_affine
from popatlas.transforms.chain import Affine, Chain
from popatlas.transforms.itk import write_affine

KINDS = {"rigid": ("rigid",), "affine": ("rigid", "affine")}


@dataclass(frozen=True)
class Outcome:
    """How a registration of two files went.

    Attributes
    ----------
    record : dict
        Content of the record: verdict, numbers, attempts, scores, files.
    scores : Scores
        Of labels and landmarks.
    outputs : Outputs
        Where the files are.
    """

    record: Content
    scores: Scores
    outputs: Outputs

    @property
    def passed(self) -> bool:
        """Whether the gate let it pass."""
        return bool(self.record["verdict"] == "pass")


def register_files(
    fixed: Given, moving: Given, prefix: str, wanted: Wanted, resolution: float | None = None, *, force: bool = False
) -> Outcome:
    """Register two files and write what was found.

    Parameters
    ----------
    fixed, moving : Given
        Files of both sides.
    prefix : str
        See `popatlas.pairwise.files.Outputs`.
    wanted : Wanted
        Engine, start and so on.
    resolution : float, optional
        Voxel size that the engines work with, mm; about that of the fixed image when left out.
    force : bool
        Write transforms also of what fails the gate.

    Raises
    ------
    InputError
        For files that cannot be registered and settings that do not go together.
    """
    outputs = Outputs(prefix)
    outputs.check()
    outputs.require_folder()
    images = read_image(fixed, "fixed"), read_image(moving, "moving")
    attempts, limits = plan_attempts(wanted, images[0].grid.ndim), limits_for(wanted)
    extras = Extras.read((fixed, moving), (images[0].grid, images[1].grid))
    spacing = working_spacing(images[0].grid, images[1].grid, resolution)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pair = make_pair(*images, spacing, folder, brains=wanted.brains)
        run = _Run((fixed, moving), images, extras, pair, limits, wanted, folder)
        run.go(attempts)
        return run.write(outputs, force=force)


class _Run:
    """One registration: what is given, and what is found while attempts are made."""

    def __init__(
        self,
        given: tuple[Given, Given],
        images: tuple[Image, Image],
        extras: Extras,
        pair: Pair,
        limits: Limits,
        wanted: Wanted,
        folder: Path,
    ) -> None:
        self.given, self.images, self.extras, self.pair = given, images, extras, pair
        self.limits, self.wanted = limits, wanted
        self.staged = folder / "staged"
        self.staged.mkdir()
        self.rows: list[Content] = []
        # of the last attempt that gave one: its transform, and the number of its row
        self.forward: Chain | None = None
        self.kept = -1

    def go(self, attempts: list[Attempt]) -> None:
        """Make attempts until one passes; the last one that gave a transform is kept."""
        if self.wanted.refine != "deformable":
            self._align(attempts)
            return
        tried = try_in_turn(
            self.pair, attempts, self.limits, self._keep, refused=self._keep, threads=self.wanted.threads
        )  # row by row: an error must not hide those before it
        for row in tried:
            self.rows.append(row)

    def _align(self, attempts: list[Attempt]) -> None:
        """Make linear attempts only: each start once, the one that is asked for first."""
        starts: dict[str, Attempt] = {}
        for attempt in attempts:
            starts.setdefault(attempt.start, attempt)
        for attempt in starts.values():
            try:
                with tempfile.TemporaryDirectory() as folder:
                    aligned = self._aligned(attempt, Path(folder))
            except InputError as error:  # it must not hide what was found before it
                self.rows.append({**attempt_row(attempt, {}, [str(error)]), "engine": self.wanted.refine})
                continue
            metrics = of_affine(self.pair, attempt, aligned.matrix) | {"one_contrast": 0.0}  # of the deformable stage
            row = attempt_row(attempt, metrics, judge(metrics, self.limits))
            said = doubts(metrics, self.limits, turn_of(aligned.matrix)[1])
            self._hold(Chain((Affine(torch.as_tensor(aligned.matrix)),)), aligned.matrix)
            self.rows.append({**row, "engine": self.wanted.refine, "notes": said, "found_from": aligned.start})
            if not row["reasons"]:
                return

    def _aligned(self, attempt: Attempt, folder: Path) -> Aligned:
        if self.wanted.refine in KINDS:
            return find_affine(self.pair, attempt, folder, KINDS[self.wanted.refine])
        matrix = find_start(self.pair, attempt.start, folder)
        return Aligned(matrix, poses_of(self.pair).judge(matrix), attempt.start)

    def _keep(self, made: Made) -> None:
        """Keep what an attempt gave, with its files, which are gone afterwards."""
        for name, file in (
            (names.WARP, made.files.warp),
            (names.INVERSE_WARP, made.files.inverse_warp),
            (names.JACOBIAN, made.logjacobian),
        ):
            shutil.copyfile(file, self.staged / name)
        self._hold(made.forward, read_affine(made.files.affine))

    def _hold(self, forward: Chain, affine: Matrix) -> None:
        """Hold the transform of the attempt whose row comes next."""
        write_affine(self.staged / names.AFFINE, affine)
        self.forward, self.kept = forward, len(self.rows)

    def write(self, outputs: Outputs, *, force: bool) -> Outcome:
        """Write page, files and, last, the record."""
        judged = [row for row in self.rows if row["metrics"]]
        if not judged:
            reasons = "; ".join(f"{row['engine']} from {row['start']}: {row['reasons'][0]}" for row in self.rows)
            remedy = "correct what the errors name, or choose another --engine"
            raise InputError(f"every attempt raised an error: {reasons}", file=self.given[1].image, remedy=remedy)
        shown = judged[-1] if self.forward is None else self.rows[self.kept]  # numbers are those of the transform
        scores = Scores() if self.forward is None else self.extras.score(self.forward)
        passed = not shown["reasons"]
        record: Content = {
            "popatlas": __version__,
            "verdict": "pass" if passed else "fail",
            **{key: shown[key] for key in ("engine", "linear", "start", "metrics", "reasons")},
            "notes": shown.get("notes", []),
            "revision": GATE_REVISION,
            "limits": dict(self.limits),
            "attempts": self.rows,
            "fixed": self.images[0].source.content() | _told(self.given[0]),
            "moving": self.images[1].source.content() | _told(self.given[1]),
            "labels": [one.content() for one in scores.labels],
            "points_mm": scores.points,
        }
        draw_page(self.staged / names.PAGE, record, scores, self._drawn())
        if self.forward is not None and (passed or force):
            self._warp(self.forward)
        else:
            for name in (names.AFFINE, names.WARP, names.INVERSE_WARP, names.JACOBIAN):
                (self.staged / name).unlink(missing_ok=True)
        written = outputs.publish(self.staged, sorted(path.name for path in self.staged.iterdir()))
        record["files"] = {name: digest for name, digest in written.items() if name != names.PAGE}
        write_json(outputs.path(names.RECORD), record)
        return Outcome(record, scores, outputs)

    def _warp(self, chain: Chain) -> None:
        """Resample the files of the moving side as they are, each in one interpolation."""
        fixed, moving = self.images
        warped = resampled(moving.data, moving.grid, fixed.grid, chain)
        fixed.space.save(warped, self.staged / names.WARPED)
        if labels := self.extras.labels[1]:
            fixed.space.save_labels(labels.through(chain, fixed.grid), self.staged / names.LABELS)

    def _drawn(self) -> Drawn:
        """Return the images of the page, on the working grid of the fixed image."""
        fixed, moving = self.pair.scans()
        chain = self.forward or Chain()
        before, after = (way.apply(moving.image, moving.grid, fixed.grid)[0, 0].numpy() for way in (Chain(), chain))
        jacobian = self.staged / names.JACOBIAN
        return Drawn(
            fixed.image[0, 0].numpy(),
            self.pair.fixed_mask.numpy(),
            before,
            after,
            fixed.grid.ras_affine,
            jacobian if jacobian.is_file() else None,
        )


def _told(given: Given) -> Content:
    parts = {"mask": None if given.is_found else given.mask, "labels": given.labels, "points": given.points}
    return {name: str(path.absolute()) for name, path in parts.items() if path is not None}
