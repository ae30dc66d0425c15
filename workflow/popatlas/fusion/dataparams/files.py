"""Files of trained data parameters: the network with its label values and settings, and the table of data parameters.

The network is a safetensors file; label values and settings are JSON in its metadata. The parameters are a Parquet table
with a row for each candidate of each target (label -1: the whole candidate) and, where labels have parameters of their
own, one for each label that the candidate has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from popatlas.errors import InputError
from popatlas.fusion.dataparams.data import TrainingTarget
from popatlas.fusion.dataparams.train import DataParametersResult
from popatlas.fusion.settings import DataParametersSettings
from popatlas.images.io import PathLike, read_json, read_table, write_table
from popatlas.networks.segmentation import SegmentationNet, load_network, save_network
from popatlas.settings import settings_from

Labels = npt.NDArray[np.int64]
WHOLE = -1  # in the column `label`
COLUMNS = ("target", "atlas", "label", "parameter")
LABELS, SETTINGS = "labels", "trust_settings"  # entries of the metadata
TRAIN_AGAIN = "remove the network and its parameters, so that they are trained again"
# options that training does not depend on
OF_THE_RUN = ("preset", "targets", "votes", "network_weight", "gate_quality", "gpu")


@dataclass(frozen=True)
class DataParametersNetwork:
    """A trained network.

    Attributes
    ----------
    network : SegmentationNet
        Its class i is `labels[i]`.
    labels : (n_labels,) int64 ndarray
        Label values, background first.
    settings : DataParametersSettings
        How it was trained; data parameters of new targets are estimated in the same way.
    """

    network: SegmentationNet
    labels: Labels
    settings: DataParametersSettings


@dataclass(frozen=True)
class TargetParameters:
    """Data parameters of the candidates of one target, not through the sigmoid.

    Attributes
    ----------
    parameters : (n_candidates,) float32 ndarray
        Of each candidate.
    label_parameters : (n_candidates, n_labels) float32 ndarray or None
        Of each label of each candidate, 0 for labels that it does not have; None where none were learned.
    """

    parameters: npt.NDArray[np.float32]
    label_parameters: npt.NDArray[np.float32] | None = None

    @classmethod
    def of(cls, result: DataParametersResult, target: str) -> TargetParameters:
        """Return what training found for one target."""
        return cls(result.parameters[target], result.label_parameters.get(target))


def training_json(settings: DataParametersSettings) -> str:
    """Return the settings that training depends on, for the metadata of a network."""
    return json.dumps({key: value for key, value in asdict(settings).items() if key not in OF_THE_RUN})


def save_data_parameters(
    result: DataParametersResult,
    targets: Sequence[TrainingTarget],
    atlases: Mapping[str, Sequence[str]],
    settings: DataParametersSettings,
    network: PathLike,
    parameters: PathLike,
) -> None:
    """Write what training found.

    Parameters
    ----------
    result : DataParametersResult
        Network and parameters.
    targets : sequence of TrainingTarget
        What it was trained on: tells which labels a candidate has.
    atlases : mapping
        Name of each target to those of its candidates, in their order.
    settings : DataParametersSettings
        How it was trained.
    network : path-like
        Output file, `.safetensors`.
    parameters : path-like
        Output file, `.parquet`.
    """
    write_table(parameter_table(result, targets, atlases), parameters)
    save_labelled(result.network, result.labels, {SETTINGS: training_json(settings)}, network)


def parameter_table(
    result: DataParametersResult, targets: Sequence[TrainingTarget], atlases: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Return the parameters with the columns `COLUMNS`; see :func:`save_data_parameters`."""
    parts = [pd.DataFrame({name: [] for name in COLUMNS})]
    for target in targets:
        learned = TargetParameters.of(result, target.name)
        for number, atlas in enumerate(atlases[target.name]):
            labels, values = [WHOLE], [learned.parameters[number]]
            if learned.label_parameters is not None:
                present = np.unique(target.labels[number])
                labels += result.labels[present].tolist()
                values += learned.label_parameters[number, present].tolist()
            parts.append(pd.DataFrame({"target": target.name, "atlas": atlas, "label": labels, "parameter": values}))
    table = pd.concat(parts[1:] or parts, ignore_index=True)
    return table.astype({"target": str, "atlas": str, "label": np.int64, "parameter": np.float32})


def load_trained(path: PathLike) -> DataParametersNetwork:
    """Read the network that :func:`save_data_parameters` wrote.

    Raises
    ------
    InputError
        A file that is missing, damaged, or holds another kind of network.
    """
    network, labels, texts = load_labelled(path)
    if SETTINGS not in texts:
        raise InputError(
            "the network was not trained for data parameters", file=path, remedy="give that of TrainDataParameters"
        )
    try:
        settings = settings_from(DataParametersSettings, json.loads(texts[SETTINGS]), "settings of the network")
    except (InputError, ValueError, RecursionError) as error:
        message = error.message if isinstance(error, InputError) else f"settings of the network: {error}"
        raise InputError(message, file=path, remedy=TRAIN_AGAIN) from error
    return DataParametersNetwork(network, labels, settings)


def load_parameters(path: PathLike, target: str, atlases: Sequence[str], labels: Labels) -> TargetParameters | None:
    """Read the parameters of one target.

    Parameters
    ----------
    path : path-like
        Table of :func:`save_data_parameters`.
    target : str
        Name of the target.
    atlases : sequence of str
        Names of its candidates, in any order; the parameters come in this one.
    labels : (n_labels,) int64 ndarray
        Label values of the network.

    Returns
    -------
    TargetParameters or None
        None when the target was not trained on, or not with these atlases.

    Raises
    ------
    InputError
        A table that cannot be read, or of another network.
    """
    table = read_table(path)
    if missing := [column for column in COLUMNS if column not in table.columns]:
        raise InputError(f"columns {missing} are missing", file=path, remedy=TRAIN_AGAIN)
    rows = table[table["target"] == target]
    whole = rows[rows["label"] == WHOLE].set_index("atlas")["parameter"]
    if sorted(whole.index) != sorted(atlases):
        return None
    parameters = whole.loc[list(atlases)].to_numpy(np.float32)
    rows = rows[rows["label"] != WHOLE]
    if rows.empty:
        return TargetParameters(parameters)
    if not np.isin(rows["label"], labels).all():
        raise InputError("parameters of labels that the network does not know", file=path, remedy=TRAIN_AGAIN)
    by_label = np.zeros((len(atlases), len(labels)), dtype=np.float32)
    number = {atlas: place for place, atlas in enumerate(atlases)}
    by_label[rows["atlas"].map(number), np.searchsorted(labels, rows["label"])] = rows["parameter"]
    return TargetParameters(parameters, by_label)


def save_labelled(network: SegmentationNet, labels: Labels, texts: Mapping[str, str], path: PathLike) -> None:
    """Write a network with the label values of its classes, (n_labels,), and other texts."""
    save_network(network, path, {**texts, LABELS: json.dumps(labels.tolist())})


def load_labelled(path: PathLike) -> tuple[SegmentationNet, Labels, dict[str, str]]:
    """Read a network, its label values (n_labels,) and the other texts that :func:`save_labelled` wrote.

    Raises
    ------
    InputError
        A file that is missing, damaged, or does not tell one label for each class.
    """
    network, texts = load_network(path)
    try:
        labels = np.array(json.loads(texts.pop(LABELS, "[]")), dtype=np.int64)
    except (TypeError, ValueError, OverflowError, RecursionError):
        labels = np.zeros(0, dtype=np.int64)
    if labels.shape != (network.n_labels,) or labels[0] != 0 or (np.diff(labels) <= 0).any():
        message = f"the network has {network.n_labels} classes and does not tell their labels"
        raise InputError(message, file=path, remedy="give a network that popatlas trained on labels")
    return network, labels, texts


def gate_quality(path: PathLike, subject: str | None = None) -> float:
    """Return the quality of a registration from its gate file, 0 to 1: the correlation of the images after it."""
    found = read_json(path).get("ncc")
    if not isinstance(found, int | float) or not np.isfinite(found):
        message = f"the gate of a registration tells no correlation (ncc is {found})"
        raise InputError(message, file=path, subject=subject, remedy="register the atlas again")
    return float(np.clip(found, 0, 1))
