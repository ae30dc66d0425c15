"""Data parameters: one trainable number for each registered atlas label, learned along with a segmentation network.

The network sees the target images only, so it learns what most candidates of all targets have in common; a candidate that
the network cannot fit is a bad one. With CE_b the cross-entropy of candidate b, averaged over voxels, and
``s_b = sigmoid(DP_b)``, the parameters minimise ::

    sum_b (CE_b / f_b - share_b * mean(1 / f)) * s_b / mean(s),       f_b = log(#foreground(b) + e) + e

The division by f is the fixed weighting (large labels gain no weight by their size), share_b the predicted foreground of
the image that the candidate belongs to, as share of its voxels (risk regularisation: labels of images where the network
finds nothing, which are easy to fit, gain no weight by it; it compares images, so it needs several in a batch), and the
weight is relative to the mean of the batch, otherwise all parameters sink together.
``out-of-line``: the network takes a step on the plain cross-entropy, then the parameters one with the network as it is.
``inline``: one step of both on the weighted cross-entropy. The network's loss has class weights too (`class_weights`); the
code that was published with the paper has none inline, so that to switch data parameters on also switches them off.

All candidates of a target are in the same batch: one pass of the network serves them all.

Weihsbach C, Bigalke A, Kruse CN, Hempe H, Heinrich MP. DeepSTAPLE: learning to predict multimodal registration quality for
unsupervised domain adaptation. WBIR 2022, LNCS 13386. doi:10.1007/978-3-031-11203-4_5
Saxena S, Tuzel O, DeCoste D. Data parameters: a new family of parameters for learning a differentiable curriculum.
NeurIPS 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from popatlas.fusion.dataparams.data import Sample, TrainingTarget, class_weights, draw, label_counts
from popatlas.fusion.dataparams.loss import DataParameters, batch_losses, batch_weights
from popatlas.fusion.settings import DataParametersSettings
from popatlas.networks.segmentation import SegmentationNet, build_network, voxel_rows


@dataclass
class DataParametersResult:
    """What training found.

    Attributes
    ----------
    network : SegmentationNet
        Trained network; its class i is `labels[i]`.
    labels : (n_labels,) int64 ndarray
        Label values, background first.
    parameters : dict
        Name of the target to data parameters (n_candidates,), not through the sigmoid.
    label_parameters : dict
        Name of the target to data parameters (n_candidates, n_labels); empty without `per_label`.
    losses : list of float
        Mean cross-entropy of each epoch.
    """

    network: SegmentationNet
    labels: npt.NDArray[np.int64]
    parameters: dict[str, npt.NDArray[np.float32]]
    label_parameters: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


class DataParametersTrainer:
    """Network, data parameters, and the steps of both.

    With a `network` that is given, only the data parameters learn; what the network says about the images does not change
    then and is computed once.
    """

    def __init__(
        self,
        targets: Sequence[TrainingTarget],
        n_labels: int,
        settings: DataParametersSettings,
        network: SegmentationNet | None = None,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(settings.seed)
        self.targets, self.settings, self.device = list(targets), settings, device
        self.frozen = network is not None
        self.network = (network or _new_network(targets, n_labels, settings)).to(device)
        self.parameters = DataParameters(targets, n_labels, settings.trust_rate, per_label=settings.per_label, device=device)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=settings.rate)
        self.schedule = _schedule(self.optimiser, settings)
        self.weights = class_weights(self.targets, n_labels).to(device) if settings.class_weights else None
        self.rng = np.random.default_rng(settings.seed)
        self.seen: dict[int, tuple[Sample, Tensor]] = {}

    def epoch(self, number: int) -> float:
        """Train on each target once and return the mean cross-entropy."""
        order = self.rng.permutation(len(self.targets))
        found = [self._step(order[i : i + self.settings.batch], number) for i in range(0, len(order), self.settings.batch)]
        if self.settings.schedule == "decay" and not self.frozen:
            self.schedule.step()
        return float(np.mean(found))

    def _step(self, numbers: npt.NDArray[np.intp], epoch: int) -> float:
        settings, rows = self.settings, self.parameters.rows(numbers)
        learns = epoch >= settings.warm_up
        inline = learns and settings.update == "inline"
        if self.frozen:
            batch, logs = self._recall(numbers)
            losses = batch_losses(logs, batch, self.weights)
        else:
            batch = [self._draw(number) for number in numbers]
            logs = self._look(batch, grad=True)
            losses = batch_losses(logs, batch, self.weights)
            self._network_step(losses, rows, batch, inline=inline)
            # inline: both learn from the same pass; out-of-line: the parameters from what the network has become
            if learns:
                logs = [log.detach() for log in logs] if inline else self._look(batch, grad=False)
        if learns:
            self.parameters.step(rows, batch, logs, settings.risk, settings.fixed_weighting)
        return float(losses.detach().mean())

    def _network_step(self, losses: Tensor, rows: Tensor, batch: Sequence[Sample], *, inline: bool) -> None:
        if inline:
            foreground = torch.cat([sample.foreground for sample in batch])
            raw = self.parameters.raw(rows).detach()
            losses = losses * batch_weights(raw, foreground, self.settings.fixed_weighting)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(losses.mean())
        self.optimiser.step()
        if self.settings.schedule == "restarts":
            self.schedule.step()

    def _draw(self, number: int) -> Sample:
        plan = self.settings
        augment = plan.augment and not self.frozen
        return draw(self.targets[number], plan.voxels, self.rng, augment, plan.bend, self.device)

    def _look(self, batch: Sequence[Sample], *, grad: bool) -> list[Tensor]:
        """Return log-probabilities (n, n_labels) at the voxels of each sample."""
        self.network.train(grad)
        with torch.set_grad_enabled(grad):
            rows = [row.index_select(0, sample.voxels) for row, sample in zip(self._rows(batch), batch, strict=True)]
            return [self.network.classify(some).log_softmax(1) for some in rows]

    def _rows(self, batch: Sequence[Sample]) -> list[Tensor]:
        """Return the features of each sample, one row for each voxel; images of one shape go through together."""
        if len({sample.image.shape for sample in batch}) > 1:
            return [voxel_rows(self.network.features(sample.image)) for sample in batch]
        features = self.network.features(torch.cat([sample.image for sample in batch]))
        return list(voxel_rows(features).chunk(len(batch)))

    def _recall(self, numbers: npt.NDArray[np.intp]) -> tuple[list[Sample], list[Tensor]]:
        """Return samples and log-probabilities of a network that does not change."""
        for number in set(numbers.tolist()) - self.seen.keys():
            sample = self._draw(number)
            self.seen[number] = sample, self._look([sample], grad=False)[0]
        found = [self.seen[number] for number in numbers.tolist()]
        return [sample for sample, _ in found], [log for _, log in found]

    def result(self, labels: npt.NDArray[np.int64], losses: list[float]) -> DataParametersResult:
        """Return what has been learned so far."""
        found = {target.name: self.parameters.of_target(number) for number, target in enumerate(self.targets)}
        parameters = {name: raw for name, (raw, _) in found.items()}
        by_label = {name: table for name, (_, table) in found.items()} if self.settings.per_label else {}
        return DataParametersResult(self.network.eval(), labels, parameters, by_label, losses)


def _schedule(optimiser: torch.optim.Optimizer, settings: DataParametersSettings) -> torch.optim.lr_scheduler.LRScheduler:
    if settings.schedule == "decay":
        return torch.optim.lr_scheduler.ExponentialLR(optimiser, settings.decay)
    return torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimiser, settings.restart, T_mult=2)


def _new_network(targets: Sequence[TrainingTarget], n_labels: int, settings: DataParametersSettings) -> SegmentationNet:
    """Return a network that starts from the share of each label: with many labels it learns much faster so."""
    ndim: Literal[2, 3] = 2 if targets[0].ndim == 2 else 3
    network = build_network(settings.network, ndim, n_labels, positions=settings.positions)
    counts = torch.as_tensor(label_counts(targets, n_labels), dtype=torch.float32) + 1
    with torch.no_grad():
        network.classifier.bias.copy_(torch.log(counts / counts.sum()))
    return network


def train_data_parameters(
    targets: Sequence[TrainingTarget],
    labels: npt.NDArray[np.int64],
    settings: DataParametersSettings | None = None,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> DataParametersResult:
    """Train a network and the data parameters of all candidates.

    Parameters
    ----------
    targets : sequence of TrainingTarget
        Images with their candidates; all of 2 or all of 3 axes.
    labels : (n_labels,) int64 ndarray
        Label values, background first; class numbers of the targets index it.
    settings : DataParametersSettings, optional
        How.
    device : str
        ``cpu`` or ``cuda``.
    progress : callable, optional
        Called with a line of text after each epoch.

    Returns
    -------
    DataParametersResult
        The same for the same input on one device and thread.
    """
    settings = settings or DataParametersSettings()
    trainer, losses = DataParametersTrainer(targets, len(labels), settings, device=device), []
    for number in range(settings.epochs):
        losses.append(trainer.epoch(number))
        if progress is not None:
            progress(f"epoch {number + 1} of {settings.epochs}: cross-entropy {losses[-1]:.4f}")
    return trainer.result(labels, losses)


def estimate_data_parameters(
    targets: Sequence[TrainingTarget],
    labels: npt.NDArray[np.int64],
    network: SegmentationNet,
    settings: DataParametersSettings | None = None,
    device: str = "cpu",
) -> DataParametersResult:
    """Find the data parameters of new targets with a network as it is: new subjects need no new training.

    Parameters
    ----------
    targets, labels, settings, device
        See :func:`train_data_parameters`; as many steps are taken as in training.
    network : SegmentationNet
        Trained on other targets, with the same labels.
    """
    settings = settings or DataParametersSettings()
    trainer = DataParametersTrainer(targets, len(labels), settings, network, device)
    losses = [trainer.epoch(number) for number in range(settings.warm_up, settings.epochs)]
    return trainer.result(labels, losses)


def network_opinion(
    network: SegmentationNet,
    target: TrainingTarget,
    disputed: npt.NDArray[np.bool_],
    device: str = "cpu",
    block: int = 1 << 16,
) -> npt.NDArray[np.float32]:
    """Return the network's log-probabilities at the disputed voxels of a target, (n_labels, n_disputed).

    Disputed voxels outside of the target's crop get the same probability for all labels.
    """
    network = network.to(device).eval()
    places = np.flatnonzero(disputed[target.box] if target.box else disputed)
    inside = np.zeros(disputed.shape, dtype=bool)
    inside[target.box] = True
    found = np.full((network.n_labels, int(disputed.sum())), -math.log(network.n_labels), dtype=np.float32)
    columns = np.flatnonzero(inside[disputed])
    with torch.no_grad():
        features = network.features(torch.from_numpy(target.image)[None, None].to(device))[0].flatten(1)
        for start in range(0, len(places), block):
            chosen = torch.as_tensor(places[start : start + block], device=device)
            log = network.classify(features[:, chosen].T).log_softmax(1)
            found[:, columns[start : start + block]] = log.T.cpu().numpy()
    return found
