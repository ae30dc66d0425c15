"""The terms of the loss of data parameters, and the parameters themselves; see :mod:`popatlas.fusion.dataparams.train`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from popatlas.fusion.dataparams.data import Sample, TrainingTarget


def candidate_losses(log_probability: Tensor, labels: Tensor, importance: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of each candidate averaged over the voxels, (n_candidates,).

    Parameters
    ----------
    log_probability : (n, n_labels) Tensor
        Log-softmax of the network at n voxels.
    labels : (n_candidates, n) int64 Tensor
        Class of each candidate at each voxel.
    importance : (n,) Tensor
        How many voxels of the image each one stands for.
    weight : (n_labels,) Tensor, optional
        Class weights.
    """
    picked = -log_probability.T.gather(0, labels)
    factor = importance if weight is None else importance * weight[labels]
    return (picked * factor).sum(1) / importance.sum()


def label_losses(log_probability: Tensor, labels: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each candidate within each of its labels, and where it has the label.

    Returns
    -------
    losses : (n_candidates, n_labels) Tensor
        0 where the candidate does not have the label at any of the voxels.
    present : (n_candidates, n_labels) bool Tensor
    """
    picked = -log_probability.T.gather(0, labels) * importance
    size = (len(labels), log_probability.shape[1])
    total = torch.zeros(size, device=picked.device).scatter_add_(1, labels, picked)
    count = torch.zeros_like(total).scatter_add_(1, labels, importance.expand_as(picked).contiguous())
    return total / count.clamp(min=1e-12), count > 0


def fixed_weight(foreground: Tensor) -> Tensor:
    """Return the divisor ``log(n + e) + e`` for n foreground voxels: the larger a label, the lower its loss by itself."""
    return torch.log(foreground + math.e) + math.e


def batch_weights(parameters: Tensor, foreground: Tensor, fixed_weighting: bool = True) -> Tensor:
    """Return what each candidate of a batch counts in the loss, (N,).

    Parameters
    ----------
    parameters : (N,) Tensor
        Raw data parameters.
    foreground : (N,) Tensor
        Foreground voxels of each candidate.
    fixed_weighting : bool
        Divide by :func:`fixed_weight`.
    """
    atlas_weight = torch.sigmoid(parameters)
    weight = atlas_weight / atlas_weight.mean()
    return weight / fixed_weight(foreground) if fixed_weighting else weight


def parameters_loss(
    losses: Tensor, parameters: Tensor, foreground: Tensor, share: Tensor, risk: bool = True, fixed_weighting: bool = True
) -> Tensor:
    """Return the loss of a batch of data parameters, a number.

    Parameters
    ----------
    losses : (N,) Tensor
        Cross-entropy of each candidate.
    parameters, foreground
        See :func:`batch_weights`.
    share : (N,) Tensor
        Predicted foreground of the candidate's image, as share of its voxels; a constant.
    risk, fixed_weighting : bool
        Whether the two terms are used. The reward of `share` is not divided by the size of the candidate's label, or small
        candidates would gain most from it, but by the mean of the divisors, so that it keeps its size beside the loss.
        It compares images: among the candidates of one image it is the same for all.
    """
    relative = batch_weights(parameters, foreground, fixed_weighting=False)
    scale = 1 / fixed_weight(foreground) if fixed_weighting else torch.ones_like(foreground)
    reward = share * scale.mean() if risk else torch.zeros_like(share)
    return ((losses * scale - reward) * relative).sum()


def predicted_share(log_probability: Tensor, sample: Sample) -> Tensor:
    """Return the predicted foreground as share of the voxels, once for each candidate of the image, (n_candidates,)."""
    foreground = (log_probability.argmax(1) > 0).float()
    share = (foreground * sample.importance).sum() / sample.importance.sum()
    return share.expand(len(sample.labels))


def batch_losses(logs: Sequence[Tensor], batch: Sequence[Sample], weight: Tensor | None = None) -> Tensor:
    """Return :func:`candidate_losses` of all candidates of a batch, (N,)."""
    pairs = zip(logs, batch, strict=True)
    return torch.cat([candidate_losses(log, sample.labels, sample.importance, weight) for log, sample in pairs])


def initial_parameters(count: int) -> nn.Embedding:
    """Return `count` data parameters of 0; sparse, so that those not in a batch keep their momenta."""
    table = nn.Embedding(count, 1, sparse=True)
    nn.init.zeros_(table.weight)
    return table


class DataParameters:
    """The data parameters of all candidates of some targets, and their optimiser.

    Attributes
    ----------
    table, label_table : Embedding
        One parameter for each candidate, and one for each label of each candidate (a single unused one without labels).
    """

    def __init__(
        self, targets: Sequence[TrainingTarget], n_labels: int, rate: float, *, per_label: bool, device: str
    ) -> None:
        counts = [len(target.labels) for target in targets]
        self.first = np.concatenate([[0], np.cumsum(counts)])
        self.n_labels, self.per_label, self.device = n_labels, per_label, device
        self.table = initial_parameters(int(self.first[-1])).to(device)
        self.label_table = initial_parameters(int(self.first[-1]) * n_labels if per_label else 1).to(device)
        tables = [self.table.weight, self.label_table.weight] if per_label else [self.table.weight]
        self.optimiser = torch.optim.SparseAdam(tables, lr=rate, betas=(0.9, 0.999))

    def rows(self, numbers: npt.NDArray[np.intp]) -> Tensor:
        """Return the rows of all candidates of the targets with these numbers."""
        rows = np.concatenate([np.arange(self.first[number], self.first[number + 1]) for number in numbers])
        return torch.as_tensor(rows, device=self.device)

    def raw(self, rows: Tensor) -> Tensor:
        """Return parameters, (N,)."""
        found: Tensor = self.table(rows)[:, 0]
        return found

    def step(
        self, rows: Tensor, batch: Sequence[Sample], logs: Sequence[Tensor], risk: bool = True, fixed_weighting: bool = True
    ) -> None:
        """Take one step with the network's log-probabilities as they are."""
        foreground = torch.cat([sample.foreground for sample in batch])
        share = torch.cat([predicted_share(log, sample) for log, sample in zip(logs, batch, strict=True)])
        loss = parameters_loss(batch_losses(logs, batch), self.raw(rows), foreground, share, risk, fixed_weighting)
        if self.per_label:
            loss = loss + self._label_loss(rows, batch, logs)
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimiser.step()  # type: ignore[no-untyped-call]

    def _label_loss(self, rows: Tensor, batch: Sequence[Sample], logs: Sequence[Tensor]) -> Tensor:
        """Return the loss of the parameters of labels: a label of a candidate competes with that of the others."""
        total, start = torch.zeros((), device=self.device), 0
        for sample, log in zip(batch, logs, strict=True):
            losses, present = label_losses(log, sample.labels, sample.importance)
            candidate, label = present.nonzero(as_tuple=True)
            index = rows[start : start + len(present)][candidate] * self.n_labels + label
            atlas_weight = torch.sigmoid(self.label_table(index)[:, 0])
            count = present.sum(0)
            mean = torch.zeros(self.n_labels, device=self.device).index_add(0, label, atlas_weight) / count.clamp(min=1)
            total = total + (losses[candidate, label] * atlas_weight / mean[label] / count[label]).sum()
            start += len(present)
        return total

    def of_target(self, number: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the parameters of a target's candidates, (n_candidates,) and (n_candidates, n_labels or 0)."""
        start, stop = int(self.first[number]), int(self.first[number + 1])
        flat: npt.NDArray[np.float32] = self.table.weight.detach().cpu().numpy()[start:stop, 0].copy()
        if not self.per_label:
            return flat, np.zeros((stop - start, 0), dtype=np.float32)
        part = self.label_table.weight.detach().cpu().numpy()[start * self.n_labels : stop * self.n_labels, 0]
        return flat, part.reshape(-1, self.n_labels).copy()
