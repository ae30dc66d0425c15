"""Load, add and verify weights. Nothing here asks a network for anything."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from popatlas.errors import InputError, SetupError
from popatlas.images.io import PathLike, atomic_path, sha256
from popatlas.networks.registration import (
    RegistrationNetwork,
    load_registration_network,
    save_registration_network,
)
from popatlas.zoo.find import ADD, find_weights
from popatlas.zoo.lock import Entry, check_lock, content_of, one_at_a_time, read_lock, read_locks, weights_folder, write_lock
from popatlas.zoo.memory import memory_of
from popatlas.zoo.metadata import (
    CONTRACT,
    RECIPE,
    SCORES,
    TRAINING,
    InputContract,
    Memory,
    Score,
    TrainingFacts,
    scores_from_json,
)

AGAIN = "fetch the file again, or add the new one under another name: " + ADD


def load_weights(name_or_path: PathLike) -> tuple[RegistrationNetwork, Entry]:
    """Load a network of the zoo.

    Parameters
    ----------
    name_or_path : str or path-like
        See `find_weights`.

    Returns
    -------
    net : RegistrationNetwork
        On the CPU, in evaluation mode.
    entry : Entry
        What is known of it.

    Raises
    ------
    SetupError
        When the weights are unknown, missing, other than those in the lock file, or of another network.
    """
    entry = find_weights(name_or_path)
    return _load(entry), entry


def _load(entry: Entry) -> RegistrationNetwork:
    if not entry.path.is_file():
        raise SetupError(f"the file of the weights {entry.name} is missing", file=entry.path, remedy=AGAIN)
    if (size := entry.path.stat().st_size) != entry.bytes:
        raise SetupError(f"the weights {entry.name} have {size} bytes, not {entry.bytes}", file=entry.path, remedy=AGAIN)
    if (digest := sha256(entry.path)) != entry.sha256:
        message = (
            f"the weights {entry.name} are not those of the lock file: SHA-256 {digest[:12]}..., not {entry.sha256[:12]}..."
        )
        raise SetupError(message, file=entry.path, remedy=AGAIN)
    net, texts = load_registration_network(entry.path)
    found = {"architecture": net.name, "ndim": net.ndim, "recipe": texts.get(RECIPE, entry.recipe)}
    found["transform"] = net.options.get("transform", entry.transform)
    for key, value in found.items():
        if value != (wanted := getattr(entry, key)):
            message = f"the file of the weights {entry.name} has {key} {value}, the lock file says {wanted}"
            raise SetupError(message, file=entry.path, remedy="correct the lock file, or add the weights again: " + ADD)
    return net.float()  # a file may hold half of the digits, which nothing is computed with


@dataclass(frozen=True)
class Description:
    """What whoever adds weights tells about them; the rest is in the file or measured.

    Attributes
    ----------
    name, version, licence, source : str
        See `popatlas.zoo.lock.Entry`.
    recipe, model_card : str or None
        See there.
    contract : InputContract or None
        For files that training did not write.
    training : TrainingFacts or None
        The same.
    transform : str or None
        For networks that have no such option.
    """

    name: str
    licence: str
    version: str = "1"
    source: str = "trained by the user"
    recipe: str | None = None
    model_card: str | None = None
    contract: InputContract | None = None
    training: TrainingFacts | None = None
    transform: str | None = None


def add_half(file: PathLike, told: Description, *, shipped: bool = False) -> Entry:
    """Copy weights into the zoo as float16, in half of the space; see `add_weights`."""
    with tempfile.TemporaryDirectory(prefix="popatlas-weights-") as folder:
        net, texts = load_registration_network(file)
        path = Path(folder) / Path(file).name
        save_registration_network(net.half(), path, texts)
        return add_weights(path, told, shipped=shipped)


def add_weights(file: PathLike, told: Description, *, shipped: bool = False) -> Entry:
    """Copy weights into the zoo and lock them.

    Parameters
    ----------
    file : path-like
        Written by `save_registration_network`.
    told : Description
        What the file does not say itself; what training wrote into it comes first.
    shipped : bool
        Into the package, for its maintainers.

    Returns
    -------
    Entry
        What was added.

    Raises
    ------
    InputError
        When the name is impossible or taken, in a lock or by a file beside it; when the file holds no finite network, or
        something is not known of it.
    """
    path = Path(file)
    _check_free(told.name, shipped, path)
    net, texts = load_registration_network(path)
    net.float()
    _check_finite(net, path)
    contract, training, scores = _facts(texts, told, path)
    if contract.ndim != net.ndim or contract.multiple % net.stride:
        message = f"the contract has {contract.ndim} axes and multiples of {contract.multiple}"
        needs = f"{net.ndim} axes and multiples of {net.stride}"
        raise InputError(f"{message}, the network needs {needs}", file=path, remedy="correct the contract")
    if net.fixed_shape and contract.shape is None:
        message = f"the network {net.name} is good for images of the one shape of its training"
        raise InputError(message, file=path, remedy="give that shape in the contract")
    recipe = texts.get(RECIPE, told.recipe)
    if told.recipe is not None and told.recipe != recipe:
        raise InputError(
            f"the file was trained by the recipe {recipe}, not {told.recipe}", file=path, remedy="leave --recipe out"
        )
    target = weights_folder(shipped) / f"{told.name}.safetensors"
    entry = Entry(
        name=told.name,
        version=told.version,
        file=target.name,
        sha256=sha256(path),
        bytes=path.stat().st_size,
        licence=told.licence,
        source=told.source,
        recipe=recipe,
        architecture=net.name,
        ndim=net.ndim,
        transform=net.options.get("transform") or told.transform or "displacement",
        training=training,
        input=contract,
        memory=_memory(net, path),
        scores=scores,
        model_card=told.model_card,
        folder=target.parent,
    )
    with one_at_a_time(shipped):
        _put(path, entry, _check_free(told.name, shipped, path), shipped)
    return entry


def _memory(net: RegistrationNetwork, path: Path) -> Memory:
    """Return what a prediction needs; InputError when the network does not run at all."""
    try:
        return memory_of(net)
    except Exception as error:  # whatever an option that a constructor takes as it is does later
        message = f"the network does not run: {type(error).__name__}: {error}"
        raise InputError(message, file=path, remedy="train it again, or correct its options") from error


def _check_free(name: str, shipped: bool, path: Path) -> list[Entry]:
    """Return the entries of a lock file; InputError when the name of new weights is taken."""
    own = read_lock(shipped)
    if name in {entry.name for entry in (own if shipped else read_locks())}:
        raise InputError(f"there are weights {name!r} already", file=path, remedy="give another --name")
    return own


def _put(path: Path, entry: Entry, others: Sequence[Entry], shipped: bool) -> None:
    """Copy a file to its place, unless it lies there, and lock it; a file that was there before is left as it is."""
    try:
        check_lock(content_of([*others, entry]))  # the name too, before it is taken for the one of a file
    except ValueError as error:
        raise InputError(f"the weights cannot be described: {error}", file=path, remedy="correct the options") from error
    target = entry.path
    there = target.exists()
    if there and not target.samefile(path):
        raise InputError(
            f"there is a file of the name {entry.name!r} that is in no lock",
            file=target,
            remedy="move it away or add it first, or give another --name",
        )
    if not there:
        with atomic_path(target) as temporary:
            shutil.copyfile(path, temporary)
    try:
        write_lock([*others, entry], shipped)
    except OSError:
        if not there:
            target.unlink()
        raise


def _facts(
    texts: Mapping[str, str], told: Description, path: Path
) -> tuple[InputContract, TrainingFacts, tuple[Score, ...]]:
    """Return contract, training and scores, from the file where training wrote them, otherwise from what was told."""
    try:
        contract = InputContract.from_json(texts[CONTRACT]) if CONTRACT in texts else told.contract
        training = TrainingFacts.from_json(texts[TRAINING]) if TRAINING in texts else told.training
        scores = scores_from_json(texts[SCORES]) if SCORES in texts else ()
    except (ValueError, RecursionError) as error:
        raise InputError(f"the metadata of the file are wrong: {error}", file=path, remedy="train it again") from error
    if contract is None:
        raise InputError("the file does not say which images it expects", file=path, remedy="give --contract FILE")
    if training is None:
        raise InputError("the file does not say what it was trained on", file=path, remedy="give --trained-on TEXT")
    return contract, training, scores


def _check_finite(net: RegistrationNetwork, path: Path) -> None:
    """Refuse weights that are NaN or infinite."""
    wrong = [name for name, value in net.state_dict().items() if not bool(value.isfinite().all())]
    if wrong:
        message = f"{len(wrong)} tensors are not finite, the first one is {wrong[0]}"
        raise InputError(message, file=path, remedy="train the network again, with a smaller learning rate")


def verify(names: Sequence[str] = ()) -> Iterator[tuple[str, str | None]]:
    """Check weights: the file, its size and digest, that it loads as the network of the lock, and that it is finite.

    Parameters
    ----------
    names : sequence of str
        Weights to check; all when empty.

    Yields
    ------
    name : str
        Weights.
    problem : str or None
        What is wrong, in one line.
    """
    known = {entry.name: entry for entry in read_locks()}
    for name in names or known:
        try:
            entry = known.get(name) or find_weights(name)
            _check_finite(_load(entry), entry.path)
        except InputError as error:
            yield name, " ".join(str(error).split())
        else:
            yield name, None
