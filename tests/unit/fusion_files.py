"""Files of a small simulated cohort: heads of four labels with values that no array index could be, and their candidates."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from popatlas.fusion.candidates import Candidates
from popatlas.images.io import save_image

SHAPE = (20, 18, 16)
AFFINE = np.array([[2.0, 0, 0, -17], [0, 2, 0, 5], [0, 0, 2, 3], [0, 0, 0, 1]])
VALUES = np.array([0, 7, 1000, 2147483647])
LEVELS = np.array([0.0, 0.5, 0.8, 0.25])
NAMES = ("good", "fair", "poor", "lost")
SHIFTS = ((0, 0, 0), (1, 0, 0), (0, 2, 1), (4, 3, -2))


def head(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return image and labels of a ball with a ball in each half; place and size differ from head to head."""
    rng = np.random.default_rng(seed)
    centre = (np.array(SHAPE) - 1) / 2 + rng.uniform(-1, 1, 3)
    grid = np.moveaxis(np.indices(SHAPE), 0, -1)

    def ball(offset, radius):
        return np.linalg.norm(grid - centre - offset, axis=-1) < radius * rng.uniform(0.95, 1.05)

    numbers = np.zeros(SHAPE, dtype=int)
    for number, (offset, radius) in enumerate((((0, 0, 0), 6.5), ((-3.2, 0, 0), 3.1), ((3.2, 0, 0), 2.9)), start=1):
        numbers[ball(offset, radius)] = number
    image = np.where(numbers > 0, LEVELS[numbers] + rng.normal(0, 0.03, SHAPE), 0).astype(np.float32)
    return image, VALUES[numbers].astype(np.int32)


@dataclass
class Case:
    """A target with its candidates, in memory and as files."""

    folder: Path
    scan: str
    image: np.ndarray
    truth: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    names: tuple[str, ...] = NAMES

    @property
    def candidates(self) -> Candidates:
        return Candidates(self.labels, self.image, self.images, (2.0, 2.0, 2.0), self.names, self.scan)

    def file(self, name: str, suffix: str = "nii.gz") -> str:
        return str(self.folder / f"{self.scan}_{name}.{suffix}")

    def write(self) -> "Case":
        self.folder.mkdir(parents=True, exist_ok=True)
        save_image(self.image, AFFINE, self.file("brain"))
        save_image(self.truth, AFFINE, self.file("truth"), np.int32)
        save_image(np.moveaxis(self.labels, 0, -1), AFFINE, self.file("labels"), np.int32)
        save_image(np.moveaxis(self.images, 0, -1), AFFINE, self.file("images"), np.float32)
        return self

    def inputs(self, method: str, **more) -> dict:
        """Return the traits of FuseLabels; each method gets an output of its own."""
        given = {"in_labels": "labels", "in_images": "images", "in_target": "brain", "out_file": f"{method}_dseg"}
        files = {trait: self.file(name) for trait, name in given.items()}
        common = {"subject": self.scan, "names": list(self.names), "record": self.file(method, "json")}
        return {"method": method, **files, **common, **more}


def case(folder: Path, scan: str, seed: int) -> Case:
    """Return a target whose candidates are its own labels, displaced by more from one to the next."""
    image, truth = head(seed)
    noise = np.random.default_rng(seed + 1000)
    labels, images = (np.stack([np.roll(one, shift, (0, 1, 2)) for shift in SHIFTS]) for one in (truth, image))
    images = images + noise.normal(0, 0.02, images.shape)
    return Case(folder, scan, image, truth, labels, images.astype(np.float32)).write()
