"""Model cards of the shipped networks: what each is for and not for, with the facts and scores of the lock file."""

from __future__ import annotations

from dataclasses import dataclass

from popatlas.zoo.lock import Entry
from popatlas.zoo.metadata import Score

DATA = (
    "[IXI dataset](https://brain-development.org/ixi-dataset/), the 32 T1w scans of its subset at the Hammersmith Hospital "
    "(Philips 3T) that have a DLMUSE parcellation, at 2 mm, CC BY-SA 3.0: 21 to learn from, 3 to choose the best step, 8 "
    "held out by a fixed list (`benchmarks/deep/cohort.py`). Healthy adults, one scanner, no pathology"
)
WEIGHTS_LICENCE = "The weights follow from these data and have the same licence."


@dataclass(frozen=True)
class Card:
    """What the lock file does not say.

    Attributes
    ----------
    use, limits : str
        What the network is good for, and where it fails or is unknown.
    learnt : str
        How, in a sentence.
    """

    use: str
    limits: str
    learnt: str


CARDS = {
    "brain-t1w": Card(
        use="Registers T1w brains of adults without skull after an affine, in about a second on one CPU thread; "
        "`register.engine: network` uses it and then refines by some steps of the engine `instance`.",
        limits="T1w only: it fails on any other contrast. Details below 2 mm are not seen. Lesions, resections, children "
        "and other scanners were not tried.",
        learnt="Local correlation of the images, smoothness, and the Dice of drawn labels. Its first 8,000 steps were not "
        "guided and compared 24 labels on blocks of 2 voxels; the first 6,000 of them followed a schedule of 6,000 and "
        "interpolated each scan twice, the others one of 8,000. The last 2,400 are those of the recipe.",
    ),
    "brain-contrast": Card(
        use="Registers brains of adults without skull, after an affine, whatever the contrasts of the two images are.",
        limits="Its training was short: for T1w pairs `brain-t1w` is far better. Its contrasts are made from T1w scans and "
        "label maps; no acquired second contrast was seen or measured. Lesions, children and other scanners were not tried.",
        learnt="It saw only synthetic contrasts: T1w scans in random grey values, rising and falling, and images painted "
        "from label maps. Its losses compare the T1w scans and the labels behind them. Its first 2,400 steps were not "
        "guided and compared 24 labels on blocks of 2 voxels, with a schedule of 2,400; the others are those of the recipe.",
    ),
    "brain-t1w-2d": Card(
        use="Registers axial slices of T1w brains without skull, from 30 mm below to 40 mm above the middle of MNI152, "
        "after an affine.",
        limits="Both slices must be of about the same height; nothing moves across slices. Other planes need their own "
        "training.",
        learnt="Local correlation of the slices, smoothness, and the Dice of 24 drawn labels on blocks of 2 pixels.",
    ),
}


def model_card(entry: Entry, parameters: int) -> str:
    """Return the page of one shipped network."""
    card, facts = CARDS[entry.name], entry.training
    parts = [
        f"# {entry.name}\n",
        f"{card.use}\n",
        f"**Limits.** {card.limits}\n",
        f"**Learnt from.** {card.learnt} Recipe [{entry.recipe}](../recipes/brains.md). Data: {DATA}. {WEIGHTS_LICENCE}\n",
        "| | |\n|---|---|",
        f"| version | {entry.version} |",
        f"| licence | {entry.licence} |",
        f"| network | `{entry.architecture}`, {entry.ndim}D, {parameters:,} parameters, {entry.bytes / 1e6:.1f} MB |",
        f"| expects | {entry.input.describe()} |",
        f"| training | {facts.data}; best step {facts.steps:,}, {facts.hours:.1f} h on {facts.device} |",
        f"| memory | {entry.memory.base_bytes / 1e6:.0f} MB and {entry.memory.bytes_per_voxel:.0f} bytes for each voxel |",
        f"| SHA-256 | `{entry.sha256}` |\n",
        "## Scores\n",
        "Means over n cases. `folded` is the share of voxels of the brain, `hd95` in mm, `wall_s` seconds of a pair on one "
        "CPU thread.\n",
        "| data | metric | mean | n | command |\n|---|---|---|---|---|",
        *map(_score, entry.scores),
    ]
    return "\n".join(parts) + "\n"


def _score(score: Score) -> str:
    return f"| {score.data} | {score.metric} | {score.value:.4g} | {score.n} | `{score.command}` |"
