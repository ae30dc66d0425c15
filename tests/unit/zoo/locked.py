"""Networks in a lock file of their own."""

from dataclasses import replace

import pytest
import torch

from popatlas.networks.registration import build_registration_network, save_registration_network
from popatlas.zoo import lock
from popatlas.zoo.lock import read_lock, write_lock
from popatlas.zoo.metadata import CONTRACT, RECIPE, SCORES, TRAINING, scores_to_json
from popatlas.zoo.store import Description
from tests.zoo import CONTRACT_2D, FACTS, SCORE

TOLD = Description("tiny", "CC-BY-4.0")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Empty lock files, that of the package too."""
    monkeypatch.setenv("POPATLAS_WEIGHTS", str(tmp_path / "own"))
    monkeypatch.setattr(lock, "SHIPPED", tmp_path / "package")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "weights.lock.yaml").write_text("weights: []\n")
    return tmp_path


def trained(path, seed=0, texts=None, **options):
    """Write a small network as training does."""
    torch.manual_seed(seed)
    net = build_registration_network("fast", 2, **({"widths": [4, 8, 8], "blocks": [0, 0, 0]} | options))
    facts = {CONTRACT: CONTRACT_2D.to_json(), TRAINING: FACTS.to_json(), SCORES: scores_to_json([SCORE]), RECIPE: "light"}
    save_registration_network(net, path, facts if texts is None else texts)
    return net


def relock(**changes):
    """Change the entry of the user's only weights."""
    write_lock([replace(read_lock(shipped=False)[0], **changes)], shipped=False)
