"""Lock files of the zoo, and the command line that reads and writes them."""

import json
from dataclasses import replace

import pytest
import torch
import yaml

from popatlas.cli.main import main
from popatlas.errors import InputError
from popatlas.images.io import sha256
from popatlas.networks.registration import build_registration_network, save_registration_network
from popatlas.zoo import lock
from popatlas.zoo.lock import check_lock, estimate_from_lock, read_lock, read_locks, user_folder
from popatlas.zoo.memory import estimate_memory
from popatlas.zoo.store import add_weights, verify
from tests.unit.zoo.locked import TOLD, folder, relock, trained
from tests.zoo import CONTRACT_2D

__all__ = ["folder"]  # a fixture


def test_lock_files_allow_nothing_unknown(folder):
    trained(folder / "a.safetensors")
    entry = add_weights(folder / "a.safetensors", TOLD).to_plain()
    check_lock({"weights": [entry]})
    bad = {
        "colour": lambda e: e | {"colour": "red"},
        "sha256": lambda e: e | {"sha256": "ABC"},
        "file": lambda e: e | {"file": "../tiny.safetensors"},
        "axes": lambda e: e | {"input": e["input"] | {"axes": 3}},
        "order": lambda e: e | {"input": e["input"] | {"order": ["moving", "fixed"]}},
        "'licence' is a required": lambda e: {key: value for key, value in e.items() if key != "licence"},
    }
    for message, change in bad.items():
        with pytest.raises(ValueError, match=message):
            check_lock({"weights": [change(entry)]})
    with pytest.raises(ValueError, match="the name tiny is there 2 times"):
        check_lock({"weights": [entry, entry]})
    for text in ("weights: [", "no: lock", "weights: [1]"):
        (folder / "own" / "weights.lock.yaml").write_text(text)
        with pytest.raises(
            InputError, match=r"lock file of the weights cannot be read.*weights\.lock\.yaml.*Remedy: repair"
        ):
            read_locks()


def test_the_folder_of_the_user_follows_the_environment(monkeypatch, tmp_path):
    assert user_folder() == tmp_path / "own"
    monkeypatch.delenv("POPATLAS_WEIGHTS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert user_folder() == tmp_path / "data" / "popatlas" / "weights"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_folder() == tmp_path / ".local" / "share" / "popatlas" / "weights"


def test_memory_is_known_from_the_lock_alone(folder):
    net = trained(folder / "a.safetensors")
    entry = add_weights(folder / "a.safetensors", TOLD)
    entry.path.unlink()
    asked = estimate_from_lock(entry, (250, 380), batch=2)
    assert asked == pytest.approx(estimate_memory(net, (256, 384), batch=2), rel=0.03)
    fixed = replace(entry, input=replace(entry.input, shape=(64, 64)))
    assert estimate_from_lock(fixed, (250, 380)) == entry.memory.of(64 * 64)
    usual = replace(entry, input=replace(entry.input, usual_shape=(64, 400)))
    assert estimate_from_lock(usual, (250, 380)) == entry.memory.of(256 * 400)


def test_the_command_line_adds_lists_shows_and_verifies(folder, capsys):
    trained(folder / "bare.safetensors", texts={})
    (folder / "contract.yaml").write_text(yaml.safe_dump(CONTRACT_2D.to_plain()))
    assert main(["weights", "list"]) == 0
    assert "no weights" in capsys.readouterr().out
    told = ["--name", "tiny", "--licence", "MIT", "--recipe", "r1", "--card", "zoo/tiny.md", "--version", "2.1"]
    told += ["--contract", str(folder / "contract.yaml"), "--trained-on", "heads"]
    assert main(["weights", "add", str(folder / "bare.safetensors"), *told]) == 0
    trained(folder / "full.safetensors", seed=1)
    assert main(["weights", "add", str(folder / "full.safetensors"), "--name", "other", "--licence", "MIT"]) == 0
    capsys.readouterr()
    assert main(["weights", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for word in ("tiny", "2.1", "2D", "r1", "MIT", "RA, 2 mm, any shape, minmax intensity, brain, after affine"):
        assert word in lines[1]
    assert "dice 0.75 (held-out heads, n=4)" in lines[2]
    assert main(["weights", "list", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["tiny", "other"]
    assert main(["weights", "show", "tiny"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["model_card"], shown["training"]["data"]) == ("zoo/tiny.md", "heads")
    assert shown["path"] == str(folder / "own" / "tiny.safetensors")
    assert main(["weights", "verify"]) == 0
    assert capsys.readouterr().out == "ok      tiny\nok      other\n"
    (folder / "own" / "tiny.safetensors").write_bytes(b"nothing")
    assert main(["weights", "verify"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 and out[0].startswith("FAILED  tiny: the weights tiny have 7 bytes") and out[1] == "ok      other"
    assert main(["weights", "verify", "other"]) == 0
    assert main(["weights", "verify", "othr"]) == 1
    capsys.readouterr()
    assert main(["weights", "show", "othr"]) == 1
    assert "did you mean other?" in capsys.readouterr().err


def test_verify_finds_what_loading_does_not_look_at(folder):
    net = build_registration_network("fast", 2, widths=[4, 8], blocks=[0, 0])
    trained(folder / "a.safetensors")
    path = add_weights(folder / "a.safetensors", TOLD).path
    with torch.no_grad():
        net.head.flow.bias[0] = torch.inf
    save_registration_network(net, path, {})
    relock(sha256=sha256(path), bytes=path.stat().st_size, recipe=None)
    ((name, problem),) = verify()
    assert name == "tiny" and "not finite" in problem


def test_a_wrong_contract_file_is_refused(folder, capsys):
    trained(folder / "bare.safetensors", texts={})
    (folder / "contract.yaml").write_text("spacing_mm: [1, 1]\nsize: 3\n")
    told = ["--name", "tiny", "--licence", "MIT", "--contract", str(folder / "contract.yaml")]
    assert main(["weights", "add", str(folder / "bare.safetensors"), *told]) == 1
    error = capsys.readouterr().err
    assert "InputContract: unknown key 'size'" in error and "InputContract.multiple: Field required" in error


def test_the_weights_of_the_package_are_those_of_its_lock(monkeypatch):
    from pathlib import Path

    monkeypatch.setattr(lock, "SHIPPED", Path(lock.__file__).parent)
    entries = read_lock(shipped=True)
    assert {entry.name: problem for entry, (_, problem) in zip(entries, verify([e.name for e in entries]), strict=True)} == {
        entry.name: None for entry in entries
    }
    files = {path.name for path in (lock.SHIPPED / "weights").glob("*.safetensors")}
    assert files == {entry.file for entry in entries}
